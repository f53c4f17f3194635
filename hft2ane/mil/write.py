"""A program of our own, written: operations with their constants as protobuf, and the weight file.

The same bytes as coremltools writes for the same program, without its converters: the names of constants, their order,
and what is in the program itself or in the weight file. Weights are planned when they are met and made when the file
is written, piece by piece: where a blob is follows from the sizes of those before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hft2ane.mil.format import ALIGNMENT, BY_NAME, DTYPES, RECORD, SENTINEL, STORAGE_VERSION
from hft2ane.mil.proto import ArrayFeatureType, Model, Value, ValueType
from hft2ane.mil.signatures import CONSTANT, SIGNATURES, VALUES, Shape, Type

Array = NDArray[Any]
# The values of one constant after the other, each in pieces.
Make = Callable[[], Iterable[Iterable[Any]]]

NUMBERS = {dtype.name: number for number, dtype in DTYPES.items()}
FEATURES = {"float16": ArrayFeatureType.FLOAT16, "int32": ArrayFeatureType.INT32}

LEAST_IN_FILE = 10  # numbers; a smaller constant is in the program itself
IN_FILE = ("float16", "int8", "uint8")
IN_FILE_LATER = (*IN_FILE, "int32", "uint4", "uint6")  # from iOS 18 on
OPSETS = {7: "CoreML6", 9: "CoreML8"}  # by specification version: iOS 16, iOS 18
FILE = "@model_path/weights/weight.bin"


@dataclass(eq=False)
class Var:
    """A value of a function, and where it comes from."""

    name: str
    shape: Shape
    dtype: str
    origin: Literal["input", "constant", "operation"]


@dataclass(frozen=True, eq=False)
class Held:
    """The values of a constant: in the program itself (`array`), or a blob of the weight file (`offset`)."""

    type: Type
    array: Array | None = None
    offset: int = 0

    def shaped(self, shape: Shape) -> Held:
        """The same values for a constant of another shape."""
        return replace(
            self,
            type=Type(shape, self.type.dtype),
            array=None if self.array is None else self.array.reshape(shape),
        )


def immediate(value: Any) -> Held:
    """A numpy array or number in the program itself."""
    array = np.asarray(value)
    return Held(Type(array.shape, array.dtype.name), array)


class Blobs(NamedTuple):
    """Blobs of the weight file that are made together. An offset of None: not in the file, but in the program."""

    types: Sequence[Type]
    offsets: Sequence[int | None]
    make: Make


class Weights:
    """The weight file of a program, as it will be written."""

    def __init__(self, specification_version: int) -> None:
        self.in_file = IN_FILE if specification_version < 9 else IN_FILE_LATER
        self.blobs: list[Blobs] = []
        self.end = ALIGNMENT

    def hold(self, types: Sequence[Type], make: Make) -> list[Held]:
        """Constants of these types, whose values `make` gives, when it is called, one after the other."""
        offsets = [self.reserve(each) for each in types]
        if any(offsets):
            self.blobs.append(Blobs(types, offsets, make))
        values: Iterable[Any] = make() if None in offsets else [()] * len(types)
        return [
            Held(each, whole(each, pieces)) if offset is None else Held(each, offset=offset)
            for each, offset, pieces in zip(types, offsets, values, strict=True)
        ]

    def reserve(self, of: Type) -> int | None:
        """The offset of a new blob; None: these values belong into the program."""
        if of.dtype not in self.in_file or math.prod(of.shape) < LEAST_IN_FILE:
            return None
        offset = aligned(self.end)
        self.end = offset + ALIGNMENT + stored_bytes(of)
        return offset

    def write(self, path: Path) -> None:
        """Makes and writes all blobs, if there are any."""
        if not self.blobs:
            return
        count = sum(offset is not None for blobs in self.blobs for offset in blobs.offsets)
        with path.open("wb") as file:
            file.write(np.array([count, STORAGE_VERSION], "<u4").tobytes().ljust(ALIGNMENT, b"\0"))
            for types, offsets, make in self.blobs:
                for each, offset, pieces in zip(types, offsets, make(), strict=True):
                    if offset is not None:
                        file.write(bytes(offset - file.tell()))
                        file.write(record(each, offset))
                        for piece in pieces:
                            file.write(piece)
            assert file.tell() == self.end


def aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def stored_bytes(of: Type) -> int:
    return (math.prod(of.shape) * BY_NAME[of.dtype].bits + 7) // 8


def record(of: Type, offset: int) -> bytes:
    """What stands before a blob: its element type, size and place, and the bits of its last byte that are not used."""
    element, size = BY_NAME[of.dtype], stored_bytes(of)
    unused = size * 8 - math.prod(of.shape) * element.bits
    known = RECORD.pack(SENTINEL, element.code, size, offset + ALIGNMENT)
    return (known + unused.to_bytes(8, "little")).ljust(ALIGNMENT, b"\0")


def whole(of: Type, pieces: Iterable[Any]) -> Array:
    return np.frombuffer(b"".join(np.asarray(piece).tobytes() for piece in pieces), BY_NAME[of.dtype].holder).reshape(
        of.shape
    )


class Operation(NamedTuple):
    """`inputs` are variables, or values that stand in their place; `attributes` are values."""

    type: str
    name: str
    outputs: Sequence[Var]
    inputs: Mapping[str, Sequence[Var | Held]] = {}
    attributes: Mapping[str, Held] = {}


class Function:
    """One function of a program, written operation by operation."""

    def __init__(self, specification_version: int, inputs: Mapping[str, Type], weights: Weights) -> None:
        self.specification_version, self.weights = specification_version, weights
        self.inputs = {name: Var(name, *of, "input") for name, of in inputs.items()}
        self.outputs: Sequence[Var] = ()
        self.operations: list[Operation] = []
        self.numbers: Counter[str] = Counter()

    @property
    def later(self) -> bool:
        """Whether its operations are those of iOS 18."""
        return self.specification_version >= 9

    def const(self, name: str, held: Held) -> Var:
        var = Var(name, *held.type, "constant")
        self.operations.append(Operation("const", name, [var], attributes={"val": held}))
        return var

    def constexpr(self, op: str, name: str, parts: Mapping[str, Held], result: Type) -> Var:
        """A constant that is computed from others when the package is loaded."""
        var = Var(name, *result, "constant")
        if self.later:
            self.operations.append(Operation(op, name, [var], {key: [part] for key, part in parts.items()}))
        else:
            self.operations.append(Operation(op, name, [var], attributes=parts))
        return var

    def op(self, op: str, name: str, inputs: Mapping[str, Any]) -> list[Var]:
        """The results of an operation on variables and plain values, which become constants, as do its defaults.

        ValueError: MIL refuses it, see `signatures`."""
        signature = SIGNATURES.get(op)
        if signature is None:
            raise ValueError(f"there is no operation {op} in hft2ane/mil/signatures.py")
        bound: dict[str, list[Var]] = {}
        types: dict[str, Any] = {}

        def take(key: str, value: Any) -> None:
            if type(value) is list and any(isinstance(each, Var) for each in value):
                bound[key] = [self.variable(each, f"{name}_{key}{i}") for i, each in enumerate(value)]
                types[key] = [Type(each.shape, each.dtype) for each in bound[key]]
                return
            var = self.variable(value, f"{name}_{key}", VALUES.get(key))
            if key in CONSTANT and var.origin != "constant":
                raise ValueError(f"{key} must be a constant")
            bound[key] = [var]
            types[key] = value if key in VALUES else Type(var.shape, var.dtype)

        for key, value in inputs.items():
            take(key, value)
        for key, value in signature.completed(types, self.later).items():
            take(key, value)
        results = signature.result(types)
        names = [name] if len(results) == 1 else [f"{name}_{i}" for i in range(len(results))]
        outputs = [Var(each, *of, "operation") for each, of in zip(names, results, strict=True)]
        self.operations.append(Operation(op, name, outputs, bound))
        return outputs

    def variable(self, value: Any, name: str, dtype: str | None = None) -> Var:
        """The variable itself, or the constant for a plain value, which then has to be of this element type."""
        if isinstance(value, Var):
            if dtype is not None:
                raise ValueError(f"{value.name} must be a plain value")
            return value
        array = np.asarray(value)
        if array.dtype == np.int64:
            if (array.astype(np.int32) != array).any():
                raise ValueError(f"{name} = {value!r} is beyond int32")
            array = array.astype(np.int32)
        of = Type(array.shape, "string" if array.dtype.kind == "U" else array.dtype.name)
        if of.dtype not in BY_NAME or of.dtype != (dtype or of.dtype):
            raise ValueError(f"{name} = {value!r} is {of.dtype}{f', expected {dtype}' if dtype else ''}")
        (held,) = self.weights.hold([of], lambda: [[array]]) if of.dtype != "string" else (Held(of, array),)
        number = self.numbers[name]
        self.numbers[name] += 1
        return self.const(f"{name}_{number}", held)


@dataclass
class Program:
    """Functions and their weights. More than one need iOS 18."""

    specification_version: int
    weights: Weights
    functions: dict[str, Function] = field(default_factory=dict)
    default_function_name: str = "main"

    def model(self) -> Any:
        """The protobuf message of the whole model, without texts and metadata."""
        model = Model(specificationVersion=self.specification_version)
        model.mlProgram.version = 1
        several = len(self.functions) > 1
        if several:
            model.description.defaultFunctionName = self.default_function_name
        for name, function in self.functions.items():
            about = model.description.functions.add(name=name) if several else model.description
            for features, variables in ((about.input, function.inputs.values()), (about.output, function.outputs)):
                for var in variables:
                    array = features.add(name=var.name).type.multiArrayType
                    array.dataType = FEATURES[var.dtype]
                    array.shape.extend(var.shape)
            self.write(function, model.mlProgram.functions[name])
        return model

    def write(self, function: Function, proto: Any) -> None:
        proto.opset = OPSETS[self.specification_version]
        for var in function.inputs.values():
            proto.inputs.add(name=var.name, type=value_type(Type(var.shape, var.dtype)))
        block = proto.block_specializations[proto.opset]
        block.outputs.extend(var.name for var in function.outputs)
        for operation in function.operations:
            write(operation, block.operations.add())


def write(operation: Operation, proto: Any) -> None:
    proto.type = operation.type
    for key, values in operation.inputs.items():
        arguments = proto.inputs[key].arguments
        for each in values:
            if isinstance(each, Var):
                arguments.add().name = each.name
            else:
                assign(arguments.add().value, each)
    proto.attributes["name"].CopyFrom(value_of(Type((), "string")))
    proto.attributes["name"].immediateValue.tensor.strings.values.append(operation.name)
    for key, held in operation.attributes.items():
        assign(proto.attributes[key], held)
    for var in operation.outputs:
        proto.outputs.add(name=var.name, type=value_type(Type(var.shape, var.dtype)))


def assign(proto: Any, held: Held) -> None:
    proto.CopyFrom(value_of(held.type))
    if held.array is None:
        proto.blobFileValue.fileName, proto.blobFileValue.offset = FILE, held.offset
        return
    kind = BY_NAME[held.type.dtype].field
    values = getattr(proto.immediateValue.tensor, kind)
    if kind == "bytes":
        values.values = held.array.tobytes()
    else:
        values.values.extend(held.array.ravel().tolist())


@cache
def value_type(of: Type) -> Any:
    made = ValueType()
    made.tensorType.dataType = NUMBERS[of.dtype]
    made.tensorType.rank = len(of.shape)
    for size in of.shape:
        made.tensorType.dimensions.add().constant.size = size
    return made


@cache
def value_of(of: Type) -> Any:
    """A value of this type, still without contents."""
    return Value(type=value_type(of))
