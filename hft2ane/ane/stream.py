"""A Transformer of pre-norm layers: each reads the residual stream through a norm and adds to it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hft2ane.ane.attention import Attention, Pairs
from hft2ane.ane.layers import ACTIVATIONS, ChannelNorm, Linear
from hft2ane.ane.rotary import RotaryAttention


class Gated(nn.Module):
    """A feed-forward, W(act(Ux) · Vx): `up` and `gate` are two halves of one linear of the checkpoint."""

    BALANCED: Pairs = (("gate", "down"),)  # as in `Attention`

    def __init__(self, channels: int, inner: int, act: str, bias: bool) -> None:
        super().__init__()
        self.up = Linear(channels, inner, bias, part=(0, 2))
        self.gate = Linear(channels, inner, bias, part=(1, 2))
        self.act = ACTIVATIONS[act]
        self.down = Linear(inner, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.act(self.up(x)) * self.gate(x))
        return x


class Layer(nn.Module):
    """Pre-norm: (B, C, 1, S) -> (B, C, 1, S). Where there is no `norm1`, `attend` reads the stream as it is.

    `scales` are powers of two by which the stream is multiplied before attention and feed-forward add to it."""

    def __init__(
        self, norm1: ChannelNorm | None, attend: Attention | RotaryAttention, norm2: ChannelNorm, feed: Gated
    ) -> None:
        super().__init__()
        self.norm1, self.attend, self.norm2, self.feed = norm1, attend, norm2, feed
        self.scales = [1.0, 1.0]

    def forward(self, x: Tensor, *around: Any) -> Tensor:
        """`around`: what attention looks at besides x."""
        x = scaled(x, self.scales[0]) + self.attend(self.norm1(x) if self.norm1 else x, *around)
        x = scaled(x, self.scales[1]) + self.feed(self.norm2(x))
        return x


def scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x * scale


@dataclass(frozen=True)
class Value:
    """What a stream is at one place: paths of the layer that makes it (or `start`), of what was added there, and of the
    norm or else the linears that read it."""

    layer: str
    writer: str
    norm: str | None
    linears: tuple[str, ...]


class Stream(nn.Module):
    """A residual stream from the norm that it comes from to the norm that it ends in.

    Nothing else reads it or adds to it, so it can be made smaller from any place on, see `condition`."""

    def __init__(self, start: ChannelNorm, layers: Iterable[Layer], end: ChannelNorm) -> None:
        super().__init__()
        self.start, self.layers, self.end = start, nn.ModuleList(layers), end

    def values(self) -> Iterator[Value]:
        """In the order in which they come: that of `start`, and two of each layer."""
        made = ("start", "start")
        layer: Any
        for i, layer in enumerate(self.layers):
            at = f"layers.{i}"
            reads = () if layer.norm1 else tuple(f"{at}.attend.{name}" for name in layer.attend.READS)
            yield Value(*made, f"{at}.norm1" if layer.norm1 else None, reads)
            yield Value(at, f"{at}.attend.out", f"{at}.norm2", ())
            made = (at, f"{at}.feed.down")
        yield Value(*made, "end", ())

    def scale(self, at: int, scale: float) -> None:
        """Multiplies the stream before it becomes its value number `at`, which is not the first."""
        layer: Any = self.layers[(at - 1) // 2]
        layer.scales[(at - 1) % 2] = scale

    def forward(self, x: Tensor, around: Sequence[tuple[Any, ...]]) -> Tensor:
        """`around`: for each layer what its attention looks at besides the stream."""
        x = self.start(x)
        for layer, its in zip(self.layers, around, strict=True):
            x = layer(x, *its)
        x = self.end(x)
        return x
