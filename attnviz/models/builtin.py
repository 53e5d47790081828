"""Our own language model, from the package or from a folder that ``attnviz train`` wrote.

On the CPU it runs in NumPy, so that nothing waits for torch; the same function runs on torch tensors for other devices.
Its texts are short, so whatever is to be kept is made of its weights.
"""

from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from attnviz.analysis.statistics import describe, strongest, tile
from attnviz.errors import ModelError
from attnviz.lm import store
from attnviz.lm.corpus import Ids
from attnviz.lm.model import Block, blocks, logits, losses
from attnviz.lm.tokenizer import BOS_ID
from attnviz.models.checks import require_edge, require_length, require_none, torch_device
from attnviz.record import AttentionMap, Capture, Floats, Token
from attnviz.request import Change, Edge, Placement, Prompt, Request, Vocabulary
from attnviz.selection import require_kinds, require_sides, resolve, window_notes


class Builtin:
    """A language model made of our own attention layer."""

    def __init__(self, name: str, folder: Path, placement: Placement) -> None:
        self.name = name
        stored = store.read(folder)
        self.config = stored.config
        try:
            self.tokenizer = Tokenizer.from_str(stored.tokenizer)
        except Exception as error:  # the library raises the bare class
            raise ModelError(f"the tokenizer in {folder} is damaged: {error}") from error
        self.tokenizer.encode_special_tokens = True  # "<bos>" in a text is text
        self.torch_device = None if runs_in_numpy(placement) else torch_device(placement.device)
        dtype = "float32" if placement.dtype == "auto" else placement.dtype
        self.parameters = {name: self.place(array, dtype) for name, array in stored.parameters.items()}

    def place(self, array: Any, dtype: str | None = None) -> Any:
        """An array as a NumPy array or on the torch device."""
        if self.torch_device is None:
            return array.astype(dtype or array.dtype, copy=False)
        import torch

        placed = torch.from_numpy(array).to(self.torch_device)
        return placed.to(getattr(torch, dtype)) if dtype else placed

    def capture(self, prompt: Prompt, request: Request, cuts: tuple[Edge, ...] = ()) -> Capture:
        """See ``Model.capture``."""
        other = {"--pair": prompt.pair, "--target": prompt.target, "--chat": prompt.chat}
        require_none(other, f"{self.name} reads one plain text")
        require_none({"--generate": prompt.generate and cuts}, "edges are cut of a text that is there")
        require_kinds(request.kinds, ("self",))
        there = {layer: range(self.config.heads) for layer in range(self.config.layers)}
        rectangles = resolve(request.layers, request.heads, there)
        ids, tokens, text, note = self.read(prompt, request.truncate)
        masks = self.masks(cuts, len(ids))
        weights = self.weights(ids, max(max(layers) for layers, _ in rectangles), masks)
        if not np.isfinite(weights).all():
            raise ModelError(f"the weights of {self.name} are damaged: its attention is not a number")
        request = request.placed((tokens, tokens))
        maps = tuple(
            make_map(layers, heads, tokens, weights[np.ix_(layers, heads)], request) for layers, heads in rectangles
        )
        where = window_notes(request.rows, request.columns, [(tokens, tokens)]) if request.windowed else ()
        return Capture(self.name, text, maps, ((note,) if note else ()) + where)

    def read(self, prompt: Prompt, truncate: bool) -> tuple[list[int], tuple[Token, ...], str, str | None]:
        """Ids and tokens of a prompt, its text with what the model wrote after it, and a note if it was cut."""
        if prompt.ids is not None:
            return self.read_ids(list(prompt.ids))
        encoding, positions = self.tokenizer.encode(prompt.text), self.config.positions
        note = require_length(len(encoding.ids), positions, truncate, self.name, writes=prompt.generate)
        if note:
            encoding.truncate(positions - prompt.generate)
        ids, tokens, text = list(encoding.ids), read_tokens(encoding, prompt.text), prompt.text
        for _ in range(prompt.generate):
            ids.append(self.next_token(ids))
            piece = self.tokenizer.decode(ids[len(tokens) :])  # what is new since the last whole sign
            if piece.endswith("\ufffd") and len(ids) - len(encoding.ids) < prompt.generate:
                continue
            span = len(text), len(text) + len(piece)
            text += piece
            tokens += tuple(Token.of("", number, span, False, text) for number in ids[len(tokens) :])
        return ids, tokens, text, note

    def read_ids(self, ids: list[int]) -> tuple[list[int], tuple[Token, ...], str, None]:
        """The same for token ids. Raises InputError for too many."""
        require_length(len(ids), self.config.positions, False, self.name, what="the sequence of ids")
        tokens, text = list[Token](), ""
        for number in ids:
            piece, start = self.tokenizer.decode([number]), len(text)
            text += piece
            name = str(self.tokenizer.id_to_token(number))
            tokens.append(Token.of(name, number, (start, len(text)), number == BOS_ID, text))
        return ids, tuple(tokens), text, None

    def next_token(self, ids: list[int]) -> int:
        """The likeliest next token."""
        *_, last = self.run(ids, self.config.layers)
        return int(logits(self.parameters, last.hidden[-1:])[0].argmax())

    def run(self, ids: list[int], layers: int, masks: Mapping[int, Any] | None = None) -> list[Block]:
        """The first so many layers; those after them are not computed."""
        return list(islice(blocks(self.parameters, self.place(np.array(ids)), self.config, masks), layers))

    @property
    def vocabulary(self) -> Vocabulary:
        """See ``Model.vocabulary``."""
        return Vocabulary(tuple(range(BOS_ID + 1, self.config.vocabulary)), (BOS_ID,), (), self.config.positions)

    def losses(self, ids: Ids, change: Change | None = None) -> Floats:
        """See ``Model.losses``."""
        found: Floats
        if self.torch_device is None:
            found = losses(self.parameters, ids, self.config, change)
        else:
            import torch

            with torch.inference_mode():
                found = losses(self.parameters, self.place(ids), self.config, change).cpu().numpy()
        return found.astype(np.float32)

    def masks(self, cuts: tuple[Edge, ...], length: int) -> dict[int, Any]:
        """For each layer of which an edge is cut, (head, query, key), False there. Raises UsageError."""
        found: dict[int, Any] = {}
        for cut in cuts:
            there = cut.kind == "self" and cut.layer in range(self.config.layers)
            require_edge(cut, self.config.heads if there else 0, length, length)
            mask = found.setdefault(cut.layer, np.ones((self.config.heads, length, length), dtype=bool))
            mask[cut.head, cut.query, cut.key] = False
        return {layer: self.place(mask) for layer, mask in found.items()}

    def weights(self, ids: list[int], last: int, masks: Mapping[int, Any]) -> Any:
        """Weights (layer, head, query, key) of the layers up to ``last``."""
        if self.torch_device is None:
            run = self.run(ids, last + 1, masks)
            return np.stack([block.attended.weights for block in run], dtype=np.float32)
        import torch

        with torch.inference_mode():
            kept = torch.stack([block.attended.weights for block in self.run(ids, last + 1, masks)])
        return kept.float().cpu().numpy()


