"""The text beside a picture: tokens along its axes; layers, heads and the model above it."""

from collections.abc import Sequence
from itertools import pairwise

from attnviz.drawable import Axis
from attnviz.escape import escape, label_token
from attnviz.methods import METHODS_THROUGH_LAYERS
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
    """Return the axis of the queries of a map, and that of its keys, with a label for each token.

    If the map holds tiles, that is, pooled weights, the axes say how many tokens a tile stands for.
    """
    height, width = 1, 1
    if attention_map.tiles:
        height, width = attention_map.tiles.height, attention_map.tiles.width
    unit = f"{attention_map.unit}s"
    queries, keys = attention_map.queries, attention_map.keys
    query_axis = Axis(
        "queries",
        labels=label_tokens(queries),
        numbers=attention_map.query_places,
        step=height,
        spaced=find_spaces(queries),
        unit=unit,
    )
    key_axis = Axis(
        "keys",
        labels=label_tokens(keys),
        numbers=attention_map.key_places,
        step=width,
        spaced=find_spaces(keys),
        unit=unit,
    )
    return query_axis, key_axis


def make_number_axis(name: str, labels: Sequence[str]) -> Axis:
    """Return an axis of layers or heads, numbered in their order."""
    numbers = range(len(labels))
    return Axis(name, tuple(labels), tuple(numbers))


def label_tokens(tokens: Sequence[Token]) -> tuple[str, ...]:
    """Return a label for each token of a text, in which hostile characters are made visible.

    A "+" marks a token that stands for further bytes of the character before it.
    """
    labels = []
    previous: Token | None = None
    for token in tokens:
        text = label_token(token.text)
        if previous is not None and continues_character(previous, token):
            text = f"{CONTINUATION}{text}"
        labels.append(text)
        previous = token
    return tuple(labels)


def continues_character(previous: Token, token: Token) -> bool:
    """Return whether a token stands for further bytes of a character of the token before it.

    previous: that token.
    """
    if token.special or token.segment != previous.segment:
        return False
    return token.start < previous.end


def find_spaces(tokens: Sequence[Token]) -> tuple[bool, ...]:
    """Return for each token whether it is separate from the token before it; False for the first.

    White space separates two tokens. A token that stands for no text, such as a special token, is
    separate from both its neighbours.
    """
    if not tokens:
        return ()
    between = [are_separate(previous, token) for previous, token in pairwise(tokens)]
    return (False, *between)


def are_separate(previous: Token, token: Token) -> bool:
    """Return whether a token is separate from the token before it.

    It is if white space stands between them, if either is a special token, if they belong to
    different segments of the text, or if the token stands for no text.
    """
    has_special = previous.special or token.special
    if has_special or previous.segment != token.segment:
        return True
    has_no_text = token.start == token.end
    return has_no_text or token.start > previous.end


def name_model(capture: Capture) -> str:
    """Return the name of a capture's model: the end of a long path, else all of the name."""
    folders_and_name = capture.model.split("/")
    *folders, owner, name = ["", *folders_and_name]  # the name may stand alone
    is_long_path = any(folders)
    if is_long_path:
        return escape(f"…/{owner}/{name}")
    return escape(capture.model)


def title_kind(attention_map: AttentionMap) -> tuple[str, ...]:
    """Return the name of a map's kind of attention, as parts of a title: none for "self"."""
    if attention_map.kind == "self":
        return ()
    return (KIND_TITLES[attention_map.kind],)


def title_matrix(attention_map: AttentionMap, layer: int, head: int) -> tuple[str, ...]:
    """Return the parts of the title of one matrix of a map: its kind, its layer, its head.

    layer, head: the indices of the layer and the head in the map.
    """
    layer_title = f"layer {attention_map.layers[layer]}"
    head_title = title_head(attention_map.heads[head])
    return *title_kind(attention_map), layer_title, head_title


def title_head(head: int | str) -> str:
    """Return the title of a head: "head 3", "mean over heads", or a name that needs no more.

    head: the number of a head, or the name of what was made of several heads.
    """
    if head in METHODS_THROUGH_LAYERS:
        return str(head)
    if isinstance(head, int):
        return f"head {head}"
    return f"{escape(head)} over heads"


def abbreviate_head(layer: int, head: int | str) -> str:
    """Return the short name of a head: L5H3, or L5 mean for a mean over the heads of a layer."""
    separator = "" if isinstance(head, int) else " "
    return f"L{layer}{separator}{abbreviate_head_column(head)}"


def abbreviate_head_column(head: int | str) -> str:
    """Return the short name of a head of any layer: H3, or mean for a mean over heads."""
    if isinstance(head, int):
        return f"H{head}"
    return escape(head)


def name_token(token: Token) -> str:
    """Return the label of a token, shortened so that a sentence can hold it."""
    return shorten_token_label(label_token(token.text))


def shorten_token_label(text: str) -> str:
    """Return a label cut to LONGEST_TOKEN characters, with an ellipsis for the rest."""
    if len(text) <= LONGEST_TOKEN:
        return text
    beginning = text[: LONGEST_TOKEN - 1]
    return f"{beginning}…"


def describe_length(maps: Sequence[AttentionMap]) -> str:
    """Return how many tokens or words maps have: "9 tokens", "9 x 12 tokens", "up to 9 tokens".

    Two numbers stand for queries and keys, if these differ. "up to" stands before the size of the
    largest map, if sizes differ.
    """
    sizes = {(len(attention_map.queries), len(attention_map.keys)) for attention_map in maps}
    query_count, key_count = max(sizes)
    length = f"{query_count}"
    if query_count != key_count:
        length = f"{query_count} x {key_count}"
    if len(sizes) > 1:
        length = f"up to {length}"
    return f"{length} {maps[0].unit}s"


def describe_head_count(count: int, heads: Sequence[int | str]) -> str:
    """Return the number of matrices in words: "12 heads", or "mean over heads of 3 layers".

    The latter is for matrices that are each a reduction over the heads of a layer.

    count: the number of matrices. heads: the heads of a map, by their numbers or by the name of a
    reduction; the first one says which of them it is.
    """
    noun, reduction = "head", ""
    first_head = heads[0]
    if not isinstance(first_head, int):
        noun, reduction = "layer", f"{title_head(first_head)} of "
    if count != 1:
        noun = f"{noun}s"
    return f"{reduction}{count} {noun}"
