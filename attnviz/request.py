"""What is asked of a model: what to read and keep, where to compute, which edges to cut."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from attnviz.escape import escape, label_token, require_unicode
from attnviz.record import ATTENTION, NORM, Floats, Kind, Method, Segment, Token
from attnviz.selection import (
    ALL,
    HeadNames,
    MapTokens,
    Selection,
    TokenReference,
    join_names,
)

Engine: TypeAlias = Literal["auto", "numpy", "torch"]
DType: TypeAlias = Literal["auto", "float32", "float16", "bfloat16", "float64"]
Keep: TypeAlias = Literal["weights", "tiles", "statistics", "edges"]


Replacement: TypeAlias = Literal["zero", "mean", "uniform", "permute"]
"""What stands in place of the output of an ablated head."""


class HeadInputs(NamedTuple):
    """What some heads make their output of."""

    weights: Any
    """(batch, head, query, key), at least float32."""
    visible: Any
    """Broadcasts to them; True where a query may attend."""
    value: Any
    """(batch, head, key, d_v)."""


WeighHeads: TypeAlias = Callable[[Sequence[int]], HeadInputs]
OutputChange: TypeAlias = Callable[[int, Any, WeighHeads], Any]
"""A function that changes what the heads of a layer put out.

It takes the number of the layer, their output (batch, query, head, d_v) before it is projected, and
a function that returns what some heads make it of. It returns the output that goes on."""


class Edge(NamedTuple):
    """Edges to cut before the softmax: a query gives no weight to a key, and the others share it.

    None stands for all.
    """

    kind: Kind | None
    layer: int | None
    head: int | None
    query: int | None
    """None: all queries but the token of the key itself."""
    key: int | None
    """None: all keys but the token of the query itself."""


@dataclass(frozen=True)
class Intervention:
    """What is changed in a run of a model; nothing by default."""

    cuts: tuple[Edge, ...] = ()
    change: OutputChange | None = None
    """Changes what heads put out, as in ablation."""
    kind: Kind | None = None
    """Of the map whose heads these are; None: of all."""
    tokens: tuple[tuple[int, int], ...] = ()
    """Places of the text, each with the id of the token that is read there instead."""


NOTHING = Intervention()


@dataclass(frozen=True)
class Target:
    """A prediction that is asked about."""

    token: str | int | None = None
    """One token of the vocabulary, or a class of a classifier, by name or number; None: the
    likeliest."""
    query: TokenReference | None = None
    """The token at which it is made; None: the last of a causal model, the mask of a masked one,
    else the first."""

    def __post_init__(self) -> None:
        if isinstance(self.token, str):
            require_unicode(self.token, "the target token")


LIKELIEST = Target()


class Response(NamedTuple):
    """What a model says at one place of a text, in several runs."""

    kind: Literal["next", "masked", "class", "vector"]
    """The next token, the masked token, the class of the text, or the last vector of a model that
    predicts nothing."""
    tokens: tuple[Token, ...]
    """Of the text, or of the decoder's."""
    place: int
    """The token at which it is said."""
    outputs: Floats
    """(run, number): logits, or the vector."""
    target: int
    """The output that is asked about; of vectors -1."""
    name: Callable[[int], str]
    """Of an output: what its token says, or its class."""


@dataclass(frozen=True)
class Placement:
    """Where and in which type a model computes. Device: auto, cpu, cuda, cuda:N or mps.

    The type auto is float32 on a CPU, and on other devices that of the stored weights.
    """

    device: str = "auto"
    dtype: DType = "auto"
    engine: Engine = "auto"
    """What runs a checkpoint: NumPy, torch, or NumPy where it is exact and quick and else torch."""


@dataclass(frozen=True)
class Companions:
    """What a model is read with that is not in its own folder; each by name, as a model itself."""

    tokenizer: str | None = None
    """The folder of a tokenizer, instead of the model's."""
    adapter: str | None = None
    """The folder of a PEFT adapter, which is applied to the model's weights."""


NO_COMPANIONS = Companions()


@dataclass(frozen=True)
class Prompt:
    """What a model reads. Models that cannot read a part of it raise UsageError."""

    text: str
    pair: str | None = None
    """A second text, for models of pairs."""
    target: str | None = None
    """What the decoder of an encoder-decoder reads; None: what it writes itself, greedily."""
    chat: bool = False
    """The text is a message, or JSON messages, to put through the tokenizer's chat template."""
    generate: int = 0
    """Tokens by which a causal model is to continue the text, greedily."""
    ids: tuple[int, ...] | None = None
    """Token ids to read, as they are, instead of a text."""

    def __post_init__(self) -> None:
        """Check the texts and the token ids.

        Raises InputError for a text with lone surrogates, ValueError for token ids beside a text or
        below 0.
        """
        for name in ("text", "pair", "target"):
            require_unicode(getattr(self, name) or "", f"the {name}")
        if self.ids is None:
            return
        if self.text or self.pair is not None or self.chat or self.generate:
            raise ValueError("token ids stand instead of a text, and nothing is written after them")
        if min(self.ids, default=-1) < 0:
            raise ValueError("there must be a token id at least, and none below 0")


