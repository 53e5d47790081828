"""Norm-weighted attention and scores of a running model, made of its queries, keys and values.

Norms need the output projection, which is found by what the model does with the output: no name of
a module or of an architecture is known here. The output of a call is watched on its way, and the
first matrix that it is multiplied with, its heads merged one after the other, is W_O. Functions
that change numbers, as gates and norms do, may not come between, for then weights and W_O do not
tell what a head moves.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attnviz.engine.call import Call
from attnviz.engine.reducers import compute_weights
from attnviz.errors import ModelError
from attnviz.layer.arrays import widen_to_single
from attnviz.layer.norms import (
    compute_inner_products,
    compute_moved_vectors,
    measure_sum_lengths,
    measure_vector_lengths,
)

PRODUCTS = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}
KEYS = 64  # keys whose vectors are held at once
CELLS = 1 << 19  # weights of all heads that are held at once for their sum
UNPROJECTED = (
    "norm-weighted attention needs the matrix that merged heads are multiplied with, and this "
    "model does something else with them: use the weights"
)
VALUELESS = (
    "norm-weighted attention and scores are made of queries, keys and values, which are not there "
    "where a model shows its weights alone or writes a text: use the weights"
)

Arrive = Callable[[Tensor, Tensor], None]
"""A function that is shown what is multiplied, and the matrix it meets."""


class WatchedOutput(Tensor):
    """The output of a call, (1, N, H, d_v), until it is multiplied with W_O.

    It is a tensor that knows it is watched: every function of torch that is given it runs through
    ``__torch_function__``, and results that hold as many numbers are watched in its place.
    """

    arrive: Arrive
    """Is shown what is multiplied, and the matrix (H * d_v, dim) as far as it is one."""

    @classmethod
    def watch(cls, output: Tensor, arrive: Arrive) -> "WatchedOutput":
        """Return an output of attention as a tensor of the same numbers that is watched.

        output: (1, query, head, d_v). arrive: is called with what is multiplied, and the matrix,
        when the output meets one.
        """
        watched = output.as_subclass(cls)
        watched.arrive = arrive
        return watched

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch that is given a watched output, or what was made of it.

        A matrix product is announced to ``arrive`` and ends the watch. The result of any other
        function is watched in turn if it holds as many numbers.
        """
        kwargs = kwargs or {}
        watched = find_watched_output(cls, (*args, *kwargs.values()))
        with torch._C.DisableTorchFunctionSubclass():
            # It stands in a list of tensors: what is made of these is not followed.
            if watched is None:
                return func(*args, **kwargs)
            factors = find_factors(func, args, kwargs)
            if factors is not None:
                watched.arrive(*factors)
                return func(*args, **kwargs)
            result = func(*args, **kwargs)
            if not has_as_many_numbers(result, watched):
                return result
            return cls.watch(result, watched.arrive)


def find_watched_output(
    kind: type[WatchedOutput],
    arguments: tuple[Any, ...],
) -> WatchedOutput | None:
    """Return the first argument that is a watched output, or None."""
    for argument in arguments:
        if isinstance(argument, kind):
            return argument
    return None


def has_as_many_numbers(result: Any, watched: Tensor) -> bool:
    """Return whether the result of a function holds as many numbers as a watched tensor."""
    if not isinstance(result, Tensor):
        return False
    return result.numel() == watched.numel() and result.is_floating_point()


def find_factors(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor] | None:
    """Return the two factors of a matrix product, in their order, as tensors.

    func, args, kwargs: a function of torch and its arguments. Returns None if it is no matrix
    product.
    """
    if func is functional.linear:
        named = dict(zip(("input", "weight"), args, strict=False)) | kwargs
        return named["input"], named["weight"].mT
    if func is torch.addmm and len(args) == 3:
        return args[1], args[2]
    if func in PRODUCTS and len(args) == 2:
        return args[0], args[1]
    return None


def require_projection(output: Tensor, merged: Tensor, matrix: Tensor) -> Tensor:
    """Return the matrix W_O by which a model multiplies its merged heads.

    output: what the heads put out, (1, query, head, d_v). merged, matrix: the factors of the
    product that was seen; ``merged`` must hold the numbers of the output, the heads of a query
    beside each other.
    Returns (head * d_v, dim). Raises ModelError if something else is multiplied, or the second
    factor is no such matrix.
    """
    merged_heads = output[0].flatten(1)  # (query, head * d_v)
    merged_heads = merged_heads.to(merged.dtype)
    width = merged_heads.shape[1]
    is_matrix = matrix.ndim == 2 and len(matrix) == width and matrix.is_floating_point()
    if not holds_same_numbers(merged, merged_heads) or not is_matrix:
        raise ModelError(UNPROJECTED)
    return matrix.detach()


