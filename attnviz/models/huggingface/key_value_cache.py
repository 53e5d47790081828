"""Texts that continue what a cache of keys and values holds: they have more keys than queries."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import Cache

from attnviz.errors import InputError, UsageError
from attnviz.models.inputs import copy_changeable
from attnviz.models.maps import make_position_tokens
from attnviz.record import AttentionMap, Token
from attnviz.request import Request

# the names of the input, by the version of transformers
CACHE_NAMES = "past_key_values", "cache"
TEXT_NAMES = "input_ids", "inputs_embeds"


@dataclass(frozen=True)
class CachedText:
    """The tokens that a cache holds before a text is read, and the tokens of that text."""

    name: str
    """The name of the input."""
    count: int
    """The number of tokens that were read before."""
    queries: int
    """The number of tokens of the text."""
    keys: Mapping[int, tuple[int, int]]
    """By layer, the number of keys for the queries, and the position of the first of them."""

    @property
    def note(self) -> str:
        """A note that says which positions of the whole text the queries have."""
        last = self.count + self.queries - 1
        queries = f"queries {self.count}-{last} follow"
        if self.queries == 1:
            queries = f"query {last} follows"
        return f"{queries} the {self.count} tokens of {self.name}, which are named by their places"

    def place_map(self, attention_map: AttentionMap, tokens: Sequence[Token]) -> AttentionMap:
        """Return an attention map of the new queries as a window of the map of the whole text.

        The whole text is the tokens that a cache of keys and values holds, and the tokens that were
        read now. The queries are the tokens that were read now. Keys are named by their positions
        if they come from the cache. Empty slots of the cache are cut off. A map that lacks some of
        the queries or keys, or the weights, is returned as it is.

        tokens: the tokens that were read now; empty if they are not known.
        """
        if not self.is_of_whole_layer(attention_map):
            return attention_map
        _, first = self.keys[attention_map.layers[0]]
        whole = self.count + self.queries
        query_tokens = tuple(tokens) or make_position_tokens(whole)[self.count :]
        text = (*make_position_tokens(self.count), *query_tokens)
        last = min(first + len(attention_map.keys), whole)
        written = slice(last - first)
        visible = attention_map.visible
        if visible.shape[-1] != 1:
            visible = visible[..., written]
        assert attention_map.weights is not None
        return replace(
            attention_map,
            kind="self",
            queries=text[self.count :],
            keys=text[first:last],
            weights=attention_map.weights[..., written],
            visible=visible,
            statistics=None,  # those of a window say nothing of the whole
            query_places=tuple(range(self.count, whole)),
            key_places=tuple(range(first, last)),
        )

    def is_of_whole_layer(self, attention_map: AttentionMap) -> bool:
        """Return True if a map has the weights of all queries and keys of its layer.

        The numbers of these are what the cache of keys and values tells. The map must be one of
        self-attention, whose kind may have been taken for "cross", since the keys are more.
        """
        if attention_map.weights is None or attention_map.kind not in ("self", "cross"):
            return False
        key_count, _ = self.keys.get(attention_map.layers[0], (None, 0))
        size = len(attention_map.queries), len(attention_map.keys)
        return size == (self.queries, key_count)


def read_cached_text(
    model: Any,
    inputs: Mapping[str, Any],
    request: Request,
) -> CachedText | None:
    """Read how many tokens the cache of keys and values among a model's inputs holds.

    inputs: the inputs of the model, by name. request: what is to be kept of the attention. None is
    returned if there is no cache, or an empty one. Raises InputError for an object of another type,
    for the cache of an encoder-decoder, and for a cache without a text that follows; UsageError if
    the request keeps anything but weights, which would need the whole text.
    """
    name = find_filled_input(inputs, CACHE_NAMES)
    if name is None:
        return None
    cache = inputs[name]
    if not isinstance(cache, Cache):
        kind = type(cache).__name__
        raise InputError(
            f"{name} is of type {kind}: give a Cache of transformers, such as outputs.{name}",
        )
    count = int(cache.get_seq_length())
    if not count:
        return None
    if model.config.is_encoder_decoder:
        raise InputError(
            f"{name} of an encoder-decoder is not read: leave it out, and give the whole target",
        )
    if request.keep != "weights":
        raise UsageError(
            f"keep={request.keep!r} is of a whole text: leave {name} out, and give the whole text",
        )
    text_names = [text_name for text_name in TEXT_NAMES if text_name in inputs]
    if not text_names or inputs[text_names[0]] is None:
        raise InputError(
            f"{name} needs input_ids or inputs_embeds beside it: the tokens that follow",
        )
    queries = int(inputs[text_names[0]].shape[1])
    keys: dict[int, tuple[int, int]] = {}
    for number in range(len(cache.layers)):
        size, first = cache.get_mask_sizes(queries, number)
        keys[number] = int(size), int(first)
    return CachedText(name, count, queries, keys)


def find_filled_input(inputs: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the first of some names under which there is an input that is not None, or None."""
    for name in names:
        if inputs.get(name) is not None:
            return name
    return None


@contextmanager
def protect_caches(model: nn.Module) -> Iterator[None]:
    """Let each run of a model read copies of the caches of keys and values among its inputs.

    Otherwise the model would write into the caller's.
    """

    def copy_caches(
        _: nn.Module,
        positional: tuple[Any, ...],
        named: dict[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        return positional, {name: copy_cache(value) for name, value in named.items()}

    hook = model.register_forward_pre_hook(copy_caches, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def copy_cache(value: Any) -> Any:
    """Return a copy of a cache; leave any other value as it is."""
    return copy_changeable(value) if is_cache(value) else value


def is_cache(value: Any) -> bool:
    """Return True for a cache of transformers, or another object of it that a run may write to.

    Such an object has a method ``update``.
    """
    if isinstance(value, Cache):
        return True
    return type(value).__module__.startswith("transformers.") and hasattr(value, "update")
