"""What the tests of the evaluator's operations share: a row an operation, built with coremltools, saved, read back."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Program as MilProgram
from coremltools.converters.mil.mil import types

from hft2ane.mil import Program, open_package
from hft2ane.psnr import psnr

BUILTIN = {"float16": types.fp16, "float32": types.fp32, "int32": types.int32}
rng = np.random.default_rng(7)


def reseed() -> None:
    """Makes the data of a module's rows its own, whatever was imported before it."""
    rng.bit_generator.state = np.random.default_rng(7).bit_generator.state


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def save(
    path: Path,
    build: Callable[..., Any],
    inputs: Sequence[np.ndarray],
    target: Any = ct.target.iOS16,
    edit: Callable[[Any], None] | None = None,
) -> Program:
    """The program that `build` makes of these inputs (a, b, c …), saved and read back. `edit` changes its protobuf."""
    specs = [mb.TensorSpec(each.shape, BUILTIN[each.dtype.name]) for each in inputs]
    names = "abcdefgh"[: len(inputs)]
    # mb.program takes the inputs' names from the signature.
    named = eval(f"lambda {', '.join(names)}: build({', '.join(names)})", {"build": build})
    program: MilProgram = mb.program(input_specs=specs, opset_version=target)(named)
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        pass_pipeline=ct.PassPipeline.EMPTY,
        compute_precision=ct.precision.FLOAT32,
    )
    if edit is not None:
        spec = model.get_spec()
        edit(spec)
        model = ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    model.save(str(path))
    return open_package(path)


def run(program: Program, inputs: Sequence[np.ndarray], **options: Any) -> list[np.ndarray]:
    given = {feature.name: each for feature, each in zip(program.functions["main"].inputs, inputs, strict=True)}
    return list(program.evaluate(given, **options).values())


class Row(NamedTuple):
    """`expected` takes float64 (or integer) torch tensors."""

    op: str
    build: Callable[..., Any]
    expected: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    target: Any = ct.target.iOS16


def wide(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))


def unary(op: str, expected: Callable[..., Any], inputs: np.ndarray | None = None, **more: Any) -> Row:
    x = normal(2, 3, 4) * 3 if inputs is None else inputs
    return Row(op, lambda a: getattr(mb, op)(x=a, **more), expected, (x,))


def binary(op: str, expected: Callable[..., Any], *inputs: np.ndarray) -> Row:
    given = inputs or (normal(2, 3, 4), normal(3, 1))
    return Row(op, lambda a, b: getattr(mb, op)(x=a, y=b), expected, given)


def compared(op: str, expected: Callable[..., Any]) -> Row:
    x, y = rng.integers(-2, 3, (3, 5)).astype(np.int32), rng.integers(-2, 3, (1, 5)).astype(np.int32)
    return Row(op, lambda a, b: mb.cast(x=getattr(mb, op)(x=a, y=b), dtype="int32"), expected, (x, y))


def logical(op: str, expected: Callable[..., Any], count: int = 2) -> Row:
    def build(*values: Any) -> Any:
        bools = [mb.cast(x=each, dtype="bool") for each in values]
        return mb.cast(x=getattr(mb, op)(**dict(zip("xy", bools, strict=False))), dtype="int32")

    return Row(op, build, expected, tuple(rng.integers(0, 2, (2, 6)).astype(np.int32) for _ in range(count)))


def names(rows: Sequence[Row]) -> list[str]:
    return [f"{at}-{row.op}" for at, row in enumerate(rows)]


def reduced(op: str, expected: Callable[..., Any]) -> Row:
    return unary(op, lambda x: expected(x, (0, 2)), axes=[0, -1], keep_dims=False)


def sliced(expected: Callable[..., Any], **how: Any) -> Row:
    return Row("slice_by_index", lambda a: mb.slice_by_index(x=a, **how), expected, (normal(4, 5, 6),))


def check(row: Row, tmp_path: Path) -> None:
    """The saved row computes what it expects, to the last bits of float32."""
    program = save(tmp_path / "op.mlpackage", row.build, row.inputs, row.target)
    assert row.op in {op.type for op in program.functions["main"].ops}
    expected = row.expected(*(wide(each) for each in row.inputs))
    results = run(program, row.inputs)
    for result, want in zip(results, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert result.shape == tuple(want.shape)
        if result.dtype.kind == "f":
            assert psnr(want.numpy().astype(np.float64), result.astype(np.float64)) > 125
        else:
            np.testing.assert_array_equal(result, want.numpy())
