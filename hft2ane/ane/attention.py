"""Multi-head attention on (batch, channels, 1, tokens), one head at a time."""

import torch
from torch import Tensor, nn

from hft2ane.ane.layers import Linear

# Large enough that exp() of it is zero in fp16, small enough that adding scores to it stays finite.
MASKED = -1e4


def additive_mask(attention_mask: Tensor) -> Tensor:
    """1 for tokens and 0 for padding, (B, S) -> 0 and −1e4 along the key axis of the scores, (B, S, 1, 1)."""
    keep = torch.reshape(attention_mask, (*attention_mask.shape, 1, 1)).to(torch.float32)
    return (1 - keep) * MASKED


class Attention(nn.Module):
    """Self-attention with its output projection. Scores are (B, keys, 1, queries): softmax runs over channels."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.size = channels // heads
        self.q = Linear(channels, channels)
        self.k = Linear(channels, channels)
        self.v = Linear(channels, channels)
        self.out = Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q = torch.split(self.q(x) * self.size**-0.5, self.size, 1)
        k = torch.split(torch.transpose(self.k(x), 1, 3), self.size, 3)
        v = torch.split(self.v(x), self.size, 1)
        heads = [self.head(*qkv, mask) for qkv in zip(q, k, v, strict=True)]
        x = self.out(torch.cat(heads, 1))
        return x

    @staticmethod
    def head(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q and v (B, size, 1, S), k (B, S, 1, size)."""
        scores = torch.einsum("bkhc,bchq->bkhq", k, q) + mask
        return torch.einsum("bchk,bkhq->bchq", v, torch.softmax(scores, 1))
