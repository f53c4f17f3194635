"""The Mac's side: against stand-ins made of coremltools' own classes anywhere, and against Core ML itself on a Mac."""

import inspect
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import coremltools
import numpy as np
import pytest
from coremltools.models import compute_device, compute_plan
from coremltools.models.compute_plan import MLComputePlan

from hft2ane import coreml, demo, export, records, source, terminal, verify
from hft2ane.errors import EvaluationError
from hft2ane.mil import open_package
from hft2ane.mil.load import Op, load
from hft2ane.records import VARIANTS, Device, Exported, Job, Planned, Recipe, Report
from tests.conftest import Checkpoint
from tests.test_export import prepare

Array = np.ndarray[Any, Any]
Places = Callable[[Op], Device | None]  # None: the plan says nothing of it
CLASSES = {"ane": "MLNeuralEngineComputeDevice", "gpu": "MLGPUComputeDevice", "cpu": "MLCPUComputeDevice"}


def device(name: str) -> Any:
    """A device as Core ML gives it; its constructor wants a proxy of macOS."""
    return object.__new__(getattr(compute_device, CLASSES[name]))


def planned(compiled: Path, places: Places, cost: float | None) -> MLComputePlan:
    """The plan of a 'compiled' package, in coremltools' dataclasses behind its own class. It lists all functions, and
    says something of the default one's operations only, nothing of compressed constants."""
    package = load(compiled)

    def structure(op: Op) -> Any:
        names = [compute_plan.MLModelStructureProgramNamedValueType(each.name, None) for each in op.outputs]
        return compute_plan.MLModelStructureProgramOperation({}, f"ios16.{op.type}", names, [], op)

    blocks = {
        name: compute_plan.MLModelStructureProgramBlock([], [structure(op) for op in function.ops], [])
        for name, function in package.functions.items()
    }
    known = {id(op) for op in package.functions[package.default].ops if not op.type.startswith("constexpr_")}

    def usage(operation: Any) -> Any:
        op: Op = operation.__proxy__
        place = places(op) if id(op) in known else None
        return place and compute_plan.MLComputePlanDeviceUsage(device(place), [device(place)])

    plan: MLComputePlan = object.__new__(MLComputePlan)
    plan.__proxy__ = SimpleNamespace(
        model_structure=compute_plan.MLModelStructure(
            None,
            compute_plan.MLModelStructureProgram(
                {name: compute_plan.MLModelStructureProgramFunction([], block) for name, block in blocks.items()}
            ),
            None,
        ),
        get_compute_device_usage_for_mlprogram_operation=usage,
        get_estimated_cost_for_mlprogram_operation=lambda _: cost and compute_plan.MLComputePlanCost(cost),
    )
    return plan


