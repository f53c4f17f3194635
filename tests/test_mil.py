"""Saved packages as a whole: a stock BERT against torch, several functions, damaged files, and what importing costs."""

import contextlib
import copy
import gc
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hft2ane.errors import EvaluationError, PackageError
from hft2ane.mil import Program, open_package
from hft2ane.mil.inspect import Port, inspect
from hft2ane.mil.lint import lint
from hft2ane.mil.load import ANY, Feature, load
from hft2ane.mil.proto import Model
from hft2ane.psnr import psnr

# An MLModel that is collected leaves the removal of its temporary folder to the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
TOKENS, CHANNELS, HEADS, WORDS = 24, 64, 4, 300


@pytest.fixture(autouse=True, scope="module")
def quick_collection() -> Iterator[None]:
    """`ct.convert` runs the garbage collector twice, which is most of its time when it must look at all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))
        self.up, self.down = nn.Linear(CHANNELS, 4 * CHANNELS), nn.Linear(4 * CHANNELS, CHANNELS)
        self.first, self.second = nn.LayerNorm(CHANNELS, eps=1e-7), nn.LayerNorm(CHANNELS, eps=1e-7)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (each(x).view(1, TOKENS, HEADS, -1).transpose(1, 2) for each in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / (CHANNELS // HEADS) ** 0.5 + mask
        x = self.first(x + self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(1, TOKENS, CHANNELS)))
        out: Tensor = self.second(x + self.down(F.gelu(self.up(x))))
        return out


class Bert(nn.Module):
    """A BERT-like stack with loud weights, as the stock converter likes it (lengths are constants)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(WORDS, CHANNELS), nn.Embedding(2, CHANNELS)
        self.positions = nn.Parameter(torch.zeros(1, TOKENS, CHANNELS))
        self.norm = nn.LayerNorm(CHANNELS, eps=1e-7)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.pooler = nn.Linear(CHANNELS, CHANNELS)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)
        for norm in (each for each in self.modules() if isinstance(each, nn.LayerNorm)):
            norm.weight.data += 1

    def forward(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.words(ids) + self.types(kinds) + self.positions)
        for layer in self.layers:
            hidden = layer(hidden, (1 - mask.float())[:, None, None, :] * -1e4)
        return hidden, torch.tanh(self.pooler(hidden[:, 0]))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize(
    ("precision", "target", "least"), [("float32", ct.target.iOS17, 130), ("float16", ct.target.iOS15, 60)]
)
def test_a_stock_bert(precision: str, target: Any, least: float, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Bert().eval()
    inputs = [
        {
            "ids": torch.randint(0, WORDS, (1, TOKENS)).int(),
            "mask": (torch.arange(TOKENS) < valid)[None].int(),
            "kinds": torch.randint(0, 2, (1, TOKENS)).int(),
        }
        for valid in (TOKENS, 17, 1)
    ]
    with torch.inference_mode():
        traced = torch.jit.trace(module, tuple(inputs[0].values()))  # type: ignore[no-untyped-call]
        exact = copy.deepcopy(module).double()  # float32 is itself only good to 130 dB here
        references = [dict(zip(("hidden", "pooled"), exact(**each), strict=True)) for each in inputs]
    model = ct.convert(
        traced,
        inputs=[ct.TensorType(name, shape=(1, TOKENS), dtype=np.int32) for name in inputs[0]],
        outputs=[ct.TensorType(name, dtype=np.float32) for name in references[0]],
        compute_precision=ct.precision(precision),
        minimum_deployment_target=target,
    )
    model.save(str(tmp_path / "bert.mlpackage"))
    program = open_package(tmp_path / "bert.mlpackage")
    for each_input, reference in zip(inputs, references, strict=True):
        outputs = program.evaluate({name: each.numpy() for name, each in each_input.items()})
        assert outputs.keys() == reference.keys()
        for name, each in reference.items():
            assert psnr(each.numpy(), outputs[name].astype(np.float64)) > least
            if each_input is not inputs[0]:  # the inputs make themselves heard
                assert psnr(each.numpy(), references[0][name].numpy()) < 30


def convert(length: int) -> ct.models.MLModel:
    """ids -> a look-up, a product (with a weight in the file) and a softmax, in half precision."""
    rng = np.random.default_rng(1)
    table, weight = (rng.standard_normal(shape).astype(np.float16) for shape in ((20, 16), (8, 16)))

    def build(ids: Any) -> Any:
        words = mb.gather(x=table, indices=ids, axis=0, name="words")
        product = mb.linear(x=words, weight=weight, bias=np.zeros(8, np.float16), name="product")
        return mb.softmax(x=product, axis=-1, name="shares"), mb.reduce_max(x=product, axes=[1], name="peaks")

    specs = [mb.TensorSpec((length,), types.int32)]
    return ct.convert(
        mb.program(input_specs=specs, opset_version=ct.target.iOS18)(build),
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.mlpackage"
    model = convert(5)
    model.user_defined_metadata["who"] = "a test"
    model.save(str(path))
    return path


@pytest.fixture
def damaged(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "damaged.mlpackage"))


IDS = {"ids": np.array([1, 2, 3, 4, 19], np.int32)}


def test_what_a_program_shows(good: Path) -> None:
    program = open_package(good)
    assert (program.default, list(program.functions), program.specification_version) == ("main", ["main"], 9)
    assert program.metadata["who"] == "a test"
    main = program.functions["main"]
    assert main.inputs == (Feature("ids", (5,), "int32"),)
    assert main.outputs == (Feature("shares", (5, 8), "float16"), Feature("peaks", (5,), "float16"))
    assert [(op.type, op.name) for op in main.ops] == [
        ("gather", "words"),
        ("linear", "product"),
        ("softmax", "shares"),
        ("reduce_max", "peaks"),
    ]


def test_inspect(good: Path) -> None:
    summary = inspect(good)
    main = open_package(good).functions["main"]
    ops = {"gather": 1, "linear": 1, "softmax": 1, "reduce_max": 1}
    (function,) = summary.functions
    assert (function.name, function.ops, function.constants) == ("main", ops, len(main.constants))
    assert function.inputs == (Port("ids", (5,), "int32", ()),)
    assert function.outputs == (Port("shares", (5, 8), "float16", ()), Port("peaks", (5,), "float16", ()))
    assert function.states == ()
    assert len(main.constants) >= 3
    assert summary.system == "iOS 18 / macOS 15"
    assert summary.weights["float16"] == sum(
        each.stored.nbytes for each in main.constants.values() if each.dtype == "float16"
    )
    assert sum(summary.weights.values()) < summary.weight_bytes  # which has records and padding
    assert summary.weight_bytes == (good / WEIGHTS).stat().st_size
    assert (summary.default, summary.metadata["who"], summary.specification_version) == ("main", "a test", 9)


def test_middle_values_are_kept_when_asked_for(good: Path) -> None:
    program = open_package(good)
    kept = program.evaluate(IDS, keep=["words", "product"])
    assert list(kept) == ["shares", "peaks", "words", "product"]
    assert kept["words"].shape == (5, 16)
    np.testing.assert_array_equal(kept["peaks"], kept["product"].max(1))
    np.testing.assert_array_equal(kept["shares"], program.evaluate(IDS)["shares"])
    assert list(program.evaluate(IDS)) == ["shares", "peaks"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.evaluate({}), r"function main takes inputs ids \(int32 \(5,\)\); given are none"),
        (lambda p: p.evaluate({**IDS, "mask": IDS["ids"]}), "given are ids, mask"),
        (lambda p: p.evaluate({"ids": IDS["ids"][:4]}), r"input ids is int32 \(4,\), must be int32 \(5,\)"),
        (lambda p: p.evaluate({"ids": IDS["ids"].astype(np.int64)}), "input ids is int64"),
        (lambda p: p.evaluate({"ids": IDS["ids"] + 1}), "gather 'words': indices 2 to 20 are not all in"),
        (lambda p: p.evaluate(IDS, "other"), "no function 'other'; there are main"),
        (lambda p: p.evaluate(IDS, keep=["nothing"]), "function main computes no value 'nothing'"),
    ],
)
def test_a_call_that_cannot_be_answered(good: Path, call: Callable[[Program], object], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        call(open_package(good))


def test_several_functions_share_their_constants(tmp_path: Path) -> None:
    described = ct.utils.MultiFunctionDescriptor()
    for length in (3, 5):
        convert(length).save(str(tmp_path / f"{length}.mlpackage"))
        described.add_function(str(tmp_path / f"{length}.mlpackage"), "main", f"length_{length}")
    described.default_function_name = "length_5"
    ct.utils.save_multifunction(described, str(tmp_path / "both.mlpackage"))
    program = open_package(tmp_path / "both.mlpackage")
    assert (program.default, sorted(program.functions)) == ("length_5", ["length_3", "length_5"])
    np.testing.assert_array_equal(
        program.evaluate({"ids": IDS["ids"][:3]}, "length_3")["shares"], program.evaluate(IDS)["shares"][:3]
    )
    blobs = [
        {id(each) for each in function.constants.values() if each.stored.size > 64}
        for function in program.functions.values()
    ]
    assert blobs[0] == blobs[1]
    assert len(blobs[0]) == 2


def built(path: Path, inputs: Sequence[Any], build: Callable[..., Any], **options: Any) -> Program:
    """The program that `build` makes of these specifications, saved for iOS 18 and read back."""
    model = ct.convert(
        mb.program(input_specs=list(inputs), opset_version=ct.target.iOS18)(build),
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        **options,
    )
    model.save(str(path))
    return open_package(path)


def remembering(x: Any, cache: Any) -> Any:
    """Writes x below what is in the cache, and gives the sum of all of it."""
    moved = mb.slice_by_index(x=mb.read_state(input=cache), begin=[1, 0], end=[4, 3])
    new = mb.coreml_update_state(state=cache, value=mb.concat(values=(moved, x), axis=0))
    return mb.reduce_sum(x=new, axes=[0], name="total")


def stateful(folder: Path) -> Program:
    specs = [mb.TensorSpec((1, 3), types.fp16), mb.StateTensorSpec((4, 3), types.fp16)]
    return built(folder / "state.mlpackage", specs, remembering)


def test_inspect_shows_states(tmp_path: Path) -> None:
    stateful(tmp_path)
    (function,) = inspect(tmp_path / "state.mlpackage").functions
    assert function.states == (Port("cache", (4, 3), "float16", ()),)
    assert function.ops["write_state"] == 1


def test_a_state_lasts_from_call_to_call(tmp_path: Path) -> None:
    program = stateful(tmp_path)
    assert program.functions["main"].states == (Feature("cache", (4, 3), "float16"),)
    assert [feature.name for feature in program.functions["main"].inputs] == ["x"]
    state, rows = program.state(), np.random.default_rng(0).standard_normal((6, 1, 3)).astype(np.float16)
    for at, x in enumerate(rows):
        total = program.evaluate({"x": x}, state=state)["total"]
        seen = rows[max(0, at - 3) : at + 1, 0]
        np.testing.assert_array_equal(state["cache"][4 - len(seen) :], seen)
        np.testing.assert_allclose(total, seen.astype(np.float32).sum(0), atol=2e-3)
    assert state["cache"].dtype == np.float16
    # without one of the caller's, each call is a first call
    np.testing.assert_array_equal(program.evaluate({"x": rows[0]})["total"], rows[0, 0])
    np.testing.assert_array_equal(program.evaluate({"x": rows[0]})["total"], rows[0, 0])
    with pytest.raises(EvaluationError, match=r"needs a state cache \(4, 3\)"):
        program.evaluate({"x": rows[0]}, state={"cache": np.zeros((3, 3), np.float16)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: setattr(m.description.state[0], "name", "other"),
            r"has states \['cache'\], described are \['other'\]",
        ),
        (lambda m: setattr(m.description.state[0].type.stateType.arrayType, "dataType", 131104), "described as int32"),
        (
            lambda m: setattr(main_block(m).operations[0].inputs["input"].arguments[0], "name", "x"),
            "read_state .*: its input is not a state of the function",
        ),
    ],
)
def test_states_that_are_not_what_is_described(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    x = np.zeros((1, 3), np.float16)
    stateful(tmp_path)
    rewrite(tmp_path / "state.mlpackage", change)
    with pytest.raises((PackageError, EvaluationError), match=message):
        open_package(tmp_path / "state.mlpackage").evaluate({"x": x})


def branching(x: Any) -> Any:
    """2 x when its sum is positive, else x - 1; then doubled until its largest value is above 100."""
    twice = np.float32(2)

    def small(y: Any) -> Any:
        return mb.less_equal(x=mb.reduce_max(x=y), y=np.float32(100))

    positive = mb.greater(x=mb.reduce_sum(x=x), y=np.float32(0))
    chosen = mb.cond(
        pred=positive, _true_fn=lambda: mb.mul(x=x, y=twice), _false_fn=lambda: mb.sub(x=x, y=np.float32(1))
    )
    shifted = mb.add(x=chosen, y=x)  # used inside the loop only
    return mb.while_loop(
        _cond=lambda y, n: small(y),
        _body=lambda y, n: (mb.add(x=mb.mul(x=y, y=twice), y=shifted), mb.add(x=n, y=np.int32(1))),
        loop_vars=(chosen, np.int32(0)),
        name="loop",
    )


def test_branches_and_loops(tmp_path: Path) -> None:
    program = built(tmp_path / "x.mlpackage", [mb.TensorSpec((3,), types.fp32)], branching)
    for x in (np.float32([1, 2, 5]), np.float32([-9, 1, 6])):
        y = x * 2 if x.sum() > 0 else x - 1
        shifted, rounds = y + x, 0
        while y.max() <= 100:
            y, rounds = y * 2 + shifted, rounds + 1
        values, count = program.evaluate({"x": x}).values()
        np.testing.assert_array_equal(values, y)
        assert int(count) == rounds > 0


def test_a_loop_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hft2ane.mil.evaluate.MOST_ROUNDS", 50)
    program = built(tmp_path / "x.mlpackage", [mb.TensorSpec((3,), types.fp32)], branching)
    with pytest.raises(EvaluationError, match="while_loop 'loop': not at its end after 50 rounds"):
        program.evaluate({"x": np.float32([0, 0, 0])})


def flexible(folder: Path, shape: Any) -> Program:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(1, -1).softmax(-1) * x.shape[1]

    with torch.inference_mode():
        traced = torch.jit.trace(Module(), torch.ones(1, 4, 2))  # type: ignore[no-untyped-call]
    model = ct.convert(
        traced,
        inputs=[ct.TensorType("x", shape=shape)],
        outputs=[ct.TensorType("y")],
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS17,
    )
    model.save(str(folder / "flexible.mlpackage"))
    return open_package(folder / "flexible.mlpackage")


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        (ct.Shape((1, ct.RangeDim(2, 6, default=4), 2)), r"must be 1 × 2\.\.6 × 2"),
        (ct.EnumeratedShapes([(1, 4, 2), (1, 6, 2)]), "must be 1 × 4 × 2 or 1 × 6 × 2"),
    ],
    ids=["range", "enumerated"],
)
def test_flexible_shapes(shape: Any, wanted: str, tmp_path: Path) -> None:
    program = flexible(tmp_path, shape)
    assert program.functions["main"].inputs[0].shape == (1, ANY, 2)
    (port,) = inspect(tmp_path / "flexible.mlpackage").functions[0].inputs
    assert " or ".join(port.may_be) == wanted.removeprefix("must be ").replace("\\", "")
    for length in (4, 6):
        x = np.random.default_rng(length).standard_normal((1, length, 2)).astype(np.float32)
        want = torch.tensor(x).double().reshape(1, -1).softmax(-1) * length
        assert psnr(want.numpy(), program.evaluate({"x": x})["y"].astype(np.float64)) > 125
    for bad, message in (((1, 7, 2), wanted), ((1, 4, 3), r"must be float32 \(1, any, 2\)")):
        with pytest.raises(EvaluationError, match=message):
            program.evaluate({"x": np.ones(bad, np.float32)})


