"""What each MIL operation takes and gives, as far as the export writes them: a row an operation.

Parameter names are MIL's. A rule gets types where MIL takes tensors and plain values where it takes constants that
decide about shapes, and answers with the type of the result, or of each result; what MIL refuses is a ValueError.
Source: the operations' definitions in coremltools 9.0, against which every row is tested. Programs of ours hold
float16, int32 and bool, of fixed and not empty shapes; what goes beyond is refused here.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Type(NamedTuple):
    """A tensor's shape and its element type, as `mil.load.DTYPES` names them."""

    shape: Shape
    dtype: str


Result = Type | list[Type]

FLOAT = ("float16",)
NUMBER = ("float16", "int32")
BOOL = ("bool",)
ANYTHING = ("float16", "int32", "bool")

# Parameters that are given as plain values, and the element type of the constant that they become.
VALUES = {
    "axes": "int32",
    "axis": "int32",
    "batch_dims": "int32",
    "begin": "int32",
    "begin_mask": "bool",
    "dilations": "int32",
    "dtype": "string",
    "end": "int32",
    "end_mask": "bool",
    "equation": "string",
    "groups": "int32",
    "interleave": "bool",
    "keep_dims": "bool",
    "mode": "string",
    "pad": "int32",
    "pad_type": "string",
    "perm": "int32",
    "reps": "int32",
    "shape": "int32",
    "split_sizes": "int32",
    "squeeze_mask": "bool",
    "stride": "int32",
    "strides": "int32",
    "transpose_x": "bool",
    "transpose_y": "bool",
    "validate_indices": "bool",
}
# Tensors that have a type of their own, whatever the operation's others have, and those that must be constants.
APART = {"indices": "int32", "cond": "bool"}
CONSTANT = frozenset({"beta", "bias", "constant_val", "epsilon", "gamma"})
MOST_AXES = 5  # of a tensor in Core ML


class Signature:
    """An operation's rule; the types that its tensors may have, all the same one; and the inputs that are written when
    the caller gives none. A default is a value, or made of x's type; those of `later` are there from iOS 17 on."""

    def __init__(
        self,
        rule: Callable[..., Result],
        types: Sequence[str],
        defaults: Mapping[str, Any] | None = None,
        later: Mapping[str, Any] | None = None,
    ) -> None:
        self.rule, self.types = rule, types
        self.defaults, self.later = defaults or {}, later or {}

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.rule).parameters

    def completed(self, inputs: Mapping[str, Any], later: bool) -> dict[str, Any]:
        """The defaults of what is not among `inputs`, which has x's type under "x" where a default needs it.

        ValueError: an input that the operation does not have, or lacks."""
        if unknown := inputs.keys() - self.parameters.keys():
            raise ValueError(f"it has no input {', '.join(sorted(unknown))}")
        defaults = {**self.defaults, **self.later} if later else self.defaults
        missing = {key: value for key, value in defaults.items() if key not in inputs}
        for name, parameter in self.parameters.items():
            if parameter.default is parameter.empty and name not in inputs and name not in missing:
                raise ValueError(f"its input {name} is missing")
        return {key: value(inputs["x"]) if callable(value) else value for key, value in missing.items()}

    def result(self, inputs: Mapping[str, Any]) -> list[Type]:
        """The types of the results, from those of all inputs. ValueError: what MIL refuses."""
        tensors = [
            (name, each)
            for name, value in inputs.items()
            if name not in VALUES
            for each in (value if type(value) is list else (value,))
        ]
        same = next((each.dtype for name, each in tensors if name not in APART), None)
        for name, each in tensors:
            if each.dtype != APART.get(name, same):
                raise ValueError(f"{name} is {each.dtype}, expected {APART.get(name, same)}")
        if same is not None and same not in self.types:
            raise ValueError(f"it takes {', '.join(self.types)}, not {same}")
        made = self.rule(**inputs)
        results = [made] if isinstance(made, Type) else made
        for each in results:
            if len(each.shape) > MOST_AXES:
                raise ValueError(f"a result of shape {each.shape} has more than {MOST_AXES} axes")
            if 0 in each.shape:
                raise ValueError(f"a result of shape {each.shape} is empty")
        return results


def at(axis: int, rank: int) -> int:
    """The axis counted from the front."""
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} among {rank}")
    return axis % rank


def alike(x: Type) -> Type:
    return x


def elementwise(x: Type, y: Type) -> Type:
    return Type(broadcast(x.shape, y.shape), x.dtype)