def make_map(
    layers: tuple[int, ...], heads: tuple[int, ...], tokens: tuple[Token, ...], weights: Floats, request: Request
) -> AttentionMap:
    """What is kept of weights (layer, head, query, key)."""
    visible = np.tri(len(tokens), dtype=bool)
    if request.windowed:
        shown = require_sides(request.rows, request.columns, (tokens, tokens))
        return AttentionMap("self", layers, heads, tokens, tokens, weights, visible).window(*shown)
    make = partial(AttentionMap, "self", layers, heads, tokens, tokens, statistics=describe(weights, visible, True))
    if request.keep == "weights":
        return make(weights, visible)
    if request.keep == "tiles":
        tiles, seen = tile(weights, request.tiles), tile(visible[None, None], request.tiles)
        whole = weights if (tiles.height, tiles.width) == (1, 1) else None
        return make(whole, seen.max.astype(bool), tiles=tiles)
    edges = strongest(weights, request.strongest) if request.keep == "edges" else None
    return make(None, np.array(True), edges=edges)


def runs_in_numpy(placement: Placement) -> bool:
    """Whether NumPy does: it has no bfloat16, and nothing is gained in its float16."""
    return placement.device in ("auto", "cpu") and placement.dtype in ("auto", "float32", "float64")


def read_tokens(encoding: Encoding, text: str) -> tuple[Token, ...]:
    """The tokens of an encoding: slices of the text, special tokens by name."""
    columns = encoding.tokens, encoding.ids, encoding.offsets, map(bool, encoding.special_tokens_mask)
    return tuple(Token.of(*column, text) for column in zip(*columns, strict=True))