def test_half_precision_inside_operations_too(tmp_path: Path) -> None:
    x = np.array([[2048, 1, 1, 1]], np.float16)

    def build(x: Any) -> Any:
        return mb.reduce_sum(x=mb.add(x=mb.mul(x=x, y=np.float16(33)), y=np.float16(-65504)), axes=[1], name="y")

    program = built(tmp_path / "x.mlpackage", [mb.TensorSpec((1, 4), types.fp16)], build)
    assert np.isinf(program.evaluate({"x": x})["y"]).all()  # the product overflows when it is rounded
    assert np.isfinite(program.evaluate({"x": x}, mode="float32")["y"]).all()
    assert np.isinf(program.evaluate({"x": x}, mode="half")["y"]).all()
    values = np.linspace(-4, 4, 400, dtype=np.float16)
    program = built(tmp_path / "y.mlpackage", [mb.TensorSpec((400,), types.fp16)], lambda x: mb.softsign(x=x, name="y"))
    half, declared = (program.evaluate({"x": values}, mode=mode)["y"] for mode in ("half", "declared"))
    np.testing.assert_array_equal(half, values / (1 + abs(values)))  # numpy rounds the sum too
    assert half.dtype == np.float16
    assert 60 < psnr(declared.astype(np.float64), half.astype(np.float64)) < 100


