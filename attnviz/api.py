"""The Python interface: functions that capture, save and question attention.

Each takes a model by name, a transformers model that is loaded already, or any ``torch.nn.Module``.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_args

from attnviz.derived import CaptureSource, derive_capture
from attnviz.errors import InputError, UsageError
from attnviz.escape import escape, require_unicode
from attnviz.methods import MADE_OF, OF_A_PREDICTION, MethodName
from attnviz.record import ATTENTION, Capture
from attnviz.request import DType, Keep, Placement, Prompt, Replacement, Request, Target
from attnviz.selection import (
    parse_edge,
    parse_head_names,
    parse_heads,
    parse_numbers,
    parse_token,
    require_choice,
    select_heads,
)

if TYPE_CHECKING:
    from torch import nn

    from attnviz.models import Model
    from attnviz.results.attribution import Attribution
    from attnviz.results.comparison import ComparisonResult
    from attnviz.results.explanation import ExplanationResult
    from attnviz.results.head_roles import HeadsResult
    from attnviz.results.inspection import HeadMeasures
    from attnviz.results.intervention import InterventionResult

Parsed = TypeVar("Parsed")
AnyModel: TypeAlias = "str | os.PathLike[str] | nn.Module"


def capture(
    text: str | None = None,
    model: AnyModel = "builtin",
    *,
    tokenizer: Any = None,
    inputs: Any = None,
    pair: str | None = None,
    target: str | None = None,
    layers: str | int = "all",
    heads: str | int = "all",
    keep: Keep = "weights",
    tiles: int = 64,
    method: MethodName = "attention",
    target_token: str | None = None,
    device: str = "auto",
    dtype: DType = "auto",
) -> Capture:
    """Run a model and keep its attention.

    model: a name (``builtin``, a folder, an alias, a hub id), a transformers model, or any
    ``torch.nn.Module``, which is left as it was found. The model in a wrapper is looked for:
    torch.compile, DataParallel, peft, sentence-transformers, a pipeline. text: what it reads; of a
    loaded transformers model with its ``tokenizer``, unless the wrapper has one. inputs: instead of
    a text, what a loaded model is called with: a tensor, a NumPy array, a sequence of arguments or
    a mapping of named ones; one text. They are left as they are, a cache of keys and values too.
    pair: a second text, for models of pairs. target: the text of the decoder of an encoder-decoder.

    layers, heads: ``"0,3"``, ``"-1"``, ``"2-5"``, ``"all"``, heads also ``"L5H3"``. keep:
    ``weights`` (layer, head, query, key) in float32; ``tiles``, their means and maxima over at most
    ``tiles`` x ``tiles`` tiles, and ``statistics``, both linear in the length of the text;
    ``edges``, the strongest of each query. device and dtype are for models by name.

    method: ``attention``, the weights, or what is kept in their place, cell by cell: ``norm``, how
    long the vectors are that heads move (Kobayashi et al. 2020); ``gradient``, weights times their
    gradients where positive, and ``chefer``, these through the layers (Chefer et al. 2021), of the
    logit of ``target_token``, one token or a class, else of the likeliest; ``rollout``, attention
    through the layers (Abnar & Zuidema 2020); ``scores`` before the softmax. Notes of the capture
    say what its numbers are.

    Raises AttnvizError: UsageError, ModelError or InputError.
    """
    texts = Texts(text, pair, target)
    require_texts(texts, target_token)
    require_one_of(keep, Keep, "keep")
    require_one_of(method, MethodName, "method")
    require_numbers(method, target_token, keep, heads, from_text=inputs is None)
    require_one_of(dtype, DType, "dtype")
    if tiles < 1:
        raise UsageError(f"tiles={tiles}: there is at least one on a side")
    if inputs is not None and texts != Texts(None, None, None):
        raise UsageError("a model reads a text, or inputs=, not both")
    chosen_layers = require_choice(layers, parse_numbers)
    chosen_heads = require_choice(heads, parse_heads)
    request = Request(chosen_layers, chosen_heads, keep=keep, tiles=tiles)
    if inputs is not None and not isinstance(model, (str, os.PathLike)):
        return capture_as(
            partial(capture_inputs, model, tokenizer, inputs),
            request,
            method,
            target_token,
        )
    predicts = method in OF_A_PREDICTION
    reader = read_model(model, tokenizer, Placement(device, dtype), predicts=predicts)
    source = partial(reader.model.capture, texts.prompt())
    whole = capture_as(source, request, method, target_token)
    return replace(whole, notes=(*whole.notes, *reader.notes)) if reader.notes else whole


def intervene(
    text: str,
    model: AnyModel = "builtin",
    *,
    knock_out: str | Sequence[str] = (),
    inside: str | int = "all",
    ablate: str | None = None,
    replacement: Replacement = "zero",
    target_token: str | None = None,
    tokenizer: Any = None,
    pair: str | None = None,
    target: str | None = None,
    layers: str | int = "all",
    heads: str | int = "all",
    device: str = "auto",
    dtype: DType = "auto",
    seed: int = 0,
) -> "InterventionResult":
    """Change attention in a run of a model, and return maps and predictions before and after.

    knock_out: edges to cut before the softmax, each ``"query->key"``, a number, a word or ``*`` for
    all, in the layers or heads of ``inside`` (Geva et al. 2023). ablate: heads, such as
    ``"L0H2,L1H3"``, whose output is replaced by ``zero``, its ``mean`` over the queries, the mean
    of the values it sees (``uniform``), or its values with the weights of each row in another order
    (``permute``). target_token: the prediction asked about, by default the likeliest. layers,
    heads: those of the captures. The result has, for scale, what as many other edges or heads do.

    Raises AttnvizError: UsageError for what is not there or would change nothing, ModelError,
    InputError.
    """
    from attnviz.experiments.intervention import Subject, find_changes, make_intervention
    from attnviz.experiments.intervention import intervene as run_changes
    from attnviz.models.base import require_predictions
    from attnviz.results.intervention import InterventionResult, explain_changes

    texts = Texts(text, pair, target)
    require_texts(texts, target_token)
    require_one_of(replacement, Replacement, "replacement")
    edges = [knock_out] if isinstance(knock_out, str) else knock_out
    if not edges and ablate is None:
        raise UsageError("nothing to change: give knock_out= or ablate=")
    reader = read_model(model, tokenizer, Placement(device, dtype), predicts=True)
    model_that_predicts = require_predictions(reader.model)
    prompt = texts.prompt()
    subject = Subject.of(model_that_predicts, prompt)
    changes = find_changes(
        subject.scope,
        [require_parsed(edge, parse_edge) for edge in edges],
        require_choice(inside, parse_heads),
        None if ablate is None else require_parsed(ablate, parse_head_names),
        replacement,
    )
    outcome = run_changes(subject, changes, Target(target_token), seed)
    request = Request(require_choice(layers, parse_numbers), require_choice(heads, parse_heads))
    before = model_that_predicts.capture(prompt, request)
    after = model_that_predicts.capture(prompt, request, make_intervention(outcome.changes))
    notes = explain_changes(outcome.changes, outcome.scope)
    return InterventionResult(outcome, before, replace(after, notes=(*after.notes, *notes)))


def inspect(
    source: "Capture | str | Sequence[Capture | str]",
    model: AnyModel = "builtin",
    *,
    layers: str | int = "all",
    heads: str | int = "all",
    method: MethodName = "attention",
    target_token: str | None = None,
    tokenizer: Any = None,
    device: str = "auto",
    dtype: DType = "auto",
) -> "HeadMeasures":
    """Measure what each head does with a text: how widely, how far, and where to it attends.

    source: a text that the model reads, or a capture, or several; of several texts the result has
    means and standard deviations. ``attnviz inspect --explain-columns`` says what the columns are
    and who defined them. method, target_token: as for ``capture``; captures have their own.

    Raises AttnvizError: UsageError for a head that is not there or for scores, ModelError,
    InputError.
    """
    from attnviz.results.inspection import EVERY_HEAD, inspect_heads

    several = [source] if isinstance(source, (str, Capture)) else list(source)
    if not several:
        raise UsageError("there is nothing to measure: give a text or a capture")
    require_one_of(method, MethodName, "method")
    request = replace(
        EVERY_HEAD,
        layers=require_choice(layers, parse_numbers),
        heads=require_choice(heads, parse_heads),
        keep="weights",
    )
    texts = [each for each in several if not isinstance(each, Capture)]
    for text in texts:
        require_texts(Texts(text), target_token)
    predicts = method in OF_A_PREDICTION
    reader = None
    if texts:
        reader = read_model(model, tokenizer, Placement(device, dtype), predicts=predicts)

    def open_one(each: Capture | str) -> CaptureSource:
        if isinstance(each, Capture):
            return partial(select_requested_heads, each)
        assert reader is not None
        text = partial(reader.model.capture, Texts(each).prompt())
        return partial(capture_method, text, method, target_token)

    return inspect_heads([open_one(each) for each in several], request)


def heads(
    model: AnyModel = "builtin",
    texts: Sequence[str] | None = None,
    *,
    ablate: bool = False,
    layers: str | int | None = None,
    heads: str | int | None = None,
    role: str | None = None,
    sequences: int = 16,
    block: int = 25,
    seed: int = 0,
    tokenizer: Any = None,
    device: str = "auto",
    dtype: DType = "auto",
) -> "HeadsResult":
    """Find what each head is: induction, previous token, sink and others.

    With ``ablate``, also what the model loses without it.

    Scores are measured on so many ``sequences`` of a ``block`` of random tokens that repeats, and
    on ``texts``, by default the samples in plain English. A head is named where a score is far
    above chance. ablate: also measure the loss, in nats per token, without the heads that have a
    name, or are chosen by ``layers`` and ``heads``, or play ``role``.

    Raises AttnvizError: UsageError for a head or a role that is not there, ModelError for a model
    that reads no token ids, InputError for texts that it cannot read.
    """
    from attnviz.analysis.roles import ROLES
    from attnviz.experiments.heads import find_head_roles
    from attnviz.experiments.sequences import take_excerpts
    from attnviz.io.samples import PLAIN_ENGLISH, read_sample
    from attnviz.results.head_roles import SequenceSettings

    if role is not None and role not in ROLES:
        raise UsageError(f"role={role!r}: must be one of {', '.join(ROLES)}")
    documents = [read_sample(name) for name in PLAIN_ENGLISH] if texts is None else list(texts)
    reader = read_model(model, tokenizer, Placement(device, dtype), writes=ablate)
    return find_head_roles(
        reader.model,
        take_excerpts(documents),
        SequenceSettings(sequences, block, seed),
        layers=None if layers is None else require_choice(layers, parse_numbers),
        heads=None if heads is None else require_choice(heads, parse_heads),
        role=role,
        ablates=ablate,
    )


def attribute(
    text: str,
    model: AnyModel = "builtin",
    *,
    target_token: str | None = None,
    query: int | str | None = None,
    by: str | None = None,
    verify: bool = False,
    leave_one_out: bool = False,
    seed: int = 0,
    tokenizer: Any = None,
    pair: str | None = None,
    device: str = "auto",
    dtype: DType = "auto",
) -> "Attribution":
    """Rank tokens by how much they matter for a prediction, by all methods that there are.

    target_token: the prediction, one token or a class, by default the likeliest. query: the token
    at which it is made. by: the method that ranks. verify: cut each token off in all layers, a run
    a token (knock-out, Geva et al. 2023), and tell how far each method agrees with that.
    leave_one_out: also read other tokens in its place.

    Raises AttnvizError: UsageError for a token or a method that is not there, ModelError for a
    model without predictions, InputError for a text without a token that could be ranked.
    """
    from attnviz.analysis.attribution import SCORINGS
    from attnviz.experiments.attribution import attribute as attribute_tokens
    from attnviz.results.attribution import TokenRemoval

    texts = Texts(text, pair)
    require_texts(texts, target_token)
    if by is not None and by not in SCORINGS:
        raise UsageError(f"by={by!r}: must be one of {', '.join(SCORINGS)}")
    checks: list[TokenRemoval] = ["knock-out"] if verify or leave_one_out else []
    if leave_one_out:
        checks.append("leave-one-out")
    position = None if query is None else require_parsed(str(query), parse_token)
    reader = read_model(model, tokenizer, Placement(device, dtype), predicts=True)
    target = Target(target_token, position)
    return attribute_tokens(reader.model, texts.prompt(), target, by=by, checks=checks, seed=seed)


def compare(
    a: Capture,
    b: Capture,
    *,
    layers: str | int = "all",
    heads: str | int = "all",
) -> "ComparisonResult":
    """Compare two captures, word by word and head by head.

    Pieces of tokens are merged to words, so that tokenizers do not matter, and heads are compared
    where both may attend, by the Jensen-Shannon divergence of their rows in nats (0 to ln 2).
    layers, heads: those of A that are listed.

    Raises UsageError for a head that is not there, InputError for captures without a word in
    common, without weights, or of numbers that cannot be compared.
    """
    from attnviz.results.comparison import compare_captures, measure_comparisons

    chosen_layers = require_choice(layers, parse_numbers)
    chosen_heads = require_choice(heads, parse_heads)
    return measure_comparisons([compare_captures(a, b)], chosen_layers, chosen_heads)


def explain(
    text: str,
    model: AnyModel = "builtin",
    *,
    layer: int = -1,
    head: int = 0,
    query: int | str = -1,
    tokenizer: Any = None,
    pair: str | None = None,
    target: str | None = None,
    device: str = "auto",
    dtype: DType = "auto",
) -> "ExplanationResult":
    """Compute the attention of one query of one head step by step, in real numbers.

    From the vectors over q·k, scale, mask and softmax to the sum of values (Vaswani et al. 2017,
    eq. 1), and how far that is from the model's own numbers. query: the token that is followed, by
    its number or by what it says.

    Raises AttnvizError: UsageError for a head or a token that is not there, ModelError for a model
    that cannot be followed, InputError for a query that sees no key.
    """
    from attnviz.experiments.explanation import explain_head

    texts = Texts(text, pair, target)
    require_texts(texts)
    reader = read_model(model, tokenizer, Placement(device, dtype))
    return explain_head(
        reader.model,
        texts.prompt(),
        require_choice(layer, parse_numbers),
        require_choice(head, parse_numbers),
        require_parsed(str(query), parse_token),
    )


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
    """Make a capture of attention from elsewhere, to be drawn and measured as any other.

    weights: numbers (query, key), (head, query, key) or (layer, head, query, key), as an array or a
    tensor; or a sequence of such of the layers, as transformers returns them: (1, head, query,
    key), of one text. visible: booleans that broadcast to them. tokens, or queries and keys: what
    they say. layers, heads: their numbers. Where nothing is above the diagonal, it is taken for a
    causal mask, as the capture's notes say. Raises InputError.
    """
    from attnviz.io.foreign_arrays import ForeignArrays, build_foreign_capture, read_array

    sides = {"tokens": tokens, "queries": queries, "keys": keys, "layers": layers, "heads": heads}
    try:
        labels = {
            name: read_labels(name, values) for name, values in sides.items() if values is not None
        }
        mask = None if visible is None else read_array(visible, "visible")
        return build_foreign_capture(
            "arrays", ForeignArrays(read_array(weights, "weights"), mask, labels)
        )
    except ValueError as error:
        raise InputError(f"from_arrays: {error}") from error


# What is read


@dataclass(frozen=True)
class Texts:
    """What a model reads: a text, its pair, and the text of a decoder."""

    text: str | None
    pair: str | None = None
    target: str | None = None

    def prompt(self) -> Prompt:
        """Return the texts as a prompt. Raises UsageError where there is no text."""
        if not self.text:
            raise UsageError("there is no text to read")
        return Prompt(self.text, self.pair, self.target)


@dataclass(frozen=True)
class Reader:
    """A model that reads texts, and what the reader of a capture should know of it."""

    model: "Model"
    notes: tuple[str, ...] = ()


def read_model(
    model: AnyModel,
    tokenizer: Any,
    placement: Placement,
    *,
    writes: bool = False,
    predicts: bool = False,
) -> Reader:
    """Load a model by name, or find the one in an object that is loaded already.

    writes, predicts: with the part that continues a text, or that predicts. Raises UsageError for
    an object that is no model or reads no text, ModelError for a name that cannot be had.
    """
    if isinstance(model, (str, os.PathLike)):
        from attnviz.models import load_model

        return Reader(
            load_model(os.fspath(model), placement=placement, writes=writes, predicts=predicts)
        )
    require_torch(model)
    from attnviz.models.huggingface.model import HuggingFace
    from attnviz.models.wrappers import (
        describe_module,
        is_transformers_model,
        read_tokenizer,
        unwrap_model,
    )

    parts = unwrap_model(model)
    if not is_transformers_model(parts.model):
        raise UsageError(describe_module(parts.model))
    own = parts.tokenizer if tokenizer is None else tokenizer
    reader = HuggingFace(type(parts.model).__name__, parts.model, read_tokenizer(own))
    if reader.tokenizer is None:
        raise UsageError("a loaded model needs its tokenizer= to read a text, or inputs=")
    if not parts.prompt:
        return Reader(reader)
    name = type(model).__name__
    note = f"{name} puts the prompt {parts.prompt!r} before each text, which is left out here"
    return Reader(reader, (escape(note),))


def capture_inputs(model: "nn.Module", tokenizer: Any, inputs: Any, request: Request) -> Capture:
    """Capture what a loaded model makes of inputs, not of a text. Raises AttnvizError."""
    require_torch(model)
    from attnviz.models.wrappers import is_transformers_model, read_tokenizer, unwrap_model

    parts = unwrap_model(model)
    if not is_transformers_model(parts.model):
        from attnviz.models.modules import capture_module

        return capture_module(parts.model, inputs, request)
    from attnviz.models.huggingface.model import HuggingFace

    own = parts.tokenizer if tokenizer is None else tokenizer
    reader = HuggingFace(type(parts.model).__name__, parts.model, read_tokenizer(own))
    return reader.capture_inputs(inputs, request)


def select_requested_heads(capture: Capture, request: Request) -> Capture:
    """Return the layers and heads of a capture that a request names. Raises UsageError."""
    return select_heads(capture, request.layers, request.heads)


def capture_method(
    source: CaptureSource, method: MethodName, token: str | None, request: Request
) -> Capture:
    """Capture from a source in the numbers of a method, as a source does."""
    return capture_as(source, request, method, token)


def capture_as(
    source: CaptureSource, request: Request, method: MethodName, token: str | None
) -> Capture:
    """Capture from a source in the numbers of a method."""
    if method == ATTENTION:
        return source(request)
    whole = derive_capture(source, request, method, token)
    return select_heads(whole, request.layers, request.heads) if method in MADE_OF else whole


# What is refused


def require_torch(model: object) -> None:
    """Raise UsageError for an object that cannot be a model, since torch was never imported."""
    if "torch" not in sys.modules:
        raise UsageError(
            f"model= is of type {type(model).__name__}: give a name, a folder or a loaded model",
        )


def require_numbers(
    method: MethodName,
    token: str | None,
    keep: Keep,
    heads: str | int,
    *,
    from_text: bool,
) -> None:
    """Raise UsageError for arguments that a method makes no sense of."""
    if token is not None and method not in OF_A_PREDICTION:
        methods = " or ".join(OF_A_PREDICTION)
        raise UsageError(f"target_token= has no effect without method= {methods}: leave it out")
    if method != ATTENTION and keep != "weights":
        raise UsageError(f"method={method!r} is kept cell by cell: leave keep= out")
    if method in MADE_OF and heads != "all":
        raise UsageError(f"method={method!r} has one head a layer, made of all: leave heads= out")
    if method in OF_A_PREDICTION and not from_text:
        raise UsageError(
            f"method={method!r} is of what a model says of a text: give text=, not inputs=",
        )


def require_texts(texts: Texts, target_token: object = None) -> None:
    """Raise UsageError for a text that is no str, InputError for one that is no Unicode."""
    values = {
        "text": texts.text,
        "pair": texts.pair,
        "target": texts.target,
        "target_token": target_token,
    }
    for name, text in values.items():
        if text is None:
            continue
        if not isinstance(text, str):
            raise UsageError(f"{name}= is of type {type(text).__name__}: give one str")
        require_unicode(text, f"{name}=")


def require_one_of(value: object, allowed: Any, name: str) -> None:
    """Raise UsageError unless a value is one of a literal type."""
    if value not in get_args(allowed):
        known = ", ".join(get_args(allowed))
        raise UsageError(f"{name}={value!r}: must be one of {known}")


def require_parsed(text: str, parser: Callable[[str], Parsed]) -> Parsed:
    """Return a text as it is parsed on the command line. Raises UsageError."""
    try:
        return parser(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def read_labels(name: str, values: Any) -> list[Any]:
    """Read the names of tokens, or the numbers of layers or heads.

    Raises ValueError, or InputError for no Unicode.
    """
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ValueError(f"{name}= is of type {type(values).__name__}: give a list")
    labels = values.tolist() if hasattr(values, "tolist") else list(values)
    if not isinstance(labels, list):
        raise ValueError(f"{name}= holds one value: give a list")
    for number, label in enumerate(labels):
        if isinstance(label, str):
            require_unicode(label, f"from_arrays: {name}[{number}]")
    return labels
