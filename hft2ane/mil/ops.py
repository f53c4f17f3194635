"""What each MIL operation computes, in float32 on torch tensors: one row of a table an operation.

Parameter names are MIL's, so binding is `OPS[type](**inputs)`, and defaults are MIL's documented ones. A parameter that
is in no signature is not computed, and therefore refused. Those in STATIC arrive as Python values, those in LISTS as
lists of tensors, all others as tensors: float32 for every float type, int32 for every integer type, bool.
Source of the formulas: the operations' documentation in coremltools 9.0 (`coremltools.converters.mil.mil.ops.defs`).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Result = Tensor | tuple[Tensor, ...]

# fmt: off
STATIC = frozenset({
    "axes", "axis", "batch_dims", "begin", "begin_mask", "dilations", "dtype", "end", "end_mask", "equation", "groups",
    "interleave", "keep_dims", "mode", "num_splits", "pad", "pad_type", "perm", "reps", "shape", "size", "split_sizes",
    "squeeze_mask", "start", "step", "stride", "strides", "transpose_x", "transpose_y", "validate_indices",
})
# fmt: on
LISTS = frozenset({"values"})


def cast(x: Tensor, dtype: str) -> Tensor:
    if dtype == "bool":
        return x != 0
    if dtype in ("fp16", "fp32"):
        return x.float()
    if x.is_floating_point() and not (x.abs() < 2**31).all():
        raise ValueError(f"a value is not finite or too large for {dtype}")
    return x.to(torch.int32)


def gather(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool | None = None
) -> Tensor:
    """Shape: x[:axis] + indices[batch_dims:] + x[axis+1:]. Up to iOS 16, without `validate_indices`, an index may be
    negative and counts from the end."""
    axis %= x.ndim
    size = x.shape[axis]
    least = -size if validate_indices is None else 0
    if indices.numel() and not (least <= int(indices.min()) and int(indices.max()) < size):
        raise ValueError(f"indices {int(indices.min())} to {int(indices.max())} are not all in {least}..{size - 1}")
    batch = torch.meshgrid(*(torch.arange(n) for n in indices.shape[:batch_dims]), indexing="ij") if batch_dims else ()
    own = indices.ndim - batch_dims
    grid = [each.reshape(each.shape + (1,) * own) for each in batch]
    taken = x.movedim(axis, batch_dims)[(*grid, indices.long())]
    return taken.movedim(tuple(range(batch_dims, batch_dims + own)), tuple(range(axis, axis + own)))


def reduction(compute: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
        return compute(x, list(range(x.ndim)) if axes is None else axes, keep_dims)

    return reduce


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise ValueError(f"mode {mode!r} is not computed")
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    over = sorted(axis % x.ndim for axis in axes) if axes is not None else list(range(x.ndim))
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    centred = x - x.mean(over, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + epsilon)
    return _affine(normal, gamma, beta, shape)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    shape = [1, x.shape[1]] + [1] * (x.ndim - 2)
    normal = (x - mean.reshape(shape)) / torch.sqrt(variance + epsilon).reshape(shape)
    return _affine(normal, gamma, beta, shape)


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: list[int]) -> Tensor:
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


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
    strides, dilations, pad = strides or [1] * spatial, dilations or [1] * spatial, pad or [0] * 2 * spatial
    if pad_type not in ("valid", "custom") or (pad_type == "valid" and any(pad)):
        raise ValueError(f"pad_type {pad_type!r} with pad {pad} is not computed")
    if any(pad):
        x = F.pad(x, [each for axis in reversed(range(spatial)) for each in pad[2 * axis : 2 * axis + 2]])
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    return convolve(x, weight, bias, strides, 0, dilations, groups)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return torch.matmul(x.mT if transpose_x and x.ndim > 1 else x, y.mT if transpose_y and y.ndim > 1 else y)


def einsum(values: list[Tensor], equation: str) -> Tensor:
    letters = dict.fromkeys(letter for letter in equation if letter.isalpha())
    canonical = equation.translate({ord(letter): "abcde"[at] for at, letter in enumerate(letters)}).replace(" ", "")
    if canonical not in ("abcd,adce->abce", "abc,cbd->abd"):
        raise ValueError(f"MIL has no equation {equation!r}")
    return torch.einsum(canonical, *values)


def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """0 takes over the size of that axis, -1 is what remains."""
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None) -> Result:
    if split_sizes is None:
        if num_splits is None or x.shape[axis] % num_splits:
            raise ValueError(f"{x.shape[axis]} cannot be split into {num_splits} equal parts")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return torch.split_with_sizes(x, split_sizes, axis)


def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    parts = [each.reshape(1) if each.ndim == 0 else each for each in values]
    if interleave:
        axis %= parts[0].ndim
        return torch.stack(parts, axis + 1).flatten(axis, axis + 1)
    return torch.cat(parts, axis)


def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """As numpy slices x[begin:end:stride] on each axis; a mask makes begin or end open, or the axis a plain index."""
    nothing = [False] * x.ndim
    rows = zip(
        range(x.ndim),
        begin,
        end,
        stride or [1] * x.ndim,
        begin_mask or nothing,
        end_mask or nothing,
        squeeze_mask or nothing,
        strict=True,
    )
    for axis, first, last, step, from_start, to_end, squeezed in reversed(list(rows)):
        if squeezed:
            x = x.select(axis, 0 if from_start else first)
            continue
        chosen = range(*slice(None if from_start else first, None if to_end else last, step).indices(x.shape[axis]))
        if len(chosen) < x.shape[axis] or step < 0:
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64))
    return x


def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        start = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


def fill(shape: list[int], value: Tensor | float = 0.0) -> Tensor:
    return torch.as_tensor(value).expand(shape)


OPS: dict[str, Callable[..., Result]] = {
    "cast": cast,
    "gather": gather,
    # elementwise, with broadcasting
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "floor_div": lambda x, y: x.floor_divide(y),
    "mod": lambda x, y: x.remainder(y),
    "pow": lambda x, y: x.pow(y),
    "maximum": lambda x, y: x.maximum(y),
    "minimum": lambda x, y: x.minimum(y),
    "equal": lambda x, y: x == y,
    "not_equal": lambda x, y: x != y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "logical_and": lambda x, y: x.logical_and(y),
    "logical_or": lambda x, y: x.logical_or(y),
    "logical_xor": lambda x, y: x.logical_xor(y),
    "logical_not": lambda x: x.logical_not(),
    "select": lambda cond, a, b: a.where(cond, b),
    "identity": lambda x: x,
    "abs": lambda x: x.abs(),
    "sign": lambda x: x.sign(),
    "floor": lambda x: x.floor(),
    "ceil": lambda x: x.ceil(),
    "round": lambda x: x.round(),
    "square": lambda x: x.square(),
    "sqrt": lambda x: x.sqrt(),
    "rsqrt": lambda x, epsilon=1e-12: torch.rsqrt(x + epsilon),
    "inverse": lambda x, epsilon=1e-4: 1 / (x + epsilon),
    "exp": lambda x: x.exp(),
    "log": lambda x, epsilon=1e-45: torch.log(x + epsilon),
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "erf": lambda x: x.erf(),
    "tanh": lambda x: x.tanh(),
    "sigmoid": lambda x: x.sigmoid(),
    "relu": lambda x: x.relu(),
    "silu": lambda x: x * x.sigmoid(),
    "softplus": lambda x: x.logaddexp(torch.zeros_like(x)),
    "gelu": gelu,
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    # along axes
    "reduce_sum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "reduce_mean": reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "reduce_max": reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_min": reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "reduce_sum_square": reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "reduce_l2_norm": reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    # products
    "conv": conv,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "matmul": matmul,
    "einsum": einsum,
    "scaled_dot_product_attention": lambda query, key, value, attn_mask=None: F.scaled_dot_product_attention(
        query, key, value, attn_mask
    ),
    # shapes
    "transpose": lambda x, perm: x.permute(perm),
    "reshape": reshape,
    "expand_dims": expand_dims,
    "squeeze": lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(axes)),
    "split": split,
    "concat": concat,
    "stack": lambda values, axis: torch.stack(values, dim=axis),
    "tile": lambda x, reps: x.repeat(reps),
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "fill": fill,
    "range_1d": lambda start, end, step: torch.arange(start, end, step=step),
}


def lut_to_dense(indices: Array, lut: Array, shape: Array | None = None, vector_axis: Array | None = None) -> Array:
    """`shape` makes it the form up to iOS 17: one table, indices packed into bytes. From iOS 18 on the table has two
    axes more than the indices, (…, entries, vector), and its leading axes divide the tensor into groups of entries."""
    if shape is not None:
        width = lut.size.bit_length() - 1
        count = math.prod(shape.tolist())
        bits = np.unpackbits(indices, count=count * width, bitorder="little").reshape(count, width)
        return lut[np.packbits(bits, axis=1, bitorder="little").reshape(shape.tolist())]
    *groups, _, length = lut.shape
    which = np.ix_(*(np.arange(size) // (size // group) for size, group in zip(indices.shape, groups, strict=True)))
    vectors: Array = lut[(*which, indices)]
    if vector_axis is None:
        if length != 1:
            raise ValueError(f"vectors of {length} values need a vector_axis")
        return vectors[..., 0]
    axis = int(vector_axis) % indices.ndim
    out_shape = [size * length if at == axis else size for at, size in enumerate(indices.shape)]
    return np.moveaxis(vectors, -1, axis + 1).reshape(out_shape)


def affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1
    scale, zero_point = (each.astype(np.float32).reshape(shape) for each in (scale, zero_point))
    return scale * (quantized_data.astype(np.float32) - zero_point)


def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """Blocks are of data.shape / scale.shape elements along each axis."""
    which = np.ix_(*(np.arange(size) // (size // block) for size, block in zip(data.shape, scale.shape, strict=True)))
    shifted = data.astype(np.float32) - (0 if offset is None else offset[which].astype(np.float32))
    return scale[which].astype(np.float32) * shifted


# Compressed constants, on numpy arrays as they are stored; the result is rounded to the declared type.
CONSTEXPR: dict[str, Callable[..., Array]] = {
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
}
