"""Torch functions met while a module runs on symbols, lowered one by one to MIL operations.

A `Symbol` stands for a tensor: it wraps a MIL variable and implements `__torch_function__`, so that the unchanged modules
of `ane` and `families` write their own Core ML program when they are called with symbols. One row of ROWS a torch
function; what has no row is an error that names the module. Real tensors that meet a symbol become fp16 constants.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from torch import Tensor, nn

from hft2ane.errors import ExportError

FP16_MAX = 65504.0
FP16_LEAST = 2.0**-24  # the smallest number that is not zero in fp16

Row = Callable[..., Any]
ROWS: dict[str, Row] = {}


def lowers(*names: str) -> Callable[[Row], Row]:
    """Registers a row under the `__name__` of torch functions."""

    def register(row: Row) -> Row:
        ROWS.update(dict.fromkeys(names, row))
        return row

    return register


class Symbol:
    """A tensor of the program being written: fp16 or int32, of a fixed shape."""

    def __init__(self, var: Any, writer: Writer) -> None:
        self.var, self.writer = var, writer

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.var.shape)

    def dim(self) -> int:
        return len(self.shape)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        writer = next(a.writer for a in flat((args, kwargs or {})) if isinstance(a, Symbol))
        name = function.__name__.strip("_")
        if name not in ROWS:
            raise ExportError(
                f"{writer.path or 'the module'} calls {torch.overrides.resolve_name(function) or name}, which has no row in "
                "hft2ane/lower.py; add one, and a test row in tests/test_lower.py"
            )
        return ROWS[name](writer, *args, **(kwargs or {}))

    def to(self, dtype: torch.dtype) -> Symbol:
        return self.writer.emit("cast", x=self, dtype={torch.float32: "fp16", torch.int32: "int32"}[dtype])

    def __getitem__(self, key: Any) -> Any:
        return ROWS["getitem"](self.writer, self, key)

    def __add__(self, other: Any) -> Any:
        return ROWS["add"](self.writer, self, other)

    def __sub__(self, other: Any) -> Any:
        return ROWS["sub"](self.writer, self, other)

    def __mul__(self, other: Any) -> Any:
        return ROWS["mul"](self.writer, self, other)

    def __truediv__(self, other: Any) -> Any:
        return ROWS["div"](self.writer, self, other)

    def __rsub__(self, other: Any) -> Any:
        return ROWS["rsub"](self.writer, self, other)

    __radd__, __rmul__ = __add__, __mul__


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            yield from flat(item)
    else:
        yield value


@dataclass(frozen=True)
class Stored:
    """A tensor and what is written of it. The tensor is held so that nothing else gets its address."""

    tensor: Tensor
    values: np.ndarray[Any, Any]
    id: str


class Writer:
    """Writes the operations of one MIL function, named by the path of the module that asked for them.

    `weights` is shared by all functions of a program, so that each tensor is rounded and stored once."""

    def __init__(self, root: nn.Module, weights: dict[Any, Stored]) -> None:
        self.names = {module: name for name, module in root.named_modules()}
        self.parameters = {p.data_ptr(): name for name, p in root.named_parameters()}
        self.weights = weights
        self.constants: dict[Any, Any] = {}
        self.stack: list[str] = []
        self.used: Counter[str] = Counter()

    @property
    def path(self) -> str:
        return self.stack[-1] if self.stack else ""

    @contextmanager
    def following(self) -> Iterator[None]:
        """While this holds, `path` is the innermost module of the root that is being called."""

        def enter(module: nn.Module, _: Any) -> None:
            self.stack.append(self.names.get(module, self.path))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self.stack.pop()

        hooks = [
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def emit(self, op: str, **inputs: Any) -> Any:
        """One MIL operation; Symbols and tensors among its inputs become variables, its outputs become Symbols."""
        name = self.name(op)
        values = {key: self.value(value, f"{name}_{key}") for key, value in inputs.items() if value is not None}
        out = getattr(mb, op)(**values, name=name)
        return [Symbol(v, self) for v in out] if isinstance(out, list | tuple) else Symbol(out, self)

    def name(self, op: str) -> str:
        """`blocks_3_attend_q` for the first operation of that module, which for a linear is the only one."""
        base = identifier(self.path) or "model"
        if op not in ("conv", "layer_norm", "gather"):
            base = f"{base}_{op}"
        self.used[base] += 1
        return base if self.used[base] == 1 else f"{base}_{self.used[base] - 1}"

    def value(self, value: Any, name: str) -> Any:
        if isinstance(value, Symbol):
            return value.var
        if isinstance(value, Tensor):
            return self.constant(value, name)
        if isinstance(value, float):  # an int is an axis or a size; a number to calculate with is a float
            return np.float16(checked(value, name))
        if isinstance(value, list | tuple) and any(isinstance(v, Symbol | Tensor) for v in value):
            return [self.value(v, f"{name}_{i}") for i, v in enumerate(value)]
        return value

    def constant(self, tensor: Tensor, name: str) -> Any:
        """The fp16 (or int32) constant for a real tensor; the same tensor gives the same one."""
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if key not in self.constants:
            if key not in self.weights:
                values = rounded(tensor, self.parameters.get(tensor.data_ptr(), name))
                self.weights[key] = Stored(tensor, values, f"weight_{len(self.weights)}")
            stored = self.weights[key]
            self.constants[key] = mb.const(val=stored.values, name=name)
            self.constants[key].op.weight_id = stored.id
        return self.constants[key]


def identifier(path: str) -> str:
    """MIL takes letters, digits and underscores: `blocks.3.attend.q` -> `blocks_3_attend_q`."""
    return re.sub(r"\W", "_", path)


def checked(value: float, name: str) -> float:
    if not abs(value) <= FP16_MAX:
        raise ExportError(f"{name}: {value:g} is not a finite fp16 number")
    return value


def rounded(tensor: Tensor, name: str) -> np.ndarray[Any, Any]:
    """As fp16 or int32, contiguous."""
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return tensor.to(torch.int32).contiguous().numpy()
    largest = float(tensor.abs().amax()) if tensor.numel() else 0.0
    checked(largest, f"the weights of {name}")
    return tensor.to(torch.float16).contiguous().numpy()


def same(op: str, *keys: str) -> Row:
    """A row for a MIL operation that takes the torch function's arguments as they are."""
    return lambda writer, *args: writer.emit(op, **dict(zip(keys, args, strict=True)))