Mac = Callable[..., None]


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Mac:
    """Makes this machine a Mac: every call is checked against coremltools' signatures, and computed as we do."""
    real_model, real_load = coremltools.models.MLModel, MLComputePlan.load_from_path

    def opened(model: str, is_temp: bool = False, **options: Any) -> Any:
        assert Path(model, "Manifest.json").is_file()
        program = open_package(Path(model))
        fake = create_autospec(real_model, instance=True)

        def predict(data: Mapping[str, Array], state: None = None) -> dict[str, Array]:
            assert {value.dtype for value in data.values()} == {np.dtype(np.int32)}
            return program.evaluate(data, options["function_name"])

        fake.predict.side_effect = predict
        return fake

    def compile_model(model: str, destination_path: str) -> str:
        assert model.endswith(".mlpackage")
        assert destination_path.endswith(".mlmodelc")
        return str(shutil.copytree(model, destination_path))

    def make(
        places: Places = lambda op: "ane",
        cost: float | None = 0.01,
        devices: Sequence[str] = ("cpu", "ane"),
        system: str = "15.5",
    ) -> None:
        def load_from_path(*args: Any, **options: Any) -> MLComputePlan:
            given = inspect.signature(real_load).bind(*args, **options).arguments
            assert given["compute_units"] is coremltools.ComputeUnit.CPU_AND_NE
            return planned(Path(given["path"]), places, cost)

        fake = create_autospec(real_model, side_effect=opened)
        fake.get_available_compute_devices.return_value = [device(each) for each in devices]
        monkeypatch.setattr(coreml, "available", lambda: True)
        monkeypatch.setattr(coreml, "host", lambda: f"Apple M9, macOS {system} (24F74)")
        monkeypatch.setattr(coreml.platform, "mac_ver", lambda: (system, ("", "", ""), "arm64"))
        monkeypatch.setattr(coremltools.models, "MLModel", fake)
        monkeypatch.setattr(
            coremltools.models.utils,
            "compile_model",
            create_autospec(coremltools.models.utils.compile_model, side_effect=compile_model),
        )
        monkeypatch.setattr(MLComputePlan, "load_from_path", staticmethod(load_from_path))

    return make


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder with one package of two lengths."""
    folder = prepare(tmp_path_factory.mktemp("coreml") / "job", checkpoint(), lengths=(8, 16))
    export.export(folder)
    return folder


@pytest.fixture
def job(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "job")


@pytest.fixture
def package(exported: Path) -> Path:
    (made,) = records.read(exported / "export.json", Exported).packages
    return exported / made.file


# --- what is called ---


def test_the_devices_are_those_of_coremltools() -> None:
    for name, class_ in CLASSES.items():
        assert issubclass(getattr(compute_device, class_), compute_device.MLComputeDevice)
        assert coreml.device_of(device(name)) == name
    assert set(coreml.DEVICES) == {
        name for name in vars(compute_device) if name.startswith("ML") and name != "MLComputeDevice"
    }
    assert coreml.device_of(object()) == "unknown"


def test_one_function_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = create_autospec(coremltools.models.MLModel)
    monkeypatch.setattr(coremltools.models, "MLModel", model)
    coreml.Runner(tmp_path, "main", "CPU_AND_NE")
    model.assert_called_once_with(str(tmp_path), compute_units=coremltools.ComputeUnit.CPU_AND_NE, function_name=None)


def test_what_core_ml_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """coremltools only warns, and its `predict` would fail later in other words."""

    def refuse(*_: Any, **__: Any) -> Any:
        coremltools.models.model._warnings.warn("Underlying exception message was: no such op", RuntimeWarning)

    monkeypatch.setattr(coremltools.models, "MLModel", refuse)
    with pytest.raises(EvaluationError, match=r"does not load x\.mlpackage \(main\) on CPU_ONLY: .*no such op"):
        coreml.Runner(tmp_path / "x.mlpackage", "main", "CPU_ONLY")


@pytest.mark.parametrize(
    ("devices", "units"), [(("cpu", "gpu", "ane"), ("CPU_ONLY", "CPU_AND_NE")), (("cpu", "gpu"), ("CPU_ONLY",))]
)
def test_without_an_engine_nothing_is_called_the_engine_s(devices: Any, units: Any, mac: Mac) -> None:
    mac(devices=devices)
    assert coreml.units() == units
    assert {unit.name for unit in coremltools.ComputeUnit} > set(units)


@pytest.mark.parametrize(("system", "there"), [("14.3", False), ("14.4", True), ("15.0.1", True), ("26.1", True)])
def test_plans_are_there_from_macos_14_4_on(system: str, there: bool, mac: Mac) -> None:
    mac(system=system)
    assert coreml.has_plans() is there


def test_a_latency_is_taken_warm(package: Path, monkeypatch: pytest.MonkeyPatch, mac: Mac) -> None:
    """On a clock that stands still but for the predictions, the first of which are slower."""
    mac()
    clock = [0.0]
    monkeypatch.setattr(coreml.time, "perf_counter", lambda: clock[0])
    runner, calls = coreml.Runner(package, "tokens_8", "CPU_AND_NE"), [0]
    predict = runner.model.predict.side_effect

    def slow(data: Any, state: None = None) -> Any:
        calls[0] += 1
        clock[0] += 9.0 if calls[0] <= coreml.WARM_UP else 0.001 * calls[0]
        return predict(data)

    runner.model.predict.side_effect = slow
    inputs = {name: np.ones((1, 8), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    found = runner.latency("float16", inputs)
    timed = range(coreml.WARM_UP + 1, coreml.WARM_UP + coreml.ROUNDS + 1)
    assert calls[0] == timed[-1]
    assert (found.median_ms, found.least_ms) == (pytest.approx(np.median(timed)), pytest.approx(timed[0]))
    assert (found.variant, found.function, found.unit) == ("float16", "tokens_8", "CPU_AND_NE")
    assert (found.warm_up, found.rounds, found.load_s) == (coreml.WARM_UP, coreml.ROUNDS, 0)


# --- the plan ---


def test_a_plan_has_every_function_and_operation(package: Path, mac: Mac) -> None:
    """Core ML's is for the default function, so each is made that in a copy; the package stays as it is."""
    mac(lambda op: "cpu" if op.type == "gather" else "gpu" if op.type == "gelu" else "ane", cost=0.25)
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    plan = coreml.plan(package, ["tokens_8", "tokens_16"])
    assert {path: path.read_bytes() for path in package.rglob("*") if path.is_file()} == before
    expected = {
        (name, op.outputs[0].name): Planned({"gather": "cpu", "gelu": "gpu"}.get(op.type, "ane"), 0.25)
        for name, function in load(package).functions.items()
        for op in function.ops
    }
    assert plan == expected


