"""The text beside a picture: tokens along its axes; layers, heads and the model above it."""

from collections.abc import Sequence
from itertools import pairwise

from attnviz.drawable import Axis
from attnviz.escape import escape, label
from attnviz.methods import MADE_OF
from attnviz.record import AttentionMap, Capture, Kind, Token

KIND_TITLES: dict[Kind, str] = {
    "self": "self-attention",
    "encoder": "encoder",
    "decoder": "decoder",
    "cross": "cross-attention",
}
LONGEST_TOKEN = 40  # characters of a token in a sentence
CONTINUATION = "+"  # before a token that stands for further bytes of the character before it


def make_axes(attention_map: AttentionMap) -> tuple[Axis, Axis]:
    """Return the queries and the keys of a map as axes, in tiles if the map has tiles."""
    height, width = 1, 1
    if attention_map.tiles:
        height, width = attention_map.tiles.height, attention_map.tiles.width
    unit = f"{attention_map.unit}s"
    queries, keys = attention_map.queries, attention_map.keys
    query_labels, key_labels = label_tokens(queries), label_tokens(keys)
    query_spaces, key_spaces = find_spaces(queries), find_spaces(keys)
    return (
        Axis("queries", query_labels, attention_map.query_places, height, query_spaces, unit),
        Axis("keys", key_labels, attention_map.key_places, width, key_spaces, unit),
    )


def make_number_axis(name: str, labels: Sequence[str]) -> Axis:
    """Return an axis of layers or heads, numbered in their order."""
    numbers = range(len(labels))
    return Axis(name, tuple(labels), tuple(numbers))


def label_tokens(tokens: Sequence[Token]) -> tuple[str, ...]:
    """Return a label for each token.

    A "+" marks a token that stands for further bytes of the character before it.
    """
    labels = []
    previous: Token | None = None
    for token in tokens:
        text = label(token.text)
        if previous is not None and continues_character(previous, token):
            text = f"{CONTINUATION}{text}"
        labels.append(text)
        previous = token
    return tuple(labels)


def continues_character(previous: Token, token: Token) -> bool:
    """Return whether a token stands for further bytes of a character of the token before it."""
    if token.special or token.segment != previous.segment:
        return False
    return token.start < previous.end


def find_spaces(tokens: Sequence[Token]) -> tuple[bool, ...]:
    """Return for each token whether white space stands before it, and False for the first.

    Tokens that stand for no text are words of their own.
    """
    if not tokens:
        return ()
    between = [are_separate(previous, token) for previous, token in pairwise(tokens)]
    return (False, *between)


def are_separate(previous: Token, token: Token) -> bool:
    """Return whether white space, or no text at all, stands between two tokens."""
    has_special = previous.special or token.special
    if has_special or previous.segment != token.segment:
        return True
    has_no_text = token.start == token.end
    return has_no_text or token.start > previous.end


def name_model(capture: Capture) -> str:
    """Return the name of the model, of a long path its end."""
    folders_and_name = capture.model.split("/")
    *folders, owner, name = ["", *folders_and_name]
    is_long_path = any(folders)
    if is_long_path:
        return escape(f"…/{owner}/{name}")
    return escape(capture.model)


def title_kind(attention_map: AttentionMap) -> tuple[str, ...]:
    """Return what attends to what in a map, or nothing for self-attention."""
    if attention_map.kind == "self":
        return ()
    return (KIND_TITLES[attention_map.kind],)


def title_matrix(attention_map: AttentionMap, layer: int, head: int) -> tuple[str, ...]:
    """Return the titles of one matrix of a map, by the indices of its layer and head."""
    layer_title = f"layer {attention_map.layers[layer]}"
    head_title = title_head(attention_map.heads[head])
    return *title_kind(attention_map), layer_title, head_title


def title_head(head: int | str) -> str:
    """Return a head by its number, or the name of what was made of several heads."""
    if head in MADE_OF:
        return str(head)
    if isinstance(head, int):
        return f"head {head}"
    return f"{escape(head)} over heads"


def abbreviate_head(layer: int, head: int | str) -> str:
    """Return the short name of a head: L5H3, or L5 mean."""
    separator = "" if isinstance(head, int) else " "
    return f"L{layer}{separator}{abbreviate_head_column(head)}"


def abbreviate_head_column(head: int | str) -> str:
    """Return the short name of a head of any layer: H3, or mean."""
    if isinstance(head, int):
        return f"H{head}"
    return escape(head)


def name_token(token: Token) -> str:
    """Return a token as a sentence can hold it."""
    return shorten(label(token.text))


def shorten(text: str) -> str:
    """Return as much of a label as a sentence can hold, with an ellipsis for the rest."""
    if len(text) <= LONGEST_TOKEN:
        return text
    beginning = text[: LONGEST_TOKEN - 1]
    return f"{beginning}…"


def describe_length(maps: Sequence[AttentionMap]) -> str:
    """Return how many tokens or words maps have, the most in any of them."""
    sizes = {(len(each.queries), len(each.keys)) for each in maps}
    query_count, key_count = max(sizes)
    length = f"{query_count}"
    if query_count != key_count:
        length = f"{query_count} x {key_count}"
    if len(sizes) > 1:
        length = f"up to {length}"
    return f"{length} {maps[0].unit}s"


def count_heads(count: int, heads: Sequence[int | str]) -> str:
    """Return how many heads there are, or of how many layers a reduction over heads.

    heads: those of a map, of which the first says whether they are a reduction.
    """
    noun, reduction = "head", ""
    first_head = heads[0]
    if not isinstance(first_head, int):
        noun, reduction = "layer", f"{title_head(first_head)} of "
    if count != 1:
        noun = f"{noun}s"
    return f"{reduction}{count} {noun}"