def test_each_operation_is_timed(good: Path) -> None:
    seen: list[tuple[str, float]] = []
    open_package(good).evaluate(IDS, watch=lambda op, seconds: seen.append((op.name, seconds)))
    assert [name for name, _ in seen] == ["words", "product", "shares", "peaks"]
    assert all(seconds > 0 for _, seconds in seen)


def rewrite(package: Path, change: Callable[[Any], object]) -> None:
    model = Model.FromString((package / MODEL).read_bytes())
    change(model)
    (package / MODEL).write_bytes(model.SerializeToString())


def main_block(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def weight_of(model: Any) -> Any:
    """The first constant that is in the weight file."""
    values = (each.attributes["val"] for each in main_block(model).operations if each.type == "const")
    return next(each for each in values if each.WhichOneof("value") == "blobFileValue")


def set_bytes(package: Path, offset: int, data: bytes) -> None:
    with (package / WEIGHTS).open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (lambda p: (p / "Manifest.json").unlink(), "Manifest.json", "No such file.*not an .mlpackage"),
        (lambda p: (p / "Manifest.json").write_text("{"), "Manifest.json", "is not JSON"),
        (lambda p: (p / "Manifest.json").write_bytes(b"\xff\xfe\x00"), "Manifest.json", "is not JSON"),
        (lambda p: (p / "Manifest.json").write_text("[]"), "Manifest.json", "does not name a root model"),
        (lambda p: (p / MODEL).unlink(), "model.mlmodel", "No such file"),
        (lambda p: (p / MODEL).write_bytes(b""), "model.mlmodel", "not an ML Program but nothing"),
        (lambda p: (p / MODEL).write_bytes(b"\xff" * 99), "model.mlmodel", "protobuf cannot be decoded"),
        (lambda p: (p / WEIGHTS).unlink(), "weight.bin", "No such file"),
        (lambda p: (p / WEIGHTS).write_bytes(b""), "weight.bin", "is empty"),
        (lambda p: (p / WEIGHTS).write_bytes(b"\x01" * 60), "weight.bin", "cut short at 60 bytes"),
        (lambda p: set_bytes(p, 4, b"\x01"), "weight.bin", "storage version 1"),
        (lambda p: set_bytes(p, 64, b"\xee"), "weight.bin", "blob at 64: the record begins with 0xdeadbeee"),
        (lambda p: set_bytes(p, 68, b"\x02"), "weight.bin", r"type 2, the model declares float16 \(1\)"),
        (lambda p: set_bytes(p, 72, struct.pack("<Q", 642)), "weight.bin", "holds 642 bytes, .* 320 × float16"),
        (lambda p: set_bytes(p, 80, struct.pack("<Q", 1 << 40)), "weight.bin", "its data, 640 bytes at 1099511627776"),
        (lambda p: set_bytes(p, 80, struct.pack("<Q", 130)), "weight.bin", "its data, 640 bytes at 130"),
        (lambda p: set_bytes(p, 80, struct.pack("<Q", 0)), "weight.bin", "its data, 640 bytes at 0"),
        (
            lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes()[:700]),
            "weight.bin",
            "blob at 64: its data, 640 bytes at 128, is not inside 700 bytes",
        ),
    ],
)
def test_damaged_files(damaged: Path, damage: Callable[[Path], object], file: str, message: str) -> None:
    damage(damaged)
    with pytest.raises(PackageError, match=rf"damaged\.mlpackage/.*{file}: .*{message}.*Export or fetch") as caught:
        open_package(damaged)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.neuralNetwork.SetInParent(), "is not an ML Program but neuralNetwork"),
        (lambda m: setattr(m.description, "defaultFunctionName", "other"), r"describes functions \['other'\]"),
        (lambda m: setattr(m.mlProgram.functions["main"], "opset", "CoreML1"), "no code for its opset 'CoreML1'"),
        (lambda m: setattr(m.description.input[0], "name", "tokens"), r"inputs \['ids'\], described are \['tokens'\]"),
        (lambda m: setattr(m.description.output[0].type.multiArrayType, "dataType", 131104), "described as int32"),
        (lambda m: m.description.input[0].type.multiArrayType.shape.append(1), r"described as int32 \(5, 1\)"),
        (lambda m: m.description.input[0].type.imageType.SetInParent(), "is a imageType, only arrays are read"),
        (
            lambda m: m.description.input[0].type.multiArrayType.enumeratedShapes.shapes.add().shape.append(7),
            r"input 'ids' has shape \(5,\), described are 1 ranges for it",
        ),
        (lambda m: main_block(m).outputs.append("nothing"), "output 'nothing' is not defined"),
        (lambda m: main_block(m).operations.reverse(), "which nothing before it defines"),
        (lambda m: main_block(m).operations.append(main_block(m).operations[-1]), "defined a second time"),
        (lambda m: main_block(m).operations[-1].inputs["x"].Clear(), "an input that is bound to nothing"),
        (lambda m: main_block(m).operations[-1].outputs[0].type.listType.SetInParent(), "is a listType"),
        (
            lambda m: setattr(
                main_block(m).operations[-1].outputs[0].type.tensorType.dimensions[0].unknown, "variadic", True
            ),
            "has a number of dimensions that is not fixed",
        ),
        (lambda m: setattr(main_block(m).operations[-1].outputs[0].type.tensorType, "rank", 9), "has rank 9 and 1 dim"),
        (
            lambda m: setattr(main_block(m).operations[-1].outputs[0].type.tensorType, "dataType", 12),
            "has element type 12, which is not read",
        ),
        (
            lambda m: weight_of(m).type.tensorType.dimensions[0].unknown.SetInParent(),
            "a constant has a size that is not fixed",
        ),
        (lambda m: setattr(weight_of(m).blobFileValue, "offset", 66), "weight.bin: blob at 66: no record can be"),
        (lambda m: setattr(weight_of(m).blobFileValue, "offset", 1 << 60), "weight.bin: blob at .*: no record can be"),
        (lambda m: setattr(weight_of(m).blobFileValue, "offset", 128), "weight.bin: blob at 128: the record begins"),
        (
            lambda m: setattr(weight_of(m).blobFileValue, "fileName", "@model_path/../../../x"),
            "points outside the package",
        ),
        (lambda m: setattr(weight_of(m).blobFileValue, "fileName", "/etc/hosts"), "'/etc/hosts' is not in the package"),
        (lambda m: weight_of(m).immediateValue.SetInParent(), "holds immediateValue, only tensors"),
        (lambda m: weight_of(m).immediateValue.tensor.floats.SetInParent(), "written as floats, expected bytes"),
        (
            lambda m: setattr(weight_of(m).immediateValue.tensor.bytes, "values", b"12345678"),
            r"a constant of shape \(20, 16\) holds 4 values",
        ),
        (
            lambda m: setattr(weight_of(m).immediateValue.tensor.bytes, "values", b"123"),
            "a constant of float16 cannot be read",
        ),
    ],
)
def test_models_that_contradict_themselves(damaged: Path, change: Callable[[Any], object], message: str) -> None:
    rewrite(damaged, change)
    with pytest.raises(PackageError, match=message):
        open_package(damaged)