class Vocabulary(NamedTuple):
    """What a model's sequences are made of."""

    plain: tuple[int, ...]
    """Ids of the tokens that are text, in rising order: none that is special or was added, none for
    the unknown."""
    prefix: tuple[int, ...]
    """Ids that the tokenizer puts before a text, such as BOS or [CLS]."""
    suffix: tuple[int, ...]
    """And after it, such as [SEP]."""
    positions: int | None
    """Tokens that the model reads at most, if there is a limit."""


@dataclass(frozen=True)
class Request:
    """What to keep of a run. ``truncate`` cuts a text that is longer than the model can read."""

    layers: Selection = ALL
    heads: Selection | HeadNames = ALL
    truncate: bool = False
    kinds: tuple[Kind, ...] = ()
    """Kinds of map; none means all that there are, or the first of ``preferred`` that is."""
    preferred: tuple[Kind, ...] = ()
    keep: Keep = "weights"
    tiles: int = 64
    """Tiles on a side, at most."""
    strongest: int = 8
    """Edges a query, with keep="edges"."""
    method: Method = "attention"
    """Weights; ``norm``, the lengths of the vectors that attention moves (Kobayashi et al. 2020);
    ``gradient``, weights times their gradients where both are positive; or ``scores`` before the
    softmax."""
    summed: bool = False
    """Of norms: that of the sum over the chosen heads of a layer, as one head named "sum"."""
    target: Target = LIKELIEST
    """Of gradients: what they are of."""
    rows: slice = field(default_factory=lambda: slice(None))
    """The window of queries, and of keys, whose weights are kept."""
    columns: slice = field(default_factory=lambda: slice(None))
    segments: tuple[Segment, ...] | None = ()
    """Parts of the text: where weights are not kept, what each query gives to them is.

    None: the messages of a chat, or else the paragraphs."""
    query: TokenReference | None = None
    """The one query whose weights are kept, or the one key, by what it says; ``resolve_window``
    makes a window of it."""
    key: TokenReference | None = None

    def __post_init__(self) -> None:
        """Check that what is kept fits the window and the method. Raises ValueError."""
        if self.windowed and self.keep != "weights":
            raise ValueError(f"a window is kept as weights, not as {self.keep}")
        if self.method != ATTENTION and self.keep != "weights":
            raise ValueError(f"the method {self.method} is kept cell by cell, not as {self.keep}")
        if self.summed and self.method != NORM:
            raise ValueError("norms are summed over heads, nothing else")

    @property
    def windowed(self) -> bool:
        """True if the weights of some queries or keys only are kept, and not of all."""
        return (self.rows, self.columns, self.query, self.key) != (
            slice(None),
            slice(None),
            None,
            None,
        )

    def resolve_window(self, sides: MapTokens) -> "Request":
        """Return the request with a window of one row or column for the query or key that it names.

        sides: the tokens of the queries, and those of the keys, among which it is found. Raises
        UsageError if the named token is not there, or is there more than once.
        """
        rows = self.query.resolve(sides[0]) if self.query else self.rows
        columns = self.key.resolve(sides[1]) if self.key else self.columns
        return replace(self, rows=rows, columns=columns, query=None, key=None)


def describe_gradient(
    phrase: str,
    token: Token | None,
    position: int,
    predicted: str,
) -> str:
    """Return a line that says of which logit gradients were taken, for the notes of a capture.

    phrase: words for the kind of prediction that go before a token, such as "the next token after".
    token: the token at which the prediction is made, which stands at ``position``; None for the
    class of a whole text. predicted: the token or the class that is predicted.
    """
    where = "" if token is None else f" token {position} {label_token(token.text)}"
    logit = f"the logit of {phrase}{where}, '{escape(predicted)}'"
    return f"gradient of {logit}, less the mean of all logits"


def explain_no_token(name: str, pieces: Sequence[str]) -> str:
    """Return the error message for a ``--target-token`` that is not one token of the vocabulary.

    name: what was asked for. pieces: the several tokens that the tokenizer makes of it, if any.
    """
    why = "is no token"
    if pieces:
        quoted = join_names([f"'{escape(piece)}'" for piece in pieces])
        why = f"is {len(pieces)} tokens: {quoted}; choose one of them"
    return f"--target-token '{escape(name)}' {why}"


def restore_space(name: str) -> str:
    """Return the name of a token with a space in place of the sign ␣ at its beginning, if any."""
    if not name.startswith("␣"):
        return name
    return name.replace("␣", " ", 1)
