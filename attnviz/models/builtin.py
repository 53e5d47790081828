"""Our own language model, from the package or from a folder that ``attnviz train`` wrote.

On the CPU it runs in NumPy, so that nothing waits for torch; the same function runs on torch tensors for other devices.
Its texts are short, so whatever is to be kept is made of its weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from attnviz.analysis.explain import Operands, plainly
from attnviz.errors import ModelError, UsageError
from attnviz.layer.multihead import linear, rotate, split_heads
from attnviz.layer.norms import lengths, products, summed
from attnviz.lm import store
from attnviz.lm.corpus import Ids
from attnviz.lm.model import Block, blocks, head_vectors, logits, losses, normalise, within
from attnviz.lm.tokenizer import BOS_ID
from attnviz.models.base import SupportsLosses, SupportsOperands, SupportsPredictions
from attnviz.models.checks import require_length, require_no_run, require_none, torch_device
from attnviz.models.folders import Folders
from attnviz.models.interventions import batches, changed_ids, hidden, require_edges, require_keys
from attnviz.models.whole_weights import make_map
from attnviz.record import (
    GRADIENT,
    NORM,
    SCORES,
    AttentionMap,
    Capture,
    Floats,
    Method,
    Token,
    Visible,
)
from attnviz.request import (
    LIKELIEST,
    NOTHING,
    Change,
    Intervention,
    Placement,
    Prompt,
    Request,
    Response,
    Target,
    Vocabulary,
    gradient_line,
    pieces_line,
    spaced,
)
from attnviz.selection import require_kinds, resolve, window_notes


class Builtin(SupportsPredictions, SupportsOperands, SupportsLosses):
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
        self.parameters = {
            name: self.place(array, dtype) for name, array in stored.parameters.items()
        }

    @classmethod
    def load(cls, name: str, folders: Folders, placement: Placement) -> "Builtin":
        """Read a model from its folders. Raises ModelError, also for an adapter or another tokenizer."""
        if folders.adapter or folders.tokenizer:
            advice = "name another model with --model"
            raise ModelError(f"{name} takes no adapter and no other tokenizer: {advice}")
        return cls(name, folders.model, placement)

    def place(self, array: Any, dtype: str | None = None) -> Any:
        """An array as a NumPy array or on the torch device."""
        if self.torch_device is None:
            return array.astype(dtype or array.dtype, copy=False)
        import torch

        placed = torch.from_numpy(array).to(self.torch_device)
        return placed.to(getattr(torch, dtype)) if dtype else placed

    def capture(
        self, prompt: Prompt, request: Request, intervention: Intervention = NOTHING
    ) -> Capture:
        """See ``SupportsPredictions.capture``."""
        self.require_readable(prompt, changed=intervention != NOTHING)
        require_kinds(request.kinds, ("self",))
        there = {layer: range(self.config.heads) for layer in range(self.config.layers)}
        rectangles = resolve(request.layers, request.heads, there)
        ids, tokens, text, note = self.read(prompt, request.truncate)
        last = max(max(layers) for layers, _ in rectangles)
        read = changed_ids(ids, [intervention])
        run = partial(self.run, read, [intervention])
        told = None
        if request.method == GRADIENT:
            weights, told = self.gradients(ids, tokens, intervention, request.target)
        else:
            weights = self.weights(run, last, request.method)
        vectors = self.vectors(run, read, last) if request.method == NORM else None
        if not np.isfinite(weights).all():
            raise ModelError(
                f"the weights of {self.name} are damaged: its attention is not a number"
            )
        visible = self.visible(intervention, len(ids))

        def seen(at: Any) -> Visible:
            return visible[at] if intervention.cuts else visible

        request = request.placed((tokens, tokens))
        maps = tuple(
            make_map(layers, heads, tokens, weights[at], seen(at), request)
            if vectors is None
            else make_norms(layers, heads, tokens, weights[at], seen(at), vectors[at], request)
            for layers, heads in rectangles
            for at in [np.ix_(layers, heads)]
        )
        where = (
            window_notes(request.rows, request.columns, [(tokens, tokens)])
            if request.windowed
            else ()
        )
        return Capture(self.name, text, maps, (*filter(None, (note, told)), *where))

    def require_readable(self, prompt: Prompt, *, changed: bool) -> None:
        """Raise UsageError for what a prompt asks that is not to be had."""
        other = {"--pair": prompt.pair, "--target": prompt.target, "--chat": prompt.chat}
        require_none(other, f"{self.name} reads one plain text")
        require_none(
            {"--generate": prompt.generate and changed}, "what is changed is a text that is there"
        )

    def respond(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention],
        target: Target = LIKELIEST,
        *,
        truncate: bool = False,
    ) -> Response:
        """See ``SupportsPredictions.respond``."""
        self.require_readable(prompt, changed=True)
        ids, tokens, _, _ = self.read(prompt, truncate)
        place = target.query.resolve(tokens).start if target.query else len(tokens) - 1
        asked = self.asked(target)
        found = np.concatenate(
            [self.predicted(ids, place, batch) for batch in batches(interventions)]
        )
        chosen = int(found[0].argmax()) if asked < 0 else asked
        return Response("next", tokens, place, found, chosen, self.spelt)

    def predicted(self, ids: Sequence[int], place: int, batch: Sequence[Intervention]) -> Floats:
        """The logits of the token after a place under some interventions, (intervention, token)."""

        def make() -> list[Any]:
            *_, last = self.run(changed_ids(ids, batch), batch)
            return [logits(self.parameters, last.hidden[:, place])]

        found: Floats = self.stacked(make)[0]
        return found

    def asked(self, target: Target) -> int:
        """The token that is asked about, -1 for the likeliest. Raises UsageError unless it is one."""
        if target.token is None or isinstance(target.token, int):
            return -1 if target.token is None else target.token
        if target.token == self.tokenizer.id_to_token(BOS_ID):
            return BOS_ID
        found = self.tokenizer.encode(spaced(target.token), add_special_tokens=False).ids
        if len(found) != 1:
            raise UsageError(pieces_line(target.token, [self.spelt(number) for number in found]))
        return int(found[0])

    def spelt(self, number: int) -> str:
        """What a token says; its name if that is nothing."""
        return self.tokenizer.decode([number]) or str(self.tokenizer.id_to_token(number))

    def gradients(
        self, ids: list[int], tokens: tuple[Token, ...], intervention: Intervention, target: Target
    ) -> tuple[Floats, str]:
        """Weights times gradients where positive, (layer, head, query, key), and what they are of; by torch."""
        from attnviz.lm.gradients import gradients

        place = target.query.resolve(tokens).start if target.query else len(tokens) - 1
        masks = self.masks([intervention], len(ids))
        how = self.config, masks, intervention.change
        found, chosen = gradients(
            self.parameters, changed_ids(ids, [intervention]), place, self.asked(target), *how
        )
        return found, gradient_line(
            "the next token after", tokens[place], place, self.spelt(chosen)
        )

    def operands(self, prompt: Prompt, request: Request) -> Operands:
        """See ``SupportsOperands.operands``."""
        there = {layer: range(self.config.heads) for layer in range(self.config.layers)}
        (layer, *_), (head, *_) = resolve(request.layers, request.heads, there)[0]
        ids, tokens, _, _ = self.read(prompt, request.truncate)
        query = request.placed((tokens, tokens)).rows.start
        if self.torch_device is None:
            return self.followed(ids, layer, head, query)
        import torch

        with torch.inference_mode():
            return self.followed(ids, layer, head, query)

    def followed(self, ids: list[int], layer: int, head: int, query: int) -> Operands:
        """The same for token ids; its queries and keys are made anew out of what the layer reads."""
        made: dict[int, Any] = {}
        placed = self.place(np.array(ids))
        steps = blocks(
            self.parameters, placed, self.config, change=lambda at, put, _: made.setdefault(at, put)
        )
        run = list(islice(steps, layer + 1))
        mine = within(self.parameters, f"layers.{layer}.")
        hidden = run[layer - 1].hidden if layer else self.parameters["embedding"][placed]
        x = normalise(hidden, mine["attention_norm"])  # (n, dim)
        attention = within(mine, "attention.")
        q, k, v = (
            split_heads(linear(attention, name, x), self.config.heads)
            for name in ("query", "key", "value")
        )
        q, k, v = rotate(q)[head, query], rotate(k)[head], v[head]
        query_row, keys, values, entered, output = map(
            doubles, (q, k, v, x[query], made[layer][query, head])
        )
        score, scale = plainly(self.config.score, keys.shape[-1])
        visible = np.arange(len(ids)) <= query
        return Operands(
            query_row, keys, values, visible, scale, score, hidden=entered, output=output
        )

    def read(
        self, prompt: Prompt, truncate: bool
    ) -> tuple[list[int], tuple[Token, ...], str, str | None]:
        """Ids and tokens of a prompt, its text with what the model wrote after it, and a note if it was cut."""
        require_no_run()
        if prompt.ids is not None:
            return self.read_ids(list(prompt.ids))
        encoding, positions = self.tokenizer.encode(prompt.text), self.config.positions
        note = require_length(
            len(encoding.ids), positions, truncate, self.name, writes=prompt.generate
        )
        if note:
            encoding.truncate(positions - prompt.generate)
        ids, tokens, text = list(encoding.ids), read_tokens(encoding, prompt.text), prompt.text
        for _ in range(prompt.generate):
            ids.append(self.next_token(ids))
            piece = self.tokenizer.decode(
                ids[len(tokens) :]
            )  # what is new since the last whole sign
            if piece.endswith("\ufffd") and len(ids) - len(encoding.ids) < prompt.generate:
                continue
            span = len(text), len(text) + len(piece)
            text += piece
            tokens += tuple(
                Token.of("", number, span, False, text) for number in ids[len(tokens) :]
            )
        return ids, tokens, text, note

    def read_ids(self, ids: list[int]) -> tuple[list[int], tuple[Token, ...], str, None]:
        """The same for token ids. Raises InputError for too many."""
        require_length(
            len(ids), self.config.positions, False, self.name, what="the sequence of ids"
        )
        tokens, text = list[Token](), ""
        for number in ids:
            piece, start = self.tokenizer.decode([number]), len(text)
            text += piece
            name = str(self.tokenizer.id_to_token(number))
            tokens.append(Token.of(name, number, (start, len(text)), number == BOS_ID, text))
        return ids, tuple(tokens), text, None

    def next_token(self, ids: list[int]) -> int:
        """The likeliest next token."""
        return int(self.predicted(ids, -1, [NOTHING])[0].argmax())

    def run(
        self, ids: Ids, batch: Sequence[Intervention], layers: int | None = None
    ) -> list[Block]:
        """The first so many layers, or all, on ids (intervention, token); those after them are not computed."""
        masks = self.masks(batch, ids.shape[1])
        return list(
            islice(
                blocks(self.parameters, self.place(ids), self.config, masks, batch[0].change),
                layers,
            )
        )

    def read_vocabulary(self) -> Vocabulary:
        """See ``SupportsSequences.read_vocabulary``."""
        return Vocabulary(
            tuple(range(BOS_ID + 1, self.config.vocabulary)), (BOS_ID,), (), self.config.positions
        )

    def losses(self, ids: Ids, change: Change | None = None) -> Floats:
        """See ``SupportsLosses.losses``."""
        found: Floats
        require_no_run()
        if self.torch_device is None:
            found = losses(self.parameters, ids, self.config, change)
        else:
            import torch

            with torch.inference_mode():
                found = losses(self.parameters, self.place(ids), self.config, change).cpu().numpy()
        return found.astype(np.float32)

    def masks(self, batch: Sequence[Intervention], length: int) -> dict[int, Any]:
        """Of each layer of which edges are cut, (intervention, head or 1, query, key), False there.

        Raises UsageError for edges that are not there, or that leave a query without a key.
        """
        size = self.config.heads, length, length
        require_edges(batch, {("self", layer): size for layer in range(self.config.layers)})
        found: dict[int, Any] = {}
        for layer in range(self.config.layers):
            cut = hidden(batch, "self", layer, size)
            if cut is not None:
                require_keys(np.tri(length, dtype=bool), cut)
                found[layer] = self.place(~cut)
        return found

    def visible(self, intervention: Intervention, length: int) -> Visible:
        """What queries see, (layer, head, query, key); (1, 1, query, key) where no edges are cut."""
        causal = np.tri(length, dtype=bool)[None, None]
        if not intervention.cuts:
            return causal
        size = self.config.heads, length, length
        cuts = [hidden([intervention], "self", layer, size) for layer in range(self.config.layers)]
        return np.stack(
            [
                np.broadcast_to(causal[0] if cut is None else causal[0] & ~cut[0], size)
                for cut in cuts
            ]
        )

    def weights(self, run: Callable[[int], list[Block]], last: int, method: Method) -> Floats:
        """Weights (layer, head, query, key) of the layers up to ``last``, or their scores, 0 where masked."""
        if method != SCORES:
            return self.stacked(lambda: [block.attended.weights[0] for block in run(last + 1)])
        scores = self.stacked(lambda: [block.attended.scores[0] for block in run(last + 1)])
        return np.where(np.isneginf(scores), np.float32(0), scores)

    def vectors(self, run: Callable[[int], list[Block]], ids: Ids, last: int) -> Floats:
        """What the heads of the layers up to ``last`` move of each token, (layer, head, key, dim)."""

        def make() -> list[Any]:
            before = [self.parameters["embedding"][self.place(ids[0])]]
            before += [block.hidden[0] for block in run(last)]
            return [
                head_vectors(self.parameters, part, layer, self.config.heads)
                for layer, part in enumerate(before)
            ]

        return self.stacked(make)

    def stacked(self, make: Callable[[], list[Any]]) -> Floats:
        """Arrays of the layers as one, in NumPy."""
        if self.torch_device is None:
            return np.stack(make(), dtype=np.float32)
        import torch

        with torch.inference_mode():
            kept: Floats = torch.stack(make()).float().cpu().numpy()
        return kept


def make_norms(
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    tokens: tuple[Token, ...],
    weights: Floats,
    visible: Visible,
    vectors: Floats,
    request: Request,
) -> AttentionMap:
    """What is kept of weights (layer, head, query, key) and of what they move, (layer, head, key, dim)."""
    if not request.summed:
        return make_map(
            layers, heads, tokens, weights * lengths(vectors)[:, :, None], visible, request
        )
    norms = np.stack([summed(*pair) for pair in zip(weights, map(products, vectors), strict=True)])
    seen = np.asarray(visible.any(1, keepdims=True))
    return make_map(layers, ("sum",), tokens, norms[:, None].astype(np.float32), seen, request)


def doubles(array: Any) -> Any:
    """An array of NumPy, or a tensor of any type and device, as NumPy's float64."""
    return (
        array.astype(np.float64) if isinstance(array, np.ndarray) else array.double().cpu().numpy()
    )


def runs_in_numpy(placement: Placement) -> bool:
    """Whether NumPy does: it has no bfloat16, and nothing is gained in its float16."""
    return placement.device in ("auto", "cpu") and placement.dtype in ("auto", "float32", "float64")


def read_tokens(encoding: Encoding, text: str) -> tuple[Token, ...]:
    """The tokens of an encoding: slices of the text, special tokens by name."""
    columns = (
        encoding.tokens,
        encoding.ids,
        encoding.offsets,
        map(bool, encoding.special_tokens_mask),
    )
    return tuple(Token.of(*column, text) for column in zip(*columns, strict=True))