@pytest.mark.parametrize("path", ["../../x.mlmodel", "/etc/hosts", ""])
def test_a_manifest_that_points_elsewhere(damaged: Path, path: str) -> None:
    manifest = json.loads((damaged / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
    (damaged / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match=r"Manifest\.json: points outside the package"):
        open_package(damaged)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_an_error_of_ours_or_harmless(damaged: Path, good: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([MODEL, WEIGHTS, "Manifest.json"]))
    content = bytearray((good / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (damaged / name).write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    try:
        for look in (lint, inspect, lambda path: open_package(path).evaluate(IDS)):
            with contextlib.suppress(PackageError, EvaluationError):
                look(damaged)
    finally:
        shutil.copyfile(good / name, damaged / name)


IMPORTS = """
import sys
from pathlib import Path
import numpy as np
from hft2ane.mil import open_package
ids = np.array([1, 2, 3, 4, 19], np.int32)
open_package(Path(sys.argv[1])).evaluate({"ids": ids})
assert "coremltools" not in sys.modules
import coremltools as ct
from hft2ane.mil.proto import Model
assert type(ct.utils.load_spec(sys.argv[1])) is Model
assert ct.utils.make_pipeline is not None
"""


def test_evaluating_does_not_import_coremltools(good: Path) -> None:
    subprocess.run([sys.executable, "-c", IMPORTS, str(good)], check=True, capture_output=True)


def test_the_protobuf_classes_are_those_of_coremltools(good: Path) -> None:
    assert type(ct.utils.load_spec(str(good))) is Model
    assert load(good).specification_version == ct.utils.load_spec(str(good)).specificationVersion
