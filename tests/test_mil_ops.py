"""Every rule of the MIL evaluator, a row an operation: built with coremltools, saved, read back, against torch."""

import gc
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import coremltools as ct
import coremltools.optimize as cto
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Program as MilProgram
from coremltools.converters.mil.mil import types

from hft2ane.errors import EvaluationError
from hft2ane.mil import Program, open_package
from hft2ane.mil.ops import CONSTEXPR, LISTS, OPS, STATIC
from hft2ane.psnr import psnr

# An MLModel that is collected leaves the removal of its temporary folder to the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")

BUILTIN = {"float16": types.fp16, "float32": types.fp32, "int32": types.int32}
rng = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.fixture(autouse=True, scope="module")
def quick_collection() -> Iterator[None]:
    """`ct.convert` runs the garbage collector twice, which is most of its time when it must look at all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


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


def reduced(op: str, expected: Callable[..., Any]) -> Row:
    return unary(op, lambda x: expected(x, (0, 2)), axes=[0, -1], keep_dims=False)


def sliced(expected: Callable[..., Any], **how: Any) -> Row:
    return Row("slice_by_index", lambda a: mb.slice_by_index(x=a, **how), expected, (normal(4, 5, 6),))


POSITIVE = np.abs(normal(3, 4)) + np.float32(0.1)
INDICES = np.array([[0, 2, 1], [-1, 1, -3]], np.int32)
GAMMA, BETA, MEAN, VARIANCE = normal(6), normal(6), normal(6), np.abs(normal(6))
KERNEL, BIAS = normal(8, 3, 3, 2), normal(8)
WEIGHT, LUT = normal(4, 6), normal(4)

ROWS = [
    unary("cast", lambda x: x.trunc(), dtype="int32"),
    Row(
        "cast",
        lambda a: mb.cast(x=mb.cast(x=a, dtype="bool"), dtype="fp32"),
        lambda a: a != 0,
        (np.eye(3, dtype="i4"),),
    ),
    Row(
        "cast",
        lambda a: mb.cast(x=mb.cast(x=a, dtype="uint16"), dtype="int32"),
        lambda a: a.trunc(),
        (POSITIVE * 900,),
        ct.target.iOS17,
    ),
    Row("gather", lambda a, b: mb.gather(x=a, indices=b, axis=0), lambda a, b: a[b], (normal(3, 4), INDICES)),
    Row("gather", lambda a, b: mb.gather(x=a, indices=b, axis=-2), lambda a, b: a[:, b], (normal(2, 3, 4), INDICES)),
    Row(
        "gather",
        lambda a, b: mb.gather(x=a, indices=b, axis=2, batch_dims=1),
        lambda a, b: torch.stack([a[n][:, b[n]] for n in range(2)]),
        (normal(2, 5, 3, 4), INDICES),
    ),
    Row(
        "gather",
        lambda a, b: mb.gather(x=a, indices=b, axis=1, validate_indices=True),
        lambda a, b: a[:, b],
        (normal(2, 3, 4), abs(INDICES) % 3),
        ct.target.iOS17,
    ),
    Row(
        "gather",
        lambda a: mb.gather(x=WEIGHT.astype(np.float16), indices=a, axis=0),
        lambda a: wide(WEIGHT.astype(np.float16))[a],
        (INDICES % 4,),
    ),
    binary("add", lambda x, y: x + y),
    binary("add", lambda x, y: x + y, INDICES, INDICES * 7),
    binary("sub", lambda x, y: x - y),
    binary("mul", lambda x, y: x * y),
    binary("real_div", lambda x, y: x / y),
    binary("floor_div", lambda x, y: (x / y).floor()),
    binary("mod", lambda x, y: x - y * (x / y).floor()),
    binary("pow", lambda x, y: x**y, POSITIVE, normal(4)),
    binary("maximum", torch.maximum),
    binary("minimum", torch.minimum),
    compared("equal", torch.eq),
    compared("not_equal", torch.ne),
    compared("less", torch.lt),
    compared("less_equal", torch.le),
    compared("greater", torch.gt),
    compared("greater_equal", torch.ge),
    logical("logical_and", torch.logical_and),
    logical("logical_or", torch.logical_or),
    logical("logical_xor", torch.logical_xor),
    logical("logical_not", torch.logical_not, 1),
    Row(
        "select",
        lambda a, b: mb.select(cond=mb.greater(x=a, y=b), a=a, b=b),
        torch.maximum,
        (normal(3, 4), normal(3, 4)),
    ),
    unary("identity", lambda x: x),
    unary("abs", torch.abs),
    unary("sign", torch.sign),
    unary("floor", torch.floor),
    unary("ceil", torch.ceil),
    unary("round", torch.round, np.array([-1.5, -0.5, 0.5, 1.5, 2.4], np.float32)),
    unary("square", lambda x: x * x),
    unary("sqrt", torch.sqrt, POSITIVE),
    unary("rsqrt", lambda x: (x + 0.5) ** -0.5, POSITIVE, epsilon=0.5),
    unary("inverse", lambda x: 1 / (x + 0.25), POSITIVE, epsilon=0.25),
    unary("exp", torch.exp),
    unary("log", lambda x: torch.log(x + 0.25), POSITIVE, epsilon=0.25),
    unary("sin", torch.sin),
    unary("cos", torch.cos),
    unary("erf", torch.erf),
    unary("tanh", torch.tanh),
    unary("sigmoid", torch.sigmoid),
    unary("relu", torch.relu),
    unary("silu", F.silu),
    unary("softplus", F.softplus, np.array([-100, -3, 0, 2, 30, 200], np.float32)),
    unary("gelu", F.gelu, mode="EXACT"),
    unary("gelu", lambda x: F.gelu(x, approximate="tanh"), mode="TANH_APPROXIMATION"),
    unary("gelu", lambda x: x * torch.sigmoid(1.702 * x), mode="SIGMOID_APPROXIMATION"),
    unary("clip", lambda x: x.clamp(-0.5, 1.25), alpha=-0.5, beta=1.25),
    reduced("reduce_sum", lambda x, axes: x.sum(axes)),
    reduced("reduce_mean", lambda x, axes: x.mean(axes)),
    reduced("reduce_max", lambda x, axes: x.amax(axes)),
    reduced("reduce_min", lambda x, axes: x.amin(axes)),
    reduced("reduce_sum_square", lambda x, axes: (x * x).sum(axes)),
    reduced("reduce_l2_norm", lambda x, axes: (x * x).sum(axes).sqrt()),
    unary("reduce_sum", lambda x: x.sum((0, 1, 2), keepdim=True), keep_dims=True),
    unary("reduce_sum", lambda x: x.sum(), keep_dims=False),
    unary("reduce_sum", lambda x: x.sum(1), INDICES, axes=[1]),
    unary("softmax", lambda x: x.softmax(1), axis=1),
    unary("softmax", lambda x: x.softmax(-1), axis=-1),
    Row(
        "layer_norm",
        lambda a: mb.layer_norm(x=a, axes=[1], gamma=GAMMA, beta=BETA, epsilon=1e-3),
        lambda a: F.layer_norm(a.movedim(1, -1), (6,), wide(GAMMA), wide(BETA), 1e-3).movedim(-1, 1),
        (normal(2, 6, 1, 5),),
    ),
    Row(
        "layer_norm",
        lambda a: mb.layer_norm(x=a, axes=[-1, -2], epsilon=1e-3),
        lambda a: F.layer_norm(a, (3, 5), eps=1e-3),
        (normal(2, 6, 3, 5),),
    ),
    Row(
        "batch_norm",
        lambda a: mb.batch_norm(x=a, mean=MEAN, variance=VARIANCE, gamma=GAMMA, beta=BETA, epsilon=1e-2),
        lambda a: F.batch_norm(a, wide(MEAN), wide(VARIANCE), wide(GAMMA), wide(BETA), eps=1e-2),
        (normal(2, 6, 4),),
    ),
    Row(
        "conv",
        lambda a: mb.conv(x=a, weight=WEIGHT[:, :, None, None], bias=BIAS[:4], pad_type="valid"),
        lambda a: torch.einsum("oc,bchw->bohw", wide(WEIGHT), a) + wide(BIAS[:4])[:, None, None],
        (normal(2, 6, 1, 5),),
    ),
    Row(
        "conv",
        lambda a: mb.conv(x=a, weight=WEIGHT[:, :, None], pad_type="valid"),
        lambda a: torch.einsum("oc,bcs->bos", wide(WEIGHT), a),
        (normal(2, 6, 5),),
    ),
    Row(
        "conv",
        lambda a: mb.conv(
            x=a,
            weight=KERNEL,
            bias=BIAS,
            strides=[2, 1],
            pad_type="custom",
            pad=[1, 2, 0, 3],
            dilations=[1, 2],
            groups=2,
        ),
        lambda a: F.conv2d(F.pad(a, (0, 3, 1, 2)), wide(KERNEL), wide(BIAS), (2, 1), 0, (1, 2), 2),
        (normal(2, 6, 7, 8),),
    ),
    Row(
        "linear",
        lambda a: mb.linear(x=a, weight=WEIGHT, bias=BIAS[:4]),
        lambda a: a @ wide(WEIGHT.T) + wide(BIAS[:4]),
        (normal(2, 3, 6),),
    ),
    binary("matmul", torch.matmul, normal(5, 1, 3, 4), normal(2, 4, 6)),
    Row(
        "matmul",
        lambda a, b: mb.matmul(x=a, y=b, transpose_x=True, transpose_y=True),
        lambda a, b: a.mT @ b.mT,
        (normal(2, 4, 3), normal(2, 6, 4)),
    ),
    Row(
        "einsum",
        lambda a, b: mb.einsum(values=(a, b), equation="bkhc,bchq->bkhq"),
        lambda a, b: torch.einsum("bkhc,bchq->bkhq", a, b),
        (normal(2, 5, 1, 4), normal(2, 4, 3, 6)),
    ),
    Row(
        "einsum",
        lambda a, b: mb.einsum(values=(a, b), equation="chw,whr->chr"),
        lambda a, b: torch.einsum("chw,whr->chr", a, b),
        (normal(5, 3, 4), normal(4, 3, 6)),
    ),
    Row(
        "scaled_dot_product_attention",
        lambda a, b, c, d: mb.scaled_dot_product_attention(query=a, key=b, value=c, attn_mask=d),
        lambda a, b, c, d: torch.softmax(a @ b.mT / 2 + d, -1) @ c,
        (normal(2, 3, 5, 4), normal(2, 3, 6, 4), normal(2, 3, 6, 4), normal(2, 1, 5, 6)),
        ct.target.iOS18,
    ),
    unary("transpose", lambda x: x.permute(2, 0, 1), perm=[-1, 0, 1]),
    unary("reshape", lambda x: x.reshape(2, 6, 2), shape=[0, -1, 2]),
    unary("expand_dims", lambda x: x[:, None, :, :, None], axes=[1, -1]),
    unary("squeeze", lambda x: x.reshape(2, 1, 3), normal(1, 2, 1, 3), axes=[0]),
    unary("squeeze", lambda x: x.reshape(2, 3), normal(1, 2, 1, 3)),
    unary("split", lambda x: x.split((1, 2, 3), 1), normal(2, 6, 2), split_sizes=[1, 2, 3], axis=1),
    unary("split", lambda x: x.split(3, -2), normal(2, 6, 2), num_splits=2, axis=-2),
    Row(
        "concat",
        lambda a, b: mb.concat(values=(a, b), axis=-1),
        lambda a, b: torch.cat((a, b), -1),
        (normal(2, 3), normal(2, 5)),
    ),
    Row("concat", lambda a: mb.concat(values=(a,), axis=0), lambda a: a, (normal(2, 3),)),
    Row(
        "concat",
        lambda a, b: mb.concat(values=(a, b), axis=0, interleave=True),
        lambda a, b: torch.stack((a[0], b[0], a[1], b[1])),
        (normal(2, 3), normal(2, 3)),
    ),
    Row(
        "stack",
        lambda a, b: mb.stack(values=(a, b), axis=1),
        lambda a, b: torch.stack((a, b), 1),
        (normal(2, 3), normal(2, 3)),
    ),
    unary("tile", lambda x: x.repeat(1, 3, 2), reps=[1, 3, 2]),
    sliced(lambda x: x[1:3, 0:5:2, -4:-1], begin=[1, 0, -4], end=[3, 5, -1], stride=[1, 2, 1]),
    sliced(
        lambda x: x[:3, 2:],
        begin=[9, 2, 0],
        end=[3, 9, 2],
        begin_mask=[True, False, False],
        end_mask=[False, True, True],
    ),
    sliced(
        lambda x: x.flip(2)[:, 3, :].flip(0)[::2],
        begin=[3, -2, 0],
        end=[0, 0, 0],
        stride=[-2, 1, -1],
        begin_mask=[False, False, True],
        end_mask=[True, False, True],
        squeeze_mask=[False, True, False],
    ),
    Row(
        "slice_by_size",
        lambda a: mb.slice_by_size(x=a, begin=[1, -3, 2], size=[2, 2, -1]),
        lambda a: a[1:3, 2:4, 2:],
        (normal(4, 5, 6),),
    ),
    Row("fill", lambda a: mb.add(x=a, y=mb.fill(shape=[2, 3], value=2.5)), lambda a: a + 2.5, (normal(2, 3),)),
    Row(
        "range_1d",
        lambda a: mb.add(x=a, y=mb.range_1d(start=3, end=11, step=2)),
        lambda a: a + torch.tensor([3, 5, 7, 9]),
        (INDICES[:1, :1] * np.ones((1, 4), np.int32),),
    ),
    Row(
        "constexpr_lut_to_dense",
        lambda a: mb.matmul(
            x=a,
            y=mb.constexpr_lut_to_dense(
                indices=np.array([0b11011000, 0b01], np.uint8), lut=LUT, shape=np.array([1, 5], np.uint32)
            ),
        ),
        lambda a: a @ torch.tensor(LUT[[[0, 2, 1, 3, 1]]]).double(),
        (normal(3, 1),),
    ),
    Row(
        "constexpr_affine_dequantize",
        lambda a: mb.matmul(
            x=a,
            y=mb.constexpr_affine_dequantize(
                quantized_data=np.array([[-128, 5], [127, 9]], np.int8),
                zero_point=np.array([-128, 3], np.int8),
                scale=np.array([0.5, 0.25], np.float32),
                axis=0,
            ),
        ),
        lambda a: a @ torch.tensor([[0, 66.5], [31, 1.5]]).double(),
        (normal(3, 2),),
    ),
    Row(
        "constexpr_blockwise_shift_scale",
        lambda a: mb.matmul(
            x=a,
            y=mb.constexpr_blockwise_shift_scale(
                data=np.array([[-8, 5, 3, 7], [7, 1, 0, -1]]).astype(types.np_int4_dtype),
                scale=np.array([[0.5, 2]], np.float32),
                offset=np.array([[1, -2]]).astype(types.np_int4_dtype),
            ),
        ),
        lambda a: a @ torch.tensor([[-4.5, 2, 10, 18], [3, 0, 4, 2]]).double(),
        (normal(3, 2),),
        ct.target.iOS18,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[f"{at}-{row.op}" for at, row in enumerate(ROWS)])
def test_op(row: Row, tmp_path: Path) -> None:
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


def test_every_rule_has_a_row() -> None:
    assert OPS.keys() | CONSTEXPR.keys() == {row.op for row in ROWS}


def test_no_rule_swallows_what_it_does_not_compute() -> None:
    for name, rule in (OPS | CONSTEXPR).items():
        kinds = {parameter.kind for parameter in inspect.signature(rule).parameters.values()}
        assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}, name
    known = {parameter for rule in OPS.values() for parameter in inspect.signature(rule).parameters}
    assert known >= STATIC | LISTS


# Both tests: the examples in the iOS 18 documentation of constexpr_lut_to_dense.
def test_a_table_for_each_group_of_rows() -> None:
    indices = np.array([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]], np.uint8)
    tables = np.array([[1, 5, 9, 13], [2, 10, 18, 26]], np.float32).reshape(2, 1, 4, 1)
    dense = CONSTEXPR["constexpr_lut_to_dense"](indices, tables)
    assert dense.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]


@pytest.mark.parametrize(("axis", "shape"), [(0, (6, 2, 2)), (1, (2, 6, 2)), (2, (2, 2, 6)), (-1, (2, 2, 6))])
def test_a_table_of_vectors(axis: int, shape: tuple[int, ...]) -> None:
    indices = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], np.uint8)
    table = np.array([[1, 2, 3], [7, 8, 9]], np.float32)
    dense = CONSTEXPR["constexpr_lut_to_dense"](indices, table.reshape(1, 1, 1, 2, 3), vector_axis=np.array(axis))
    assert dense.shape == shape
    at = np.moveaxis(dense, axis, -1).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(at, table[np.moveaxis(indices, axis, -1)])


@pytest.mark.parametrize("target", [ct.target.iOS16, ct.target.iOS18], ids=["iOS16", "iOS18"])
@pytest.mark.parametrize(
    "compress",
    [
        lambda model: cto.coreml.palettize_weights(
            model,
            cto.coreml.OptimizationConfig(cto.coreml.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0)),
        ),
        lambda model: cto.coreml.linear_quantize_weights(
            model, cto.coreml.OptimizationConfig(cto.coreml.OpLinearQuantizerConfig(mode="linear", weight_threshold=0))
        ),
    ],
    ids=["palettized", "quantized"],
)
def test_compressed_by_coremltools(compress: Callable[[Any], Any], target: Any, tmp_path: Path) -> None:
    weight = normal(24, 40).astype(np.float16)
    x = normal(3, 40).astype(np.float16)

    def build(a: Any) -> Any:
        return mb.linear(x=a, weight=weight)

    save(tmp_path / "plain.mlpackage", build, [x], target)
    small = compress(ct.models.MLModel(str(tmp_path / "plain.mlpackage"), skip_model_load=True))
    small.save(str(tmp_path / "small.mlpackage"))
    cto.coreml.decompress_weights(small).save(str(tmp_path / "dense.mlpackage"))
    compressed = open_package(tmp_path / "small.mlpackage")
    assert any(op.type in CONSTEXPR for op in compressed.functions["main"].ops)
    [got], [want] = run(compressed, [x]), run(open_package(tmp_path / "dense.mlpackage"), [x])
    # coremltools dequantises in half precision; here it is float32, rounded once.
    assert psnr(want.astype(np.float64), got.astype(np.float64)) > 60


def test_half_precision_is_rounded_after_every_operation(tmp_path: Path) -> None:
    x, y = (normal(64, 64).astype(np.float16) for _ in range(2))

    def build(a: Any, b: Any) -> Any:
        return mb.tanh(x=mb.mul(x=mb.matmul(x=a, y=b), y=np.float16(0.1)))

    program = save(tmp_path / "half.mlpackage", build, [x, y])
    product = (x.astype(np.float32) @ y.astype(np.float32)).astype(np.float16)
    scaled = (product.astype(np.float32) * np.float32(np.float16(0.1))).astype(np.float16)
    [declared] = run(program, [x, y])
    assert declared.dtype == np.float16
    np.testing.assert_array_equal(declared, np.tanh(scaled.astype(np.float32)).astype(np.float16))
    [exact] = run(program, [x, y], mode="float32")
    assert exact.dtype == np.float32
    unrounded = np.tanh(x.astype(np.float64) @ y.astype(np.float64) * float(np.float16(0.1)))
    assert psnr(unrounded, exact.astype(np.float64)) > 120 > psnr(unrounded, declared.astype(np.float64))


def test_sums_are_wide_and_overflow_stays(tmp_path: Path) -> None:
    x = np.array([[2048, 1, 1, 1]], np.float16)
    program = save(tmp_path / "sum.mlpackage", lambda a: mb.reduce_sum(x=a, axes=[1]), [x])
    assert run(program, [x])[0].tolist() == [2052]  # half precision all the way would stay at 2048
    program = save(tmp_path / "over.mlpackage", lambda a: mb.mul(x=mb.square(x=a), y=np.float16(0)), [x])
    assert np.isnan(run(program, [x])[0]).tolist() == [[True, False, False, False]]
    assert run(program, [x], mode="float32")[0].tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("target", "bad"), [(ct.target.iOS16, 3), (ct.target.iOS16, -4), (ct.target.iOS17, -1), (ct.target.iOS17, 3)]
)
def test_an_index_out_of_range(target: Any, bad: int, tmp_path: Path) -> None:
    x, indices = normal(3, 4), np.array([0, bad], np.int32)
    program = save(
        tmp_path / "g.mlpackage", lambda a, b: mb.gather(x=a, indices=b, axis=0, name="look"), [x, indices], target
    )
    with pytest.raises(EvaluationError, match=rf"gather 'look': .*{bad}"):
        run(program, [x, indices])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda a: mb.cumsum(x=a, name="far"), r"cumsum 'far': there is no rule .*ops\.py"),
        (lambda a: mb.conv(x=a, weight=normal(2, 3, 2), pad_type="same", name="c"), "conv 'c': pad_type 'same'"),
        (
            lambda a: mb.cast(x=mb.log(x=mb.sub(x=a, y=a), epsilon=0.0), dtype="int32", name="i"),
            "cast 'i': .*not finite",
        ),
    ],
)
def test_what_has_no_rule_is_refused(build: Callable[..., Any], message: str, tmp_path: Path) -> None:
    x = normal(2, 3, 4)
    with pytest.raises(EvaluationError, match=message):
        run(save(tmp_path / "x.mlpackage", build, [x]), [x])


def operation(spec: Any, kind: str) -> Any:
    function = spec.mlProgram.functions["main"]
    return next(op for op in function.block_specializations[function.opset].operations if op.type == kind)


def an_input_more(spec: Any) -> None:
    softmax = operation(spec, "softmax")
    softmax.inputs["beta"].CopyFrom(softmax.inputs["axis"])


def another_shape(spec: Any) -> None:
    operation(spec, "softmax").outputs[0].type.tensorType.dimensions[0].constant.size = 9


def another_kind(spec: Any) -> None:
    operation(spec, "softmax").outputs[0].type.tensorType.dataType = 23


def another_cast(spec: Any) -> None:
    operation(spec, "cast").outputs[0].type.tensorType.dataType = 11


def an_input_less(spec: Any) -> None:
    del operation(spec, "softmax").inputs["x"]


def two_for_one(spec: Any) -> None:
    argument = operation(spec, "softmax").inputs["x"].arguments
    argument.add().CopyFrom(argument[0])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (an_input_more, r"softmax 's': .*'beta'; what is computed is \(x, axis\)"),
        (an_input_less, "softmax 's': missing a required argument: 'x'"),
        (another_shape, r"softmax 's': gives shape \(2, 3\) for s, declared is \(9, 3\)"),
        (another_kind, "softmax 's': gives torch.float32 for s, declared is int32"),
        (another_cast, "cast 'c': makes fp16, declared is float32"),
        (two_for_one, "softmax 's': x is bound to 2 values"),
    ],
)
def test_a_program_that_is_not_what_it_declares(edit: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    x = normal(2, 3)

    def build(a: Any) -> Any:
        return mb.identity(x=mb.cast(x=mb.softmax(x=a, axis=1, name="s"), dtype="fp16", name="c"))

    program = save(tmp_path / "x.mlpackage", build, [x], edit=edit)
    with pytest.raises(EvaluationError, match=message):
        run(program, [x])
