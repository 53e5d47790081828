"""Small torch modules with attention of every kind, and the vectors that they are run on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnviz.layer import Attention
from tests.calls import vectors

DIM, HEADS = 16, 4
SEVEN_VECTORS, FIVE_VECTORS = vectors(1, 7, DIM), vectors(1, 5, DIM, seed=1)


class LSTM(nn.Module):
    """Our layer behind a recurrent one, as texts were read before 2017 (Bahdanau et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.attention = nn.LSTM(DIM, DIM, batch_first=True), Attention(DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Sequence to sequence."""
        return self.attention(self.lstm(x)[0])

    def weights(self, x: Tensor) -> Tensor:
        """(head, query, key)."""
        return self.attention(self.lstm(x)[0], return_weights=True)[1]


class Convolution(nn.Module):
    """A softmax written by hand behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(DIM, DIM, 3, padding=1)
        self.query, self.key = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.dropout = nn.Dropout(0.5)

    def weights(self, x: Tensor) -> Tensor:
        """(batch, query, key)."""
        hidden = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return torch.softmax(self.query(hidden) @ self.key(hidden).transpose(1, 2) / 4, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Sequence to sequence."""
        return self.dropout(self.weights(x)) @ x


class Functional(nn.Module):
    """A call of torch's function, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(DIM, 3 * DIM)

    def parts(self, x: Tensor) -> Any:
        """Queries, keys and values, (batch, head, token, width)."""
        return self.project(x).view(1, -1, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Sequence to sequence."""
        return functional.scaled_dot_product_attention(*self.parts(x), is_causal=True)

    def weights(self, x: Tensor) -> Tensor:
        """(batch, head, query, key)."""
        query, key, _ = self.parts(x)
        scores = query @ key.transpose(2, 3) / (DIM // HEADS) ** 0.5
        return scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf).softmax(-1)


class Einsum(nn.Module):
    """A softmax by hand, its products by Einstein's convention."""

    def weights(self, x: Tensor) -> Tensor:
        """(batch, query, key)."""
        return torch.einsum("bnd,bmd->bnm", x, x).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Sequence to sequence."""
        return torch.einsum("bnm,bmd->bnd", self.weights(x), x)


def build_seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a module with the same random parameters each time."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return make()


def make_multihead() -> nn.MultiheadAttention:
    """Make torch's own layer of several heads."""
    return nn.MultiheadAttention(DIM, HEADS, batch_first=True)


def make_transformer() -> nn.Transformer:
    """Make an encoder of two layers with a decoder of three."""
    return nn.Transformer(DIM, HEADS, 2, 3, 32, batch_first=True)


def make_encoder() -> nn.TransformerEncoder:
    """Make an encoder of two layers."""
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
