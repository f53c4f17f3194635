"""The linter: a program that breaks each rule and one that keeps it, stock conversions, and our own exports."""

import gc
import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.backend.mil.load import load as backend
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from torch import Tensor, nn

from hft2ane import export, package, records, source
from hft2ane.card.words import WARNINGS
from hft2ane.cli import main
from hft2ane.demo import MODELS, obtain
from hft2ane.errors import PackageError
from hft2ane.families import FAMILIES, family
from hft2ane.mil import target
from hft2ane.mil.lint import RULES, lint, lint_package, sarif, table
from hft2ane.mil.lint.graph import Graph, work
from hft2ane.mil.lint.rules import weight_bytes
from hft2ane.mil.load import Constant, Function, Op, Package, load
from hft2ane.records.job import Job
from hft2ane.records.lint import Finding, Lint, LintSettings
from hft2ane.records.recipe import Recipe
from hft2ane.reference import load as load_original
from hft2ane.rewrite import rewrite
from tests import test_families

# An MLModel that is collected leaves the removal of its temporary folder to the interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning"),
]
ROOT = Path(__file__).parent.parent
OURS = (ROOT / "docs/lint.md").read_text().split("## Our own exports")[1].split("\n## ")[0]
Build = Callable[..., Any]


@pytest.fixture(autouse=True, scope="module")
def quick_collection() -> Iterator[None]:
    """`ct.convert` runs the garbage collector twice, which is most of its time when it must look at all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


def half(*shape: int, value: float = 0.5) -> np.ndarray[Any, Any]:
    return np.full(shape, value, np.float16)


def one(x: Any) -> Any:
    """A 1×1 convolution that leaves the channels as many as they are: something heavy."""
    return mb.conv(x=x, weight=half(x.shape[1], x.shape[1], 1, 1))


# ---- one row a rule: its id, the inputs, a program that breaks it, and one that keeps it

X = (1, 64, 1, 32)
IMAGE = (1, 8, 32, 32)


def scores(x: Any, mask: Callable[[Any], Any], keep: Any) -> Any:
    """Attention on (1, keys, 1, queries), with what `mask` makes of the scores and of a 0/1 mask (1, keys, 1, 1)."""
    product = mb.einsum(values=[one(x), mb.transpose(x=x, perm=[0, 3, 2, 1])], equation="nchw,nwhu->nchu")
    shares = mb.softmax(x=mask(product) if keep is None else mask(product, keep), axis=1)
    return mb.einsum(values=[shares, shares], equation="nchw,nwhu->nchu")


def masked(*by: float) -> Build:
    """(1 − keep) · by, added to the scores; several are added to each other first."""

    def build(x: Any, keep: Any) -> Any:
        out = mb.sub(x=np.float16(1), y=keep)
        sums = [mb.mul(x=out, y=np.float16(each) if np.isfinite(each) else half(value=each)) for each in by]
        total = sums[0]
        for each in sums[1:]:
            total = mb.add(x=total, y=each)
        return scores(x, lambda product, _: mb.add(x=product, y=total), keep)

    return build


def norm(x: Any, power: Build) -> Any:
    """A root-mean-square norm in its parts."""
    mean = mb.reduce_mean(x=power(x), axes=[1], keep_dims=True)
    return mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float16(1e-4)))


def layer_norm(eps: float) -> Build:
    return lambda x: mb.layer_norm(x=x, axes=[1], gamma=half(64), beta=half(64), epsilon=np.float16(eps))


def softmax_between(axis: int, to: Build) -> Build:
    return lambda x: mb.matmul(x=mb.softmax(x=to(x), axis=axis), y=half(1, 1, to(x).shape[3], 8))


def looked_up(before: Build) -> Build:
    return lambda ids, x: one(mb.reshape(x=mb.gather(x=before(x), indices=ids, axis=0), shape=[1, 64, 1, 32]))


def depalettized(table_: Any, indices: Any, taker: Build) -> Build:
    return lambda x: taker(x, mb.constexpr_lut_to_dense(indices=indices, lut=table_))


def conv(x: Any, weight: Any) -> Any:
    return mb.conv(x=x, weight=weight)


def gather(x: Any, weight: Any) -> Any:
    taken = mb.gather(x=weight, indices=np.zeros((32,), np.int32), axis=0)
    return mb.add(x=x, y=mb.reshape(x=taken, shape=[1, 64, 1, 32]))


U4 = np.zeros((64, 64, 1, 1), np.uint8).astype(types.np_uint4_dtype)
I4 = np.zeros((64, 64, 1, 1), np.int8).astype(types.np_int4_dtype)


def blockwise(blocks: int) -> Build:
    return lambda x: mb.conv(x=x, weight=mb.constexpr_blockwise_shift_scale(data=I4, scale=half(64, blocks, 1, 1)))


def cosines(x: Any) -> Any:
    largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[1], keep_dims=True), y=np.float16(1e-4))
    return mb.reduce_l2_norm(x=mb.real_div(x=x, y=largest), axes=[1], keep_dims=True)


def plain(x: Any) -> Any:
    return mb.relu(x=one(x))


def quantized(x: Any) -> Any:
    steps = mb.quantize(input=one(x), scale=np.float16(0.1), zero_point=np.int8(0), output_dtype="int8")
    return mb.dequantize(input=steps, scale=np.float16(0.1), zero_point=np.int8(0))


def long_axis(width: int, channels: int) -> Build:
    return lambda x: mb.relu(x=one(mb.tile(x=x, reps=[1, channels // 64, 1, width // 32])))


Row = tuple[str, tuple[tuple[int, ...], ...], Build, Build]
F16, I32, F32 = types.fp16, types.int32, types.fp32
ROWS: dict[str, tuple[list[tuple[tuple[int, ...], Any]], Build, Build]] = {
    "axis-limit": (
        [((1, 32, 8), F16)],
        lambda x: mb.relu(x=mb.linear(x=x, weight=half(20000, 8), bias=half(20000))),
        lambda x: mb.relu(x=mb.linear(x=x, weight=half(16384, 8), bias=half(16384))),
    ),
    "axis-limit-copy": (
        [((1, 8, 1, 32), F16)],
        lambda x: mb.transpose(x=mb.conv(x=x, weight=half(20000, 8, 1, 1)), perm=[0, 3, 2, 1]),
        lambda x: mb.transpose(x=mb.conv(x=x, weight=half(16384, 8, 1, 1)), perm=[0, 3, 2, 1]),
    ),
    "rank": (
        [(X, F16)],
        lambda x: mb.relu(x=mb.expand_dims(x=one(x), axes=[0, 1])),
        lambda x: mb.relu(x=mb.expand_dims(x=one(x), axes=[0])),
    ),
    "rank-5": (
        [(X, F16)],
        lambda x: mb.softmax(x=mb.expand_dims(x=one(x), axes=[0]), axis=-1),
        lambda x: mb.relu(x=mb.expand_dims(x=one(x), axes=[0])),
    ),
    "last-axis-single": (
        [((1, 256, 1, 128), F16)],
        lambda x: mb.relu(x=mb.reshape(x=one(x), shape=[1, 256, 128, 1])),
        lambda x: mb.relu(x=mb.reshape(x=one(x), shape=[1, 128, 1, 256])),
    ),
    "last-axis-unaligned": (
        [((1, 768, 4, 200), F16)],
        plain,
        lambda x: plain(mb.reshape(x=x, shape=[1, 800, 4, 192])),
    ),
    "scores-size": (
        [((1, 64, 1, 32), F16)],
        softmax_between(1, lambda x: mb.tile(x=one(x), reps=[1, 16, 1, 32])),
        softmax_between(1, lambda x: mb.tile(x=one(x), reps=[1, 16, 1, 16])),
    ),
    "query-chunk": (
        [((1, 64, 1, 576), F16)],
        softmax_between(1, one),
        softmax_between(1, lambda x: one(mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 64, 1, 512]))),
    ),
    "softmax-axis": (
        [((1, 8, 256, 256), F16)],
        lambda x: mb.softmax(x=x, axis=-1),
        lambda x: mb.softmax(x=x, axis=1),
    ),
    "runtime-slice": (
        [(X, F16), ((4,), I32)],
        lambda x, begin: mb.slice_by_size(x=one(x), begin=begin, size=[1, 64, 1, 8]),
        lambda x, begin: mb.slice_by_size(x=one(x), begin=[0, 0, 0, 8], size=[1, 64, 1, 8]),
    ),
    "float32": ([(X, F32)], lambda x: mb.relu(x=x), lambda x: mb.relu(x=mb.cast(x=x, dtype="fp16"))),
    "float32-io": (
        [(X, F16)],
        lambda x: mb.cast(x=one(x), dtype="fp32"),
        lambda x: mb.relu(x=one(x)),
    ),
    "integers": (
        [(X, F16)],
        lambda x: one(mb.cast(x=mb.cast(x=one(x), dtype="int32"), dtype="fp16")),
        lambda x: mb.cast(x=one(x), dtype="int32"),
    ),
    "gather-entry": (
        [((32,), I32), ((64, 64), F16)],
        looked_up(lambda x: half(9, 64)),
        looked_up(lambda x: mb.softmax(x=x, axis=1)),
    ),
    "gather-inside": (
        [((32,), I32), ((64, 64), F16)],
        looked_up(lambda x: mb.softmax(x=x, axis=1)),
        looked_up(lambda x: half(9, 64)),
    ),
    "control": (
        [((4, 1, 8), F16)],
        lambda x: mb.lstm(
            x=x,
            initial_h=half(1, 8),
            initial_c=half(1, 8),
            weight_ih=half(32, 8),
            weight_hh=half(32, 8),
            bias=half(32),
        )[0],
        lambda x: mb.linear(x=x, weight=half(8, 8), bias=half(8)),
    ),
    "cpu-op-inside": (
        [(X, F16)],
        lambda x: one(mb.topk(x=one(x), k=8, axis=3)[0]),
        lambda x: mb.topk(x=one(x), k=8, axis=3)[0],
    ),
    "cpu-op-at-end": (
        [(X, F16)],
        lambda x: mb.topk(x=one(x), k=8, axis=3)[0],
        lambda x: one(mb.topk(x=one(x), k=8, axis=3)[0]),
    ),
    "conv-3d": (
        [((1, 4, 8, 8, 8), F16)],
        lambda x: mb.conv(x=x, weight=half(4, 4, 1, 1, 1)),
        lambda x: mb.conv(x=mb.reshape(x=x, shape=[1, 4, 8, 64]), weight=half(4, 4, 1, 1)),
    ),
    "conv-strides": (
        [(IMAGE, F16)],
        lambda x: mb.conv(x=x, weight=half(8, 8, 3, 3), strides=[5, 5]),
        lambda x: mb.conv(x=x, weight=half(8, 8, 3, 3), strides=[6, 6]),
    ),
    "pooling": (
        [(IMAGE, F16)],
        lambda x: mb.max_pool(x=x, kernel_sizes=[4, 4], strides=[4, 4], pad_type="valid"),
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
    ),
    "upsampling": (
        [(IMAGE, F16)],
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=4, scale_factor_width=4),
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=2),
    ),
    "log-softmax": (
        [(X, F16)],
        lambda x: mb.log(x=mb.softmax(x=x, axis=1), epsilon=np.float16(0)),
        lambda x: mb.log(x=mb.sigmoid(x=x), epsilon=np.float16(0)),
    ),
    "softplus": ([(X, F16)], lambda x: mb.softplus(x=x), lambda x: mb.relu(x=x)),
    "linear": (
        [((1, 32, 8), F16)],
        lambda x: mb.matmul(x=x, y=half(8, 8)),
        lambda x: mb.matmul(x=x, y=mb.transpose(x=x, perm=[0, 2, 1])),
    ),
    "native-attention": (
        [((1, 2, 32, 8), F16)],
        lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=half(32, 32)),
        lambda x: mb.matmul(x=mb.softmax(x=mb.matmul(x=x, y=x, transpose_y=True), axis=-1), y=x),
    ),
    "decomposed-norm": ([(X, F16)], lambda x: norm(x, lambda x: mb.mul(x=x, y=x)), layer_norm(1e-4)),
    "activation": (
        [(X, F16)],
        lambda x: mb.gelu(x=x, mode="EXACT"),
        lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
    ),
    "tile": ([(X, F16)], lambda x: mb.tile(x=one(x), reps=[1, 2, 1, 1]), plain),
    "concat-width": (
        [((1, 512, 1, 512), F16)],
        lambda x: mb.concat(values=[x, x], axis=-1),
        lambda x: mb.concat(values=[x, x], axis=1),
    ),
    "matmul-transposes": (
        [((1, 32, 32), F16)],
        lambda x: mb.matmul(x=x, y=x, transpose_x=True, transpose_y=True),
        lambda x: mb.matmul(x=x, y=x, transpose_y=True),
    ),
    "copies": ([(X, F16)], lambda x: mb.transpose(x=x, perm=[0, 3, 2, 1]), plain),
    "constant-not-finite": (
        [(X, F16)],
        lambda x: mb.maximum(x=x, y=half(64, 1, 1, value=-np.inf)),
        lambda x: mb.maximum(x=x, y=half(64, 1, 1, value=-65504)),
    ),
    "constant-overflow": (
        [(X, F32)],
        lambda x: mb.mul(x=x, y=np.float32(-1e5)),
        lambda x: mb.mul(x=x, y=np.float32(-6e4)),
    ),
    "constant-lost": ([(X, F16)], layer_norm(1e-12), layer_norm(6e-8)),
    "constant-subnormal": ([(X, F16)], layer_norm(6e-8), layer_norm(1e-7)),
    "mask-overflow": ([(X, F16), ((1, 64, 1, 1), F16)], masked(-np.inf), masked(-65504)),
    "mask-sum": ([(X, F16), ((1, 64, 1, 1), F16)], masked(-4e4, -4e4), masked(-3e4, -3e4)),
    "mask-constant": ([(X, F16), ((1, 64, 1, 1), F16)], masked(-5e4), masked(-1e4)),
    "square-overflow": ([(X, F16)], lambda x: mb.reduce_sum_square(x=x, axes=[1], keep_dims=True), cosines),
    "palette-groups": (
        [(X, F16)],
        depalettized(half(16, 1, 1, 1, 16, 1), U4, conv),
        depalettized(half(8, 1, 1, 1, 16, 1), U4, conv),
    ),
    "palette-place": (
        [(X, F16)],
        depalettized(half(1, 1, 16, 1), U4.reshape(64, 64), gather),
        depalettized(half(1, 1, 1, 1, 16, 1), U4, conv),
    ),
    "int4-blocks": ([(X, F16)], blockwise(2), blockwise(1)),
    "quantized-activations": ([(X, F16)], quantized, plain),
}  # fmt: skip


def saved(folder: Path, inputs: list[tuple[tuple[int, ...], Any]], build: Build) -> Path:
    """The program as a package on disk, operations as they are written here: no passes."""
    return written(folder / "test.mlpackage", [mb.TensorSpec(shape, dtype) for shape, dtype in inputs], build)


def written(path: Path, specs: list[Any], build: Build) -> Path:
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(build)
    shutil.rmtree(path, ignore_errors=True)
    weights = path / package.WEIGHTS.parent
    weights.mkdir(parents=True)
    spec = backend(program, weights_dir=str(weights), specification_version=9)
    (path / package.SPEC).write_bytes(spec.SerializeToString())
    (path / "Manifest.json").write_text(package.manifest())
    return path


def fires(rule: str, loaded: Package, settings: LintSettings | None = None) -> bool:
    graph = Graph(loaded, loaded.functions["main"])
    return any(True for _ in RULES[rule].check(graph, settings or LintSettings()))


@pytest.mark.parametrize("rule", ROWS)
def test_each_rule(rule: str, tmp_path: Path) -> None:
    inputs, bad, good = ROWS[rule]
    broken, kept = load(saved(tmp_path, inputs, bad)), load(saved(tmp_path, inputs, good))
    assert fires(rule, broken)
    assert not fires(rule, kept)
    assert rule in {finding.rule for finding in lint_package(broken, "x").findings}


# ---- rules about what cannot be built here: sizes, states


def changed(loaded: Package, change: Callable[[Function], Function]) -> Package:
    return replace(loaded, functions={"main": change(loaded.functions["main"])})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return load(saved(tmp_path_factory.mktemp("small"), [(X, F16)], plain))


def grown(loaded: Package, elements: int) -> Package:
    """Its weights as if they had that many numbers, which take no memory."""
    big = Constant((elements,), "float16", np.broadcast_to(np.float16(0.5), (elements,)))

    def grow(op: Op) -> Op:
        return replace(op, inputs={**op.inputs, "weight": (big,)}) if op.type == "conv" else op

    return changed(loaded, lambda f: replace(f, ops=tuple(grow(op) for op in f.ops)))


def test_weights_beyond_what_the_system_takes(small: Package) -> None:
    between = grown(small, 750 * 2**20)  # 1.5 GiB
    assert fires("weights-size", between)
    assert not fires("weights-size", between, LintSettings(system="macOS 26"))
    assert not fires("weights-size", small)
    assert fires("weights-size", grown(small, 2**31), LintSettings(system="macOS 26"))


def test_too_large_a_model_runs_on_the_cpu_whole(small: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {v.predicted for v in lint_package(small, "x").verdicts} == {"ane"}
    monkeypatch.setattr("hft2ane.mil.lint.rules.WEIGHTS_MOST", {"macOS 27": 1000})
    verdicts = lint_package(small, "x").verdicts
    assert {v.predicted for v in verdicts} == {"cpu"}
    assert all("weights-size" in v.why for v in verdicts)


def test_a_constant_near_two_to_the_31(small: Package) -> None:
    assert fires("constant-size", grown(small, 2**30))
    assert not fires("constant-size", grown(small, 2**30 - 64))


def test_a_small_network_is_said_to_be_small(small: Package) -> None:
    assert fires("small", small)
    assert not fires("small", grown(small, 25 * 10**6))


def test_a_count_of_operations(small: Package) -> None:
    assert fires("op-count", changed(small, lambda f: replace(f, ops=f.ops * 2501)))
    assert not fires("op-count", changed(small, lambda f: replace(f, ops=f.ops * 2500)))


def test_a_state(small: Package) -> None:
    assert not fires("state", small)
    assert fires("state", changed(small, lambda f: replace(f, ops=tuple(replace(o, type="read_state") for o in f.ops))))


def decoder(width: int) -> Build:
    """One token's attention over a cache of this many numbers a row, as a stateful decoder has it."""

    def build(x: Any, position: Any, cache: Any) -> Any:
        query = mb.linear(x=x, weight=half(width, width))
        begin = mb.concat(values=[np.int32([0, 0]), position, np.int32([0])], axis=0)
        end = mb.concat(values=[np.int32([1, 2]), mb.add(x=position, y=np.int32([1])), np.int32([width])], axis=0)
        kept = mb.slice_update(x=mb.read_state(input=cache), update=query, begin=begin, end=end)
        keys = mb.coreml_update_state(state=cache, value=kept)
        return mb.scaled_dot_product_attention(query=query, key=keys, value=keys)

    return build


