"""From token embeddings to one sentence embedding: the modules that follow the Transformer in sentence-transformers."""

import torch
from torch import Tensor, nn

from hft2ane.ane.attention import MASKED

# Modes of sentence_transformers.models.Pooling that are reproduced.
POOLING = ("cls", "max", "mean", "mean_sqrt_len_tokens")


class Pool(nn.Module):
    """(B, C, 1, S) and the mask (B, S) -> (B, C · modes, 1, 1), modes one after the other as given."""

    def __init__(self, modes: tuple[str, ...]) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        keep = torch.reshape(attention_mask.to(torch.float32), (*attention_mask.shape, 1, 1))
        pooled = [getattr(self, mode)(x, keep) for mode in self.modes]
        return torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0]

    @staticmethod
    def cls(x: Tensor, keep: Tensor) -> Tensor:
        return x[:, :, :, :1]

    @staticmethod
    def max(x: Tensor, keep: Tensor) -> Tensor:
        padding = torch.transpose((1 - keep) * MASKED, 1, 3)
        return torch.amax(x + padding, 3, True)

    @staticmethod
    def mean(x: Tensor, keep: Tensor) -> Tensor:
        """Divided before it is summed: 512 large values overflow fp16, and a product of matrices adds up wide."""
        return weighted(x, keep / count(keep))

    @staticmethod
    def mean_sqrt_len_tokens(x: Tensor, keep: Tensor) -> Tensor:
        return weighted(x, keep / torch.sqrt(count(keep)))


def count(keep: Tensor) -> Tensor:
    """Tokens a row, at least 1 so that a row of padding gives zeros and not NaN: (B, S, 1, 1) -> (B, 1, 1, 1)."""
    return torch.clamp(torch.sum(keep, 1, True), min=1.0)


def weighted(x: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("bchk,bkhq->bchq", x, weights)


class Normalize(nn.Module):
    """To length 1 over the channels. Scaled by the largest entry first: squares of fp16 values over 255 overflow."""

    LEAST = 2.0**-14  # fp16's smallest normal number

    def forward(self, x: Tensor) -> Tensor:
        x = x / torch.clamp(torch.amax(torch.abs(x), 1, True), min=self.LEAST)
        return x / torch.clamp(torch.linalg.vector_norm(x, dim=1, keepdim=True), min=self.LEAST)
