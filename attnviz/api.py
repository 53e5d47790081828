"""The Python interface: one function that captures, from a name or from a module that is loaded already."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from attnviz.derived import Source, taken
from attnviz.errors import InputError, UsageError
from attnviz.escape import escape, require_unicode
from attnviz.methods import MADE_OF, OF_A_PREDICTION, Shown
from attnviz.record import ATTENTION, Capture
from attnviz.request import DType, Keep, Placement, Prompt, Request
from attnviz.selection import Named, Selection, parse, parse_heads, select

if TYPE_CHECKING:
    from torch import nn


def capture(
    text: str | None = None,
    model: "str | os.PathLike[str] | nn.Module" = "builtin",
    *,
    tokenizer: Any = None,
    inputs: Any = None,
    pair: str | None = None,
    target: str | None = None,
    layers: str | int = "all",
    heads: str | int = "all",
    keep: Keep = "weights",
    tiles: int = 64,
    method: Shown = "attention",
    target_token: str | None = None,
    device: str = "auto",
    dtype: DType = "auto",
) -> Capture:
    """Run a model and keep its attention.

    model: a name (``builtin``, a folder, an alias, a hub id), a transformers model, or any ``torch.nn.Module``, which
    is left as it was found. The model in a wrapper is looked for: torch.compile, DataParallel, peft,
    sentence-transformers, a pipeline. text: what it reads; of a loaded transformers model with its ``tokenizer``,
    unless the wrapper has one. inputs: instead of a text, what a loaded model is called with: a tensor, a NumPy array,
    a sequence of arguments or a mapping of named ones; one text. They are left as they are, a cache of keys and values
    too. pair: a second text, for models of pairs. target: the text of the decoder of an encoder-decoder.

    layers, heads: ``"0,3"``, ``"-1"``, ``"2-5"``, ``"all"``, heads also ``"L5H3"``. keep: ``weights`` (layer, head,
    query, key) in float32; ``tiles``, their means and maxima over at most ``tiles`` x ``tiles`` tiles, and
    ``statistics``, both linear in the length of the text; ``edges``, the strongest of each query. device and dtype are
    for models by name.

    method: ``attention``, the weights, or what is kept in their place, cell by cell: ``norm``, how long the vectors are
    that heads move (Kobayashi et al. 2020); ``gradient``, weights times their gradients where positive, and ``chefer``,
    these through the layers (Chefer et al. 2021), of the logit of ``target_token``, one token or a class, else of the
    likeliest; ``rollout``, attention through the layers (Abnar & Zuidema 2020); ``scores`` before the softmax. Notes of
    the capture say what its numbers are.

    Raises AttnvizError: UsageError, ModelError or InputError.
    """
    require_texts({"text": text, "pair": pair, "target": target, "target_token": target_token})
    require_one_of(keep, Keep, "keep")
    require_one_of(method, Shown, "method")
    require_numbers(method, target_token, keep, heads, from_text=inputs is None)
    require_one_of(dtype, DType, "dtype")
    if tiles < 1:
        raise UsageError(f"tiles={tiles}: there is at least one on a side")
    if inputs is not None and (text, pair, target) != (None, None, None):
        raise UsageError("a model reads a text, or inputs=, not both")
    request = Request(chosen(layers, parse), chosen(heads, parse_heads), keep=keep, tiles=tiles)
    if isinstance(model, (str, os.PathLike)):
        from attnviz.models import load

        read, prompt = (
            load(os.fspath(model), placement=Placement(device, dtype), predicts=method in OF_A_PREDICTION),
            given(text),
        )
        return asked(partial(read.capture, Prompt(prompt, pair, target)), request, method, target_token)
    return asked(partial(of_loaded, model, tokenizer, inputs, (text, pair, target)), request, method, target_token)


def of_loaded(
    model: "nn.Module", tokenizer: Any, inputs: Any, texts: tuple[str | None, str | None, str | None], request: Request
) -> Capture:
    """What a request asks of a model that is loaded already. texts: what it reads, its pair and its target."""
    if "torch" not in sys.modules:
        raise UsageError(f"model= is of type {type(model).__name__}: give a name, a folder or a loaded model")
    from attnviz.models.wrappers import describe_module, is_transformers_model, read_tokenizer, unwrap_model

    parts = unwrap_model(model)
    if not is_transformers_model(parts.model):
        from attnviz.models.modules import capture_module

        if inputs is None:
            raise UsageError(describe_module(parts.model))
        return capture_module(parts.model, inputs, request)
    from attnviz.models.huggingface.model import HuggingFace

    own = parts.tokenizer if tokenizer is None else tokenizer
    reader = HuggingFace(type(parts.model).__name__, parts.model, read_tokenizer(own))
    if inputs is not None:
        return reader.capture_inputs(inputs, request)
    if reader.tokenizer is None:
        raise UsageError("a loaded model needs its tokenizer= to read a text, or inputs=")
    capture = reader.capture(Prompt(given(texts[0]), *texts[1:]), request)
    if not parts.prompt:
        return capture
    note = f"{type(model).__name__} puts the prompt {parts.prompt!r} before each text, which is left out here"
    return replace(capture, notes=(*capture.notes, escape(note)))


def asked(source: Source, request: Request, method: Shown, token: str | None) -> Capture:
    """What a source has for a request, as numbers of a method."""
    if method == ATTENTION:
        return source(request)
    found = taken(source, request, method, token)
    return select(found, request.layers, request.heads) if method in MADE_OF else found


def require_numbers(method: Shown, token: str | None, keep: Keep, heads: str | int, *, from_text: bool) -> None:
    """Raise UsageError for what a method makes no sense of."""
    if token is not None and method not in OF_A_PREDICTION:
        raise UsageError(f"target_token= has no effect without method= {' or '.join(OF_A_PREDICTION)}: leave it out")
    if method != ATTENTION and keep != "weights":
        raise UsageError(f"method={method!r} is kept cell by cell: leave keep= out")
    if method in MADE_OF and heads != "all":
        raise UsageError(f"method={method!r} has one head a layer, made of all: leave heads= out")
    if method in OF_A_PREDICTION and not from_text:
        raise UsageError(f"method={method!r} is of what a model says of a text: give text=, not inputs=")


def from_arrays(
    weights: Any,
    *,
    visible: Any = None,
    tokens: Sequence[str] | None = None,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Capture:
    """A capture of attention from elsewhere, to be drawn and measured as any other.

    weights: numbers (query, key), (head, query, key) or (layer, head, query, key), as an array or a tensor; or a
    sequence of such of the layers, as transformers returns them: (1, head, query, key), of one text. visible: booleans
    that broadcast to them. tokens, or queries and keys: what they say. layers, heads: their numbers. Where nothing is
    above the diagonal, it is taken for a causal mask, as the capture's notes say. Raises InputError.
    """
    from attnviz.io.foreign_arrays import Given, build, read_array

    sides = {"tokens": tokens, "queries": queries, "keys": keys, "layers": layers, "heads": heads}
    try:
        labels = {name: read_labels(name, values) for name, values in sides.items() if values is not None}
        mask = None if visible is None else read_array(visible, "visible")
        return build("arrays", Given(read_array(weights, "weights"), mask, labels))
    except ValueError as error:
        raise InputError(f"from_arrays: {error}") from error


def read_labels(name: str, values: Any) -> list[Any]:
    """Read the names of tokens, or the numbers of layers or heads. Raises ValueError, or InputError for no Unicode."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ValueError(f"{name}= is of type {type(values).__name__}: give a list")
    labels = values.tolist() if hasattr(values, "tolist") else list(values)
    if not isinstance(labels, list):
        raise ValueError(f"{name}= holds one value: give a list")
    for number, label in enumerate(labels):
        if isinstance(label, str):
            require_unicode(label, f"from_arrays: {name}[{number}]")
    return labels


def require_texts(texts: dict[str, Any]) -> None:
    """Raise UsageError for a text, by its name, that is no str, InputError for one that is no Unicode."""
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise UsageError(f"{name}= is of type {type(text).__name__}: give one str")
        require_unicode(text or "", f"{name}=")


def require_one_of(value: str, allowed: Any, name: str) -> None:
    """Raise UsageError unless a value is one of a literal type."""
    if value not in get_args(allowed):
        raise UsageError(f"{name}={value!r}: must be one of {', '.join(get_args(allowed))}")


def given(text: str | None) -> str:
    """The text, which there must be. Raises UsageError."""
    if not text:
        raise UsageError("there is no text to read")
    return text


def chosen(selection: str | int, parser: Any) -> Any:
    """A selection as on the command line. Raises UsageError."""
    if isinstance(selection, (Selection, Named)):
        return selection
    try:
        return parser(str(selection))
    except ValueError as error:
        raise UsageError(str(error)) from error