def decoding(folder: Path, width: int) -> Package:
    specs = [
        mb.TensorSpec((1, 2, 1, width), F16),
        mb.TensorSpec((1,), I32),
        mb.StateTensorSpec((1, 2, 64, width), F16),
    ]
    return load(written(folder / f"decoder-{width}.mlpackage", specs, decoder(width)))


def test_a_stateful_decoder(tmp_path: Path) -> None:
    """write_state gives no value; of the rest each operation still has its verdict."""
    loaded = decoding(tmp_path, 32)
    found = lint_package(loaded, "x")
    assert [v.type for v in found.verdicts].count("write_state") == 1
    assert len(found.verdicts) == len(loaded.functions["main"].ops)
    assert kinds(found, "error") == {"runtime-slice"}
    assert kinds(found, "warning") == {"linear", "native-attention", "state"}
    assert json.loads(json.dumps(sarif(found)))
    assert fires("state-width", decoding(tmp_path, 24))


# ---- what a package claims to run on


def claims(loaded: Package, version: int, opset: str) -> Package:
    older = changed(loaded, lambda function: replace(function, opset=opset))
    return replace(older, specification_version=version)


ENDS = {"iOS 16": 7, "iOS 17": 8, "iOS 18": 9, "iOS 26": 10}


@pytest.mark.parametrize(
    ("row", "needed"),
    [
        ("native-attention", "iOS 18"),  # scaled_dot_product_attention
        ("quantized-activations", "iOS 17"),  # quantize
        ("palette-groups", "iOS 18"),  # a table by group
        ("int4-blocks", "iOS 18"),  # a type of four bits
        ("copies", "iOS 16"),  # fp16 in and out
    ],
)
def test_what_is_newer_than_the_package_claims(row: str, needed: str, tmp_path: Path) -> None:
    inputs, build, _ = ROWS[row]
    loaded, version = load(saved(tmp_path, inputs, build)), ENDS[needed]
    assert not fires("target", claims(loaded, version, f"CoreML{version - 1}"))
    found = lint_package(claims(loaded, version - 1, f"CoreML{version - 2}"), "x")
    messages = [finding.message for finding in found.findings if finding.rule == "target"]
    assert messages
    assert all(f"needs {needed} / macOS" in message for message in messages)


