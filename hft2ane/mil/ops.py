"""What each MIL operation computes, in float32 on torch tensors: one row of a table an operation.

Parameter names are MIL's, so binding is `OPS[type](**inputs)`, and defaults are MIL's documented ones. A parameter that
is in no signature is not computed, and therefore refused. Those in STATIC arrive as Python values, those in LISTS as
lists of tensors, all others as tensors: float32 for every float type, int32 for every integer type, bool.
Source of the formulas: the operations' documentation in coremltools 9.0 (`coremltools.converters.mil.mil.ops.defs`).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hft2ane.mil.indexing import INDEXING
from hft2ane.mil.spatial import SPATIAL

Result = Tensor | tuple[Tensor, ...]

# fmt: off
STATIC = frozenset({
    "align_corners", "ascending", "axes", "axis", "batch_axis", "batch_dims", "begin", "begin_mask", "block_shape",
    "block_size", "ceil_mode", "constant_val", "crop_height", "crop_width", "crops", "dilations", "downscale_factor",
    "dtype", "end", "end_mask", "epsilon", "equation", "exclude_padding_from_average", "exclusive", "groups",
    "half_pixel_centers", "interleave", "interpolation_mode", "k", "keep_dims", "kernel_sizes", "lower", "mode",
    "num_splits", "one_hot_vector_size", "output_dtype", "output_indices_dtype", "output_shape", "pad", "pad_type",
    "paddings", "perm", "reps", "resized_dims", "return_indices", "reverse", "sampling_mode", "scale_factor_height",
    "scale_factor_width", "seq_axis", "shape", "size", "sort", "split_sizes", "squeeze_mask", "start", "step", "stride",
    "strides", "target_size_height", "target_size_width", "transpose_x", "transpose_y", "upper", "upscale_factor",
    "validate_indices",
})
# fmt: on
LISTS = frozenset({"values", "ref_tensors", "begins", "ends", "end_masks", "loop_vars"})


def cast(x: Tensor, dtype: str) -> Tensor:
    if dtype == "bool":
        return x != 0
    if dtype in ("fp16", "fp32"):
        return x.float()
    if x.is_floating_point() and not (x.abs() < 2**31).all():
        raise ValueError(f"a value is not finite or too large for {dtype}")
    return x.to(torch.int32)


def reduction(compute: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
        return compute(x, list(range(x.ndim)) if axes is None else axes, keep_dims)

    return reduce


def reduce_prod(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    over = sorted((axis % x.ndim for axis in axes) if axes is not None else range(x.ndim), reverse=True)
    for axis in over:
        x = x.prod(axis, keepdim=keep_dims)
    return x


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise ValueError(f"mode {mode!r} is not computed")
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    steep = by_channel(beta, x) * x
    return by_channel(alpha, x) * steep.logaddexp(torch.zeros_like(steep))


def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    over = sorted(axis % x.ndim for axis in axes) if axes is not None else list(range(x.ndim))
    last = list(range(x.ndim - len(over), x.ndim))
    shape = [x.shape[axis] for axis in over]
    return F.layer_norm(x.movedim(over, last), shape, gamma, beta, epsilon).movedim(last, over)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    normal = (x - by_channel(mean, x)) / torch.sqrt(by_channel(variance, x) + epsilon)
    return _affine(normal, gamma, beta)


def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    over = list(range(2, x.ndim))
    centred = x - x.mean(over, keepdim=True)
    return _affine(centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + epsilon), gamma, beta)


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """One value a channel, broadcastable to (batch, channels, …)."""
    return values.reshape(-1, *[1] * (x.ndim - 2))


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    if gamma is not None:
        x = x * by_channel(gamma, x)
    return x if beta is None else x + by_channel(beta, x)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Over the last three axes together."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    limits = torch.iinfo({"int8": torch.int8, "uint8": torch.uint8}[output_dtype])
    whole = (input / along(scale, input, axis)).round()
    shifted = whole if zero_point is None else whole + along(zero_point, input, axis)
    return shifted.clamp(limits.min, limits.max).to(torch.int32)


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    shifted = input if zero_point is None else input - along(zero_point, input, axis)
    return shifted * along(scale, input, axis)


def along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar, or one value for each place on the axis."""
    return values if axis is None or values.ndim == 0 else values.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))


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


def reshape_like(
    x: Tensor, ref_tensors: list[Tensor], begins: list[Tensor], ends: list[Tensor], end_masks: list[Tensor]
) -> Tensor:
    """The sizes ref.shape[begin:end] of all references; a mask opens the end."""
    shape: list[int] = []
    for ref, begin, end, to_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += ref.shape[int(begin) : None if to_end else int(end)]
    return x.reshape(shape)


def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    cut = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:cut]), -1)


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


def fill(shape: list[int], value: Tensor | float = 0.0) -> Tensor:
    return torch.as_tensor(value).expand(shape)


OPS: dict[str, Callable[..., Result]] = {
    **INDEXING,
    **SPATIAL,
    "cast": cast,
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
    "acos": lambda x: x.acos(),
    "asin": lambda x: x.asin(),
    "atan": lambda x: x.atan(),
    "atanh": lambda x: x.atanh(),
    "cosh": lambda x: x.cosh(),
    "sinh": lambda x: x.sinh(),
    "tan": lambda x: x.tan(),
    "exp2": lambda x: x.exp2(),
    "relu6": lambda x: x.clamp(0, 6),
    "clamped_relu": lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x).minimum(beta),
    "elu": lambda x, alpha: torch.where(x > 0, x, alpha * x.expm1()),
    "leaky_relu": lambda x, alpha: torch.where(x >= 0, x, alpha * x),
    "linear_activation": lambda x, alpha, beta: x * alpha + beta,
    "prelu": lambda x, alpha: torch.where(x > 0, x, by_channel(alpha, x) * x),
    "scaled_tanh": lambda x, alpha, beta: alpha * (beta * x).tanh(),
    "sigmoid_hard": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "softplus_parametric": softplus_parametric,
    "softsign": lambda x: x / (1 + x.abs()),
    "threshold": lambda x, alpha: x.maximum(alpha),
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, torch.zeros_like(x)),
    "quantize": quantize,
    "dequantize": dequantize,
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    # along axes
    "reduce_sum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "reduce_mean": reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "reduce_max": reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_min": reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "reduce_sum_square": reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "reduce_l2_norm": reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "reduce_l1_norm": reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "reduce_log_sum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "reduce_log_sum_exp": reduction(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "reduce_prod": reduce_prod,
    "reduce_argmax": lambda x, axis=-1, keep_dims=False, output_dtype="int32": x.argmax(axis, keepdim=keep_dims),
    "reduce_argmin": lambda x, axis=-1, keep_dims=False, output_dtype="int32": x.argmin(axis, keepdim=keep_dims),
    "softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "local_response_norm": lambda x, size, alpha=1e-4, beta=0.75, k=1.0: F.local_response_norm(
        x, size, float(alpha), float(beta), k
    ),
    # products
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
    "fill": fill,
    "fill_like": lambda ref_tensor, value=0.0: fill(ref_tensor.shape, value),
    "reshape_like": reshape_like,
    "flatten2d": flatten2d,
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
    "range_1d": lambda start, end, step: torch.arange(start, end, step=step),
    # states: the evaluator puts what is written in the state's place
    "read_state": lambda input: input,
    "write_state": lambda input, data: data,
}
