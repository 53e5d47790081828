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
from attnviz.methods import (
    METHODS_OF_A_PREDICTION,
    METHODS_THROUGH_LAYERS,
    MethodName,
)
from attnviz.record import ATTENTION, Capture
from attnviz.request import (
    DType,
    Engine,
    Keep,
    Placement,
    Prompt,
    Replacement,
    Request,
    Target,
)
from attnviz.selection import (
    parse_choice,
    parse_edge,
    parse_head_names,
    parse_heads,
    parse_numbers,
    parse_token,
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
    engine: Engine = "auto",
) -> Capture:
    """Run a model on a text, and return its attention.

    model: a name (``builtin``, a folder, an alias, a hub id), a transformers model, or any
    ``torch.nn.Module``, which is left as it was found. A wrapper is opened to find the model in it:
    torch.compile, DataParallel, peft, sentence-transformers, a pipeline. device and dtype say where
    and in which type a model computes that is loaded by its name, engine what runs it: ``numpy``,
    ``torch``, or with ``auto`` NumPy where that is exact and quick.

    text: what the model reads. A loaded transformers model also needs its ``tokenizer``, unless its
    wrapper has one. pair: a second text, for models of pairs. target: the text of the decoder of an
    encoder-decoder. inputs: in place of a text, what a loaded model is called with: a tensor, a
    NumPy array, a sequence of arguments or a mapping of named ones, for one text. They are not
    changed, nor is a cache of keys and values among them.

    layers, heads: those that are kept: ``"0,3"``, ``"-1"``, ``"2-5"``, ``"all"``, heads also
    ``"L5H3"``. keep: what is kept of each head: ``weights`` (layer, head, query, key) in float32;
    ``tiles``, the means and maxima of the weights over at most ``tiles`` x ``tiles`` tiles;
    ``statistics``, which like tiles grow linearly with the text; or ``edges``, the strongest of
    each query.

    method: ``attention`` for the weights, or the name of other numbers that are kept in their
    place, cell by cell. ``norm`` is the length of the vector that a head moves from key to query
    (Kobayashi et al. 2020). ``gradient`` is the weight times its gradient where that is positive,
    and ``chefer`` takes these through the layers (Chefer et al. 2021); both are of the logit of
    ``target_token``, one token or a class, by default the likeliest. ``rollout`` takes attention
    through the layers (Abnar & Zuidema 2020). ``scores`` are those before the softmax. Notes of the
    capture say what its numbers are.

    Raises AttnvizError: UsageError, ModelError or InputError.
    """
    texts = Texts(text, pair, target)
    require_texts(texts, target_token)
    require_one_of(keep, Keep, "keep")
    require_one_of(method, MethodName, "method")
    require_method_arguments(method, target_token, keep, heads, from_text=inputs is None)
    require_one_of(dtype, DType, "dtype")
    require_one_of(engine, Engine, "engine")
    if tiles < 1:
        raise UsageError(f"tiles={tiles}: there is at least one on a side")
    if inputs is not None and texts != Texts(None, None, None):
        raise UsageError("a model reads a text, or inputs=, not both")
    chosen_layers = parse_choice(layers, parse_numbers)
    chosen_heads = parse_choice(heads, parse_heads)
    request = Request(chosen_layers, chosen_heads, keep=keep, tiles=tiles)
    if inputs is not None and not isinstance(model, (str, os.PathLike)):
        run_on_inputs = partial(capture_inputs, model, tokenizer, inputs)
        return capture_with_method(run_on_inputs, request, method, target_token)
    predicts = method in METHODS_OF_A_PREDICTION
    placement = Placement(device, dtype, engine)
    reader = read_model(model, tokenizer, placement, predicts=predicts)
    run_on_text = partial(reader.model.capture, texts.prompt())
    captured = capture_with_method(run_on_text, request, method, target_token)
    if not reader.notes:
        return captured
    return replace(captured, notes=(*captured.notes, *reader.notes))


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

    knock_out: edges to cut before the softmax (Geva et al. 2023). Each is ``"query->key"``, where a
    side is the number of a token, its word, or ``*`` for all tokens. inside: the layers or heads in
    which edges are cut. ablate: heads, such as ``"L0H2,L1H3"``, whose output is replaced.
    replacement: by zeros (``zero``), by the mean of the head's output over the queries (``mean``),
    by the mean of the values that a query sees (``uniform``), or by its values with the weights of
    each row in another order (``permute``).

    text, pair, target, tokenizer, model, device, dtype: as for ``attnviz.capture``. layers, heads:
    those whose maps are returned. target_token: the prediction that is asked about, by default the
    likeliest. seed: of all that is random. The result also says, for scale, what it does to the
    prediction to change as many other edges or heads.

    Raises AttnvizError: UsageError for what is not there or would change nothing, ModelError,
    InputError.
    """
    from attnviz.experiments.intervention import (
        PromptedModel,
        make_intervention,
        resolve_changes,
    )
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
    subject = PromptedModel.of(model_that_predicts, prompt)  # the model, its prompt, and its heads
    cut_edges = [require_parsed(edge, parse_edge) for edge in edges]
    cut_inside = parse_choice(inside, parse_heads)
    ablated = None if ablate is None else require_parsed(ablate, parse_head_names)
    changes = resolve_changes(subject.scope, cut_edges, cut_inside, ablated, replacement)
    outcome = run_changes(subject, changes, Target(target_token), seed)
    request = Request(parse_choice(layers, parse_numbers), parse_choice(heads, parse_heads))
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

    source: a text that the model reads, or a finished capture, or a sequence of these. Of several
    the result has means and standard deviations. ``attnviz inspect --explain-columns`` says what
    the columns are and who defined them. layers, heads: those that are measured. method,
    target_token: the numbers that are measured of a text, as for ``attnviz.capture``; a finished
    capture holds its own. model, tokenizer, device, dtype: as for ``attnviz.capture``.

    Raises AttnvizError: UsageError for a head that is not there or for scores, ModelError,
    InputError.
    """
    from attnviz.results.inspection import EVERY_HEAD, inspect_heads

    texts_and_captures = [source] if isinstance(source, (str, Capture)) else list(source)
    if not texts_and_captures:
        raise UsageError("there is nothing to measure: give a text or a capture")
    require_one_of(method, MethodName, "method")
    request = replace(
        EVERY_HEAD,
        layers=parse_choice(layers, parse_numbers),
        heads=parse_choice(heads, parse_heads),
        keep="weights",
    )
    texts = [content for content in texts_and_captures if not isinstance(content, Capture)]
    for text in texts:
        require_texts(Texts(text), target_token)
    predicts = method in METHODS_OF_A_PREDICTION
    reader = None
    if texts:
        reader = read_model(model, tokenizer, Placement(device, dtype), predicts=predicts)

    def make_source(content: Capture | str) -> CaptureSource:
        """Return a function that makes a capture of a request, without running anything yet.

        content: a finished capture, of which the function selects heads, or a text, on which it
        runs the model.
        """
        if isinstance(content, Capture):
            return partial(select_requested_heads, content)
        assert reader is not None  # a model was loaded, because there is a text
        run_on_text = partial(reader.model.capture, Texts(content).prompt())
        return partial(
            capture_with_method,
            run_on_text,
            method=method,
            target_token=target_token,
        )

    return inspect_heads([make_source(content) for content in texts_and_captures], request)


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
    """Find the roles of the heads of a model: induction, previous token, sink and others.

    Scores are measured on random sequences and on texts, and a head gets the name of a role where
    its score is far above chance. sequences: the number of random sequences. block: the number of
    random tokens that each sequence repeats. seed: of these tokens. texts: by default the samples
    in plain English.

    layers, heads: those that are listed. role: the one role whose scores are drawn. ablate: also
    measure the loss of the model, in nats per token, without the heads that ``layers`` and
    ``heads`` choose; where these are not given, without those that play ``role``, or that have any
    name. model, tokenizer, device, dtype: as for ``attnviz.capture``.

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
    excerpts = take_excerpts(documents)
    return find_head_roles(
        reader.model,
        excerpts,
        SequenceSettings(sequences, block, seed),
        layers=None if layers is None else parse_choice(layers, parse_numbers),
        heads=None if heads is None else parse_choice(heads, parse_heads),
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
    """Rank tokens by how much they matter for a prediction, with the scores of all methods.

    target_token: the prediction, one token or a class, by default the likeliest. query: the number
    or the word of the token at which it is made. by: the name of the method that ranks, by default
    one that suits the model. verify: also cut each token off in all layers, in one run for each
    token (knock-out, Geva et al. 2023), and say how far each method agrees with the effects.
    leave_one_out: do so, and also replace each token by others. seed: of all that is random. text,
    pair, model, tokenizer, device, dtype: as for ``attnviz.capture``.

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

    Tokens are merged to words, so that tokenizers do not matter. The rows of two heads are compared
    on the keys to which both may attend, by their Jensen-Shannon divergence in nats (0 to ln 2).
    layers, heads: the heads of ``a`` that the result lists; each is compared with all heads of
    ``b``.

    Raises UsageError for a head that is not there, InputError for captures without a word in
    common, without weights, or with numbers that cannot be compared, such as scores.
    """
    from attnviz.results.comparison import compare_captures, measure_comparisons

    listed_layers = parse_choice(layers, parse_numbers)
    listed_heads = parse_choice(heads, parse_heads)
    comparison = compare_captures(a, b)
    return measure_comparisons([comparison], listed_layers, listed_heads)


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

    The steps lead from the vectors through q·k, scale, mask and softmax to the sum of the values
    (Vaswani et al. 2017, eq. 1). The result also says how far that sum is from the model's own
    numbers. layer, head: their numbers, where -1 is the last. query: the token that is followed, by
    its number or by its word. text, pair, target, model, tokenizer, device, dtype: as for
    ``attnviz.capture``.

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
        parse_choice(layer, parse_numbers),
        parse_choice(head, parse_numbers),
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
    """Make a capture of attention weights from elsewhere, to be drawn and measured as any other.

    weights: an array or a tensor (query, key), (head, query, key) or (layer, head, query, key); or
    a sequence of one array a layer, each (1, head, query, key), as transformers returns them for
    one text. visible: booleans that broadcast to the weights, True where a query may attend;
    without it, weights that are all 0 above the diagonal are taken for causally masked, and a note
    of the capture says so. tokens: the texts of the tokens; or queries and keys, where these
    differ. layers, heads: their numbers.

    Raises InputError for weights or names that cannot be used.
    """
    from attnviz.io.foreign_arrays import (
        ForeignArrays,
        build_foreign_capture,
        read_array,
    )

    names = {"tokens": tokens, "queries": queries, "keys": keys, "layers": layers, "heads": heads}
    try:
        labels = {
            name: read_labels(name, values) for name, values in names.items() if values is not None
        }
        mask = None if visible is None else read_array(visible, "visible")
        arrays = ForeignArrays(read_array(weights, "weights"), mask, labels)
        return build_foreign_capture("arrays", arrays)
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
    """Load a model by its name, or wrap a loaded transformers model, so that it reads texts.

    model: a name, or a loaded model, which may be in a wrapper such as peft. tokenizer: of a loaded
    model; None: the one that its wrapper holds. placement: the device and the type in which a model
    computes that is loaded here. writes, predicts: load it with the part that continues a text, or
    with the part that predicts.

    Returns the model, with a note if its wrapper would put a prompt before each text. Raises
    UsageError for an object that is no model or reads no text, ModelError for a name that cannot be
    had.
    """
    if isinstance(model, (str, os.PathLike)):
        from attnviz.models import load_model

        name = os.fspath(model)
        return Reader(load_model(name, placement=placement, writes=writes, predicts=predicts))
    require_torch(model)
    from attnviz.models.huggingface.model import HuggingFace
    from attnviz.models.wrappers import (
        explain_needed_inputs,
        is_transformers_model,
        unwrap_model,
        unwrap_tokenizer,
    )

    unwrapped = unwrap_model(model)
    if not is_transformers_model(unwrapped.model):
        raise UsageError(explain_needed_inputs(unwrapped.model))
    chosen_tokenizer = unwrapped.tokenizer if tokenizer is None else tokenizer
    name = type(unwrapped.model).__name__
    text_model = HuggingFace(name, unwrapped.model, unwrap_tokenizer(chosen_tokenizer))
    if text_model.tokenizer is None:
        raise UsageError("a loaded model needs its tokenizer= to read a text, or inputs=")
    if not unwrapped.prompt:
        return Reader(text_model)
    wrapper = type(model).__name__
    note = (
        f"{wrapper} puts the prompt {unwrapped.prompt!r} before each text, which is left out here"
    )
    return Reader(text_model, (escape(note),))


def capture_inputs(
    model: "nn.Module",
    tokenizer: Any,
    inputs: Any,
    request: Request,
) -> Capture:
    """Call a loaded model with inputs, and return the attention that a request asks for.

    model: any torch module, which may be in a wrapper such as torch.compile. tokenizer: of a
    transformers model, to name the tokens; None: the one that its wrapper holds, if any. inputs:
    what the model is called with: a tensor, an array, a sequence of arguments or a mapping.

    Raises AttnvizError.
    """
    require_torch(model)
    from attnviz.models.wrappers import (
        is_transformers_model,
        unwrap_model,
        unwrap_tokenizer,
    )

    unwrapped = unwrap_model(model)
    if not is_transformers_model(unwrapped.model):
        from attnviz.models.modules import capture_module

        return capture_module(unwrapped.model, inputs, request)
    from attnviz.models.huggingface.model import HuggingFace

    chosen_tokenizer = unwrapped.tokenizer if tokenizer is None else tokenizer
    name = type(unwrapped.model).__name__
    text_model = HuggingFace(name, unwrapped.model, unwrap_tokenizer(chosen_tokenizer))
    return text_model.capture_inputs(inputs, request)


def select_requested_heads(capture: Capture, request: Request) -> Capture:
    """Return the layers and heads of a capture that a request names. Raises UsageError."""
    return select_heads(capture, request.layers, request.heads)


def capture_with_method(
    source: CaptureSource,
    request: Request,
    method: MethodName,
    target_token: str | None,
) -> Capture:
    """Make the capture that a request asks for, with the numbers that a method names as weights.

    source: a function that makes a capture of a request. method: what the numbers are, such as
    ``attention`` or ``norm``. target_token: the prediction that gradients are taken of; None: the
    likeliest.
    """
    if method == ATTENTION:
        return source(request)
    capture = derive_capture(source, request, method, target_token)
    if (
        method in METHODS_THROUGH_LAYERS
    ):  # made through all layers, of which the request may name some
        return select_requested_heads(capture, request)
    return capture


# What is refused


def require_torch(model: object) -> None:
    """Raise UsageError for an object that cannot be a model, since torch was never imported."""
    if "torch" not in sys.modules:
        raise UsageError(
            f"model= is of type {type(model).__name__}: give a name, a folder or a loaded model",
        )


def require_method_arguments(
    method: MethodName,
    target_token: str | None,
    keep: Keep,
    heads: str | int,
    *,
    from_text: bool,
) -> None:
    """Raise UsageError if arguments of a capture make no sense with the method of its numbers.

    method: what the numbers are, such as ``attention`` or ``norm``. target_token, keep, heads: as
    for ``attnviz.capture``. from_text: the model reads a text, and not inputs.
    """
    if target_token is not None and method not in METHODS_OF_A_PREDICTION:
        methods = " or ".join(METHODS_OF_A_PREDICTION)
        raise UsageError(f"target_token= has no effect without method= {methods}: leave it out")
    if method != ATTENTION and keep != "weights":
        raise UsageError(f"method={method!r} is kept cell by cell: leave keep= out")
    if method in METHODS_THROUGH_LAYERS and heads != "all":
        raise UsageError(f"method={method!r} has one head a layer, made of all: leave heads= out")
    if method in METHODS_OF_A_PREDICTION and not from_text:
        raise UsageError(
            f"method={method!r} is of what a model says of a text: give text=, not inputs=",
        )


def require_texts(texts: Texts, target_token: object = None) -> None:
    """Raise UsageError for a text that is no str, InputError for one with lone surrogates.

    target_token: the token whose prediction is asked about, which must be such a text too.
    """
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
    """Raise UsageError unless a value is one of those of a Literal type.

    allowed: the type. name: of the argument, for the error.
    """
    if value not in get_args(allowed):
        known = ", ".join(get_args(allowed))
        raise UsageError(f"{name}={value!r}: must be one of {known}")


def require_parsed(text: str, parser: Callable[[str], Parsed]) -> Parsed:
    """Parse a text. Raises UsageError in place of the ValueError of the parser."""
    try:
        return parser(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def read_labels(name: str, values: Any) -> list[Any]:
    """Return the names of tokens, or the numbers of layers or heads, as a list.

    name: of the argument that holds them, for errors. values: a list, or an array of any library.
    Raises ValueError for what is no list, InputError for a text with lone surrogates.
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
