"""Every rule of the MIL evaluator has a row, a saved operation against torch; here are those of `ops` itself."""

import gc
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil import Builder as mb

from hft2ane.errors import EvaluationError
from hft2ane.mil.constexpr import CONSTEXPR
from hft2ane.mil.evaluate import CONTROL
from hft2ane.mil.ops import LISTS, OPS, STATIC
from hft2ane.psnr import psnr
from tests import test_mil_constexpr, test_mil_indexing, test_mil_spatial
from tests.milops import (
    Row,
    binary,
    check,
    compared,
    logical,
    names,
    normal,
    reduced,
    reseed,
    rng,
    run,
    save,
    sliced,
    unary,
    wide,
)

# An MLModel that is collected leaves the removal of its temporary folder to the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def quick_collection() -> Iterator[None]:
    """`ct.convert` runs the garbage collector twice, which is most of its time when it must look at all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


reseed()
UNIT = rng.uniform(-0.9, 0.9, (3, 4)).astype(np.float32)
POSITIVE = np.abs(normal(3, 4)) + np.float32(0.1)
INDICES = np.array([[0, 2, 1], [-1, 1, -3]], np.int32)
GAMMA, BETA, MEAN, VARIANCE = normal(6), normal(6), normal(6), np.abs(normal(6))
KERNEL, BIAS = normal(8, 3, 3, 2), normal(8)
WEIGHT = normal(4, 6)

# Tested as what they are for, in test_mil.py.
STATES = {"read_state", "write_state"}

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
    unary("acos", torch.acos, UNIT),
    unary("asin", torch.asin, UNIT),
    unary("atan", torch.atan),
    unary("atanh", torch.atanh, UNIT),
    unary("cosh", torch.cosh),
    unary("sinh", torch.sinh),
    unary("tan", torch.tan, UNIT),
    unary("exp2", lambda x: 2**x),
    unary("relu6", F.relu6),
    unary("clamped_relu", lambda x: torch.where(x >= 0, x, 0.5 * x).clamp(max=2), alpha=0.5, beta=2.0),
    unary("elu", lambda x: F.elu(x, 0.5), alpha=0.5),
    unary("leaky_relu", lambda x: F.leaky_relu(x, 0.25), alpha=0.25),
    unary("linear_activation", lambda x: x * 0.5 - 2, alpha=0.5, beta=-2.0),
    unary("prelu", lambda x: F.prelu(x, wide(GAMMA)), normal(2, 6, 3, 4), alpha=GAMMA),
    unary("scaled_tanh", lambda x: 1.5 * torch.tanh(0.5 * x), alpha=1.5, beta=0.5),
    unary("sigmoid_hard", lambda x: (0.25 * x + 0.5).clamp(0, 1), alpha=0.25, beta=0.5),
    unary(
        "softplus_parametric",
        lambda x: wide(GAMMA)[:, None, None] * F.softplus(wide(BETA)[:, None, None] * x),
        normal(2, 6, 3, 4),
        alpha=GAMMA,
        beta=BETA,
    ),
    unary("softsign", F.softsign),
    unary("threshold", lambda x: x.clamp(min=0.5), alpha=0.5),
    unary("thresholded_relu", lambda x: F.threshold(x, 0.5, 0), alpha=0.5),
    reduced("reduce_l1_norm", lambda x, axes: x.abs().sum(axes)),
    unary("reduce_log_sum", lambda x: x.sum(1).log(), POSITIVE, axes=[1]),
    reduced("reduce_log_sum_exp", torch.logsumexp),
    reduced("reduce_prod", lambda x, axes: x.prod(2).prod(0)),
    unary("reduce_prod", lambda x: x.prod(1, keepdim=True), INDICES, axes=[-1], keep_dims=True),
    unary("reduce_argmax", lambda x: x.argmax(1), axis=1),
    unary("reduce_argmin", lambda x: x.argmin(-1, keepdim=True), keep_dims=True),
    Row(
        "instance_norm",
        lambda a: mb.instance_norm(x=a, gamma=GAMMA, beta=BETA, epsilon=1e-2),
        lambda a: F.instance_norm(a, weight=wide(GAMMA), bias=wide(BETA), eps=1e-2),
        (normal(2, 6, 3, 4),),
    ),
    unary("l2_norm", lambda x: x / (x.square().sum((1, 2, 3), True) + 0.1).sqrt(), normal(2, 3, 4, 5), epsilon=0.1),
    unary(
        "local_response_norm",
        lambda x: F.local_response_norm(x, 3, 0.5, 0.75, 2.0),
        normal(2, 6, 4, 3),
        size=3,
        alpha=0.5,
        beta=0.75,
        k=2.0,
    ),
    Row(
        "quantize",
        lambda a: mb.cast(
            x=mb.quantize(
                input=a, zero_point=np.int8([3, -4]), scale=np.float32([0.02, 0.5]), axis=0, output_dtype="int8"
            ),
            dtype="int32",
        ),
        lambda a: (torch.round(a / torch.tensor([[0.02], [0.5]])) + torch.tensor([[3], [-4]])).clamp(-128, 127),
        (np.float32([[-9, 0.031, 1], [0.26, 4, 100]]),),
        ct.target.iOS17,
    ),
    Row(
        "dequantize",
        lambda a: mb.dequantize(
            input=mb.quantize(input=a, scale=np.float32(0.5), output_dtype="uint8", zero_point=np.uint8(9)),
            zero_point=np.uint8(9),
            scale=np.float32(0.5),
        ),
        lambda a: (a * 2).round() / 2,
        (POSITIVE,),
        ct.target.iOS17,
    ),
    Row(
        "fill_like",
        lambda a: mb.add(x=a, y=mb.fill_like(ref_tensor=a, value=2.5)),
        lambda a: a + 2.5,
        (normal(2, 3),),
    ),
    Row(
        "reshape_like",
        lambda a, b, c: mb.reshape_like(x=a, ref_tensors=(b, c), begins=(1, 0), ends=(3, 1), end_masks=(False, True)),
        lambda a, b, c: a.reshape(3, 4, 2),
        (normal(6, 4), normal(5, 3, 4), normal(2)),
    ),
    unary("flatten2d", lambda x: x.reshape(2, 12)),
    unary("flatten2d", lambda x: x.reshape(6, 4), axis=-1),
    # Of a fixed shape coremltools makes a constant, so the reference is one of a size that is known at run time only.
    Row(
        "shape",
        lambda a: mb.shape(x=mb.non_zero(x=a)),
        lambda a: torch.tensor([3, 2]),
        (np.array([[0, 3, 0], [1, 0, 2]], np.int32),),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=names(ROWS))
def test_op(row: Row, tmp_path: Path) -> None:
    check(row, tmp_path)


def test_every_rule_has_a_row() -> None:
    rows = (*ROWS, *test_mil_constexpr.ROWS, *test_mil_indexing.ROWS, *test_mil_spatial.ROWS)
    assert OPS.keys() | CONSTEXPR.keys() == {row.op for row in rows} | STATES


def test_no_rule_swallows_what_it_does_not_compute() -> None:
    for name, rule in (OPS | CONSTEXPR).items():
        kinds = {parameter.kind for parameter in inspect.signature(rule).parameters.values()}
        assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}, name
    rules = (*OPS.values(), *CONTROL.values())
    known = {parameter for rule in rules for parameter in inspect.signature(rule).parameters}
    assert known >= STATIC | LISTS


def test_half_precision_is_rounded_after_every_operation(tmp_path: Path) -> None:
    # Products and sums that are exact in single precision, in whatever order they are added up.
    x, y = ((rng.integers(-32, 33, (64, 64)) / 32).astype(np.float16) for _ in range(2))

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
        (lambda a: mb.random_normal(shape=[2, 3, 4], name="far"), r"random_normal 'far': there is no rule .*ops\.py"),
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