def holds_same_numbers(array: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold equal numbers in one order, in whatever shape."""
    if array.numel() != other.numel():
        return False
    return torch.equal(array.reshape(other.shape), other)


def measure_head_lengths(call: Call, projection: Tensor, heads: tuple[int, ...]) -> Tensor:
    """Measure the length of the vector that each of some heads moves from each key.

    That vector is the value of the key times the head's part of W_O. projection: W_O, (all heads *
    d_v, dim). heads: the numbers of the heads. Returns (head, key), on the CPU.
    """
    chunks = [measure_vector_lengths(vectors) for vectors in move_keys(call, projection, heads)]
    return torch.cat(chunks, 1).float().cpu()


def measure_summed_lengths(
    call: Call,
    projection: Tensor,
    heads: tuple[int, ...],
    rows: slice,
    columns: slice,
) -> Tensor:
    """Measure the length of the sum of the vectors that some heads move from a key to a query.

    A head moves the value of the key times the head's part of W_O, times the weight. projection:
    W_O, (all heads * d_v, dim). heads: the numbers of the heads. rows, columns: the queries and the
    keys to measure. Returns (1, query, key), on the CPU.
    The weights of all heads are there for a few queries at once; all other numbers that are held
    are linear in the length of the text.
    """
    chunks = [
        compute_inner_products(vectors.cpu()) for vectors in move_keys(call, projection, heads)
    ]
    inner_products = torch.cat(chunks)[columns]  # (key, head, head)
    summed_rows = []
    for block in split_queries(call, heads, rows):
        weights = compute_weights(block, columns)[0]
        summed_rows.append(measure_sum_lengths(weights, inner_products).float())
    return torch.cat(summed_rows)[None]


def move_keys(call: Call, projection: Tensor, heads: tuple[int, ...]) -> Iterator[Tensor]:
    """Compute the vectors that some heads move from the keys, a few keys at once.

    projection: W_O, (all heads * d_v, dim). heads: the numbers of the heads. Yields (head, key,
    dim).
    """
    by_head = projection.view(call.query.shape[1], -1, projection.shape[1])
    chosen = by_head[list(heads)].flatten(0, 1)
    matrix = widen_to_single(chosen)  # (head * d_v, dim)
    (values,) = call.pick_heads(heads).value
    for some_values in torch.split(values, KEYS, 1):
        yield compute_moved_vectors(some_values, matrix)


def compute_window_scores(
    call: Call,
    heads: tuple[int, ...],
    rows: slice,
    columns: slice,
) -> Tensor:
    """Compute the scores of some heads before their softmax, for some queries and keys.

    heads: the numbers of the heads. rows, columns: the queries and the keys. Returns (head, query,
    key), 0 where masked, on the CPU.
    """
    blocks = []
    for block in split_queries(call, heads, rows):
        scores = compute_all_scores(block)[0]
        blocks.append(scores[..., columns].cpu())
    return torch.cat(blocks, 1)


def compute_all_scores(call: Call) -> Tensor:
    """Compute the scores of a call as its softmax is given them, 0 where masked.

    The call must have a key head for each of its heads. Returns (batch, head, query, key).
    """
    key = call.key.float().mT
    scores = call.query.float() @ key * call.scale
    if call.softcap is not None:
        scores = (scores / call.softcap).tanh() * call.softcap
    for mask in call.masks:
        if mask.dtype != torch.bool:
            scores = scores + mask
    return scores.where(call.find_visible_cells(), 0).float()


def split_queries(call: Call, heads: tuple[int, ...], rows: slice) -> Iterator[Call]:
    """Split a call of attention into calls of some of its heads and a few queries at once.

    heads: the numbers of the heads. rows: the queries. Each call is so small that not too many
    weights are held at once.
    """
    chosen = call.pick_heads(heads)
    positions = torch.arange(call.query.shape[2], device=call.query.device)
    cells_a_query = chosen.key.shape[2] * len(heads)
    queries_at_once = max(1, CELLS // cells_a_query)
    for queries in torch.split(positions[rows], queries_at_once):
        yield chosen.pick_queries(queries)
