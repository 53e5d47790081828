"""A text that continues what a cache of keys and values holds: its keys are more than its queries."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import Cache

from attnviz.errors import InputError, UsageError
from attnviz.models.inputs import copy_changeable
from attnviz.models.maps import places
from attnviz.record import AttentionMap, Token
from attnviz.request import Request

NAMES = "past_key_values", "cache"  # how versions of transformers name the input


@dataclass(frozen=True)
class Past:
    """What a cache holds before a text is read."""

    name: str
    """Of the input."""
    count: int
    """Tokens that were read before."""
    queries: int
    """Tokens of the text."""
    keys: Mapping[int, tuple[int, int]]
    """By layer, how many keys there are for the queries, and the place of the first of them."""

    @property
    def note(self) -> str:
        """What the reader should know."""
        last = self.count + self.queries - 1
        queries = (
            f"query {last} follows" if self.queries == 1 else f"queries {self.count}-{last} follow"
        )
        return f"{queries} the {self.count} tokens of {self.name}, which are named by their places"

    def place_map(self, part: AttentionMap, tokens: Sequence[Token]) -> AttentionMap:
        """Make a map of queries and all their keys a window of the whole text; leave other maps as they are.

        tokens: those of the text, if they are known. Slots of a cache that nothing was written to are cut off.
        """
        size, first = self.keys.get(part.layers[0], (None, 0))
        if (
            part.weights is None
            or part.kind not in ("self", "cross")
            or (len(part.queries), len(part.keys))
            != (
                self.queries,
                size,
            )
        ):
            return part
        whole = self.count + self.queries
        texts = (*places(self.count), *(tokens or places(whole)[self.count :]))
        last = min(first + len(part.keys), whole)
        visible = part.visible if part.visible.shape[-1] == 1 else part.visible[..., : last - first]
        return replace(
            part,
            kind="self",
            queries=texts[self.count :],
            keys=texts[first:last],
            weights=part.weights[..., : last - first],
            visible=visible,
            statistics=None,  # those of a window say nothing of the whole
            query_places=tuple(range(self.count, whole)),
            key_places=tuple(range(first, last)),
        )


def read_past(model: Any, inputs: Mapping[str, Any], request: Request) -> Past | None:
    """Read what the cache among inputs holds; None if there is none, or an empty one.

    Raises InputError for what is no cache, and of an encoder-decoder; UsageError for what cannot be kept of a part.
    """
    name = next((name for name in NAMES if inputs.get(name) is not None), None)
    if name is None:
        return None
    cache = inputs[name]
    if not isinstance(cache, Cache):
        raise InputError(
            f"{name} is of type {type(cache).__name__}: give a Cache of transformers, such as outputs.{name}"
        )
    count = int(cache.get_seq_length())
    if not count:
        return None
    if model.config.is_encoder_decoder:
        raise InputError(
            f"{name} of an encoder-decoder is not read: leave it out, and give the whole target"
        )
    if request.keep != "weights":
        raise UsageError(
            f"keep={request.keep!r} is of a whole text: leave {name} out, and give the whole text"
        )
    texts = (inputs[name] for name in ("input_ids", "inputs_embeds") if name in inputs)
    text = next(texts, None)
    if text is None:
        raise InputError(
            f"{name} needs input_ids or inputs_embeds beside it: the tokens that follow"
        )
    queries = int(text.shape[1])
    keys = {number: cache.get_mask_sizes(queries, number) for number in range(len(cache.layers))}
    return Past(
        name,
        count,
        queries,
        {number: (int(size), int(first)) for number, (size, first) in keys.items()},
    )


@contextmanager
def copying_caches(model: nn.Module) -> Iterator[None]:
    """Hand a model a copy of each cache in each of its runs: it would write into the caller's."""

    def copy_caches(
        _: nn.Module, places: tuple[Any, ...], names: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        return places, {
            name: copy_changeable(value) if is_cache(value) else value
            for name, value in names.items()
        }

    hook = model.register_forward_pre_hook(copy_caches, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def is_cache(value: Any) -> bool:
    """Tell whether a value is an object that a run may write to, of the library's caches and of others."""
    return isinstance(value, Cache) or (
        type(value).__module__.startswith("transformers.") and hasattr(value, "update")
    )