def test_an_opset_newer_than_the_specification(small: Package) -> None:
    (hit,) = RULES["target"].check(
        Graph(claims(small, 8, "CoreML8"), claims(small, 8, "CoreML8").functions["main"]), LintSettings()
    )
    assert hit.message == "opset CoreML8 needs iOS 18 / macOS 15, the package claims iOS 17 / macOS 14"


def test_states_and_several_functions_need_ios_18(small: Package, tmp_path: Path) -> None:
    both = replace(
        small, functions={"a": small.functions["main"], "b": small.functions["main"]}, specification_version=8
    )
    older = replace(both, functions={name: replace(f, opset="CoreML7") for name, f in both.functions.items()})
    (hit,) = RULES["target"].check(Graph(older, older.functions["a"]), LintSettings())
    assert hit.message.startswith("several functions needs iOS 18")
    states = claims(decoding(tmp_path, 32), 8, "CoreML8")
    messages = [h.message for h in RULES["target"].check(Graph(states, states.functions["main"]), LintSettings())]
    assert any(message.startswith("state cache needs iOS 18") for message in messages)


def test_new_operations_are_those_of_coremltools() -> None:
    """Its registry has, by operation, the targets that have it; states are a dialect of their own there."""
    first = {op: min(targets) for op, targets in SSAOpRegistry.core_ops.items()}
    newer = {op: int(version) for op, version in first.items() if version > ct.target.iOS15}
    assert {**newer, "write_state": 9} == target.NEW_OPS
    assert {version: opset for opset, version in target.OPSETS.items()}.items() <= ct._OPSET.items()
    assert set(target.SYSTEMS) == {version for version in ct._OPSET if version >= 6}


