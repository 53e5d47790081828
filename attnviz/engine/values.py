"""Norm-weighted attention of a running model: the output projection is found by what the model does with the output.

No name of a module or of an architecture is known here. The output of a call is watched on its way: the first matrix
that it is multiplied with, its heads merged one after the other, is W_O. What changes numbers, as gates and norms do,
may not come between, for then weights and W_O do not tell what a head moves.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attnviz.engine.blocks import Plan, Shape, attend
from attnviz.engine.call import Call
from attnviz.engine.reducers import Matrix
from attnviz.errors import ModelError
from attnviz.layer.arrays import widen
from attnviz.layer.norms import lengths, moved, products, summed

PRODUCTS = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}
KEYS = 64  # keys whose vectors are held at once
CELLS = 1 << 19  # weights of all heads that are held at once for their sum
UNPROJECTED = (
    "norm-weighted attention needs the matrix that merged heads are multiplied with, and this model does something "
    "else with them: use the weights"
)
VALUELESS = (
    "norm-weighted attention and scores are made of queries, keys and values, which are not there where a model shows "
    "its weights alone or writes a text: use the weights"
)


class Watched(Tensor):
    """The output of a call, (1, N, H, d_v), until it is multiplied with W_O."""

    arrive: Callable[[Tensor, Tensor], None]
    """Is shown what is multiplied, and the matrix (H * d_v, dim) as far as it is one."""

    @classmethod
    def of(cls, output: Tensor, arrive: Callable[[Tensor, Tensor], None]) -> "Watched":
        """The same numbers, watched."""
        made = output.as_subclass(cls)
        made.arrive = arrive
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called instead of every function of torch that is given the output, or what was made of it."""
        kwargs = kwargs or {}
        watched = next((part for part in (*args, *kwargs.values()) if isinstance(part, cls)), None)
        with torch._C.DisableTorchFunctionSubclass():
            if watched is None:  # it stands in a list
                return func(*args, **kwargs)
            factors = multiplied(func, args, kwargs)
            if factors is not None:
                watched.arrive(*factors)
                return func(*args, **kwargs)
            result = func(*args, **kwargs)
            if (
                not isinstance(result, Tensor)
                or result.numel() != watched.numel()
                or not result.is_floating_point()
            ):
                return result
            return cls.of(result, watched.arrive)


def multiplied(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor] | None:
    """The two factors of a matrix product, as torch's functions take them; None of any other function."""
    if func is functional.linear:
        given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
        return given["input"], given["weight"].mT
    if func is torch.addmm and len(args) == 3:
        return args[1], args[2]
    return tuple(args) if func in PRODUCTS and len(args) == 2 else None


def require_projection(output: Tensor, merged: Tensor, matrix: Tensor) -> Tensor:
    """W_O (H * d_v, dim), if what it is multiplied with is the output (1, N, H, d_v). Raises ModelError."""
    heads = output[0].flatten(1).to(merged.dtype)  # (N, H * d_v)
    same = merged.numel() == heads.numel() and torch.equal(merged.reshape(heads.shape), heads)
    if (
        not same
        or matrix.ndim != 2
        or len(matrix) != heads.shape[1]
        or not matrix.is_floating_point()
    ):
        raise ModelError(UNPROJECTED)
    return matrix.detach()


def head_lengths(call: Call, projection: Tensor, heads: tuple[int, ...]) -> Tensor:
    """How long the vector of each key is that some heads move: (head, M), on the CPU."""
    parts = [lengths(vectors) for vectors in vectors_of(call, projection, heads)]
    return torch.cat(parts, 1).float().cpu()


def summed_lengths(
    call: Call, projection: Tensor, heads: tuple[int, ...], rows: slice, columns: slice
) -> Tensor:
    """How long the sum is of what some heads move, (1, query, key) of a window, on the CPU.

    The weights of all heads are there for a few queries at once; what is held beside is linear in the length.
    """
    inner = torch.cat([products(vectors.cpu()) for vectors in vectors_of(call, projection, heads)])[
        columns
    ]
    found = []
    for block in blocks_of(call, heads, rows):
        plan = Plan(Shape.of(block, 64))
        kept = Matrix(plan, columns)
        attend(block, plan, (kept,))
        found.append(summed(kept.result()[0], inner).float())
    return torch.cat(found)[None]


def vectors_of(call: Call, projection: Tensor, heads: tuple[int, ...]) -> Iterator[Tensor]:
    """The vectors that some heads move, (head, key, dim), of a few keys at once."""
    every, (value,) = (
        projection.view(call.query.shape[1], -1, projection.shape[1]),
        call.heads(heads).value,
    )
    matrix = widen(every[list(heads)].flatten(0, 1))  # (head * d_v, dim)
    for some in torch.split(value, KEYS, 1):
        yield moved(some, matrix)


def scores(call: Call, heads: tuple[int, ...], rows: slice, columns: slice) -> Tensor:
    """What the softmax of some heads is given, (head, query, key) of a window, 0 where masked."""
    return torch.cat(
        [block_scores(block)[0, ..., columns].cpu() for block in blocks_of(call, heads, rows)], 1
    )


def block_scores(call: Call) -> Tensor:
    """The same of a whole call, (1, H, N, M)."""
    found = call.query.float() @ call.key.float().mT * call.scale
    if call.softcap is not None:
        found = (found / call.softcap).tanh() * call.softcap
    for mask in call.masks:
        found = found if mask.dtype == torch.bool else found + mask
    return found.where(call.visible(), 0).float()


def blocks_of(call: Call, heads: tuple[int, ...], rows: slice) -> Iterator[Call]:
    """A call of some heads, a few queries of a window at once."""
    part, queries = (
        call.heads(heads),
        torch.arange(call.query.shape[2], device=call.query.device)[rows],
    )
    for some in torch.split(queries, max(1, CELLS // (part.key.shape[2] * len(heads)))):
        yield part.rows(some)