def compared(x: Type, y: Type) -> Type:
    return Type(broadcast(x.shape, y.shape), "bool")


def broadcast(*shapes: Shape) -> Shape:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"shapes {', '.join(map(str, shapes))} do not broadcast") from None


def select(cond: Type, a: Type, b: Type) -> Type:
    """coremltools takes the shape from the branches alone, so a larger `cond` would give a program with a wrong one."""
    shape = broadcast(a.shape, b.shape)
    if broadcast(cond.shape, shape) != shape:
        raise ValueError(f"cond of shape {cond.shape} is larger than the result, {shape}")
    return Type(shape, a.dtype)


CASTS = {"fp16": "float16", "int32": "int32", "bool": "bool"}


def cast(x: Type, dtype: str) -> Type:
    if dtype not in CASTS:
        raise ValueError(f"it casts to {', '.join(CASTS)}, not to {dtype}")
    return Type(x.shape, CASTS[dtype])


def gelu(x: Type, mode: str) -> Type:
    if mode not in (modes := ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")):
        raise ValueError(f"it has modes {', '.join(modes)}, not {mode}")
    return x


def along(x: Type, axis: int) -> Type:
    at(axis, len(x.shape))
    return x


def with_epsilon(x: Type, epsilon: Type) -> Type:
    return x


def reduced(x: Type, keep_dims: bool, axes: Sequence[int] | None = None) -> Type:
    rank = len(x.shape)
    gone = range(rank) if axes is None else {at(axis, rank) for axis in axes}
    if keep_dims:
        return Type(tuple(1 if i in gone else n for i, n in enumerate(x.shape)), x.dtype)
    return Type(tuple(n for i, n in enumerate(x.shape) if i not in gone), x.dtype)


def layer_norm(
    x: Type, axes: Sequence[int], epsilon: Type, gamma: Type | None = None, beta: Type | None = None
) -> Type:
    over = tuple(x.shape[i] for i in sorted(at(axis, len(x.shape)) for axis in axes))
    for name, each in (("gamma", gamma), ("beta", beta)):
        if each is not None and each.shape != over:
            raise ValueError(f"{name} has shape {each.shape}, expected {over}")
    return x


def conv(
    x: Type,
    weight: Type,
    strides: Sequence[int],
    pad_type: str,
    pad: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    bias: Type | None = None,
) -> Type:
    spatial = x.shape[2:]
    if not 3 <= len(x.shape) <= 5 or len(weight.shape) != len(x.shape):
        raise ValueError(f"x has shape {x.shape}, weight {weight.shape}")
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(f"{x.shape[1]} channels in {groups} groups do not fit a weight of shape {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {bias.shape}, expected {weight.shape[:1]}")
    if pad_type not in ("valid", "custom"):
        raise ValueError(f"pad_type {pad_type} is not written")
    if not len(strides) == len(dilations) == len(spatial) == len(pad) / 2:
        raise ValueError(f"strides {strides}, dilations {dilations} or pad {pad} are not for {len(spatial)} axes")
    around = [0] * len(spatial) if pad_type == "valid" else [a + b for a, b in zip(pad[::2], pad[1::2], strict=True)]
    sizes = [
        (size + more - (kernel - 1) * dilation - 1) // stride + 1
        for size, more, kernel, dilation, stride in zip(
            spatial, around, weight.shape[2:], dilations, strides, strict=True
        )
    ]
    return Type((x.shape[0], weight.shape[0], *(max(size, 0) for size in sizes)), x.dtype)


def matmul(x: Type, y: Type, transpose_x: bool, transpose_y: bool) -> Type:
    if min(len(x.shape), len(y.shape)) < 2:
        raise ValueError(f"x has shape {x.shape}, y {y.shape}: matrices have two axes")
    rows, inner = x.shape[:-3:-1] if transpose_x else x.shape[-2:]
    other, columns = y.shape[:-3:-1] if transpose_y else y.shape[-2:]
    if inner != other:
        raise ValueError(f"x and y do not fit: rows of {inner} and columns of {other} numbers")
    return Type((*broadcast(x.shape[:-2], y.shape[:-2]), rows, columns), x.dtype)


def einsum(values: list[Type], equation: str) -> Type:
    """The two equations that MIL has: matrix products between the second and the last axis."""
    if equation not in ("nchw,nwhu->nchu", "chw,whu->chu"):
        raise ValueError(f"there is no equation {equation}")
    x, y = (each.shape for each in values)
    if not len(x) == len(y) == equation.index(","):
        raise ValueError(f"operands of shapes {x} and {y} are not for {equation}")
    if x[-1] != y[-3]:
        raise ValueError(f"operands of shapes {x} and {y} do not fit")
    return Type((*broadcast(x[:-3], y[:-3]), x[-3], *broadcast(x[-2:-1], y[-2:-1]), y[-1]), values[0].dtype)


def gather(x: Type, indices: Type, axis: int, batch_dims: int, validate_indices: bool = False) -> Type:
    axis = at(axis, len(x.shape))
    if batch_dims > axis or x.shape[:batch_dims] != indices.shape[:batch_dims]:
        raise ValueError(f"x of shape {x.shape} and indices of shape {indices.shape} share no {batch_dims} axes")
    return Type(x.shape[:axis] + indices.shape[batch_dims:] + x.shape[axis + 1 :], x.dtype)


def gather_along_axis(x: Type, indices: Type, axis: int, validate_indices: bool = False) -> Type:
    axis = at(axis, len(x.shape))
    if len(x.shape) != len(indices.shape) or any(
        n != m for i, (n, m) in enumerate(zip(x.shape, indices.shape, strict=True)) if i != axis
    ):
        raise ValueError(f"x of shape {x.shape} and indices of shape {indices.shape} differ beside axis {axis}")
    return Type(indices.shape, x.dtype)


def concat(values: list[Type], axis: int, interleave: bool) -> Type:
    shape = list(values[0].shape)
    axis = at(axis, len(shape))
    for each in values[1:]:
        if len(each.shape) != len(shape) or any(
            n != m for i, (n, m) in enumerate(zip(each.shape, shape, strict=True)) if i != axis
        ):
            raise ValueError(f"shapes {', '.join(str(v.shape) for v in values)} differ beside axis {axis}")
    if interleave and len({each.shape for each in values}) > 1:
        raise ValueError("what is interleaved has one shape")
    shape[axis] = sum(each.shape[axis] for each in values)
    return Type(tuple(shape), values[0].dtype)


def stack(values: list[Type], axis: int) -> Type:
    if len({each.shape for each in values}) > 1:
        raise ValueError(f"shapes {', '.join(str(v.shape) for v in values)} differ")
    shape = list(values[0].shape)
    shape.insert(at(axis, len(shape) + 1), len(values))
    return Type(tuple(shape), values[0].dtype)


def split(x: Type, split_sizes: Sequence[int], axis: int) -> Result:
    axis = at(axis, len(x.shape))
    if sum(split_sizes) != x.shape[axis]:
        raise ValueError(f"sizes {list(split_sizes)} do not add up to the {x.shape[axis]} of axis {axis}")
    return [Type((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype) for size in split_sizes]


def slice_by_index(
    x: Type,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Type:
    """Bounds count from the front, and steps go forward: coremltools rewrites negative bounds before it writes them,
    not always as they were meant."""
    rank = len(x.shape)
    given = (begin, end, stride or [1] * rank, begin_mask or [False] * rank, end_mask or [False] * rank)
    squeezed = squeeze_mask or [False] * rank
    if any(len(each) != rank for each in (*given, squeezed)):
        raise ValueError(f"bounds {list(begin)} to {list(end)} are not for shape {x.shape}")
    shape = []
    for i, (n, b, e, step, from_start, to_end) in enumerate(zip(x.shape, *given, strict=True)):
        if step < 1 or not (from_start or 0 <= b < n) or not (to_end or squeezed[i] or 0 <= e <= n):
            raise ValueError(f"axis {i} of {n} has no slice {b}:{e}:{step}")
        if not squeezed[i]:
            shape.append(len(range(0 if from_start else b, n if to_end else e, step)))
    return Type(tuple(shape), x.dtype)


def pad(x: Type, pad: Sequence[int], mode: str, constant_val: Type) -> Type:
    """Pairs (before, after), the last of them for the last axis."""
    if mode not in ("constant", "reflect", "replicate"):
        raise ValueError(f"there is no mode {mode}")
    rank = len(x.shape)
    if len(pad) % 2 or len(pad) > 2 * rank or min(pad) < 0:
        raise ValueError(f"{list(pad)} is no padding of shape {x.shape}")
    around = [0] * (rank - len(pad) // 2) + [a + b for a, b in zip(pad[::2], pad[1::2], strict=True)]
    return Type(tuple(n + more for n, more in zip(x.shape, around, strict=True)), x.dtype)


def tile(x: Type, reps: Sequence[int]) -> Type:
    if len(reps) != len(x.shape) or min(reps) < 1:
        raise ValueError(f"{list(reps)} are no repetitions of shape {x.shape}")
    return Type(tuple(n * times for n, times in zip(x.shape, reps, strict=True)), x.dtype)


def reshape(x: Type, shape: Sequence[int]) -> Type:
    sizes, numbers = list(shape), math.prod(x.shape)
    if sizes.count(-1) == 1 and (rest := -math.prod(sizes)):
        sizes[sizes.index(-1)] = numbers // rest
    if min(sizes) < 1 or math.prod(sizes) != numbers:
        raise ValueError(f"{numbers} numbers of shape {x.shape} have no shape {list(shape)}")
    return Type(tuple(sizes), x.dtype)


def expand_dims(x: Type, axes: Sequence[int]) -> Type:
    rank = len(x.shape) + len(axes)
    new, sizes = {at(axis, rank) for axis in axes}, iter(x.shape)
    if len(new) != len(axes):
        raise ValueError(f"axes {list(axes)} are not all different")
    return Type(tuple(1 if i in new else next(sizes) for i in range(rank)), x.dtype)


def squeeze(x: Type, axes: Sequence[int]) -> Type:
    """Axes that are not of size 1 stay, as in torch."""
    gone = {at(axis, len(x.shape)) for axis in axes}
    return Type(tuple(n for i, n in enumerate(x.shape) if n != 1 or i not in gone), x.dtype)


def transpose(x: Type, perm: Sequence[int]) -> Type:
    rank = len(x.shape)
    order = [at(axis, rank) for axis in perm]
    if sorted(order) != list(range(rank)):
        raise ValueError(f"{list(perm)} is no order of {rank} axes")
    return Type(tuple(x.shape[i] for i in order), x.dtype)


def per_spatial_axis(value: int, times: int = 1) -> Callable[[Type], list[int]]:
    return lambda x: [value] * (len(x.shape) - 2) * times


SIGNATURES = {
    **{op: Signature(elementwise, NUMBER) for op in ("add", "sub", "mul", "real_div", "maximum", "minimum", "pow")},
    **{
        op: Signature(compared, NUMBER)
        for op in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
    },
    **{op: Signature(elementwise, BOOL) for op in ("logical_and", "logical_or")},
    "logical_not": Signature(alike, BOOL),
    **{op: Signature(alike, NUMBER) for op in ("abs", "square")},
    **{op: Signature(alike, FLOAT) for op in ("erf", "exp", "relu", "sigmoid", "silu", "sqrt", "tanh")},
    "rsqrt": Signature(with_epsilon, FLOAT, {"epsilon": np.float16(1e-12)}),
    "gelu": Signature(gelu, FLOAT, {"mode": "EXACT"}),
    "softmax": Signature(along, FLOAT, {"axis": -1}),
    "cast": Signature(cast, ANYTHING),
    "select": Signature(select, ANYTHING),
    **{
        f"reduce_{what}": Signature(reduced, NUMBER, {"keep_dims": False}) for what in ("l2_norm", "max", "mean", "sum")
    },
    "layer_norm": Signature(layer_norm, FLOAT),
    "conv": Signature(
        conv,
        FLOAT,
        {
            "strides": per_spatial_axis(1),
            "pad_type": "valid",
            "pad": per_spatial_axis(0, times=2),
            "dilations": per_spatial_axis(1),
            "groups": 1,
        },
    ),
    "matmul": Signature(matmul, NUMBER, {"transpose_x": False, "transpose_y": False}),
    "einsum": Signature(einsum, FLOAT),
    "gather": Signature(gather, NUMBER, {"axis": 0, "batch_dims": 0}, {"validate_indices": False}),
    "gather_along_axis": Signature(gather_along_axis, NUMBER, {"axis": 0}, {"validate_indices": False}),
    "concat": Signature(concat, ANYTHING, {"interleave": False}),
    "stack": Signature(stack, ANYTHING),
    "split": Signature(split, ANYTHING),
    "slice_by_index": Signature(slice_by_index, ANYTHING),
    "pad": Signature(pad, FLOAT, {"mode": "constant"}),
    "tile": Signature(tile, ANYTHING),
    "reshape": Signature(reshape, ANYTHING),
    "expand_dims": Signature(expand_dims, ANYTHING),
    "squeeze": Signature(squeeze, ANYTHING),
    "transpose": Signature(transpose, ANYTHING),
}