def test_weights_that_two_operations_share_are_stored_once(tmp_path: Path) -> None:
    def shared(x: Any) -> Any:
        weight = half(256, 64, 1, 1)
        return mb.add(x=mb.conv(x=x, weight=weight), y=mb.conv(x=x, weight=weight))

    loaded = load(saved(tmp_path, [(X, F16)], shared))
    graph = Graph(loaded, loaded.functions["main"])
    blobs = {id(constant) for op in graph.ops for name, constant in graph.constants(op) if name == "weight"}
    assert weight_bytes(graph) < 256 * 64 * 2 * (len(blobs) + 1)
    twice = changed(loaded, lambda f: replace(f, ops=f.ops * 2))
    assert weight_bytes(Graph(twice, twice.functions["main"])) == weight_bytes(graph)


def test_every_rule_has_a_row() -> None:
    elsewhere = {"dynamic-shape", "enumerated-shape", "weights-size", "constant-size", "small", "op-count"}
    elsewhere |= {"state", "state-width", "target"}
    assert set(RULES) == set(ROWS) | elsewhere


# ---- settings, masks, work, layers


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("linear", LintSettings(convolutions=False)),
        ("decomposed-norm", LintSettings(fused_norms=False)),
        ("query-chunk", LintSettings(query_chunk=576)),
        ("mask-constant", LintSettings(mask_least=-6e4)),
    ],
)
def test_where_sources_contradict_each_other_a_setting_decides(
    rule: str, settings: LintSettings, tmp_path: Path
) -> None:
    inputs, bad, _ = ROWS[rule]
    loaded = load(saved(tmp_path, inputs, bad))
    assert fires(rule, loaded)
    assert not fires(rule, loaded, settings)
    assert RULES[rule].source.startswith("contradictory")


