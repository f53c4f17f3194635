"""One layer of a Transformer of BERT's kind: attention, feed-forward, and a norm after each."""

from collections.abc import Sequence

from torch import Tensor, nn

from hft2ane.ane.attention import Masks
from hft2ane.ane.layers import ACTIVATIONS, ChannelNorm, Linear


class Block(nn.Module):
    """Post-norm: (B, C, 1, S) -> (B, C, 1, S). `attend` takes what `forward` is called with, and gives (B, C, 1, S).

    `act`: a name of ACTIVATIONS; `inner`: channels of the feed-forward; `cross`: attention to another stream."""

    def __init__(
        self, attend: nn.Module, channels: int, inner: int, act: str, eps: float, cross: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.attend = attend
        self.norm1 = ChannelNorm(channels, eps)
        self.cross = cross
        self.norm_cross = ChannelNorm(channels, eps) if cross else None
        self.up = Linear(channels, inner)
        self.act = ACTIVATIONS[act]
        self.down = Linear(inner, channels)
        self.norm2 = ChannelNorm(channels, eps)

    def forward(self, x: Tensor, *around: Masks, memory: Sequence[Tensor] = ()) -> Tensor:
        """`around`: what attention looks at besides x, the mask first; `memory`: the same for `cross`."""
        x = self.norm1(x, self.attend(x, *around))
        if self.cross and self.norm_cross:
            x = self.norm_cross(x, self.cross(x, *memory))
        x = self.norm2(x, self.down(self.act(self.up(x))))
        return x
