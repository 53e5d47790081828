"""Our own language model, from the package or from a folder that ``attnviz train`` wrote.

On the CPU it runs in NumPy, so that nothing waits for torch; the same function runs on torch tensors for other devices.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from attnviz.errors import ModelError
from attnviz.lm import store
from attnviz.lm.model import blocks
from attnviz.models.request import Placement, Request, require_length, torch_device
from attnviz.record import AttentionMap, Capture, Token
from attnviz.selection import resolve


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
        self.parameters = {name: self.place(array, placement.dtype) for name, array in stored.parameters.items()}

    def place(self, array: Any, dtype: str) -> Any:
        """A parameter as a NumPy array or on the torch device."""
        if self.torch_device is None:
            return array.astype(dtype, copy=False)
        import torch

        return torch.from_numpy(array).to(self.torch_device, getattr(torch, dtype))

    def capture(self, text: str, request: Request) -> Capture:
        """See ``Model.capture``."""
        rectangles = resolve(request.layers, request.heads, self.config.layers, self.config.heads)
        encoding = self.tokenizer.encode(text)
        note = require_length(len(encoding.ids), self.config.positions, request.truncate, self.name)
        if note:
            encoding.truncate(self.config.positions)
        weights = self.weights(encoding.ids, max(max(layers) for layers, _ in rectangles))
        tokens = read_tokens(encoding, text)
        visible = np.tri(len(tokens), dtype=bool)
        if not np.isfinite(weights).all():
            raise ModelError(f"the weights of {self.name} are damaged: its attention is not a number")
        maps = tuple(
            AttentionMap("self", layers, heads, tokens, tokens, weights[np.ix_(layers, heads)], visible)
            for layers, heads in rectangles
        )
        return Capture(self.name, text, maps, (note,) if note else ())

    def weights(self, ids: list[int], last: int) -> Any:
        """Weights (layer, head, query, key) of the layers up to ``last``; those after it are not computed."""
        if self.torch_device is None:
            run = islice(blocks(self.parameters, np.array(ids), self.config), last + 1)
            return np.stack([block.attended.weights for block in run], dtype=np.float32)
        import torch

        with torch.inference_mode():
            run = islice(blocks(self.parameters, torch.tensor(ids, device=self.torch_device), self.config), last + 1)
            kept = torch.stack([block.attended.weights for block in run])
        return kept.float().cpu().numpy()


def runs_in_numpy(placement: Placement) -> bool:
    """Whether NumPy does: it has no bfloat16, and nothing is gained in its float16."""
    return placement.device in ("auto", "cpu") and placement.dtype in ("float32", "float64")


def read_tokens(encoding: Encoding, text: str) -> tuple[Token, ...]:
    """The tokens of an encoding: slices of the text, special tokens by name."""
    columns = encoding.tokens, encoding.ids, encoding.offsets, map(bool, encoding.special_tokens_mask)
    return tuple(Token.of(*column, text) for column in zip(*columns, strict=True))