@pytest.mark.parametrize(
    ("mask", "rules"),
    [
        # a comparison, and infinity put in where it holds
        (
            lambda s, k: mb.select(cond=mb.less(x=k, y=np.float16(0.5)), a=np.float16(-np.inf), b=s),
            {"mask-overflow", "constant-not-finite"},
        ),
        # keep · 1e4 − 1e4
        (lambda s, k: mb.add(x=s, y=mb.sub(x=mb.mul(x=k, y=np.float16(1e4)), y=np.float16(1e4))), set()),
        # a table of biases, as of relative positions, and a scale after it
        (lambda s, k: mb.mul(x=mb.add(x=s, y=half(64, 1, 64, value=-3)), y=np.float16(0.125)), set()),
        # padding and a causal table, one after the other
        (
            lambda s, k: mb.add(
                x=mb.add(x=s, y=half(64, 1, 64, value=-4e4)), y=mb.mul(x=k, y=np.float16(-4e4))
            ),
            {"mask-sum"},
        ),
    ],
)  # fmt: skip
def test_masks_are_understood(mask: Build, rules: set[str], tmp_path: Path) -> None:
    loaded = load(saved(tmp_path, [(X, F16), ((1, 64, 1, 1), F16)], lambda x, keep: scores(x, mask, keep)))
    watched = {"mask-overflow", "mask-sum", "mask-constant", "constant-not-finite"}
    assert {finding.rule for finding in lint_package(loaded, "x").findings} & watched == rules


