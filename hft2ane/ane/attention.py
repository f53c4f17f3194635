"""Multi-head attention on (batch, channels, 1, tokens), one head at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hft2ane.ane.layers import Linear

# Large enough that exp() of it is zero in fp16, small enough that adding scores to it stays finite.
MASKED = -1e4
# From this size on the scores of one head come out wrong on the engine (eeANE: 1023 tokens are right, 1024 are not).
SCORES = 1 << 20
# Queries that are taken at once where there are more of them, as in ml-stable-diffusion.
QUERIES = 512

Masks = Tensor | Sequence[Tensor]
Pairs = tuple[tuple[str, str], ...]


def additive_mask(attention_mask: Tensor) -> Tensor:
    """1 for tokens and 0 for padding, (B, S) -> 0 and −1e4 along the key axis of the scores, (B, S, 1, 1)."""
    keep = torch.reshape(attention_mask.to(torch.float32), (*attention_mask.shape, 1, 1))
    return (1 - keep) * MASKED


def causal_mask(tokens: int) -> Tensor:
    """0 where a key is no later than the query, −1e4 where it is, (1, keys, 1, queries): a constant.

    It is added to a mask of padding, and both together stay far above fp16's least number."""
    at = torch.arange(tokens)
    return torch.reshape(torch.where(at[:, None] <= at, 0.0, MASKED), (1, tokens, 1, tokens))


class Attention(nn.Module):
    """Attention with its output projection. Scores are (B, keys, 1, queries): softmax runs over channels.

    READS: the linears that x goes into; BALANCED: pairs of linears of which one may be made smaller and the other
    larger by as much, see `condition`."""

    READS = ("q", "k", "v")
    BALANCED: Pairs = (("q", "k"), ("k", "q"), ("v", "out"))

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.size = channels // heads
        self.q = Linear(channels, channels)
        self.k = Linear(channels, channels)
        self.v = Linear(channels, channels)
        self.out = Linear(channels, channels)

    def forward(self, x: Tensor, mask: Masks, memory: Tensor | None = None) -> Tensor:
        """`mask`: what is added to the scores, of 1 or all queries; a list has one for each head. `memory`: what is
        looked at where that is not x itself, (B, C, 1, keys)."""
        seen = x if memory is None else memory
        q = torch.split(self.q(x) * self.size**-0.5, self.size, 1)
        k = torch.split(torch.transpose(self.k(seen), 1, 3), self.size, 3)
        v = torch.split(self.v(seen), self.size, 1)
        masks = mask if isinstance(mask, list | tuple) else [mask] * len(q)
        heads = [attend(*qkvm) for qkvm in zip(q, k, v, masks, strict=True)]
        x = self.out(torch.cat(heads, 1))
        return x


def attend(q: Tensor, k: Tensor, v: Tensor, *added: Tensor) -> Tensor:
    """One head: q (B, size, 1, queries), k (B, keys, 1, size), v (B, size, 1, keys) -> (B, size, 1, queries).

    `added`: to the scores, of 1 or all queries, the mask last."""
    step = chunk(k.shape[1], q.shape[3])
    if step == q.shape[3]:
        scores = torch.einsum("bkhc,bchq->bkhq", k, q)
        for each in added:
            scores = scores + each
        return torch.einsum("bchk,bkhq->bchq", v, torch.softmax(scores, 1))
    queries = torch.split(q, step, 3)
    parts = [torch.split(each, step, 3) if each.shape[3] > 1 else [each] * len(queries) for each in added]
    return torch.cat([attend(part, k, v, *its) for part, *its in zip(queries, *parts, strict=True)], 3)


def chunk(keys: int, queries: int) -> int:
    """How many queries are taken at once."""
    if queries <= QUERIES and keys * queries < SCORES:
        return queries
    return max(32, min(QUERIES, (SCORES - 1) // keys // 32 * 32))
