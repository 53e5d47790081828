"""What stands beside a picture: tokens as axes, layers, heads and the model as titles."""

from collections.abc import Sequence
from itertools import pairwise

from attnviz.drawable import Axis
from attnviz.escape import escape, label
from attnviz.methods import MADE_OF
from attnviz.record import AttentionMap, Capture, Kind, Token

KINDS: dict[Kind, str] = {
    "self": "self-attention",
    "encoder": "encoder",
    "decoder": "decoder",
    "cross": "cross-attention",
}
LONGEST = 40  # characters of a token in a sentence


def sides(part: AttentionMap) -> tuple[Axis, Axis]:
    """The queries and the keys of a map, in tiles if it is."""
    height, width = (part.tiles.height, part.tiles.width) if part.tiles else (1, 1)
    return (
        Axis(
            "queries",
            labels(part.queries),
            part.query_places,
            height,
            spaced(part.queries),
            f"{part.unit}s",
        ),
        Axis("keys", labels(part.keys), part.key_places, width, spaced(part.keys), f"{part.unit}s"),
    )


def labels(tokens: Sequence[Token]) -> tuple[str, ...]:
    """A label for each token; "+" marks one that stands for further bytes of the sign before it."""
    before = (None, *tokens[:-1])
    return tuple(
        ("+" if previous and continues(previous, token) else "") + label(token.text)
        for previous, token in zip(before, tokens, strict=True)
    )


def continues(previous: Token, token: Token) -> bool:
    """Whether a token stands for further bytes of the sign that the one before it stands for."""
    return token.start < previous.end and token.segment == previous.segment and not token.special


def spaced(tokens: Sequence[Token]) -> tuple[bool, ...]:
    """Whether white space stands before each token; tokens that stand for no text are words of their own."""
    pairs = pairwise(tokens)
    return (False, *(apart(previous, token) for previous, token in pairs))[: len(tokens)]


def apart(previous: Token, token: Token) -> bool:
    """Whether white space, or no text, stands between two tokens."""
    if previous.special or token.special or previous.segment != token.segment:
        return True
    return token.start > previous.end or token.start == token.end


def model_title(capture: Capture) -> str:
    """The model's name; of a long path its end."""
    *before, owner, name = ["", *capture.model.split("/")]
    return escape(f"…/{owner}/{name}" if any(before) else capture.model)


def kind_title(part: AttentionMap) -> tuple[str, ...]:
    """What attends to what, where there is more than one possibility."""
    return () if part.kind == "self" else (KINDS[part.kind],)


def head_titles(part: AttentionMap, layer: int, head: int) -> tuple[str, ...]:
    """One matrix of a map, by the places of its layer and head."""
    return *kind_title(part), f"layer {part.layers[layer]}", head_title(part.heads[head])


def head_title(head: int | str) -> str:
    """A head by its number, or what was made of several."""
    if head in MADE_OF:
        return str(head)
    return f"head {head}" if isinstance(head, int) else f"{escape(head)} over heads"


def head_name(layer: int, head: int | str) -> str:
    """A head by its short name: L5H3, or L5 mean."""
    return (
        f"L{layer}{column_name(head)}" if isinstance(head, int) else f"L{layer} {column_name(head)}"
    )


def column_name(head: int | str) -> str:
    """A head of any layer by its short name: H3, or mean."""
    return f"H{head}" if isinstance(head, int) else escape(head)


def name(token: Token) -> str:
    """A token in a sentence."""
    return short(label(token.text))


def short(text: str) -> str:
    """As much of a label as a sentence can hold."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def tokens_title(parts: Sequence[AttentionMap]) -> str:
    """How many tokens or words there are, the most in any of the maps."""
    n, m = max((len(part.queries), len(part.keys)) for part in parts)
    more = "up to " * (len({(len(part.queries), len(part.keys)) for part in parts}) > 1)
    return f"{more}{n} {parts[0].unit}s" if n == m else f"{more}{n} x {m} {parts[0].unit}s"


def panels_title(count: int, heads: Sequence[int | str]) -> str:
    """How many heads there are, or of how many layers a reduction."""
    noun, title = (
        ("head", "") if isinstance(heads[0], int) else ("layer", f"{head_title(heads[0])} of ")
    )
    return f"{title}{count} {noun}{'s' * (count != 1)}"
