"""Measuring, with stand-ins for Core ML (see standin_coreml.py) on any machine, and with Core ML itself on a Mac."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from hft2ane import card, coreml, demo, export, measure, measurements, records, source, verify
from hft2ane.cli import main
from hft2ane.cli.steps import on_a_mac
from hft2ane.coreml import process
from hft2ane.errors import BadInput, GateFailed
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.mil.load import load
from hft2ane.publish import publish
from hft2ane.records.job import Job
from hft2ane.records.mac import UNITS, Measurement
from hft2ane.records.package import Exported
from hft2ane.records.recipe import VARIANTS, Recipe
from hft2ane.records.release import Conversion, Report
from hft2ane.records.source import RemoteFile, Source
from tests.conftest import Checkpoint
from tests.standin_coreml import MAC, Inside, Settings, install
from tests.test_export import prepare

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
REPO = "me/tiny-ane"


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """This machine is as a Mac with the stand-ins in Core ML's place."""
    settings = Settings()
    monkeypatch.setattr(Inside, "settings", settings)
    monkeypatch.setattr(process, "Child", Inside)
    monkeypatch.setattr(coreml, "available", lambda: True)
    install(monkeypatch.setattr, settings)
    return settings


@pytest.fixture(scope="module")
def verified(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder with one package of two lengths, and the report of this machine."""
    folder = prepare(tmp_path_factory.mktemp("measure") / "job", checkpoint(), lengths=(8, 16))
    export.export(folder)
    verify.verify(folder)
    return folder


@pytest.fixture
def job(verified: Path, tmp_path: Path) -> Path:
    return shutil.copytree(verified, tmp_path / "job")


def made(folder: Path) -> Path:
    (package,) = records.read(folder / "export.json", Exported).packages
    return folder / package.file


# ---- a job's folder


def test_the_report_of_a_mac(job: Path, mac: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Gather is predicted on the CPU and planned there; of gelu the prediction is wrong."""
    mac.places |= {"gather": "cpu", "gelu": "cpu"}
    mac.could = ("gelu",)
    before = records.read(job / "report.json", Report)
    report = on_a_mac(job, lambda what, share: None)
    assert report == records.read(job / "report.json", Report)
    assert report is not None
    (found,) = report.macs
    assert (report.fidelity, report.lint, report.failures) == (before.fidelity, before.lint, ())
    assert report.not_measured == ()
    assert report.verify_key != before.verify_key
    assert (found.mac, found.units, found.repo, found.unfinished) == (MAC, UNITS, REPO, ())
    _, ours = before.fidelity
    assert [bar.backend for bar in found.fidelity] == [f"coreml {unit}" for unit in UNITS]
    assert all(bar.measures == ours.measures and bar.gate == ours.gate for bar in found.fidelity)
    assert [(each.function, each.unit) for each in found.latency] == [
        (f"tokens_{n}", unit) for n in (8, 16) for unit in UNITS
    ]
    assert all(0 < each.least_ms <= each.median_ms <= each.p90_ms and each.rounds >= 20 for each in found.latency)
    (residency,) = found.residency
    functions = load(made(job)).functions
    for placed in residency.placed:
        ops = [op.type for op in functions[placed.function].ops]
        assert placed.measured
        assert placed.measured.ops == placed.ops == len(ops)
        cpu = ops.count("gather") + ops.count("gelu")
        assert placed.measured.share_of_ops["cpu"] == pytest.approx(cpu / len(ops), abs=1e-6)
        assert placed.measured.share_of_cost == placed.measured.share_of_ops  # the stand-in's costs are all the same
        assert placed.measured.share_of_work["cpu"] < placed.measured.share_of_ops["cpu"]
        off = [each for each in residency.off if each.function == placed.function]
        assert sum(each.count for each in off) == cpu
        assert sum(each.cost or 0 for each in off) == pytest.approx(0.01 * cpu)
    whys = {(each.type, each.predicted, each.supported): each.why for each in residency.off}
    assert whys["gelu", "ane", ("ane", "cpu", "gpu")] == f"{measure.SUPPORTED}; no rule of the linter foresaw it"
    assert whys["gather", "cpu", ("cpu", "gpu")].startswith(f"{measure.UNSUPPORTED}; gather-entry: ")
    rows = [(row.rule, row.type, row.predicted, row.measured) for row in residency.calibration]
    assert {("gather-entry", "gather", "cpu", "cpu"), ("", "gelu", "ane", "cpu")} <= {*rows}
    assert list(measurements.faults(found)) == []
    assert json.loads((job / "measurements" / "apple-m9-24F74.json").read_text())["mac"]["build"] == "24F74"
    assert main(["measurements", "--from", str(job.parent / "none")]) == 0
    from hft2ane.terminal.report import show_report

    capsys.readouterr()
    show_report(report)
    told = capsys.readouterr().out
    for words in ("Apple M9", "CPU_AND_NE", "predicted and measured", "gather-entry", "not on the engine", "peak MB"):
        assert words in told


def test_the_card_says_what_a_mac_measured(job: Path, mac: Settings) -> None:
    mac.places["gather"] = "cpu"
    measure.into(job)
    release = card.write(job)
    text = (release / "README.md").read_text()
    section = text.split("### Measured with Core ML")[1].split("\n### ")[0]
    assert "On Apple M9, macOS 15.5 (24F74)." in section
    assert re.search(r"\| Apple M9 \(24F74\) \| float16 \| `tokens_8` \| `CPU_AND_NE` \| \d+\.\d \|", section)
    assert "| Apple M9 (24F74) | float16 | `gather` |" in section
    conversion = records.read(release / "conversion.json", Conversion)
    (found,) = records.read(release / "reports" / "report.json", Report).macs
    assert conversion.macs == measurements.named([found])
    assert conversion.verify_key == records.read(job / "report.json", Report).verify_key


def test_what_does_not_finish_is_told_and_the_rest_is_measured(job: Path, mac: Settings) -> None:
    mac.hang, mac.refuse = ("CPU_AND_NE",), {"ALL": "MLIR pass manager failed"}
    report = measure.into(job)
    (found,) = report.macs
    assert [bar.backend for bar in found.fidelity] == ["coreml CPU_ONLY", "coreml CPU_AND_GPU"]
    assert {each.unit for each in found.latency} == {"CPU_ONLY", "CPU_AND_GPU"}
    late = [each for each in found.unfinished if each.unit == "CPU_AND_NE"]
    assert [(each.doing, each.function) for each in late] == [
        ("load and time", "tokens_8"),
        ("load and time", "tokens_16"),
        ("predict", "tokens_8"),
        ("plan", "tokens_8"),
        ("plan", "tokens_16"),
    ]
    first, second, *more = [each.why for each in late]
    assert first == second == "open did not finish in 600 s on CPU_AND_NE"
    assert set(more) == {"not asked, since CPU_AND_NE had not answered in time 2 times before"}
    refused = [each.why for each in found.unfinished if each.unit == "ALL"]
    assert set(refused) == {"open on ALL: RuntimeError: MLIR pass manager failed"}
    assert any("float16 tokens_8: open did not finish in 600 s on CPU_AND_NE" in line for line in report.not_measured)
    assert report.failures == ()
    assert list(measurements.faults(found)) == []
    assert "did not finish" in measurements.table([found])
    assert not list(job.glob("measure-*"))


def test_core_ml_s_results_are_held_to_the_gate(job: Path, mac: Settings) -> None:
    mac.noise["CPU_AND_GPU"] = 0.1
    with pytest.raises(
        GateFailed, match=r"on Apple M9, macOS 15\.5 \(24F74\): float16 \(coreml CPU_AND_GPU\): .* gate"
    ):
        measure.into(job)
    report = records.read(job / "report.json", Report)
    assert report.failures == report.macs[0].failures
    least = {bar.backend: bar.psnr_min for bar in report.macs[0].fidelity}
    assert least["coreml CPU_AND_GPU"] < 50 < least["coreml CPU_AND_NE"]
    with pytest.raises(GateFailed):
        card.write(job)


@pytest.mark.parametrize(
    ("settings", "units", "words"),
    [
        (
            {"devices": ("cpu", "gpu")},
            ("CPU_ONLY", "CPU_AND_GPU"),
            "the Neural Engine: there is none for Core ML on this Mac",
        ),
        ({"mac": replace(MAC, model="VirtualMac2,1")}, ("CPU_ONLY",), "the GPU: this Mac is virtual"),
        ({"mac": replace(MAC, macos="14.2")}, UNITS, "Core ML tells it from macOS 14.4 on"),
        ({"silent": True}, UNITS, "of float16 (tokens_8): the compute plan knows none of its operations"),
    ],
)
def test_what_a_mac_cannot_measure_is_said(
    settings: dict[str, Any], units: Any, words: str, job: Path, mac: Settings
) -> None:
    if settings.pop("silent", False):
        mac.places |= {op.type: None for function in load(made(job)).functions.values() for op in function.ops}
    for name, value in settings.items():
        setattr(mac, name, value)
    host, there = measure.look()
    assert there == units
    found = measure.measure(job, host, there[:2])
    assert any(words in line for line in found.not_measured), found.not_measured
    assert all(placed.measured is None for each in found.residency for placed in each.placed)
    assert {each.unit for each in found.latency} == {*there[:2]}
    assert list(measurements.faults(found)) == []


def test_a_package_that_is_another_is_not_measured(job: Path, mac: Settings) -> None:
    weights = next(made(job).rglob("weight.bin"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(BadInput, match="is not the package that export.json describes"):
        measure.into(job)


def test_units_that_are_not_there(mac: Settings) -> None:
    mac.devices = ("cpu", "gpu")
    assert measure.look(["CPU_AND_GPU"])[1] == ("CPU_AND_GPU",)
    with pytest.raises(BadInput, match="CPU_AND_NE cannot be measured on this Mac: it has CPU_ONLY, CPU_AND_GPU"):
        measure.look(["CPU_AND_NE"])


# ---- the command


def test_elsewhere_than_on_a_mac_there_is_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    if sys.platform != "darwin":
        assert main(["measure", "someone/nothing"]) == 2
        told = capsys.readouterr().err
        assert told.startswith("hft2ane: Core ML is on macOS only")
        assert told.count("\n") == 1


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


def test_a_published_release(
    verified: Path,
    checkpoint: Checkpoint,
    local: LocalHub,
    mac: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Downloaded from a real Hub with its original, measured by the stand-ins, and merged again without an export."""
    commit, hub = local.add("someone/tiny", checkpoint()), Hub(local.url, local.token)
    folder = shutil.copytree(verified, tmp_path / "job")
    found = hub.look("someone/tiny", commit)
    before = records.read(folder / "job.json", Job)
    chosen = tuple(each for each in found.files if each.path in {file.path for file in source_of(folder)})
    records.write(folder / "job.json", replace(before, commit=commit, files=chosen, license="mit"))
    records.write(
        folder / "source.json",
        replace(records.read(folder / "source.json", Source), commit=commit, files=chosen),
    )
    card.write(folder)
    assert publish(folder, hub).tag == "v1"
    monkeypatch.setenv("HF_ENDPOINT", local.url)
    monkeypatch.chdir(tmp_path)
    assert main(["measure", f"{REPO}@v1", "--units", "CPU_ONLY,CPU_AND_NE", "--work", "downloads"]) == 0
    told = capsys.readouterr().out
    path = Path("measurements/me--tiny-ane/apple-m9-24F74.json")
    assert re.search(rf"\| Apple M9 \| 15\.5 \(24F74\) \| {REPO} \| float16 \| tokens_8 \|", told)
    assert f"git add {path} && git commit --message 'measurements: {REPO} on Apple M9, macOS 15.5 (24F74)'" in told
    assert len(re.findall(r"^  (git|gh) ", told, re.MULTILINE)) == 3
    (measured,) = measurements.read_all(Path("measurements"))
    assert measured == records.read(path, Measurement)
    assert measured.units == ("CPU_ONLY", "CPU_AND_NE")
    key = records.read(folder / "report.json", Report).verify_key
    assert main(["measurements", "--merge", str(folder)]) == 0
    merged = records.read(folder / "report.json", Report)
    assert merged.macs == (measured,)
    assert merged.verify_key != key
    records.write(path, replace(measured, packages={"float16": "0" * 64}))
    assert main(["measurements", "--merge", str(folder)]) == 2
    assert "none of the 1 measurements is of the packages" in capsys.readouterr().err


def source_of(folder: Path) -> tuple[RemoteFile, ...]:
    return records.read(folder / "source.json", Source).files


def test_nothing_that_could_be_measured_is_an_error(
    job: Path, mac: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(job)
    mac.hang = UNITS
    assert main(["measure", ".", "--timeout", "5"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "hft2ane: nothing could be measured: open did not finish in 5 s on CPU_ONLY\n"
    assert not Path("measurements").exists()


def test_a_package_alone(verified: Path, mac: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no original to hold it to, so it is held to itself in float32; it is nothing to contribute."""
    mac.noise["CPU_AND_GPU"] = 0.1
    assert main(["measure", str(made(verified)), "--json", str(tmp_path / "x.json")]) == 0
    assert "contribute" not in capsys.readouterr().out
    found = records.read(tmp_path / "x.json", Measurement)
    assert (found.repo, found.protocol) == ("", measure.ALONE)
    least = {bar.backend: bar.psnr_min for bar in found.fidelity}
    assert least["coreml CPU_AND_GPU"] < 40 < least["coreml CPU_ONLY"] < 300
    assert {measured.length for bar in found.fidelity for measured in bar.measures} == {8, 16}
    assert len(found.latency) == 2 * len(UNITS)
    assert found.residency


@pytest.mark.parametrize("target", ["nothing.mlpackage", "."])
def test_targets_that_are_none(
    target: str, mac: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["measure", target]) in (1, 2)
    assert capsys.readouterr().err.startswith("hft2ane: ")


# ---- Core ML itself


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
    verify.verify(tmp_path)
    (found,) = measure.into(tmp_path).macs
    assert found.unfinished == ()
    assert list(measurements.faults(found)) == []
    assert {(bar.what, bar.backend) for bar in found.fidelity} == {
        (variant, f"coreml {unit}") for variant in VARIANTS[:4] for unit in found.units
    }
    assert len(found.latency) == 4 * len(found.units) * len(lengths)
    host, _ = measure.look()
    if "ane" in host.devices and host.has_plans:
        measured = [placed.measured for each in found.residency for placed in each.placed]
        assert len(measured) == 4 * len(lengths)
        assert all(each is not None and each.ops > 0 for each in measured), found.not_measured
