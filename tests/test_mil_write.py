"""Each operation as coremltools' builder writes it, or refused as there; and the weight file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.backend.mil.load import MILProtoExporter
from coremltools.converters.mil.mil import Function as TheirFunction
from coremltools.converters.mil.mil import Program as TheirProgram
from coremltools.converters.mil.mil import types
from coremltools.libmilstoragepython import _BlobStorageWriter

from hft2ane.mil.proto import Model
from hft2ane.mil.signatures import SIGNATURES, Type
from hft2ane.mil.write import Function, Program, Weights
from tests.peer import TARGETS

BUILTIN = {"float16": types.fp16, "int32": types.int32, "bool": types.bool}
rng = np.random.default_rng(5)


def half(*shape: int) -> np.ndarray[Any, Any]:
    return rng.standard_normal(shape).astype(np.float16)


def x(*shape: int) -> Type:
    return Type(shape, "float16")


def i(*shape: int) -> Type:
    return Type(shape, "int32")


def b(*shape: int) -> Type:
    return Type(shape, "bool")


X = x(1, 6, 1, 8)
EPS = np.float16(1e-3)

# An operation and its inputs: types stand for variables, all else is a constant.
ROWS: list[tuple[str, dict[str, Any]]] = [
    *((op, {"x": X, "y": x(6, 1, 1)}) for op in ("add", "sub", "mul", "real_div", "maximum", "minimum", "pow")),
    ("add", {"x": i(1, 5), "y": 3}),
    ("sub", {"x": np.float16(2), "y": X}),
    ("mul", {"x": X, "y": half(6, 1, 8)}),
    ("mul", {"x": half(2, 1), "y": x(3)}),
    *(
        (op, {"x": X, "y": x(8)})
        for op in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
    ),
    ("equal", {"x": i(1, 5), "y": np.int32(0)}),
    *((op, {"x": b(2, 3), "y": b(3)}) for op in ("logical_and", "logical_or")),
    ("logical_not", {"x": b(2, 3)}),
    *((op, {"x": X}) for op in ("abs", "square", "erf", "exp", "relu", "sigmoid", "silu", "sqrt", "tanh")),
    ("square", {"x": i(1, 5)}),
    ("rsqrt", {"x": X}),
    ("rsqrt", {"x": X, "epsilon": EPS}),
    ("gelu", {"x": X}),
    ("gelu", {"x": X, "mode": "TANH_APPROXIMATION"}),
    ("softmax", {"x": X}),
    ("softmax", {"x": X, "axis": 1}),
    *(("cast", {"x": of, "dtype": to}) for of in (X, i(2, 3), b(2, 3)) for to in ("fp16", "int32", "bool")),
    ("select", {"cond": b(1, 1, 1, 8), "a": X, "b": np.float16(-1e4)}),
    ("select", {"cond": b(2, 3), "a": i(2, 3), "b": i(3)}),
    *(
        (op, {"x": X, "axes": axes, "keep_dims": keep})
        for op in ("reduce_l2_norm", "reduce_max", "reduce_mean", "reduce_sum")
        for axes, keep in (([1], True), ([-1, 1], False))
    ),
    ("reduce_sum", {"x": i(2, 3), "axes": [0]}),
    ("reduce_max", {"x": X}),
    ("layer_norm", {"x": X, "axes": [1], "epsilon": EPS, "gamma": half(6), "beta": half(6)}),
    ("layer_norm", {"x": x(2, 3, 12), "axes": [-1], "gamma": half(12), "epsilon": EPS}),
    ("layer_norm", {"x": X, "axes": [1, -1], "epsilon": EPS}),
    ("conv", {"x": X, "weight": half(5, 6, 1, 1)}),
    ("conv", {"x": X, "weight": half(5, 6, 1, 1), "bias": half(5)}),
    ("conv", {"x": x(1, 6, 9), "weight": half(12, 6, 2)}),
    ("conv", {"x": X, "weight": half(6, 2, 1, 3), "groups": 3, "strides": [1, 2], "dilations": [1, 2]}),
    ("conv", {"x": X, "weight": half(5, 6, 1, 3), "pad_type": "custom", "pad": [0, 0, 2, 1]}),
    ("matmul", {"x": x(2, 3, 4), "y": x(1, 4, 5)}),
    ("matmul", {"x": x(2, 4, 3), "y": half(5, 4), "transpose_x": True, "transpose_y": True}),
    ("einsum", {"values": [x(1, 6, 1, 8), x(1, 8, 1, 3)], "equation": "nchw,nwhu->nchu"}),
    ("einsum", {"values": [x(1, 6, 1, 8), x(2, 8, 5, 3)], "equation": "nchw,nwhu->nchu"}),
    ("einsum", {"values": [x(6, 2, 8), x(8, 2, 3)], "equation": "chw,whu->chu"}),
    ("gather", {"x": half(9, 4), "indices": i(1, 5)}),
    ("gather", {"x": half(9, 4), "indices": i(2, 3), "axis": -1}),
    ("gather", {"x": x(2, 9, 4), "indices": i(2, 3), "axis": 1, "batch_dims": 1}),
    ("gather_along_axis", {"x": x(2, 9, 4), "indices": i(2, 3, 4), "axis": 1}),
    ("gather_along_axis", {"x": x(2, 4), "indices": i(5, 4)}),
    ("concat", {"values": [X, x(1, 2, 1, 8)], "axis": 1}),
    ("concat", {"values": [i(1, 4), i(1, 4)], "axis": -1, "interleave": True}),
    ("concat", {"values": [X, half(1, 6, 1, 3)], "axis": 3}),
    ("stack", {"values": [x(2, 3), x(2, 3), half(2, 3)], "axis": 1}),
    ("stack", {"values": [i(2, 3), i(2, 3)], "axis": -1}),
    ("split", {"x": X, "split_sizes": [1, 2, 3], "axis": 1}),
    ("split", {"x": x(1, 24, 1, 8), "split_sizes": [2] * 12, "axis": -3}),
    ("slice_by_index", {"x": X, "begin": [0, 1, 0, 0], "end": [1, 4, 1, 8]}),
    ("slice_by_index", {"x": X, "begin": [0, 0, 0, 1], "end": [1, 6, 1, 8], "stride": [1, 2, 1, 3]}),
    ("slice_by_index", {"x": x(4, 6), "begin": [2, 0], "end": [0, 5], "squeeze_mask": [True, False]}),
    (
        "slice_by_index",
        {"x": x(4, 6), "begin": [0, 1], "end": [0, 5], "begin_mask": [True, False], "end_mask": [True, True]},
    ),
    ("pad", {"x": X, "pad": [0, 0, 2, 1], "mode": "constant", "constant_val": np.float16(1)}),
    ("pad", {"x": x(2, 3), "pad": [1, 0], "constant_val": np.float16(0)}),
    ("tile", {"x": X, "reps": [1, 1, 4, 2]}),
    ("tile", {"x": b(1, 3), "reps": [2, 1]}),
    ("reshape", {"x": X, "shape": [1, 2, 3, 8]}),
    ("reshape", {"x": i(4, 6), "shape": [3, -1]}),
    ("expand_dims", {"x": x(6, 8), "axes": [0, 2]}),
    ("expand_dims", {"x": x(6, 8), "axes": [-1]}),
    ("squeeze", {"x": X, "axes": [2]}),
    ("squeeze", {"x": X, "axes": [0, 1, -2]}),
    ("transpose", {"x": X, "perm": [0, 3, 2, 1]}),
    ("transpose", {"x": X, "perm": [-1, 0, 1, 2]}),
]  # fmt: skip

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("add", {"x": X, "y": x(5, 1, 1)}),
    ("add", {"x": X, "y": i(8)}),
    ("add", {"x": b(3), "y": b(3)}),
    ("add", {"x": X}),
    ("add", {"x": X, "y": X, "z": X}),
    ("logical_and", {"x": X, "y": X}),
    ("exp", {"x": i(3)}),
    ("gelu", {"x": X, "mode": "TANH"}),
    ("cast", {"x": X, "dtype": "fp8"}),
    ("select", {"cond": X, "a": X, "b": X}),
    ("select", {"cond": b(8), "a": X, "b": i(8)}),
    ("reduce_max", {"x": X, "axes": [4], "keep_dims": True}),
    ("reduce_max", {"x": X, "axes": [1.5]}),
    ("layer_norm", {"x": X, "axes": [1], "gamma": half(5), "epsilon": EPS}),
    ("layer_norm", {"x": X, "axes": [1], "gamma": x(6), "epsilon": EPS}),
    ("layer_norm", {"x": X, "axes": [7], "epsilon": EPS}),
    ("conv", {"x": X, "weight": half(5, 4, 1, 1)}),
    ("conv", {"x": X, "weight": half(5, 6, 1, 1), "bias": half(6)}),
    ("conv", {"x": X, "weight": half(6, 6, 1, 1), "groups": 4}),
    ("conv", {"x": X, "weight": half(5, 6, 1, 1), "strides": [1]}),
    ("conv", {"x": X, "weight": half(5, 6, 1, 1), "pad_type": "other"}),
    ("matmul", {"x": x(2, 3, 4), "y": x(3, 5)}),
    ("matmul", {"x": x(2, 3, 4), "y": x(3, 4, 5)}),
    ("matmul", {"x": x(2, 3), "y": x(3, 2), "transpose_y": np.float16(1)}),
    ("einsum", {"values": [x(1, 6, 1, 8), x(1, 8, 1, 3)], "equation": "nchw,nwhu->nuhc"}),
    ("einsum", {"values": [x(1, 6, 1, 8), x(1, 7, 1, 3)], "equation": "nchw,nwhu->nchu"}),
    ("einsum", {"values": [x(1, 6, 1, 8), x(8, 1, 3)], "equation": "nchw,nwhu->nchu"}),
    ("gather", {"x": half(9, 4), "indices": x(1, 5)}),
    ("gather", {"x": half(9, 4), "indices": i(1, 5), "axis": 2}),
    ("gather_along_axis", {"x": x(2, 9, 4), "indices": i(2, 3, 5), "axis": 1}),
    ("gather_along_axis", {"x": x(2, 9, 4), "indices": i(3, 4), "axis": 1}),
    ("concat", {"values": [X, x(1, 2, 1, 7)], "axis": 1}),
    ("concat", {"values": [X, x(6, 1, 8)], "axis": 1}),
    ("concat", {"values": [i(1, 4), x(1, 4)], "axis": 1}),
    ("concat", {"values": [i(1, 4), i(1, 4)], "axis": 2}),
    ("concat", {"values": [i(1, 4), i(1, 5)], "axis": 1, "interleave": True}),
    ("stack", {"values": [x(2, 3), x(3, 2)], "axis": 0}),
    ("stack", {"values": [x(2, 3), x(2, 3)], "axis": 3}),
    ("slice_by_index", {"x": X, "begin": [0, 1], "end": [1, 4]}),
    ("slice_by_index", {"x": X, "begin": [0, 4, 0, 0], "end": [1, 2, 1, 8]}),
    ("pad", {"x": X, "pad": [1, -1], "constant_val": EPS}),
    ("pad", {"x": X, "pad": [1, 1, 1], "constant_val": EPS}),
    ("pad", {"x": X, "pad": [1, 1], "mode": "edge", "constant_val": EPS}),
    ("pad", {"x": X, "pad": [1, 1], "constant_val": x()}),
    ("tile", {"x": X, "reps": [1, 1]}),
    ("tile", {"x": X, "reps": [1, 1, 0, 1]}),
    ("reshape", {"x": X, "shape": [1, 5, 8]}),
    ("reshape", {"x": X, "shape": [-1, -1]}),
    ("expand_dims", {"x": x(6, 8), "axes": [4]}),
    ("squeeze", {"x": X, "axes": [4]}),
    ("transpose", {"x": X, "perm": [0, 1, 2]}),
    ("transpose", {"x": X, "perm": [0, 1, 2, 4]}),
]  # fmt: skip

# What coremltools writes, and would be wrong or is nothing that our modules need.
REFUSED_HERE: list[tuple[str, dict[str, Any]]] = [
    ("softmax", {"x": X, "axis": 4}),
    ("cast", {"x": X, "dtype": "fp32"}),
    ("split", {"x": X, "split_sizes": [1, 2], "axis": 1}),
    ("select", {"cond": b(5, 6, 1, 8), "a": X, "b": X}),
    ("transpose", {"x": X, "perm": [0, 1, 2, 2]}),
    ("expand_dims", {"x": x(6, 8), "axes": [0, 0]}),
    ("expand_dims", {"x": x(1, 1, 2, 3, 4), "axes": [0]}),
    ("slice_by_index", {"x": X, "begin": [0, 2, 0, 0], "end": [1, 2, 1, 8]}),
    ("slice_by_index", {"x": X, "begin": [0, 0, 0, 0], "end": [1, 9, 1, 8]}),
    ("slice_by_index", {"x": X, "begin": [0, -3, 0, 0], "end": [1, 6, 1, 8]}),
    ("slice_by_index", {"x": x(4, 6), "begin": [3, 0], "end": [0, 6], "stride": [-1, 1]}),
    ("gather", {"x": x(2, 9, 4), "indices": i(3, 3), "axis": 1, "batch_dims": 1}),
    ("conv", {"x": X, "weight": half(5, 6, 1, 1), "pad_type": "same"}),
    ("matmul", {"x": x(4), "y": x(4, 5)}),
    ("reshape", {"x": X, "shape": [0, 6, 8]}),
    ("add", {"x": X, "y": np.float32(1)}),
    ("add", {"x": i(3), "y": 2**31}),
]  # fmt: skip


def inputs_of(inputs: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    def variable(name: str, value: Any) -> Any:
        return variables[name] if isinstance(value, Type) else value

    return {
        name: [variable(f"{name}{n}", each) for n, each in enumerate(value)]
        if name == "values"
        else variable(name, value)
        for name, value in inputs.items()
    }


def types_of(inputs: Mapping[str, Any]) -> dict[str, Type]:
    every = {
        **{name: value for name, value in inputs.items() if name != "values"},
        **{f"values{n}": value for n, value in enumerate(inputs.get("values", ()))},
    }
    return {f"{name}": value for name, value in every.items() if isinstance(value, Type)}


def mine(op: str, inputs: Mapping[str, Any], version: int, folder: Path) -> Any:
    """The protobuf of a function that is this operation."""
    program = Program(version, Weights(version))
    function = Function(version, types_of(inputs), program.weights)
    function.outputs = function.op(op, "y", inputs_of(inputs, function.inputs))
    program.functions["main"] = function
    program.weights.write(folder / "mine.bin")
    proto = Model().mlProgram.functions["main"]
    program.write(function, proto)
    return proto


def theirs(op: str, inputs: Mapping[str, Any], version: int, folder: Path) -> Any:
    mb.name_count.clear()
    placeholders = {name: mb.placeholder(of.shape, BUILTIN[of.dtype], True) for name, of in types_of(inputs).items()}
    with TheirFunction(placeholders, TARGETS[version]) as function:
        made = getattr(mb, op)(**inputs_of(inputs, function.inputs), name="y")
        function.set_outputs(list(made) if isinstance(made, list | tuple) else [made])
    program = TheirProgram()
    program.add_function("main", function)
    return MILProtoExporter(program, str(folder), version).export().functions["main"]


@pytest.mark.parametrize("version", TARGETS)
@pytest.mark.parametrize(("op", "inputs"), ROWS, ids=[f"{n}-{op}" for n, (op, _) in enumerate(ROWS)])
def test_an_operation_is_as_coremltools_writes_it(
    op: str, inputs: dict[str, Any], version: int, tmp_path: Path
) -> None:
    """With its default inputs, their names, the type of its results, and what is in the weight file."""
    expected = theirs(op, inputs, version, tmp_path)
    assert mine(op, inputs, version, tmp_path) == expected
    files = [tmp_path / "mine.bin", tmp_path / "weight.bin"]
    assert files[0].exists() == files[1].exists()
    if files[0].exists():
        assert files[0].read_bytes() == files[1].read_bytes()


def test_every_operation_has_a_row() -> None:
    assert {op for op, _ in ROWS} == set(SIGNATURES)


@pytest.mark.parametrize("version", TARGETS)
@pytest.mark.parametrize(("op", "inputs"), REFUSED, ids=[f"{n}-{op}" for n, (op, _) in enumerate(REFUSED)])
def test_what_coremltools_refuses_is_refused(op: str, inputs: dict[str, Any], version: int, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError, IndexError, AssertionError, NotImplementedError)):
        theirs(op, inputs, version, tmp_path)
    with pytest.raises(ValueError, match=r"\w"):
        mine(op, inputs, version, tmp_path)


@pytest.mark.parametrize(("op", "inputs"), REFUSED_HERE, ids=[f"{n}-{op}" for n, (op, _) in enumerate(REFUSED_HERE)])
def test_what_only_we_refuse(op: str, inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        mine(op, inputs, 9, tmp_path)


def test_an_operation_without_a_signature(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no operation lstm in hft2ane/mil/signatures\.py"):
        mine("lstm", {"x": X}, 7, tmp_path)


# --- the weight file ---

BLOBS = [
    ("float16", 33, "write_fp16_data", np.uint16),
    ("int8", 64, "write_int8_data", np.int8),
    ("uint8", 10, "write_uint8_data", np.uint8),
    ("int32", 11, "write_int32_data", np.int32),
    ("uint6", 33, "write_uint6_data", np.uint8),
    ("uint4", 31, "write_uint4_data", np.uint8),
    ("float16", 4096, "write_fp16_data", np.uint16),
]


def test_the_weight_file_is_as_coremltools_writes_it(tmp_path: Path) -> None:
    """Records, padding, unused bits, and a value in pieces."""
    weights = Weights(9)
    writer = _BlobStorageWriter(str(tmp_path / "theirs.bin"))
    for dtype, count, method, holder in BLOBS:
        values = rng.integers(0, 16, count).astype(holder)
        bits = 8 * values.itemsize if holder is not np.uint8 or dtype == "uint8" else int(dtype[4:])
        stored = np.packbits(
            np.unpackbits(values.view(np.uint8).reshape(count, -1), axis=1, bitorder="little")[:, :bits],
            bitorder="little",
        )
        (held,) = weights.hold([Type((count,), dtype)], lambda stored=stored: [[stored[:7], stored[7:]]])
        assert held.offset == getattr(writer, method)(values)
        assert held.array is None
    del writer
    weights.write(tmp_path / "mine.bin")
    assert (tmp_path / "mine.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()


def test_values_are_made_when_the_file_is_written_and_not_kept(tmp_path: Path) -> None:
    """All of them once; but those that belong into the program, of which there are few, at once."""
    made: list[str] = []
    weights = Weights(7)

    def make(name: str, count: int) -> Any:
        made.append(name)
        return [[np.full(count, 7, np.float16)]]

    (large,) = weights.hold([Type((10,), "float16")], lambda: make("large", 10))
    assert made == []
    (small,) = weights.hold([Type((9,), "float16")], lambda: make("small", 9))
    assert made == ["small"]
    assert small.array is not None
    assert (small.array == 7).all()
    weights.write(tmp_path / "weight.bin")
    assert made == ["small", "large"]
    assert large.offset == 64
    assert (tmp_path / "weight.bin").stat().st_size == 128 + 20


def test_without_weights_there_is_no_file(tmp_path: Path) -> None:
    Weights(7).write(tmp_path / "weight.bin")
    assert list(tmp_path.iterdir()) == []


def test_the_targets_are_those_of_the_deployments() -> None:
    from hft2ane.export import MULTIFUNCTION, SINGLE

    assert [TARGETS[each.specification] for each in (SINGLE, MULTIFUNCTION)] == [ct.target.iOS16, ct.target.iOS18]
