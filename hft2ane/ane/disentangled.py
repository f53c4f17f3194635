"""Attention that weighs contents and relative positions apart (DeBERTa, He et al. 2021), without a look-up.

What a token says of a place depends on the token and on how far the place is from it, so there is one product with a
table of all distances, and then each token's row begins at another place of it: reshapes and slices, no gather.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from hft2ane.ane.attention import attend, chunk
from hft2ane.ane.layers import Linear

CONTENT_TO_POSITION, POSITION_TO_CONTENT = "c2p", "p2c"


class DisentangledAttention(nn.Module):
    """Attention with its output projection. All heads go at once, as a batch: scores are (heads, keys, 1, queries).

    `kinds`: what is added to scores of contents, some of "c2p" (the query says how much it looks at each distance) and
    "p2c" (the key says from what distances it is looked at). `shared`: distances go through the linears of contents."""

    def __init__(self, channels: int, heads: int, kinds: Collection[str], shared: bool) -> None:
        super().__init__()
        self.heads, self.size = heads, channels // heads
        # A root in fp32 whatever the precision, as in transformers.
        self.scale = 1 / float(torch.tensor(float(self.size * (1 + len(kinds))), device="cpu").sqrt())
        self.q = Linear(channels, channels)
        self.k = Linear(channels, channels)
        self.v = Linear(channels, channels)
        self.out = Linear(channels, channels)
        self.c2p = ByDistance() if CONTENT_TO_POSITION in kinds else None
        self.p2c = ByDistance() if POSITION_TO_CONTENT in kinds else None
        self.position_k = None if shared or self.c2p is None else Linear(channels, channels)
        self.position_q = None if shared or self.p2c is None else Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor, *distances: Tensor) -> Tensor:
        """`distances`: constants, (1, C, 1, 2S) each, the embeddings of the distances -S to S-1 and of S to -S+1, which
        say how far the query is behind the key; none where nothing is added to scores of contents."""
        whole = (self.q(x) * self.scale, self.k(x), self.v(x), mask)
        rows = zip(*(torch.split(each, 1) for each in whole), strict=True)
        seen = [self.look(*row, *distances) for row in rows]
        x = self.out(torch.cat(seen) if len(seen) > 1 else seen[0])
        return x

    def look(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *distances: Tensor) -> Tensor:
        """One text: q, k, v (1, C, 1, S) and mask (1, S, 1, 1) -> (1, C, 1, S)."""
        q, k, v = self.by_head(q), torch.transpose(self.by_head(k), 1, 3), self.by_head(v)
        added = []
        if self.p2c is not None:
            added.append(self.p2c(k, self.by_head((self.position_q or self.q)(distances[0]) * self.scale)))
        if self.c2p is not None:
            scores = self.c2p(torch.transpose(q, 1, 3), self.by_head((self.position_k or self.k)(distances[1])))
            added.append(torch.transpose(scores, 1, 3))
        return torch.reshape(attend(q, k, v, *added, mask), (1, self.heads * self.size, 1, q.shape[3]))

    def by_head(self, x: Tensor) -> Tensor:
        """(1, C, 1, n) -> (heads, size, 1, n)."""
        return torch.reshape(x, (self.heads, self.size, 1, x.shape[3]))


class ByDistance(nn.Module):
    """Tokens (n, S, 1, size) and the table of 2S distances (n, size, 1, 2S) -> scores (n, S, 1, S), token by token.

    Column c of the table is for the token that is c - S places further. Tokens are taken some at a time where scores
    would get too large for the engine."""

    def forward(self, tokens: Tensor, table: Tensor) -> Tensor:
        length = tokens.shape[1]
        scores, first = [], 0
        for some in torch.split(tokens, chunk(table.shape[3], length), 1):
            reached = table[:, :, :, length - first - some.shape[1] : 2 * length - first]
            scores.append(aligned(torch.einsum("bkhc,bchq->bkhq", some, reached)))
            first += some.shape[1]
        return torch.cat(scores, 1) if len(scores) > 1 else scores[0]


def aligned(x: Tensor) -> Tensor:
    """(n, rows, 1, width) -> (n, rows, 1, width - rows): row r from its column rows - r on.

    Read without its first `rows` numbers as rows that are one shorter, each begins one column before the last one."""
    n, rows, _, width = x.shape
    x = torch.reshape(x, (n, width, 1, rows))[:, 1:]
    return torch.reshape(x, (n, rows, 1, width - 1))[:, :, :, : width - rows]
