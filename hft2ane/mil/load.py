"""A saved .mlpackage as a frozen graph: functions, ops in order, and constants that stay on the mapped weight file.

Whatever is not as the format wants it is one PackageError that names the file and the place in it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hft2ane.errors import PackageError
from hft2ane.mil.format import ALIGNMENT, BY_NAME, DTYPES, RECORD, SENTINEL, STORAGE_VERSION, DType
from hft2ane.mil.proto import DecodeError, Model

Array = NDArray[Any]


# ArrayFeatureType.ArrayDataType of the model's description.
FEATURE_DTYPES = {65552: "float16", 65568: "float32", 131080: "int8", 131104: "int32"}

# What people call the fields of the model's metadata.
ABOUT = {"about": "shortDescription", "author": "author", "version": "versionString", "licence": "license"}

ANY = -1  # a size that only the inputs of a call decide
UNBOUNDED = 2**31 - 2


@dataclass(frozen=True)
class Feature:
    """A named tensor with its declared shape, ANY for a flexible size, and element type (`float16`, `int32` …)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant; `stored` is flat and may be a view of the weight file, with several elements in a byte."""

    shape: tuple[int, ...]
    dtype: str
    stored: Array

    @cached_property
    def array(self) -> Array:
        """The values in their shape; elements of less than a byte come as int8 or uint8."""
        dtype = BY_NAME[self.dtype]
        values = _unpacked(self.stored, dtype, math.prod(self.shape)) if 0 < dtype.bits < 8 else self.stored
        return values.reshape(self.shape)


@dataclass(frozen=True)
class Op:
    """One operation. An input is bound to one or more values, each a name or a constant written in place. `blocks`: the
    branches of cond, or condition and body of while_loop."""

    type: str
    name: str
    inputs: Mapping[str, tuple[str | Constant, ...]]
    outputs: tuple[Feature, ...]
    blocks: tuple["Block", ...] = ()


@dataclass(frozen=True)
class Block:
    """A branch or a loop's part, which also sees the values around it. `outputs` are names."""

    inputs: tuple[Feature, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Constant]
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class Function:
    """One entry point. `constants` are its const operations by name, `ops` all the others in order. `states` last from
    call to call. `flexible`: for an input with an ANY in its shape what it may be, each way a range an axis. `opset`
    is the version of the operations, `CoreML6` for iOS 16."""

    name: str
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    constants: Mapping[str, Constant]
    ops: tuple[Op, ...]
    states: tuple[Feature, ...]
    flexible: Mapping[str, tuple[tuple[range, ...], ...]]
    opset: str


@dataclass(frozen=True)
class Package:
    """`metadata`: what the package says of itself (userDefined), `about`: its description, author, version and licence,
    those that it has; `weight_bytes`: size of its weight files."""

    functions: Mapping[str, Function]
    default: str
    metadata: Mapping[str, str]
    specification_version: int
    weight_bytes: int
    about: Mapping[str, str]


def load(path: Path) -> Package:
    """The package at `path`, all of it checked but the values of its weights. PackageError."""
    return _Reader(_model_file(path)).package()


def _model_file(package: Path) -> Path:
    manifest = package / "Manifest.json"
    try:
        document = json.loads(manifest.read_bytes())
    except OSError as err:
        _fail(manifest, f"{err.strerror or err}: this is not an .mlpackage")
    except ValueError as err:
        _fail(manifest, f"is not JSON: {err}")
    match document:
        case {"rootModelIdentifier": str(root), "itemInfoEntries": dict(items)}:
            match items.get(root):
                case {"path": str(relative)}:
                    return package / "Data" / _inside(relative, manifest)
    _fail(manifest, "does not name a root model")


def _inside(relative: str, file: Path) -> PurePosixPath:
    """`relative` itself, when it stays below the folder that it is relative to."""
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        _fail(file, f"points outside the package: {relative!r}")
    return path


def fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    """If a tensor of this shape may stand where one is declared."""
    return len(shape) == len(declared) and all(
        size in (ANY, actual) for actual, size in zip(shape, declared, strict=True)
    )


def sizes(way: tuple[range, ...]) -> str:
    """`1 × 8..64`"""
    return " × ".join(str(axis.start) if len(axis) == 1 else f"{axis.start}..{axis.stop - 1}" for axis in way)


def _ways(array: Any) -> tuple[tuple[range, ...], ...]:
    """The shapes that a flexible array may have; nothing for a fixed one."""
    match array.WhichOneof("ShapeFlexibility"):
        case "enumeratedShapes":
            return tuple(tuple(range(n, n + 1) for n in each.shape) for each in array.enumeratedShapes.shapes)
        case "shapeRange":
            ranges = array.shapeRange.sizeRanges
            return (tuple(range(r.lowerBound, (r.upperBound if r.upperBound >= 0 else UNBOUNDED) + 1) for r in ranges),)
    return ()