def test_what_a_plan_says_nothing_of_is_not_in_it(package: Path, mac: Mac) -> None:
    mac(lambda op: None if op.type == "cast" else "ane", cost=None)
    plan = coreml.plan(package, ["tokens_8"])
    types = {op.outputs[0].name: op.type for op in load(package).functions["tokens_8"].ops}
    assert {types[value] for _, value in plan} == set(types.values()) - {"cast"}
    assert {each.cost for each in plan.values()} == {None}


def test_a_package_that_core_ml_does_not_compile(package: Path, mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    mac()

    def fail(model: str, destination_path: str) -> str:
        raise RuntimeError("ANECCompile() FAILED")

    monkeypatch.setattr(coremltools.models.utils, "compile_model", fail)
    with pytest.raises(EvaluationError, match=r"no plan for .*\.mlpackage \(tokens_8\): ANECCompile\(\) FAILED"):
        coreml.plan(package, ["tokens_8"])


# --- the report ---


def test_the_report_of_a_mac(job: Path, mac: Mac, capsys: pytest.CaptureFixture[str]) -> None:
    """Gather is predicted on the CPU and planned there; of gelu the prediction is wrong."""
    mac(lambda op: "cpu" if op.type in ("gather", "gelu") else "ane")
    report = verify.verify(job)
    assert report == records.read(job / "report.json", Report)
    _, ours, *core_ml = report.fidelity
    assert [bar.backend for bar in core_ml] == ["coreml-CPU_ONLY", "coreml-CPU_AND_NE"]
    assert all(bar.measures == ours.measures and bar.gate == ours.gate for bar in core_ml)
    assert report.mac == "Apple M9, macOS 15.5 (24F74)"
    assert report.not_measured == ("memory",)
    assert [(each.variant, each.unit, each.function) for each in report.latency] == [
        ("float16", unit, f"tokens_{n}") for unit in ("CPU_ONLY", "CPU_AND_NE") for n in (8, 16)
    ]
    assert all(0 < each.least_ms <= each.median_ms for each in report.latency)
    (linted,) = report.lint
    for placed in linted.placed:
        assert placed.measured
        assert placed.measured.ops == placed.ops
        cpu = sum(op.type in ("gather", "gelu") for op in load(job / linted.package).functions[placed.function].ops)
        assert placed.measured.share_of_ops["cpu"] == pytest.approx(cpu / placed.ops, abs=1e-6)
        assert placed.measured.share_of_cost == placed.measured.share_of_ops  # the stand-in's costs are all the same
        assert placed.measured.share_of_work["cpu"] < placed.measured.share_of_ops["cpu"]
    rows = [(row.rule, row.type, row.predicted, row.measured, row.ops) for row in linted.calibration]
    types = [op.type for function in load(job / linted.package).functions.values() for op in function.ops]
    assert ("gather-entry", "gather", "cpu", "cpu", types.count("gather")) in rows
    assert ("", "gelu", "ane", "cpu", types.count("gelu")) in rows
    agree = [predicted == measured for _, _, predicted, measured, _ in rows]
    assert agree == sorted(agree)
    assert sum(row.ops for row in linted.calibration) == sum(placed.ops for placed in linted.placed)
    kept = {(verdict.type, verdict.predicted, verdict.measured) for verdict in linted.verdicts}
    assert ("gelu", "ane", "cpu") in kept
    assert not [each for each in kept if each[1:] == ("ane", "ane")]
    terminal.show_report(report)
    told = capsys.readouterr().out
    for words in ("Apple M9", "CPU_AND_NE", "predicted and measured", "gather-entry", "measured"):
        assert words in told


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"devices": ("cpu", "gpu")}, "the Neural Engine: Core ML finds none"),
        ({"system": "14.2"}, "Core ML tells it from macOS 14.4 on"),
        ({"places": lambda op: None}, "(tokens_8): the compute plan knows none of its operations"),
    ],
)
def test_what_a_mac_cannot_measure_is_said(settings: dict[str, Any], words: str, job: Path, mac: Mac) -> None:
    mac(**settings)
    report = verify.verify(job)
    assert any(words in line for line in report.not_measured), report.not_measured
    assert "memory" in report.not_measured
    assert all(placed.measured is None for placed in report.lint[0].placed)
    assert report.lint[0].calibration == ()
    assert report.latency