@pytest.mark.parametrize(
    ("shape", "build", "expected"),
    [
        (X, lambda x: mb.conv(x=x, weight=half(10, 64, 1, 1)), 2 * 64 * 10 * 32),
        (IMAGE, lambda x: mb.conv(x=x, weight=half(8, 4, 3, 3), groups=2), 2 * 8 * 30 * 30 * 4 * 9),
        ((5, 7), lambda x: mb.linear(x=x, weight=half(3, 7), bias=half(3)), 2 * 5 * 7 * 3),
        ((5, 7), lambda x: mb.matmul(x=x, y=half(5, 3), transpose_x=True), 2 * 7 * 5 * 3),
        (
            X,
            lambda x: mb.einsum(values=[x, half(1, 32, 1, 5)], equation="nchw,nwhu->nchu"),
            2 * 64 * 32 * 5,
        ),
        ((5, 7), lambda x: mb.relu(x=x), 35),
    ],
)  # fmt: skip
def test_work(shape: tuple[int, ...], build: Build, expected: int, tmp_path: Path) -> None:
    loaded = load(saved(tmp_path, [(shape, F16)], build))
    graph = Graph(loaded, loaded.functions["main"])
    assert work(graph, graph.ops[-1]) == expected


# ---- our own exports


def exported(folder: Path, local: Path, task: Any = None, lengths: tuple[int, ...] = (32,)) -> Path:
    folder.mkdir(exist_ok=True)
    recipe = Recipe(task=task, lengths=lengths)
    records.write(folder / "job.json", Job("create", "a test", "org/tiny", "org/tiny-ane", None, (), recipe))
    source.take(folder, local, "org/tiny")
    return folder / export.export(folder).packages[0].file


def kinds(found: Lint, severity: str) -> set[str]:
    return {finding.rule for finding in found.findings if finding.severity == severity}


@pytest.mark.parametrize(("name", "task"), [(name, task) for name in FAMILIES for task in family(name).tasks])
def test_exports_of_every_family_have_no_errors(name: str, task: Any, tmp_path: Path) -> None:
    test_families.loud(name, task, {}).save_pretrained(tmp_path / "source")
    module: Any = rewrite(load_original(tmp_path / "source", task))
    for part, its_module in module.parts.items():
        program, _ = export.build(its_module, [16], export.SINGLE, 2 if task == "multiple-choice" else None)
        path, metadata = tmp_path / f"x{part}.mlpackage", {"author": "", "com.github.hft2ane.family": name}
        package.write(path, program, "", export.INPUTS | export.OUTPUTS, metadata)
        found = lint(path)
        assert kinds(found, "error") == kinds(found, "warning") == set()
        assert found.placed[0].share_of_work["ane"] > 0.9
        off = {verdict.type for verdict in found.verdicts if verdict.predicted != "ane"}
        assert off <= {"gather", "reshape", "cast", "slice_by_index", "squeeze"}


@pytest.mark.weights
def test_all_lengths_of_minilm(tmp_path: Path) -> None:
    found = lint(exported(tmp_path, obtain(MODELS[0]), None, (64, 128, 256, 512)))
    assert kinds(found, "error") == set()
    assert kinds(found, "warning") == set()
    assert [placed.function for placed in found.placed] == ["tokens_64", "tokens_128", "tokens_256", "tokens_512"]
    assert all(placed.share_of_work["ane"] > 0.999 for placed in found.placed)
    gelu = next(finding for finding in found.findings if finding.rule == "activation")
    assert (gelu.layer, gelu.count, len(gelu.ops), len(gelu.functions)) == ("encoder.blocks.{i}", 24, 6, 4)
    scores = next(v for v in found.verdicts if v.type == "softmax")
    assert scores.layer == "encoder.blocks.0.attend"


@pytest.mark.weights
def test_a_vocabulary_as_last_axis_is_copied_on_the_cpu(tmp_path: Path) -> None:
    found = lint(exported(tmp_path, obtain(MODELS[1])))
    assert kinds(found, "error") == set()
    assert kinds(found, "warning") == {"axis-limit-copy"} <= WARNINGS.keys()
    assert "`axis-limit-copy`" in OURS


@pytest.mark.weights
def test_a_length_that_is_no_multiple_of_32(tmp_path: Path) -> None:
    found = lint(exported(tmp_path, obtain(MODELS[1]), None, (40,)))
    assert kinds(found, "error") == set()
    assert kinds(found, "warning") == {"axis-limit-copy", "last-axis-unaligned"} == WARNINGS.keys()
    assert "`last-axis-unaligned`" in OURS


# ---- conversions by others

TOKENS, CHANNELS, HEADS, WORDS = 24, 32, 2, 300