def _fail(file: Path, what: str) -> NoReturn:
    raise PackageError(f"{file}: {what}. Export or fetch the package again.")


def _unpacked(stored: Array, dtype: DType, count: int) -> Array:
    """Elements of less than a byte, packed from the lowest bit up."""
    bits = np.unpackbits(stored, count=count * dtype.bits, bitorder="little").reshape(count, dtype.bits)
    values: Array = np.packbits(bits, axis=1, bitorder="little").reshape(count)
    if dtype.name.startswith("int"):
        top = np.uint8(1 << (dtype.bits - 1))
        return (values ^ top).astype(np.int8) - np.int8(top)
    return values


class _Weights:
    """A mapped weight file: a header, then for each blob a record of 64 bytes that says where its data is."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            # Copy-on-write, because torch warns about arrays that are read-only.
            self.bytes = np.asarray(np.memmap(file, np.uint8, "c"))
        except OSError as err:
            _fail(file, err.strerror or str(err))
        except ValueError:
            _fail(file, "is empty")
        if self.bytes.size < ALIGNMENT:
            _fail(file, f"is cut short at {self.bytes.size} bytes")
        version = int(self.bytes[4:8].view("<u4")[0])
        if version != STORAGE_VERSION:
            _fail(file, f"has storage version {version}, expected {STORAGE_VERSION}")

    def blob(self, offset: int, dtype: DType, count: int) -> Array:
        """The stored elements of the blob whose record is at `offset`, not copied."""
        at = f"blob at {offset}"
        if offset % ALIGNMENT or offset < ALIGNMENT or offset + ALIGNMENT > self.bytes.size:
            _fail(self.file, f"{at}: no record can be there in a file of {self.bytes.size} bytes")
        sentinel, code, size, start = RECORD.unpack_from(self.bytes.data, offset)
        if sentinel != SENTINEL:
            _fail(self.file, f"{at}: the record begins with {sentinel:#x}, expected {SENTINEL:#x}")
        if code != dtype.code:
            _fail(self.file, f"{at}: holds elements of type {code}, the model declares {dtype.name} ({dtype.code})")
        if size != (count * dtype.bits + 7) // 8:
            _fail(self.file, f"{at}: holds {size} bytes, the model declares {count} × {dtype.name}")
        if start % ALIGNMENT or start < offset + ALIGNMENT or start + size > self.bytes.size:
            _fail(self.file, f"{at}: its data, {size} bytes at {start}, is not inside {self.bytes.size} bytes")
        data = self.bytes[start : start + size]
        return data if dtype.bits < 8 else data.view(dtype.holder)


class _Reader:
    """One model file. `at` is the place that a message names."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.at = ""
        self.weights: dict[str, _Weights] = {}
        self.blobs: dict[tuple[object, ...], Constant] = {}

    def fail(self, what: str) -> NoReturn:
        _fail(self.file, f"{self.at}: {what}" if self.at else what)

    def package(self) -> Package:
        try:
            model = Model.FromString(self.file.read_bytes())
        except OSError as err:
            self.fail(err.strerror or str(err))
        except DecodeError:
            self.fail("is not a Core ML model (its protobuf cannot be decoded)")
        if model.WhichOneof("Type") != "mlProgram":
            self.fail(f"is not an ML Program but {model.WhichOneof('Type') or 'nothing at all'}")
        described = model.description
        default = described.defaultFunctionName or "main"
        contracts = {each.name: each for each in described.functions} or {default: described}
        if contracts.keys() != model.mlProgram.functions.keys() or default not in contracts:
            self.fail(f"describes functions {sorted(contracts)}, has {sorted(model.mlProgram.functions)}")
        functions = {
            name: self.function(name, model.mlProgram.functions[name], contract) for name, contract in contracts.items()
        }
        return Package(
            functions=functions,
            default=default,
            metadata=dict(described.metadata.userDefined),
            specification_version=model.specificationVersion,
            weight_bytes=sum(weights.bytes.size for weights in self.weights.values()),
            about={word: text for word, field in ABOUT.items() if (text := getattr(described.metadata, field))},
        )

    def function(self, name: str, proto: Any, contract: Any) -> Function:
        self.at = f"function {name}"
        block = proto.block_specializations.get(proto.opset)
        if block is None:
            self.fail(f"has no code for its opset {proto.opset!r}")
        values: dict[str, Feature | Constant] = {}
        inputs, states = (
            tuple(self.feature(each) for each in proto.inputs if (each.type.WhichOneof("type") == "stateType") is kept)
            for kept in (False, True)
        )
        self.define(values, (*inputs, *states))
        ops = self.operations(block.operations, values, f"function {name}")
        self.at = f"function {name}"
        outputs = tuple(self.output(each, values) for each in block.outputs)
        flexible = self.agree("input", inputs, contract.input)
        self.agree("output", outputs, contract.output)
        self.agree("state", states, contract.state)
        constants = {each: value for each, value in values.items() if isinstance(value, Constant)}
        return Function(name, inputs, outputs, constants, ops, states, flexible, str(proto.opset))

    def operations(
        self, operations: Iterable[Any], values: dict[str, Feature | Constant], place: str
    ) -> tuple[Op, ...]:
        """All but const, which go into `values` as all results do."""
        ops = []
        for index, operation in enumerate(operations):
            self.at = f"{place}, operation {index}, {operation.type}"
            label = self.label(operation)
            self.at = f"{place}, {operation.type} {label!r}"
            if operation.type == "const":
                if len(operation.outputs) != 1 or "val" not in operation.attributes:
                    self.fail("a const has one output and one value")
                constant = self.constant(operation.attributes["val"])
                feature = self.feature(operation.outputs[0])
                if (constant.shape, constant.dtype) != (feature.shape, feature.dtype):
                    self.fail(f"is {constant.dtype} {constant.shape}, declared {feature.dtype} {feature.shape}")
                self.define(values, (feature,), constant)
                continue
            op = self.op(operation, label, values)
            self.define(values, op.outputs)
            ops.append(op)
        return tuple(ops)

    def block(self, proto: Any, around: Mapping[str, Feature | Constant]) -> Block:
        place, values = self.at, dict(around)
        inputs = tuple(self.feature(each) for each in proto.inputs)
        self.define(values, inputs)
        ops = self.operations(proto.operations, values, place)
        self.at = place
        for each in proto.outputs:
            self.output(each, values)
        constants = {name: each for name, each in values.items() if isinstance(each, Constant) and name not in around}
        return Block(inputs, tuple(proto.outputs), constants, ops)

    def label(self, operation: Any) -> str:
        """An operation's name; without one, that of its first result."""
        if "name" in operation.attributes:
            title = self.constant(operation.attributes["name"]).array
            if title.shape != ():
                self.fail("its name is not one string")
            return str(title)
        return str(operation.outputs[0].name) if operation.outputs else ""

    def define(
        self, values: dict[str, Feature | Constant], features: Iterable[Feature], constant: Constant | None = None
    ) -> None:
        for feature in features:
            if feature.name in values:
                self.fail(f"value {feature.name!r} is defined a second time")
            values[feature.name] = constant or feature

    def op(self, proto: Any, name: str, values: Mapping[str, Feature | Constant]) -> Op:
        # Compressed weights keep their parameters as attributes up to iOS 17, as inputs from iOS 18 on.
        inputs: dict[str, tuple[str | Constant, ...]] = {
            key: (self.constant(value),) for key, value in proto.attributes.items() if key != "name"
        }
        for key, argument in proto.inputs.items():
            if key in inputs:
                self.fail(f"{key} is given twice")
            inputs[key] = tuple(self.binding(each, values) for each in argument.arguments)
        outputs = tuple(self.feature(each) for each in proto.outputs)
        if (not outputs and proto.type != "write_state") or () in inputs.values():
            self.fail("has no output, or an input that is bound to nothing")
        return Op(proto.type, name, inputs, outputs, tuple(self.block(each, values) for each in proto.blocks))

    def binding(self, proto: Any, values: Mapping[str, object]) -> str | Constant:
        if proto.WhichOneof("binding") == "value":
            return self.constant(proto.value)
        if proto.name not in values:
            self.fail(f"uses {proto.name!r}, which nothing before it defines")
        return str(proto.name)

    def output(self, name: str, values: Mapping[str, Feature | Constant]) -> Feature:
        value = values.get(name)
        if value is None:
            self.fail(f"its output {name!r} is not defined")
        return value if isinstance(value, Feature) else Feature(name, value.shape, value.dtype)

    def agree(
        self, kind: str, features: tuple[Feature, ...], described: Iterable[Any]
    ) -> dict[str, tuple[tuple[range, ...], ...]]:
        """The model's description, which apps see, says the same as the program. Gives what flexible shapes may be."""
        flexible = {}
        contract = {each.name: each.type for each in described}
        if contract.keys() != {feature.name for feature in features}:
            self.fail(f"has {kind}s {[feature.name for feature in features]}, described are {sorted(contract)}")
        for feature in features:
            declared = contract[feature.name]
            expected = "stateType" if kind == "state" else "multiArrayType"
            if declared.WhichOneof("Type") != expected:
                self.fail(f"{kind} {feature.name!r} is a {declared.WhichOneof('Type')}, only arrays are read")
            array = declared.stateType.arrayType if kind == "state" else declared.multiArrayType
            if ways := _ways(array):
                flexible[feature.name] = ways
            if kind != "output" and bool(ways) != (ANY in feature.shape):
                self.fail(f"{kind} {feature.name!r} has shape {feature.shape}, described are {len(ways)} ranges for it")
            if any(len(way) != len(feature.shape) for way in ways):
                self.fail(f"{kind} {feature.name!r} is described with another rank than {feature.shape}")
            shape, dtype = tuple(array.shape), FEATURE_DTYPES.get(array.dataType)
            # coremltools leaves out the shape of some outputs, and describes a scalar input as one element.
            if dtype != feature.dtype or (shape and not fits(shape, feature.shape or (1,))):
                self.fail(
                    f"{kind} {feature.name!r} is described as {dtype} {shape}, is {feature.dtype} {feature.shape}"
                )
        return flexible

    def feature(self, proto: Any) -> Feature:
        state = proto.type.WhichOneof("type") == "stateType"
        shape, dtype = self.tensor_type(proto.type.stateType.wrappedType if state else proto.type, proto.name)
        return Feature(proto.name, shape, dtype.name)

    def tensor_type(self, proto: Any, name: str) -> tuple[tuple[int, ...], DType]:
        if proto.WhichOneof("type") != "tensorType":
            self.fail(f"{name!r} is a {proto.WhichOneof('type')}, only tensors are read")
        tensor = proto.tensorType
        dtype = DTYPES.get(tensor.dataType)
        if dtype is None:
            self.fail(f"{name!r} has element type {tensor.dataType}, which is not read")
        if any(each.unknown.variadic or each.WhichOneof("dimension") is None for each in tensor.dimensions):
            self.fail(f"{name!r} has a number of dimensions that is not fixed")
        if tensor.rank != len(tensor.dimensions):
            self.fail(f"{name!r} has rank {tensor.rank} and {len(tensor.dimensions)} dimensions")
        sizes = (each.constant.size if each.HasField("constant") else ANY for each in tensor.dimensions)
        return tuple(sizes), dtype

    def constant(self, proto: Any) -> Constant:
        shape, dtype = self.tensor_type(proto.type, "a constant")
        if ANY in shape:
            self.fail("a constant has a size that is not fixed")
        kind = proto.WhichOneof("value")
        if kind == "blobFileValue":
            return self.blob(proto.blobFileValue, shape, dtype)
        if kind != "immediateValue" or proto.immediateValue.WhichOneof("value") != "tensor":
            self.fail(f"a constant holds {kind or 'no value'}, only tensors are read")
        tensor, count = proto.immediateValue.tensor, math.prod(shape)
        field = tensor.WhichOneof("value")
        if field != dtype.field:
            self.fail(f"a constant of {dtype.name} is written as {field}, expected {dtype.field}")
        values = getattr(tensor, field).values
        try:
            if field != "bytes":
                stored = np.array(values, dtype.holder)
            else:
                stored = np.frombuffer(bytearray(values), "uint8" if dtype.bits < 8 else dtype.holder)
        except (OverflowError, ValueError) as err:
            self.fail(f"a constant of {dtype.name} cannot be read: {err}")
        if stored.size != (count if dtype.bits >= 8 or field != "bytes" else (count * dtype.bits + 7) // 8):
            self.fail(f"a constant of shape {shape} holds {stored.size} values")
        return Constant(shape, dtype.name, stored)

    def blob(self, proto: Any, shape: tuple[int, ...], dtype: DType) -> Constant:
        """The same blob is the same constant, in every function that uses it."""
        key = (proto.fileName, proto.offset, shape, dtype)
        if key not in self.blobs:
            if dtype.code is None:
                self.fail(f"a constant of {dtype.name} cannot be in a weight file")
            if proto.fileName not in self.weights:
                prefix, _, relative = proto.fileName.partition("/")
                if prefix != "@model_path":
                    self.fail(f"weight file {proto.fileName!r} is not in the package")
                self.weights[proto.fileName] = _Weights(self.file.parent / _inside(relative, self.file))
            stored = self.weights[proto.fileName].blob(proto.offset, dtype, math.prod(shape))
            self.blobs[key] = Constant(shape, dtype.name, stored)
        return self.blobs[key]
