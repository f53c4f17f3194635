"""Operations on the axes after batch and channels: convolutions, pooling, resizing, blocks. A part of `ops.OPS`.

Formulas: the operations' documentation in coremltools 9.0; what it leaves open is as its converters use it, see there.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def paddings(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pad_type: str, pad: list[int] | None
) -> list[tuple[int, int]]:
    """(before, after) by spatial axis. `same` keeps ceil(size / stride) windows and puts an odd one after, `same_lower`
    before. `kernel`: extent of the window, dilation included."""
    if pad_type == "custom" and pad is not None:
        return list(zip(pad[::2], pad[1::2], strict=True))
    if pad_type == "valid" and not any(pad or ()):
        return [(0, 0)] * len(sizes)
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r} with pad {pad} is not computed")
    total = [max(0, (math.ceil(n / s) - 1) * s + k - n) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    halves = [(each // 2, each - each // 2) for each in total]
    return halves if pad_type == "same" else [(after, before) for before, after in halves]


def padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`pads` are (before, after) of the last axes."""
    if not any(any(each) for each in pads):
        return x
    return F.pad(x, [each for pair in reversed(pads) for each in pair], value=value)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    spatial = x.ndim - 2
    strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
    extent = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    x = padded(x, paddings(x.shape[2:], extent, strides, pad_type, pad))
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    return convolve(x, weight, bias, strides, 0, dilations, groups)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """All that the windows write, cut as `pad` says. An `output_shape` beyond it is zeros (output_padding)."""
    spatial = x.ndim - 2
    strides = strides or [1] * spatial
    spread: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    whole = spread(x, weight, None, strides, 0, 0, groups, dilations or [1] * spatial)
    full = whole.shape[2:]
    if pad_type == "same":
        kept = list(output_shape[2:] if output_shape else (n * s for n, s in zip(x.shape[2:], strides, strict=True)))
        cut = [(max(0, n - keep) // 2, 0) for n, keep in zip(full, kept, strict=True)]
    else:
        cut = paddings(full, full, strides, pad_type, pad)
        kept = output_shape[2:] if output_shape else [n - sum(ends) for n, ends in zip(full, cut, strict=True)]
    pads = [(-start, start + keep - n) for n, keep, (start, _) in zip(full, kept, cut, strict=True)]
    out = padded(whole, pads)
    return out if bias is None else out + bias.reshape(-1, *[1] * spatial)


def windows(x: Tensor, kernel: Sequence[int], strides: Sequence[int]) -> Tensor:
    """(batch, channels, places…, elements of the window)."""
    for at, (size, stride) in enumerate(zip(kernel, strides, strict=True)):
        x = x.unfold(2 + at, size, stride)
    return x.flatten(-len(kernel))


def fitted(
    x: Tensor, kernel: list[int], strides: list[int], pads: list[tuple[int, int]], ceil_mode: bool
) -> list[tuple[int, int]]:
    """What is added after each axis beyond `pads`, so that the last window fits: torch's ceil_mode."""
    extra = []
    for n, k, s, (before, after) in zip(x.shape[2:], kernel, strides, pads, strict=True):
        length = n + before + after
        count = -((k - length) // s) + 1
        if (count - 1) * s >= n + (before + after) / 2 and before + after > 0:
            count -= 1
        extra.append((0, max(0, (count - 1) * s + k - length) if ceil_mode else 0))
    return extra


def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or [1] * len(kernel_sizes)
    pads = paddings(x.shape[2:], kernel_sizes, strides, pad_type, pad)
    extra = fitted(x, kernel_sizes, strides, pads, ceil_mode)
    return windows(padded(padded(x, pads, -math.inf), extra, -math.inf), kernel_sizes, strides).amax(-1)


def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> Tensor:
    """`ceil_mode` counts elements as torch does: never those beyond the padding."""
    strides = strides or [1] * len(kernel_sizes)
    pads = paddings(x.shape[2:], kernel_sizes, strides, pad_type, pad)
    extra = fitted(x, kernel_sizes, strides, pads, ceil_mode)
    ones = padded(torch.ones_like(x[:1, :1]), pads, 0.0 if exclude_padding_from_average else 1.0)
    count = windows(padded(ones, extra), kernel_sizes, strides).sum(-1)
    return windows(padded(padded(x, pads), extra), kernel_sizes, strides).sum(-1) / count


def l2_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or [1] * len(kernel_sizes)
    pads = paddings(x.shape[2:], kernel_sizes, strides, pad_type, pad)
    extra = fitted(x, kernel_sizes, strides, pads, ceil_mode)
    return windows(padded(padded(x, pads), extra), kernel_sizes, strides).square().sum(-1).sqrt()


def grid(size: int, count: int, mode: str) -> Tensor:
    """Places 0 … size - 1 at which an axis is sampled `count` times. float64."""
    at = torch.arange(count, dtype=torch.float64)
    match mode:
        case "ALIGN_CORNERS" if count == 1:
            places = torch.full((1,), (size - 1) / 2, dtype=torch.float64)
        case "ALIGN_CORNERS" | "STRICT_ALIGN_CORNERS":
            places = at * (size - 1) / max(count - 1, 1)
        case "DEFAULT":
            places = at * size / count
        case "OFFSET_CORNERS":
            places = (at + 0.5) * max(1, size - 1) / count
        case "UNALIGN_CORNERS":
            places = (at + 0.5) * size / count - 0.5
        case _:
            raise ValueError(f"sampling mode {mode!r} is not computed")
    return places.clamp(0, size - 1)


def linear(x: Tensor, axis: int, places: Tensor) -> Tensor:
    low = places.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [-1 if at == axis % x.ndim else 1 for at in range(x.ndim)]
    share = (places - low).to(x.dtype).reshape(shape)
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    for axis, size in ((-2, target_size_height), (-1, target_size_width)):
        x = linear(x, axis, grid(x.shape[axis], size, sampling_mode))
    return x


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Up to iOS 15 there is no `half_pixel_centers`: it is what `align_corners` is not."""
    if align_corners and half_pixel_centers:
        raise ValueError("align_corners and half_pixel_centers exclude one another")
    mode = "DEFAULT" if half_pixel_centers is False else "UNALIGN_CORNERS"
    height, width = math.floor(x.shape[-2] * scale_factor_height), math.floor(x.shape[-1] * scale_factor_width)
    return resize_bilinear(x, height, width, "STRICT_ALIGN_CORNERS" if align_corners else mode)


def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """The place below: floor(i · size / count), as the torch and TensorFlow converters use it."""
    for axis, size in ((-2, target_size_height), (-1, target_size_width)):
        x = x.index_select(axis, grid(x.shape[axis], size, "DEFAULT").floor().long())
    return x


def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    height, width = math.floor(x.shape[-2] * scale_factor_height), math.floor(x.shape[-1] * scale_factor_width)
    return resize_nearest_neighbor(x, height, width)


def resize(
    x: Tensor,
    shape: list[int],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last `resized_dims` axes get the sizes at the end of `shape`, 0 keeping what is there. Which place is nearest
    is documented for no sampling mode; for DEFAULT it is the one below, as TensorFlow's converter uses it."""
    nearest = interpolation_mode == "NEAREST_NEIGHBOR"
    if interpolation_mode not in ("LINEAR", "NEAREST_NEIGHBOR") or (nearest and sampling_mode != "DEFAULT"):
        raise ValueError(f"{interpolation_mode} with {sampling_mode} is not computed")
    for axis in range(-resized_dims, 0):
        places = grid(x.shape[axis], shape[axis] or x.shape[axis], sampling_mode)
        x = x.index_select(axis, places.floor().long()) if nearest else linear(x, axis, places)
    return x


def crop(x: Tensor, crop_height: list[int], crop_width: list[int]) -> Tensor:
    return padded(x, [(-crop_height[0], -crop_height[1]), (-crop_width[0], -crop_width[1])])


def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Channels are (place in the block, channel), TensorFlow's order; pixel_shuffle has torch's (channel, place)."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, block_size, block_size, c // block_size**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * block_size, w * block_size)


def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block_size, block_size, w // block_size, block_size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // block_size, w // block_size)


def space_to_batch(x: Tensor, block_shape: list[int], paddings: list[list[int]]) -> Tensor:
    """The batch is (place in the block, batch), TensorFlow's order."""
    high, wide = block_shape
    x = padded(x, [(before, after) for before, after in paddings])
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // high, high, w // wide, wide)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(-1, c, h // high, w // wide)


def batch_to_space(x: Tensor, block_shape: list[int], crops: list[list[int]]) -> Tensor:
    high, wide = block_shape
    n, c, h, w = x.shape
    blocks = x.reshape(high, wide, n // (high * wide), c, h, w)
    return crop(blocks.permute(2, 3, 4, 0, 5, 1).reshape(-1, c, h * high, w * wide), *crops)


SPATIAL: dict[str, Callable[..., Tensor]] = {
    "avg_pool": avg_pool,
    "batch_to_space": batch_to_space,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "crop": crop,
    "depth_to_space": depth_to_space,
    "l2_pool": l2_pool,
    "max_pool": max_pool,
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(input=x, upscale_factor=upscale_factor),
    "pixel_unshuffle": lambda x, downscale_factor: F.pixel_unshuffle(input=x, downscale_factor=downscale_factor),
    "resize": resize,
    "resize_bilinear": resize_bilinear,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "space_to_batch": space_to_batch,
    "space_to_depth": space_to_depth,
    "upsample_bilinear": upsample_bilinear,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