def arithmetic(op: str) -> Row:
    """A row for x ∘ y in fp16, either of which may be a Python number."""

    def number(value: Any) -> Any:
        return float(value) if isinstance(value, int) else value

    return lambda writer, x, y: writer.emit(op, x=number(x), y=number(y))


ROWS |= {
    "add": arithmetic("add"),
    "sub": arithmetic("sub"),
    "mul": arithmetic("mul"),
    "div": arithmetic("real_div"),
    "rsub": lambda writer, x, y: arithmetic("sub")(writer, y, x),
    "abs": same("abs", "x"),
    "sqrt": same("sqrt", "x"),
    "tanh": same("tanh", "x"),
    "relu": lambda writer, x, inplace=False: writer.emit("relu", x=x),
    "silu": lambda writer, x, inplace=False: writer.emit("silu", x=x),
    "softmax": lambda writer, x, dim, **_: writer.emit("softmax", x=x, axis=dim),
    "cat": lambda writer, tensors, dim: writer.emit("concat", values=tensors, axis=dim),
    "reshape": lambda writer, x, shape: writer.emit("reshape", x=x, shape=list(shape)),
    "unsqueeze": lambda writer, x, dim: writer.emit("expand_dims", x=x, axes=[dim]),
    "squeeze": lambda writer, x, dim: writer.emit("squeeze", x=x, axes=[dim]),
    "amax": lambda writer, x, dim, keepdim: writer.emit("reduce_max", x=x, axes=[dim], keep_dims=keepdim),
    "sum": lambda writer, x, dim, keepdim: writer.emit("reduce_sum", x=x, axes=[dim], keep_dims=keepdim),
    "clamp": lambda writer, x, *, min: writer.emit("maximum", x=x, y=min),
    "linalg_vector_norm": lambda writer, x, *, dim, keepdim: writer.emit(
        "reduce_l2_norm", x=x, axes=[dim], keep_dims=keepdim
    ),
}


@lowers("conv2d")
def conv2d(writer: Writer, x: Symbol, weight: Tensor, bias: Tensor | None) -> Any:
    return writer.emit("conv", x=x, weight=weight, bias=bias)


@lowers("embedding")
def embedding(writer: Writer, ids: Symbol, weight: Tensor, *_: Any, **__: Any) -> Any:
    return writer.emit("gather", x=weight, indices=ids, axis=0)


@lowers("channel_norm")
def channel_norm(writer: Writer, x: Symbol, weight: Tensor, bias: Tensor, eps: float) -> Any:
    """An eps of 1e-12 would round to zero."""
    return writer.emit("layer_norm", x=x, axes=[1], gamma=weight, beta=bias, epsilon=max(eps, FP16_LEAST))


@lowers("gelu")
def gelu(writer: Writer, x: Symbol, approximate: str = "none") -> Any:
    return writer.emit("gelu", x=x, mode={"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[approximate])


@lowers("transpose")
def transpose(writer: Writer, x: Symbol, first: int, second: int) -> Any:
    order = list(range(x.dim()))
    order[first], order[second] = order[second], order[first]
    return writer.emit("transpose", x=x, perm=order)


@lowers("flatten")
def flatten(writer: Writer, x: Symbol, start: int) -> Any:
    return writer.emit("reshape", x=x, shape=[*x.shape[:start], int(np.prod(x.shape[start:]))])


@lowers("split")
def split(writer: Writer, x: Symbol, size: int, dim: int) -> Any:
    sizes = [min(size, x.shape[dim] - start) for start in range(0, x.shape[dim], size)]
    return writer.emit("split", x=x, split_sizes=sizes, axis=dim) if len(sizes) > 1 else [x]


# The equations of attention, as the two that MIL's einsum knows. Keys: ours. Values: whether the operands are swapped.
EINSUM = {"bkhc,bchq->bkhq": "nchw,nwhu->nchu", "bchk,bkhq->bchq": "nchw,nwhu->nchu"}


@lowers("einsum")
def einsum(writer: Writer, equation: str, *operands: Symbol) -> Any:
    if equation not in EINSUM:
        raise ExportError(f"{writer.path}: MIL has no einsum {equation!r}; it has {', '.join(EINSUM)}")
    return writer.emit("einsum", values=operands, equation=EINSUM[equation])


@lowers("getitem")
def getitem(writer: Writer, x: Symbol, key: Any) -> Any:
    """Slices with fixed bounds, no steps, every axis kept."""
    keys: Sequence[slice] = key if isinstance(key, tuple) else (key,)
    bounds = [k.indices(n) for k, n in zip([*keys, *[slice(None)] * (x.dim() - len(keys))], x.shape, strict=True)]
    begin, end = [b for b, _, _ in bounds], [e for _, e, _ in bounds]
    return writer.emit("slice_by_index", x=x, begin=begin, end=end)


def dtype_of(var: Any) -> str:
    return {"fp16": "float16", "int32": "int32", "fp32": "float32"}[types.builtin_to_string(var.dtype)]
