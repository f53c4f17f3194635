"""Torch functions met while a module runs on symbols, lowered one by one to MIL operations.

A `Symbol` stands for a tensor: it wraps a MIL variable and implements `__torch_function__`, so that the unchanged
modules of `ane` and `families` write their own Core ML program when they are called with symbols. One row of ROWS a
torch function; what has no row is an error that names the module. Real tensors that meet a symbol become constants.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hft2ane.ane import EPS_LEAST
from hft2ane.compress import PALETTES, form, palettize, quantize
from hft2ane.errors import ExportError
from hft2ane.mil.signatures import Type
from hft2ane.mil.write import Function, Held, Make, Var, immediate
from hft2ane.records.recipe import Form

FP16_MAX = 65504.0
FP16_LEAST = 2.0**-24  # the smallest number that is not zero in fp16

PIECE = 1 << 18  # numbers that are rounded at once: they fit into a core's cache

DTYPES = {torch.float32: "fp16", torch.int32: "int32"}

NONE: Mapping[str, Form] = MappingProxyType({})

# Inputs of operations that a variant may compress: whether its rows are looked up.
COMPRESSIBLE = {("conv", "weight"): False, ("gather", "x"): True}

# Keyword arguments of torch functions that change nothing at these values; at any other, a row has to take them.
NEUTRAL = {
    "alpha": 1,
    "dilation": 1,
    "dtype": None,
    "groups": 1,
    "inplace": False,
    "max_norm": None,
    "norm_type": 2.0,
    "ord": 2,
    "out": None,
    "padding": 0,
    "rounding_mode": None,
    "scale_grad_by_freq": False,
    "sparse": False,
    "stride": 1,
}

Row = Callable[..., Any]
ROWS: dict[str, Row] = {}
signature = cache(inspect.signature)


def lowers(*names: str) -> Callable[[Row], Row]:
    """Registers a row under the `__name__` of torch functions."""

    def register(row: Row) -> Row:
        ROWS.update(dict.fromkeys(names, row))
        return row

    return register


class Symbol:
    """A tensor of the program being written: fp16 or int32, of a fixed shape.

    What it lacks is an ExportError: Python must not answer in a tensor's place, as it would `==` and `bool`."""

    def __init__(self, var: Var, writer: Writer) -> None:
        self.var, self.writer = var, writer

    @property
    def shape(self) -> tuple[int, ...]:
        return self.var.shape

    def dim(self) -> int:
        return len(self.shape)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        writer = next(a.writer for a in flat((args, kwargs)) if isinstance(a, Symbol))
        name = function.__name__.removeprefix("__").removesuffix("__")
        return writer.lower(name, args, kwargs, torch.overrides.resolve_name(function) or name)

    def to(self, dtype: torch.dtype) -> Symbol:
        if dtype not in DTYPES:
            raise ExportError(f"{self.writer.where} asks for {dtype}, a program has {', '.join(map(str, DTYPES))}")
        made: Symbol = self.writer.emit("cast", x=self, dtype=DTYPES[dtype])
        return made

    def __getitem__(self, key: Any) -> Any:
        return self.writer.lower("getitem", (self, key))

    def __add__(self, other: Any) -> Any:
        return self.writer.lower("add", (self, other))

    def __sub__(self, other: Any) -> Any:
        return self.writer.lower("sub", (self, other))

    def __mul__(self, other: Any) -> Any:
        return self.writer.lower("mul", (self, other))

    def __truediv__(self, other: Any) -> Any:
        return self.writer.lower("div", (self, other))

    def __rsub__(self, other: Any) -> Any:
        return self.writer.lower("rsub", (self, other))

    __radd__, __rmul__ = __add__, __mul__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a question of Python's or numpy's, not the module's
            raise AttributeError(name)
        raise ExportError(
            f"{self.writer.where} uses .{name} of a tensor, which symbols lack: call the torch function of that name"
        )


def lacking(operator: str) -> Callable[..., Any]:
    def refuse(self: Symbol, *_: Any) -> Any:
        raise ExportError(
            f"{self.writer.where} uses {operator} of a tensor, which symbols lack: use a torch function with a row in "
            "hft2ane/lower.py"
        )

    return refuse