class Stock(nn.Module):
    """One layer of a plain BERT, as people write and convert it."""

    def __init__(self, masked: float = -1e4, fused: bool = False, words: int = 8) -> None:
        super().__init__()
        self.masked, self.fused = masked, fused
        self.words, self.norm = nn.Embedding(WORDS, CHANNELS), nn.LayerNorm(CHANNELS)
        self.q, self.k, self.v, self.o = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))
        self.head = nn.Linear(CHANNELS, words)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        q, k, v = (each(x).view(1, TOKENS, HEADS, -1).transpose(1, 2) for each in (self.q, self.k, self.v))
        added = (1 - mask.float())[:, None, None, :] * self.masked
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, added)
        else:
            mixed = (q @ k.transpose(-1, -2) / (CHANNELS // HEADS) ** 0.5 + added).softmax(-1) @ v
        out: Tensor = self.head(self.norm(x + self.o(mixed.transpose(1, 2).reshape(1, TOKENS, CHANNELS))))
        return out


class Ending(Stock):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return super().forward(ids, mask).topk(2).values


class Recurrent(Stock):
    def __init__(self) -> None:
        super().__init__(words=CHANNELS)
        self.lstm = nn.LSTM(CHANNELS, CHANNELS, batch_first=True)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.lstm(super().forward(ids, mask))[0]
        return out


def stock(path: Path, module: nn.Module, precision: str = "float16", target: Any = None, length: Any = TOKENS) -> Path:
    torch.manual_seed(0)
    shape = length if isinstance(length, ct.EnumeratedShapes) else (1, length)
    example = (torch.zeros(1, TOKENS, dtype=torch.int32), torch.ones(1, TOKENS, dtype=torch.int32))
    traced = torch.jit.trace(module.eval(), example)  # type: ignore[no-untyped-call]
    model = ct.convert(
        traced,
        inputs=[ct.TensorType(name, shape=shape, dtype=np.int32) for name in ("ids", "mask")],
        outputs=[ct.TensorType("result")],
        compute_precision=ct.precision(precision),
        minimum_deployment_target=target or ct.target.iOS15,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


@pytest.mark.parametrize(
    ("module", "precision", "target", "errors", "warnings"),
    [
        (Stock, "float16", ct.target.iOS16, set(), {"linear"}),
        (Stock, "float32", ct.target.iOS15, {"float32"}, {"linear", "float32-io"}),
        (partial(Stock, words=50257), "float16", ct.target.iOS15, {"axis-limit"},
         {"linear", "float32-io", "axis-limit-copy"}),
        (partial(Stock, fused=True), "float16", ct.target.iOS18, set(), {"linear", "native-attention"}),
        (Ending, "float16", ct.target.iOS16, set(), {"linear", "cpu-op-at-end"}),
        (Recurrent, "float16", ct.target.iOS16, {"control", "float32"}, {"linear"}),
        (partial(Stock, float("-inf")), "float16", ct.target.iOS16, {"mask-overflow"}, {"linear"}),
        (partial(Stock, torch.finfo(torch.float32).min), "float16", ct.target.iOS16, {"mask-overflow"}, {"linear"}),
    ],
    ids=["plain", "float32", "vocabulary", "sdpa", "topk", "lstm", "infinite mask", "largest mask"],
)  # fmt: skip
def test_stock_conversions(
    module: Callable[[], nn.Module], precision: str, target: Any, errors: set[str], warnings: set[str], tmp_path: Path
) -> None:
    found = lint(stock(tmp_path / "stock.mlpackage", module(), precision, target))
    extra = {"constant-not-finite"} if "mask-overflow" in errors else set()
    assert kinds(found, "error") - extra == errors
    assert kinds(found, "warning") - {"constant-subnormal"} == warnings  # coremltools writes eps 1e-12 as 2^-24


def test_a_range_of_lengths(tmp_path: Path) -> None:
    found = lint(stock(tmp_path / "stock.mlpackage", Flexible(), length=ct.RangeDim(8, 64, default=TOKENS)))
    hit = next(finding for finding in found.findings if finding.rule == "dynamic-shape")
    assert hit.severity == "error"
    assert "1×?" in hit.message
    assert found.placed[0].share_of_ops == {"cpu": 1.0}


def test_a_list_of_lengths_is_disputed(tmp_path: Path) -> None:
    shapes = ct.EnumeratedShapes([(1, TOKENS), (1, 2 * TOKENS)])
    loaded = load(stock(tmp_path / "stock.mlpackage", Flexible(), target=ct.target.iOS18, length=shapes))
    found = lint_package(loaded, "x")
    assert kinds(found, "error") == set()
    listed = [finding.message for finding in found.findings if finding.rule == "enumerated-shape"]
    assert listed == [f"input {name} has 2 shapes: 1×24, 1×48" for name in ("ids", "mask")]
    assert RULES["enumerated-shape"].source.startswith("contradictory")
    strict = lint_package(loaded, "x", LintSettings(enumerated=False))
    assert "dynamic-shape" in kinds(strict, "error")
    assert "enumerated-shape" not in kinds(strict, "warning")
    assert fires("target", claims(loaded, 8, "CoreML7"))  # of two inputs, from iOS 18 on


class Flexible(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return ids.float() * mask.float()


# ---- the record, the command, SARIF, the page


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with findings of all severities."""
    inputs, bad, _ = ROWS["gather-inside"]
    return saved(
        tmp_path_factory.mktemp("wrong"), inputs, lambda ids, x: mb.matmul(x=mb.gelu(x=bad(ids, x)), y=half(32, 8))
    )


def test_the_record_is_read_back_strictly(wrong: Path, tmp_path: Path) -> None:
    found = lint(wrong)
    records.write(tmp_path / "lint.json", found)
    assert records.read(tmp_path / "lint.json", Lint) == found
    assert [finding.severity for finding in found.findings] == sorted(
        (finding.severity for finding in found.findings), key=["error", "warning", "info"].index
    )
    (gathered,) = (verdict for verdict in found.verdicts if verdict.type == "gather")
    assert (gathered.predicted, gathered.measured) == ("cpu", None)
    assert gathered.why.startswith("gather-inside")
    measured = replace(found, verdicts=(replace(gathered, measured="gpu"),))
    records.write(tmp_path / "lint.json", measured)
    assert records.read(tmp_path / "lint.json", Lint) == measured


def test_equal_findings_are_one(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        for layer in range(3):
            x = mb.softplus(x=x, name=f"blocks_{layer}_up")
        return x

    (finding,) = (f for f in lint(saved(tmp_path, [(X, F16)], build)).findings if f.rule == "softplus")
    assert finding == Finding(
        rule="softplus",
        severity="error",
        functions=("main",),
        message="softplus is 0 for large x",
        layer="blocks_{i}_up",
        type="softplus",
        shape=X,
        count=3,
        ops=("blocks_0_up", "blocks_1_up", "blocks_2_up"),
    )


@pytest.mark.parametrize(
    ("row", "type", "parameter"),
    [("linear", "matmul", "y"), ("copies", "transpose", "perm"), ("pooling", "max_pool", "kernel_sizes"),
     ("softmax-axis", "softmax", "x"), ("native-attention", "scaled_dot_product_attention", "query"),
     ("gather-inside", "gather", "indices"), ("upsampling", "upsample_nearest_neighbor", "x")],
)  # fmt: skip
def test_an_operation_that_lacks_a_parameter(row: str, type: str, parameter: str, tmp_path: Path) -> None:
    def without(op: Op) -> Op:
        kept = {name: value for name, value in op.inputs.items() if name != parameter}
        return replace(op, inputs=kept) if op.type == type else op

    inputs, build, _ = ROWS[row]
    loaded = load(saved(tmp_path, inputs, build))
    broken = changed(loaded, lambda function: replace(function, ops=tuple(map(without, function.ops))))
    with pytest.raises(PackageError, match=rf"function main: {type} '.*' has no {parameter}\. Export"):
        lint_package(broken, "x")


@pytest.mark.parametrize(("flags", "code"), [((), 1), (("--fail-on", "warning"), 1), (("--json",), 1)])
def test_the_command_on_a_bad_package(
    wrong: Path, flags: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", str(wrong), *flags]) == code
    out = capsys.readouterr().out
    assert "gather-inside" in out
    if "--json" in flags:
        assert records.parse(out, Lint, "output") == lint(wrong)


def test_the_exit_code_is_by_severity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(saved(tmp_path, *ROWS["linear"][:2]))
    assert main(["lint", path]) == 0
    assert main(["lint", path, "--fail-on", "warning"]) == 1
    assert "A prediction from the file" in capsys.readouterr().out
    assert main(["lint", str(tmp_path)]) == 1
    assert "this is not an .mlpackage" in capsys.readouterr().err


# The parts of SARIF 2.1.0's schema that code hosts insist on, closed where a misspelt key would be lost silently.
TEXT: dict[str, Any] = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {"text": {"type": "string", "minLength": 1}},
}
LEVEL = {"enum": ["none", "note", "warning", "error"]}


def closed(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": [*required], "additionalProperties": False, "properties": properties}


def several(items: Any) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


STRING = {"type": "string", "minLength": 1}
LOGICAL = closed(("name",), name=STRING, fullyQualifiedName=STRING, kind=STRING)
LOCATION = closed(
    (),
    physicalLocation=closed((), artifactLocation=closed(("uri",), uri=STRING)),
    logicalLocations=several(LOGICAL),
)
RULE = closed(
    ("id",), id=STRING, shortDescription=TEXT, help=TEXT, defaultConfiguration=closed((), level=LEVEL)
)  # fmt: skip
RESULT = closed(
    ("message",),
    ruleId=STRING,
    ruleIndex={"type": "integer", "minimum": 0},
    level=LEVEL,
    message=TEXT,
    occurrenceCount={"type": "integer", "minimum": 1},
    locations=several(LOCATION),
)
DRIVER = closed(("name",), name=STRING, rules={"type": "array", "items": RULE, "uniqueItems": True})
RUN = closed(("tool",), tool=closed(("driver",), driver=DRIVER), results={"type": "array", "items": RESULT})
SARIF = closed(
    ("version", "runs"), **{"$schema": STRING}, version={"const": "2.1.0"}, runs=several(RUN)
)  # fmt: skip


def test_sarif(wrong: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", str(wrong), "--sarif"]) == 1
    log = json.loads(capsys.readouterr().out)
    assert log == sarif(lint(wrong))
    jsonschema: Any = importlib.import_module("jsonschema")
    jsonschema.Draft202012Validator(SARIF).validate(log)
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert {each["level"] for each in run["results"]} == {"error", "warning", "note"}
    for each in run["results"]:
        assert rules[each["ruleIndex"]]["id"] == each["ruleId"]
    gathered = next(each for each in run["results"] if each["ruleId"] == "gather-inside")
    assert gathered["level"] == "error"
    assert gathered["locations"][0]["logicalLocations"][0]["fullyQualifiedName"].startswith("main/gather")


def test_the_page_has_the_rules_as_they_are() -> None:
    page = (ROOT / "docs/lint.md").read_text()
    assert table() in page, f"docs/lint.md must hold:\n{table()}"
