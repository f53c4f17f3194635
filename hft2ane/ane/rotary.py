"""Attention with rotary positions (Su et al. 2021), to all tokens or to those near by."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hft2ane.ane.attention import MASKED, QUERIES, Pairs, attend, chunk
from hft2ane.ane.layers import Linear


@dataclass(frozen=True)
class Window:
    """Queries that are taken at once, the keys that are within their reach, and what is added to their scores."""

    queries: slice
    keys: slice
    mask: Tensor


Near = Tensor | list[Window]


def near(mask: Tensor, reach: int) -> Near:
    """The mask of keys that are padding, (B, S, 1, 1), with those masked that are more than `reach` tokens away.

    Windows where the queries are too many to be taken at once: a mask of all keys for all of them would grow with the
    square of the tokens, as would the work."""
    tokens = mask.shape[1]
    if reach >= tokens - 1:
        return mask
    if chunk(tokens, tokens) == tokens:
        return mask + far(slice(0, tokens), slice(0, tokens), reach)
    windows = []
    for start in range(0, tokens, QUERIES):
        stop = min(start + QUERIES, tokens)
        queries, keys = slice(start, stop), slice(max(start - reach, 0), min(stop + reach, tokens))
        windows.append(Window(queries, keys, mask[:, keys] + far(queries, keys, reach)))
    return windows


def far(queries: slice, keys: slice, reach: int) -> Tensor:
    """0 for keys within reach, −1e4 for others: (1, keys, 1, queries)."""
    apart = torch.arange(keys.start, keys.stop)[:, None] - torch.arange(queries.start, queries.stop)
    return torch.where(torch.abs(apart) <= reach, 0.0, MASKED)[None, :, None]


def rotary_tables(theta: float, size: int, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin by which `rotate` turns, (1, size, 1, tokens), with 1/√√size in them for queries and for keys.

    Angles are rounded to fp32 as transformers rounds them, which counts where positions are large. Their cosines are
    taken in double precision: fp32's differ in the last bit from machine to machine."""
    rates = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    angles = (rates[:, None] * torch.arange(tokens, dtype=torch.float32)).double()[None, :, None]
    cos, sin = torch.cos(angles) * size**-0.25, torch.sin(angles) * size**-0.25
    return torch.cat([cos, cos], 1).to(dtype), torch.cat([-sin, sin], 1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns (B, size, heads, tokens): channel i with channel i + size / 2."""
    first, second = torch.split(x, x.shape[1] // 2, 1)
    return x * cos + torch.cat([second, first], 1) * sin


class QueriesKeys(Linear):
    """Queries and keys of all heads, of the checkpoint's linear for queries, keys and values.

    Its channels are in the order of (size, queries and keys, heads) where the checkpoint's are in that of (queries and
    keys, heads, size): so `rotate` and the split into heads need no transposition."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__(channels, 2 * channels, bias)
        self.size = channels // heads

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        rows = len(self.weight)
        if len(tensor) != rows // 2 * 3:
            return tensor
        by_head = tensor[:rows].reshape(-1, self.size, *tensor.shape[1:])
        return super().fit(name, by_head.transpose(0, 1).reshape(rows, *tensor.shape[1:]))


class RotaryAttention(nn.Module):
    """Attention with its output projection, (B, C, 1, S) -> (B, C, 1, S), positions being in the angles of queries and
    keys: six operations a layer, for all heads together. READS and BALANCED are as in `Attention`."""

    READS = ("qk", "v")
    BALANCED: Pairs = (("v", "out"),)

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.size = heads, channels // heads
        self.qk = QueriesKeys(channels, heads, bias)
        self.v = Linear(channels, channels, bias, part=(2, 3))
        self.out = Linear(channels, channels, bias)

    def forward(self, x: Tensor, mask: Near, cos: Tensor, sin: Tensor) -> Tensor:
        """`mask`: see `near`; `cos`, `sin`: see `rotary_tables`."""
        both = torch.reshape(self.qk(x), (x.shape[0], self.size, 2 * self.heads, x.shape[3]))
        q, k = torch.split(rotate(both, cos, sin), self.heads, 2)
        k, v = torch.transpose(k, 1, 3), self.v(x)
        if isinstance(mask, list):
            queries = torch.split(q, QUERIES, 3)
            x = torch.cat(
                [
                    self.look(part, k[:, window.keys], v[:, :, :, window.keys], window.mask)
                    for part, window in zip(queries, mask, strict=True)
                ],
                3,
            )
        else:
            x = self.look(q, k, v, mask)
        x = self.out(x)
        return x

    def look(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q (B, size, heads, queries), k (B, keys, heads, size), v (B, C, 1, keys) -> (B, C, 1, queries)."""
        heads = zip(torch.split(q, 1, 2), torch.split(k, 1, 2), torch.split(v, self.size, 1), strict=True)
        return torch.cat([attend(*qkv, mask) for qkv in heads], 1)