# In-place operators too: the other names of the same tensor would not see the change.
# fmt: off
LACKED = (
    "abs", "and", "bool", "contains", "delitem", "eq", "float", "floordiv", "ge", "gt", "iadd", "imul", "index", "int",
    "invert", "isub", "iter", "itruediv", "le", "len", "lshift", "lt", "matmul", "mod", "ne", "neg", "or", "pos", "pow",
    "rfloordiv", "rmatmul", "rmod", "rpow", "rshift", "rtruediv", "setitem", "xor",
)
# fmt: on
for each in LACKED:
    setattr(Symbol, f"__{each}__", lacking(f"__{each}__"))


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
    """A tensor and its parts in the weight file. The tensor is held so that nothing else gets its address.

    `form`: the variant that stores tensors so; float16 for whole numbers too, which none compresses."""

    tensor: Tensor
    form: Form
    parts: Mapping[str, Held]


class Writer:
    """Writes the operations of one MIL function, named by the path of the module that asked for them.

    `stored` is shared by all functions of a program, so that each tensor is rounded and stored once. `reserved` names
    are kept for the function's inputs and outputs. Linear layers have the form `linear`, but for those that are
    `raised`, by path."""

    def __init__(
        self,
        root: nn.Module,
        function: Function,
        stored: dict[Any, Stored],
        reserved: Iterable[str] = (),
        linear: Form = "float16",
        raised: Mapping[str, Form] = NONE,
    ) -> None:
        self.names = {module: name for name, module in root.named_modules()}
        self.parameters = {p.data_ptr(): name for name, p in root.named_parameters()}
        self.loaded = {p.untyped_storage().data_ptr() for p in root.parameters()}
        self.function, self.stored = function, stored
        self.linear, self.raised = linear, raised
        self.constants: dict[Any, Var] = {}
        self.done: dict[Any, Any] = {}
        self.stack: list[str] = []
        self.used = set(reserved)
        self.numbers: Counter[str] = Counter()

    @property
    def path(self) -> str:
        return self.stack[-1] if self.stack else ""

    @property
    def where(self) -> str:
        return self.path or "the module"

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

    def lower(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, called: str = "") -> Any:
        """What the row of a torch function writes. ExportError: there is no row, or it takes no such arguments."""
        call = f"{self.where} calls {called or name}"
        if name not in ROWS:
            raise ExportError(
                f"{call}, which has no row in hft2ane/lower.py; add one, and a test row in tests/test_lower.py"
            )
        row = ROWS[name]
        telling = {key: value for key, value in (kwargs or {}).items() if not is_neutral(key, value)}
        try:
            signature(row).bind(self, *args, **telling)
        except TypeError as err:
            raise ExportError(f"{call} with what its row in hft2ane/lower.py does not take: {err}") from err
        return row(self, *args, **telling)

    def emit(self, op: str, **inputs: Any) -> Any:
        """One MIL operation; Symbols and tensors among its inputs become variables, its outputs become Symbols.

        What was asked for before, as the mask that attention and pooling both make, is not computed again."""
        asked = (op, tuple((key, identity(value)) for key, value in inputs.items()))
        if asked not in self.done:
            self.done[asked] = self.write(op, inputs)
        return self.done[asked]

    def write(self, op: str, inputs: Mapping[str, Any]) -> Any:
        name = self.name(op)
        values = {
            key: self.value(value, f"{name}_{key}", COMPRESSIBLE.get((op, key)))
            for key, value in inputs.items()
            if value is not None
        }
        try:
            out = self.function.op(op, name, values)
        except ValueError as err:
            raise ExportError(f"{self.where}: MIL refuses {op} here: {err}") from err
        if len(out) == 1:
            return Symbol(out[0], self)
        for var in out:
            var.name = self.unique(var.name)
        return [Symbol(var, self) for var in out]

    def name(self, op: str) -> str:
        """`blocks_3_attend_q` for the first operation of that module, which for a linear is the only one."""
        base = identifier(self.path) or "model"
        return self.unique(base if op in ("conv", "layer_norm", "gather") else f"{base}_{op}")

    def unique(self, name: str) -> str:
        """The name itself, or with the first number that makes it new."""
        found = name
        while found in self.used:
            self.numbers[name] += 1
            found = f"{name}_{self.numbers[name]}"
        self.used.add(found)
        return found

    def value(self, value: Any, name: str, table: bool | None = None) -> Any:
        """`table`: see `COMPRESSIBLE`; None for what is never compressed."""
        if isinstance(value, Symbol):
            return value.var
        if isinstance(value, Tensor):
            return self.constant(value, name, table)
        if isinstance(value, float):  # an int is an axis or a size; a number to calculate with is a float
            return np.float16(checked(value, name))
        if isinstance(value, list | tuple) and any(isinstance(v, Symbol | Tensor) for v in value):
            return [self.value(v, f"{name}_{i}") for i, v in enumerate(value)]
        return value

    def constant(self, tensor: Tensor, name: str, table: bool | None = None) -> Var:
        """The constant for a real tensor; the same tensor gives the same one. What differs in axes of size 1 only, as
        a table of words and the linear layer that it is tied to, is stored once."""
        stored_as = "float16" if table is None else form(tensor.numel(), self.raised.get(self.path, self.linear), table)
        strides = tuple((n, step) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
        key = (tensor.data_ptr(), tensor.dtype, strides, tensor.shape[:1], stored_as)
        if (key, tensor.shape) not in self.constants:
            if key not in self.stored:
                self.stored[key] = self.store(tensor, stored_as, key, name)
            self.constants[key, tensor.shape] = self.decompressed(self.stored[key], tensor.shape, self.unique(name))
        return self.constants[key, tensor.shape]

    def store(self, tensor: Tensor, stored_as: Form, key: Any, name: str) -> Stored:
        label, content = self.parameters.get(tensor.data_ptr(), name), key
        if tensor.untyped_storage().data_ptr() not in self.loaded:
            # What a module computes anew at each length may be the same each time.
            values = rounded(tensor, label)
            content = (hashlib.sha256(values.tobytes()).digest(), values.dtype, values.shape, stored_as)
        if content not in self.stored:
            self.stored[content] = Stored(tensor, stored_as, self.parts(tensor, stored_as, label))
        return replace(self.stored[content], tensor=tensor)

    def parts(self, tensor: Tensor, stored_as: Form, label: str) -> dict[str, Held]:
        """What is stored of the tensor, in its order in the weight file; it is made when that is written."""
        shape, rows, later = tuple(tensor.shape), tuple(tensor.shape[:1]), self.function.later
        make: Make
        if stored_as == "float16":
            types = {"": Type(shape, "float16" if tensor.is_floating_point() else "int32")}

            def make() -> Any:
                return [pieces(tensor, label)]

        elif stored_as == "int8":
            types = {"data": Type(shape, "int8"), "zero_point": Type(rows, "int8"), "scale": Type(rows, "float16")}
            if later:  # the order that constexpr_blockwise_shift_scale has them in
                types["zero_point"] = types.pop("zero_point")

            def make() -> Any:
                made = quantize(rounded(tensor, label))
                return [[getattr(made, part)] for part in types]

        else:
            bits = PALETTES[stored_as]
            packed = Type((-(-tensor.numel() * bits // 8),), "uint8")
            types = {
                "indices": Type(shape, f"uint{bits}") if later else packed,
                "lut": Type((1 << bits,), "float16"),
            }

            def make() -> Any:
                made = palettize(rounded(tensor, label), bits)
                return [[made.packed], [made.lut]]

        return dict(zip(types, self.function.weights.hold(list(types.values()), make), strict=True))

    def decompressed(self, weight: Stored, shape: tuple[int, ...], name: str) -> Var:
        """The constant of this shape that has the weight's values, when the package is loaded."""
        function, parts = self.function, weight.parts
        if weight.form == "float16":
            return function.const(name, parts[""].shaped(shape))
        result, ones = Type(shape, "float16"), [1] * (len(shape) - 1)
        if weight.form == "int8":
            data, scale, zero_point = parts["data"].shaped(shape), parts["scale"], parts["zero_point"]
            if function.later:
                each = (shape[0], *ones)
                held = {"data": data, "scale": scale.shaped(each), "offset": zero_point.shaped(each)}
                return function.constexpr("constexpr_blockwise_shift_scale", name, held, result)
            held = {"quantized_data": data, "zero_point": zero_point, "scale": scale, "axis": immediate(np.int32(0))}
            return function.constexpr("constexpr_affine_dequantize", name, held, result)
        if function.later:
            lut = parts["lut"].shaped((1, *ones, *parts["lut"].type.shape, 1))
            held = {"indices": parts["indices"].shaped(shape), "lut": lut}
        else:
            held = {**parts, "shape": immediate(np.array(shape, np.uint32))}
        return function.constexpr("constexpr_lut_to_dense", name, held, result)


def identity(value: Any) -> Any:
    """Equal for inputs that are the same. The writer holds all tensors that it has met: an address is one of them."""
    if isinstance(value, Symbol):
        return id(value.var)
    if isinstance(value, Tensor):
        return value.data_ptr(), value.dtype, value.shape, value.stride()
    if isinstance(value, list | tuple):
        return tuple(map(identity, value))
    return type(value), value


def identifier(path: str) -> str:
    """MIL takes letters, digits and underscores, and no digit first: `blocks.3.attend.q` -> `blocks_3_attend_q`."""
    name = re.sub(r"\W", "_", path, flags=re.ASCII)
    return f"_{name}" if name[:1].isdigit() else name


def is_neutral(key: str, value: Any) -> bool:
    """Whether this argument of a torch function changes nothing."""
    return key.startswith("_") or (key in NEUTRAL and value == NEUTRAL[key])


def checked(value: float, name: str) -> float:
    """The value, which fp16 can hold: neither too large nor lost."""
    if not abs(value) <= FP16_MAX:
        raise ExportError(f"{name}: {value:g} is not a finite fp16 number")
    if value and not np.float16(value):
        raise ExportError(f"{name}: {value:g} is zero in fp16, the least is {FP16_LEAST:.2g}")
    return value


def rounded(tensor: Tensor, name: str) -> np.ndarray[Any, Any]:
    """As fp16 or int32, contiguous."""
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        whole = tensor.to(torch.int32)
        if not torch.equal(whole.to(tensor.dtype), tensor):
            raise ExportError(f"{name}: a number is beyond int32")
        return whole.contiguous().numpy()
    check_range(tensor, name)
    return tensor.to(torch.float16).contiguous().numpy()


def check_range(tensor: Tensor, name: str) -> None:
    least, largest = map(float, torch.aminmax(tensor)) if tensor.numel() else (0.0, 0.0)
    if not (least >= -FP16_MAX and largest <= FP16_MAX):  # NaN is in no range
        outlier = least if -least > largest else largest
        raise ExportError(f"{name}: {outlier:g} among the weights is not a finite fp16 number")


def pieces(tensor: Tensor, name: str) -> Iterator[Any]:
    """What `rounded` gives, piece by piece in the same memory: no second copy of large weights, and little to clear."""
    if not tensor.is_floating_point():
        yield rounded(tensor, name)
        return
    memory = torch.empty(min(PIECE, tensor.numel()), dtype=torch.float16)
    for piece in torch.split(tensor.detach().reshape(-1), PIECE):
        check_range(piece, name)
        yield memory[: len(piece)].copy_(piece).numpy()


# Rows: parameters have the names of the torch function's, so that arguments bind as they do there.


def unary(op: str) -> Row:
    return lambda writer, input: writer.emit(op, x=input)


def arithmetic(op: str) -> Row:
    """A row for x ∘ y in fp16, either of which may be a Python number."""

    def number(value: Any) -> Any:
        return float(value) if isinstance(value, int) else value

    return lambda writer, input, other: writer.emit(op, x=number(input), y=number(other))


def reduction(op: str) -> Row:
    return lambda writer, input, dim, keepdim=False: writer.emit(op, x=input, axes=axes(dim), keep_dims=keepdim)


def axes(dim: int | Sequence[int]) -> list[int]:
    return [dim] if isinstance(dim, int) else list(dim)


ROWS |= {
    "add": arithmetic("add"),
    "sub": arithmetic("sub"),
    "mul": arithmetic("mul"),
    "div": arithmetic("real_div"),
    "rsub": lambda writer, input, other: arithmetic("sub")(writer, other, input),
    "abs": unary("abs"),
    "sqrt": unary("sqrt"),
    "tanh": unary("tanh"),
    "relu": unary("relu"),
    "silu": unary("silu"),
    "amax": reduction("reduce_max"),
    "sum": reduction("reduce_sum"),
    "softmax": lambda writer, input, dim: writer.emit("softmax", x=input, axis=dim),
    "clamp": lambda writer, input, min: writer.emit("maximum", x=input, y=float(min)),
    "reshape": lambda writer, input, shape: writer.emit("reshape", x=input, shape=list(shape)),
    "unsqueeze": lambda writer, input, dim: writer.emit("expand_dims", x=input, axes=[dim]),
    "squeeze": lambda writer, input, dim: writer.emit("squeeze", x=input, axes=axes(dim)),
}


@lowers("linalg_vector_norm")
def vector_norm(writer: Writer, x: Symbol, *, dim: int | Sequence[int], keepdim: bool = False) -> Any:
    return writer.emit("reduce_l2_norm", x=x, axes=axes(dim), keep_dims=keepdim)


@lowers("conv2d")
def conv2d(
    writer: Writer, input: Symbol, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] | None = None
) -> Any:
    if padding is None:
        return writer.emit("conv", x=input, weight=weight, bias=bias)
    if not isinstance(padding, tuple):
        raise ExportError(f"{writer.where}: padding is lowered as a number for each of two axes, not as {padding!r}")
    pad = [size for size in padding for _ in range(2)]
    return writer.emit("conv", x=input, weight=weight, bias=bias, pad_type="custom", pad=pad)


@lowers("embedding")
def embedding(writer: Writer, input: Symbol, weight: Tensor, padding_idx: int | None = None) -> Any:
    """`padding_idx` is about gradients."""
    return writer.emit("gather", x=weight, indices=input, axis=0)


@lowers("channel_norm")
def channel_norm(writer: Writer, x: Symbol, weight: Tensor, bias: Tensor | None, eps: float) -> Any:
    """An eps of 1e-12 would round to zero."""
    return writer.emit("layer_norm", x=x, axes=[1], gamma=weight, beta=bias, epsilon=max(eps, EPS_LEAST))


@lowers("gelu")
def gelu(writer: Writer, input: Symbol, approximate: str = "none") -> Any:
    return writer.emit("gelu", x=input, mode={"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[approximate])


@lowers("cat")
def cat(writer: Writer, tensors: Sequence[Symbol | Tensor], dim: int = 0) -> Any:
    return writer.emit("concat", values=tensors, axis=dim)


@lowers("transpose")
def transpose(writer: Writer, input: Symbol, dim0: int, dim1: int) -> Any:
    order = list(range(input.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return writer.emit("transpose", x=input, perm=order)


@lowers("flatten")
def flatten(writer: Writer, input: Symbol, start_dim: int = 0) -> Any:
    return writer.emit("reshape", x=input, shape=[*input.shape[:start_dim], math.prod(input.shape[start_dim:])])


@lowers("split")
def split(writer: Writer, tensor: Symbol, split_size_or_sections: int | Sequence[int], dim: int = 0) -> Any:
    whole, size = tensor.shape[dim], split_size_or_sections
    sizes = [min(size, whole - start) for start in range(0, whole, size)] if isinstance(size, int) else list(size)
    return writer.emit("split", x=tensor, split_sizes=sizes, axis=dim) if len(sizes) > 1 else [tensor]


# The equations of attention, as the one that MIL's einsum knows; the letters stand for other axes there.
EINSUM = {"bkhc,bchq->bkhq": "nchw,nwhu->nchu", "bchk,bkhq->bchq": "nchw,nwhu->nchu"}


@lowers("einsum")
def einsum(writer: Writer, equation: str, *operands: Symbol) -> Any:
    if equation not in EINSUM:
        raise ExportError(f"{writer.where}: MIL has no einsum {equation!r}; it has {', '.join(EINSUM)}")
    return writer.emit("einsum", values=operands, equation=EINSUM[equation])


@lowers("getitem")
def getitem(writer: Writer, input: Symbol, key: Any) -> Any:
    """Slices with fixed bounds, no steps, every axis kept."""
    keys: Sequence[Any] = key if isinstance(key, tuple) else (key,)
    if len(keys) > input.dim() or not all(isinstance(k, slice) and k.step in (None, 1) for k in keys):
        raise ExportError(f"{writer.where}: only slices x[a:b, c:d] without steps are lowered, not x[{key}]")
    bounds = [
        k.indices(n) for k, n in zip([*keys, *[slice(None)] * (input.dim() - len(keys))], input.shape, strict=True)
    ]
    begin, end = [b for b, _, _ in bounds], [e for _, e, _ in bounds]
    return writer.emit("slice_by_index", x=input, begin=begin, end=end)
