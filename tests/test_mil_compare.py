"""`hft2ane eval` and `hft2ane compare` on small packages, and what they compute with."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from hft2ane.cli import main
from hft2ane.mil import open_package
from hft2ane.mil.compare import layer_of, sample_inputs

# An MLModel that is collected leaves the removal of its temporary folder to the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")

ROWS, WIDTH, LAYERS = 31, 8, 3


def encoder(path: Path, broken: int | None = None, target: Any = ct.target.iOS16) -> Path:
    """ids and a mask through three layers, in half precision; one of them may be `broken`: its weights a tenth off."""
    rng = np.random.default_rng(5)
    table = rng.standard_normal((ROWS, WIDTH)).astype(np.float16)
    weights = [rng.standard_normal((WIDTH, WIDTH)) * 0.5 for _ in range(LAYERS)]

    def build(input_ids: Any, attention_mask: Any) -> Any:
        ids = mb.select(  # as iOS 17 guards indices
            cond=mb.greater_equal(x=input_ids, y=np.int32(0)), a=input_ids, b=mb.add(x=input_ids, y=np.int32(ROWS))
        )
        x = mb.gather(x=table, indices=ids, axis=0, name="embed")
        mask = mb.expand_dims(x=mb.cast(x=attention_mask, dtype="fp16"), axes=[-1])
        for at, weight in enumerate(weights):
            factor = 1.1 if at == broken else 1.0
            mixed = mb.linear(x=x, weight=(weight * factor).astype(np.float16), name=f"blocks_{at}_mix")
            x = mb.mul(x=mb.tanh(x=mixed, name=f"blocks_{at}_act"), y=mask, name=f"blocks_{at}_out")
        return mb.identity(x=x, name="hidden"), mb.reduce_mean(x=x, axes=[1], name="pooled")

    specs = [mb.TensorSpec((1, 6), types.int32) for _ in range(2)]
    model = ct.convert(
        mb.program(input_specs=specs, opset_version=target)(build),
        convert_to="mlprogram",
        minimum_deployment_target=target,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


class Said(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Said:
        capfd.readouterr()
        code = main([str(each) for each in arguments])
        return Said(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("good") / "good.mlpackage")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("broken") / "broken.mlpackage", broken=1)


IDS, MASK = np.array([[3, 1, 30, 0, 7, 9]], np.int32), np.array([[1, 1, 1, 1, 0, 0]], np.int32)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", input_ids=IDS, attention_mask=MASK)
    return tmp_path / "x.npz"


def test_samples_are_what_the_package_can_take(good: Path) -> None:
    graph = open_package(good).functions["main"]
    whole, padded = sample_inputs(graph)
    assert whole["input_ids"].dtype == np.int32
    assert whole["input_ids"].min() >= 0
    assert 9 < whole["input_ids"].max() < ROWS
    assert whole["attention_mask"].tolist() == [[1] * 6]
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0]]
    for name, array in sample_inputs(graph)[0].items():  # the same every time
        np.testing.assert_array_equal(array, whole[name])


def test_layers_are_read_from_names() -> None:
    named = {"blocks_3_attend_q": "blocks_3", "encoder_blocks_11_up_2": "encoder_blocks_11", "embed_norm": "embed_norm"}
    assert {name: layer_of(name) for name in named} == named


def test_eval(good: Path, inputs: Path, run: Run, tmp_path: Path) -> None:
    said = run("eval", good, "--inputs", inputs, "--out", tmp_path / "y.npz", "--keep", "blocks_1_act", "--time")
    assert said.code == 0, said.err
    program = open_package(good)
    wanted = program.evaluate({"input_ids": IDS, "attention_mask": MASK}, keep=["blocks_1_act"])
    with np.load(tmp_path / "y.npz") as written:
        assert set(written.files) == {"hidden", "pooled", "blocks_1_act"}
        for name, array in wanted.items():
            np.testing.assert_array_equal(written[name], array)
    [line] = [line for line in said.out.splitlines() if line.startswith("pooled")]
    assert line.split() == [
        "pooled",
        "1",
        "×",
        "8",
        "float16",
        *(f"{each:.6g}" for each in figures(wanted["pooled"])),
        "yes",
    ]
    [time] = [line.split() for line in said.out.splitlines() if line.startswith("linear")]
    assert time[1] == "3"
    assert float(time[2]) > 0


def figures(array: np.ndarray) -> tuple[float, float, float]:
    wide = array.astype(np.float64)
    return wide.min(), wide.max(), wide.mean()


def test_modes_reach_the_evaluator(good: Path, inputs: Path, run: Run, tmp_path: Path) -> None:
    for mode, dtype in (("float32", "float32"), ("half", "float16"), ("declared", "float16")):
        assert run("eval", good, "--inputs", inputs, "--mode", mode, "--out", tmp_path / "y.npz").code == 0
        with np.load(tmp_path / "y.npz") as written:
            assert written["hidden"].dtype == dtype


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"input_ids": IDS}, ["attention_mask (int32 (1, 6))", "given are input_ids"]),
        ({"input_ids": IDS, "attention_mask": MASK, "more": MASK}, ["takes inputs", "more"]),
        ({"input_ids": IDS[:, :5], "attention_mask": MASK}, ["input input_ids is int32 (1, 5), must be int32 (1, 6)"]),
        ({"input_ids": IDS.astype(np.int64), "attention_mask": MASK}, ["is int64 (1, 6), must be int32"]),
        ({"input_ids": np.array([object()]), "attention_mask": MASK}, ["not an .npz file of plain arrays"]),
    ],
)
def test_inputs_that_are_not_wanted(
    arrays: dict[str, Any], words: list[str], good: Path, run: Run, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    said = run("eval", good, "--inputs", tmp_path / "x.npz")
    assert said.code == 2
    [line] = said.err.splitlines()
    assert "x.npz: " in line
    assert all(word in line for word in words), line


def test_other_things_that_are_not_there(good: Path, inputs: Path, run: Run, tmp_path: Path) -> None:
    for arguments, code, word in (
        (("eval", good, "--inputs", tmp_path / "none.npz"), 2, "none.npz: No such file"),
        (("eval", good, "--inputs", good / "Manifest.json"), 2, "not an .npz file"),
        (("eval", good, "--inputs", inputs, "--function", "far"), 1, "no function 'far'; there are main"),
        (("eval", good, "--inputs", inputs, "--keep", "far"), 1, "computes no value 'far'"),
        (("eval", good, "--inputs", inputs, "--out", tmp_path / "no" / "y.npz"), 2, "y.npz: No such file"),
        (("compare", good, inputs), 2, "give --inputs, and no --where"),
        (("compare", good, inputs, "--inputs", inputs), 2, "no output in common: hidden, pooled here"),
        (("compare", good, tmp_path / "none.mlpackage"), 1, "none.mlpackage"),
    ):
        said = run(*arguments)
        assert said.code == code, (arguments, said)
        [line] = said.err.splitlines()
        assert word in line


def found(said: Said, name: str) -> float:
    line, *_ = [line for line in said.out.splitlines() if line.startswith(name)]  # then the layers, if any
    return float(line.split()[-2])


def test_compare_with_itself_shows_the_rounding(good: Path, run: Run) -> None:
    said = run("compare", good, good)
    assert said.code == 0
    assert 60 < found(said, "hidden") < 90
    assert "equal" in run("compare", good, good, "--mode", "float32").out
    by_layer = run("compare", good, good, "--where").out.splitlines()
    assert all(" dB " in line for line in by_layer if line.startswith("blocks_"))


def test_compare_finds_the_first_layer_that_parts(good: Path, broken: Path, run: Run) -> None:
    said = run("compare", broken, good, "--where")
    assert said.code == 0
    assert found(said, "pooled") < 35
    layers = [line for line in said.out.splitlines() if line.startswith(("embed", "blocks"))]
    assert [line.split()[0] for line in layers] == ["embed", "blocks_0", "blocks_1", "blocks_2"]
    [parted] = [line for line in said.out.splitlines() if line.startswith("first below 50 dB: ")]
    assert "blocks_1_mix, " in parted  # whose weights are off
    assert "first below" not in run("compare", good, good, "--where").out


def test_packages_that_do_not_take_the_same(good: Path, run: Run, tmp_path: Path) -> None:
    def build(input_ids: Any) -> Any:
        return mb.cast(x=input_ids, dtype="fp16")

    spec = [mb.TensorSpec((1, 6), types.int32)]
    program = mb.program(input_specs=spec, opset_version=ct.target.iOS16)(build)
    ct.convert(program, minimum_deployment_target=ct.target.iOS16, skip_model_load=True).save(
        str(tmp_path / "other.mlpackage")
    )
    said = run("compare", good, tmp_path / "other.mlpackage")
    assert said.code == 2
    assert "input attention_mask is int32 (1, 6) in function main, not there in function main" in said.err


def test_outputs_of_other_names_are_paired_by_shape(good: Path, inputs: Path, run: Run, tmp_path: Path) -> None:
    wanted = open_package(good).evaluate({"input_ids": IDS, "attention_mask": MASK})
    np.savez(tmp_path / "y.npz", first=wanted["pooled"], second=wanted["hidden"])
    said = run("compare", good, tmp_path / "y.npz", "--inputs", inputs)
    assert said.code == 0, said.err
    assert [line.split() for line in said.out.splitlines()[1:]] == [["hidden", "equal"], ["pooled", "equal"]]
    np.savez(tmp_path / "y.npz", first=wanted["hidden"], second=wanted["hidden"])
    assert "no output in common" in run("compare", good, tmp_path / "y.npz", "--inputs", inputs).err


def test_the_gate(good: Path, broken: Path, inputs: Path, run: Run) -> None:
    assert run("compare", broken, good, "--gate", "50").code == 1
    assert run("compare", broken, good, "--gate", "10", "--inputs", inputs).code == 0
    assert run("compare", good, good, "--gate", "50").code == 0


def test_compare_with_an_archive_of_outputs(good: Path, broken: Path, inputs: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "y.npz"
    assert run("eval", good, "--inputs", inputs, "--out", out).code == 0
    assert "equal" in run("compare", good, out, "--inputs", inputs, "--gate", "200").out
    assert run("compare", broken, out, "--inputs", inputs, "--gate", "50").code == 1


def test_what_is_not_finite_is_below_every_gate(good: Path, inputs: Path, run: Run, tmp_path: Path) -> None:
    wrong = np.full((1, 6, WIDTH), np.nan, np.float16)
    np.savez(tmp_path / "y.npz", hidden=wrong)
    said = run("compare", good, tmp_path / "y.npz", "--inputs", inputs, "--gate", "-999")
    assert said.code == 1
    assert "48 values that are not finite" in said.out


LIGHT = """
import sys
from hft2ane.cli import main
package, inputs = sys.argv[1:]
assert main(["eval", package, "--inputs", inputs, "--time"]) == 0
assert main(["compare", package, package, "--where"]) == 0
assert "coremltools" not in sys.modules and "transformers" not in sys.modules
"""


def test_neither_command_imports_the_converter(good: Path, inputs: Path) -> None:
    subprocess.run([sys.executable, "-c", LIGHT, str(good), str(inputs)], check=True, capture_output=True)
