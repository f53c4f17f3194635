"""Linear layers as 1×1 convolutions, embedding tables, the norm over channels, and activations."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# An eps of a norm is exported as at least this: 1e-7 in fp16, which Apple's own networks have (ml-ane-transformers).
# BERT's 1e-12 would be zero, and below 2^-14 numbers are subnormal, which hardware may take for zero.
EPS_LEAST = 2.0**-23

Activation = Callable[[Tensor], Tensor]

# By the names of transformers' ACT2FN; some are the same function in another order of sums.
ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        **dict.fromkeys(("gelu", "gelu_python"), F.gelu),
        **dict.fromkeys(
            ("gelu_new", "gelu_pytorch_tanh", "gelu_accurate", "gelu_python_tanh"),
            partial(F.gelu, approximate="tanh"),
        ),
        "relu": F.relu,
        "silu": F.silu,
        "swish": F.silu,
        "tanh": torch.tanh,
    }
)


class Linear(nn.Module):
    """y = Wx + b over the channel axis: (B, n_in, 1, S) -> (B, n_out, 1, S).

    `part`: which of how many linears it is that the checkpoint has as one, with the rows of each after another."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True, part: tuple[int, int] = (0, 1)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in, 1, 1))
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None
        self.part = part

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """Its part of a torch.nn.Linear's weight (n_out · parts, n_in), as a 1×1 convolution's, or of the bias."""
        index, parts = self.part
        rows = len(self.weight)
        if parts > 1 and len(tensor) == rows * parts:
            tensor = tensor[rows * index : rows * (index + 1)]
        return tensor[:, :, None, None] if name == "weight" and tensor.dim() == 2 else tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class TokenConvolution(nn.Module):
    """A convolution along the tokens, zeros beyond both ends: (B, n_in, 1, S) -> (B, n_out, 1, S). `size`: odd."""

    def __init__(self, n_in: int, n_out: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in, 1, size))
        self.bias = nn.Parameter(torch.empty(n_out))

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """A torch.nn.Conv1d's weight (n_out, n_in, size)."""
        return tensor[:, :, None] if name == "weight" else tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=(0, self.weight.shape[3] // 2))


class Decoder(Linear):
    """A linear over a vocabulary, as tokens: (B, n_in, 1, S) -> (B, S, n_out).

    In equal parts where there are more entries than the engine's channel axis takes."""

    MOST = 65536

    def forward(self, x: Tensor) -> Tensor:
        rows = len(self.weight)
        if rows <= self.MOST:
            return to_tokens(super().forward(x))
        size = 64 * math.ceil(rows / math.ceil(rows / self.MOST) / 64)
        weights = torch.split(self.weight, size)
        biases = [None] * len(weights) if self.bias is None else torch.split(self.bias, size)
        return torch.cat([to_tokens(F.conv2d(x, w, b)) for w, b in zip(weights, biases, strict=True)], 2)


class Embedding(nn.Module):
    """A table of n rows: ids (B, S) -> (B, S, channels). Only at the network's entry: gathers run on the CPU."""

    def __init__(self, rows: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, channels))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over axis 1, as one op: two divergent orders of its parts cost dB or an op more in Core ML."""
    if torch.overrides.has_torch_function((x,)):
        result: Tensor = torch.overrides.handle_torch_function(channel_norm, (x,), x, weight, bias, eps)
        return result
    return F.layer_norm(x.transpose(1, -1), weight.shape, weight, bias, eps).transpose(1, -1)


class ChannelNorm(nn.Module):
    """nn.LayerNorm over the channels of x, or of x + branch: (B, channels, 1, S).

    `scale` is a power of two by which x is multiplied first. A norm forgets it when the branch comes multiplied by it
    too and eps by its square: so a sum that is too large for fp16 is made small, see `condition`."""

    def __init__(self, channels: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.eps = eps
        self.scale = 1.0

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Tensor:
        x = x if self.scale == 1 else x * self.scale
        return channel_norm(x if branch is None else x + branch, self.weight, self.bias, self.eps)


def token_types(types: Embedding, ids: Tensor | None, fixed: Tensor | None) -> Tensor:
    """The embeddings of token types, with `fixed` constants (S, C): what is added to those of words, (B, S, C).

    `ids` (B, S), None where there is one type. Two need no look-up, which would run on the CPU."""
    table = types.weight
    first = table[0] if fixed is None else fixed + table[0]
    if ids is None:
        return first
    if len(table) == 2:
        second = torch.reshape(ids.to(torch.float32), (*ids.shape, 1))
        return second * (table[1] - table[0]) + first
    looked_up: Tensor = types(ids)
    return looked_up if fixed is None else looked_up + fixed


def to_channels(x: Tensor) -> Tensor:
    """(B, S, C), as embeddings come, -> (B, C, 1, S)."""
    return torch.unsqueeze(torch.transpose(x, 1, 2), 2)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, 1, S) -> (B, S, C), as transformers gives it."""
    return torch.transpose(torch.squeeze(x, 2), 1, 2)