def test_a_report_of_before_is_still_read(job: Path) -> None:
    verify.verify(job)
    document = json.loads((job / "report.json").read_text())
    for added in ("mac", "latency"):
        del document[added]
    for linted in document["lint"]:
        del linted["calibration"], linted["settings"]["enumerated"]
        for placed in linted["placed"]:
            del placed["measured"]
    assert records.parse(json.dumps(document), Report, "report.json").mac == ""


# --- Core ML itself ---


@pytest.mark.mac
@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML is on macOS only")
@pytest.mark.parametrize("lengths", [(32,), (16, 64)])
def test_core_ml_runs_what_we_export(lengths: tuple[int, ...], tmp_path: Path) -> None:
    """Every variant compiles, loads, is within its gate on each unit that there is, and is planned and timed."""
    job = Job("create", "a test", demo.MODELS[0].id, "me/mac", recipe=Recipe(lengths=lengths, variants=VARIANTS[:4]))
    records.write(tmp_path / "job.json", job)
    source.take(tmp_path, demo.obtain(demo.MODELS[0]), job.id)
    export.export(tmp_path)
    report = verify.verify(tmp_path)
    terminal.show_report(report)
    units = coreml.units()
    assert {(bar.what, bar.backend) for bar in report.fidelity} >= {
        (variant, f"coreml-{unit}") for variant in VARIANTS[:4] for unit in units
    }
    assert len(report.latency) == 4 * len(units) * len(lengths)
    assert all(0 < each.least_ms <= each.median_ms for each in report.latency)
    if coreml.has_engine() and coreml.has_plans():
        measured = [placed.measured for linted in report.lint for placed in linted.placed]
        assert all(each is not None and each.ops > 0 for each in measured), report.not_measured
