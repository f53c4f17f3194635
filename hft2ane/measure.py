"""What Core ML does with a release's packages on this Mac: its results, where it computes, how long it takes.

Each measurement is a process of its own with a time-out. What does not finish is part of the result, with the reason.
The gates stand in a job's folder as they do for `verify`; a published release is measured, and nothing of it judged.
"""

import contextlib
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hft2ane import coreml, disk, keys, measurements, package, records, source, verify
from hft2ane.coreml import Compiled, Host
from hft2ane.errors import BadInput, GateFailed, NotInTime, NotMeasured
from hft2ane.hub import Hub
from hft2ane.mil import open_package
from hft2ane.mil.compare import sample_inputs
from hft2ane.mil.lint import lint
from hft2ane.mil.lint.report import pattern
from hft2ane.progress import Progress, silent
from hft2ane.psnr import Deviation, cosine, deviation
from hft2ane.records.fidelity import Fidelity, Greedy, Measure
from hft2ane.records.job import Job
from hft2ane.records.lint import Lint, Plan, Verdict
from hft2ane.records.mac import ENGINE, Doing, Latency, Measurement, Off, Residency, Unfinished, Unit
from hft2ane.records.package import Exported, Package
from hft2ane.records.release import Conversion, Report
from hft2ane.reference import Tokenizer, load
from hft2ane.rewrite import rewrite
from hft2ane.verify import Bar

Array = np.ndarray[Any, Any]

ALONE = "random ids, against the package in float32"  # the protocol of a package without its original
ONLY_MACOS = (
    "Core ML is on macOS only, so nothing can be measured here: run this on a Mac with Apple silicon. What is known "
    "without one: hft2ane verify, hft2ane lint"
)
SHARE = "share of operations on the Neural Engine"
NO_ENGINE = "the Neural Engine: there is none for Core ML on this Mac"
VIRTUAL = "the Neural Engine and the GPU: this Mac is virtual, without the one and with a stand-in for the other"
NO_PLAN = f"{SHARE}: Core ML tells it from macOS 14.4 on"
SUPPORTED = "Core ML could run it on the engine and prefers not to"
UNSUPPORTED = "Core ML does not support it on the engine"
# After so many answers that did not come, a unit is asked nothing more: with a service of Apple's that hangs, each
# question costs the whole time-out, and a build has two hours for all of them.
LATE = 2


def look(units: Sequence[Unit] = (), timeout: float = coreml.TIMEOUT) -> tuple[Host, tuple[Unit, ...]]:
    """This Mac, and those of the units, by default all, that can be measured on it. BadInput: none; NotMeasured."""
    if not coreml.available():
        raise BadInput(ONLY_MACOS)
    with tempfile.TemporaryDirectory() as folder:
        host = coreml.probe(Path(folder), timeout)
    if missing := [unit for unit in units if unit not in host.units]:
        raise BadInput(f"{missing[0]} cannot be measured on this Mac: it has {', '.join(host.units)}")
    return host, tuple(unit for unit in host.units if not units or unit in units)


def take(folder: Path, repo: str, revision: str, hub: Hub, progress: Progress = silent) -> None:
    """A published release, and the original it was made from, as a job's folder; every file checked by its digest.

    BadInput: its record is not readable, or names no commit of the Hub. ModelNotFound, CorruptFile, HubUnavailable."""
    disk.clear(folder, keep="source")
    source.take_published(folder, hub, repo, lambda what, share: progress(what, 0.1 * share), revision)
    record = records.read(folder / "previous" / "conversion.json", Conversion)
    origin = record.source
    if origin.commit == "local":
        raise BadInput(
            f"{repo}@{revision} was made from a folder of somebody's machine: there is nothing to hold it to"
        )
    job = Job("convert", "measure", origin.id, repo, origin.commit, origin.files, record.recipe, license=record.license)
    records.write(folder / "job.json", job)
    source.take_packages(folder, hub, repo, lambda what, share: progress(what, 0.1 + 0.4 * share), revision)
    source.fetch(folder, hub, lambda what, share: progress(what, 0.5 + 0.5 * share))


def measure(
    folder: Path,
    host: Host,
    units: Sequence[Unit],
    progress: Progress = silent,
    timeout: float = coreml.TIMEOUT,
) -> Measurement:
    """The packages of a job's folder. BadInput: they are not those that its export.json describes."""
    started = time.monotonic()
    job, exported = records.read(folder / "job.json", Job), records.read(folder / "export.json", Exported)
    for each in exported.packages:
        if package.digest(folder / each.file) != each.digest:
            raise BadInput(f"{folder / each.file} is not the package that export.json describes: export or fetch again")
    progress("load the original", 0.0)
    with tempfile.TemporaryDirectory(prefix="measure-", dir=folder) as work:
        asking = Asking(folder, Path(work), host, units, timeout, progress)
        latency, compiled = [], {}
        for each in exported.packages:
            if made := asking.compile(each.what, folder / each.file):
                compiled[each.what] = made
        comparing = Comparing(asking, job, exported, compiled)
        for each in comparing.packages:
            for function in each.functions:
                inputs = comparing.example(each, function.length)
                latency += asking.time(each.what, compiled[each.what], function.name, inputs)
        fidelity = comparing.fidelity()
        greedy = comparing.texts()
        residency = [
            asking.residency(each.what, folder / each.file, [function.name for function in each.functions])
            for each in exported.packages
        ]
    progress("measured", 1.0)
    return asking.measurement(
        job.repo,
        keys.PROTOCOL,
        measurements.digests(exported.packages),
        fidelity,
        latency,
        [each for each in residency if each],
        started,
        greedy,
        comparing.failures,
    )


def measure_package(
    path: Path, host: Host, units: Sequence[Unit], progress: Progress = silent, timeout: float = coreml.TIMEOUT
) -> Measurement:
    """A package of which nothing is known but itself: it is held against its own float32 evaluation, on random ids."""
    started, program = time.monotonic(), open_package(path)
    names = list(program.functions)
    what = path.stem
    fidelity: list[Fidelity] = []
    latency: list[Latency] = []
    with tempfile.TemporaryDirectory(prefix="measure-") as work:
        asking = Asking(path.parent, Path(work), host, units, timeout, progress)
        compiled = asking.compile(what, path)
        if compiled is not None:
            samples = {name: sample_inputs(program.function(name)) for name in names}
            for name in names:
                latency += asking.time(what, compiled, name, samples[name][0])
            expected = {
                name: [program.evaluate(sample, name, mode="float32") for sample in samples[name]] for name in names
            }
            fidelity = [bar for unit in units if (bar := alike(asking, what, compiled, unit, samples, expected))]
        residency = asking.residency(what, path, names)
    progress("measured", 1.0)
    return asking.measurement(
        "", ALONE, {what: package.digest(path)}, fidelity, latency, [residency] if residency else [], started
    )


def alike(
    asking: "Asking",
    what: str,
    compiled: Compiled,
    unit: Unit,
    samples: Mapping[str, Sequence[Mapping[str, Array]]],
    expected: Mapping[str, Sequence[Mapping[str, Array]]],
) -> Fidelity | None:
    """One bar; its `length` is that of the last axis but one, or of the last, as nothing says what the tokens are."""
    measures = []
    for name, rows in samples.items():
        with asking.trying("predict", what, name, unit), asking.running(compiled, name, unit) as run:
            got = [run(row) for row in rows]
            for output in expected[name][0]:
                pairs = [(answer[output], values[output]) for answer, values in zip(expected[name], got, strict=True)]
                measures.append(measured(output, rows[0], pairs))
    if not measures:
        return None
    least = min(each.psnr_min for each in measures)
    median = round(statistics.median(each.psnr_median for each in measures), 2)
    return Fidelity(what, f"coreml {unit}", 0.0, least, least, median, None, tuple(measures))


def measured(output: str, inputs: Mapping[str, Array], pairs: Sequence[tuple[Array, Array]]) -> Measure:
    """One output on all rows. NotMeasured: it has another shape, or is not finite."""
    try:
        of = [deviation(answer.astype(np.float32), got.astype(np.float32)) for answer, got in pairs]
    except ValueError as err:
        raise NotMeasured(f"{output}: {err}") from err
    figures = [verify.capped(each) for each in of]
    together = verify.capped(sum(of, Deviation(0, 0, 0)))
    return Measure(
        output=output,
        length=max(value.shape[-1] for value in inputs.values()),
        inputs="random ids",
        rows=len(pairs),
        psnr=round(together, 2),
        psnr_min=round(min(figures), 2),
        psnr_median=round(statistics.median(figures), 2),
        cosine_min=round(min(cosine(answer, got) for answer, got in pairs), 7),
        top1=None,
        worst="",
    )


def into(folder: Path, progress: Progress = silent) -> Report:
    """Measures a verified job's packages on this Mac, and merges that into its report.json. GateFailed."""
    host, units = look()
    found = measure(folder, host, units, progress)
    records.write(folder / "measurements" / measurements.name(found.mac), found)
    report = measurements.merge_into(folder, [found])
    if found.failures:
        report = replace(report, failures=(*report.failures, *found.failures))
        records.write(folder / "report.json", report)
        raise GateFailed(f"on {found.mac}: {found.failures[0]}")
    return report


class Asking:
    """Core ML on this Mac, one question after another, so that nothing runs beside what is timed. What is not answered
    is in `unfinished`."""

    def __init__(
        self, folder: Path, work: Path, host: Host, units: Sequence[Unit], timeout: float, progress: Progress
    ) -> None:
        self.folder, self.work, self.host, self.units = folder, work, host, units
        self.timeout, self.progress = timeout, progress
        self.unfinished: list[Unfinished] = []
        self.late: Counter[str] = Counter()  # by unit, "" for what is of none

    @contextlib.contextmanager
    def trying(
        self, doing: Doing, variant: str = "", function: str = "", unit: Unit | Literal[""] = ""
    ) -> Iterator[None]:
        try:
            yield
        except NotMeasured as err:
            self.late[unit] += isinstance(err, NotInTime)
            self.unfinished.append(Unfinished(variant, function, unit, doing, str(err)))

    def answering(self, unit: Unit | Literal[""]) -> None:
        """NotMeasured: it seems to hang."""
        if self.late[unit] >= LATE:
            raise NotMeasured(f"not asked, since {unit or 'Core ML'} had not answered in time {LATE} times before")

    @contextlib.contextmanager
    def running(self, compiled: Compiled, function: str, unit: Unit) -> Iterator[coreml.Runner]:
        """NotMeasured."""
        self.answering(unit)
        with contextlib.closing(coreml.Runner(compiled, function, unit, self.work, self.timeout)) as runner:
            yield runner

    def compile(self, what: str, path: Path) -> Compiled | None:
        self.progress(f"compile {path.name}", 0.05)
        with self.trying("compile", what):
            self.answering("")
            return coreml.compile_package(path, Path(tempfile.mkdtemp(dir=self.work)) / "compiled", self.timeout)
        return None

    def time(self, what: str, compiled: Compiled, function: str, inputs: Mapping[str, Array]) -> list[Latency]:
        """On each unit; shapes are fixed, so all inputs take as long."""
        found = []
        for unit in self.units:
            self.progress(f"time {what} {function} on {unit}", 0.2)
            with self.trying("load and time", what, function, unit):
                self.answering(unit)
                found.append(coreml.timed(what, compiled, function, unit, inputs, self.work, self.timeout))
        return found

    def residency(self, what: str, path: Path, functions: Sequence[str]) -> Residency | None:
        """Where the compute plan puts the operations, beside where the linter does; None: there is no plan here."""
        if ENGINE not in self.units or not self.host.has_plans:
            return None
        self.progress(f"plan {path.name}", 0.9)
        plans: list[Plan] = []
        for function in functions:
            with self.trying("plan", what, function, ENGINE):
                self.answering(ENGINE)
                plans.append(coreml.plan(path, function, self.work, self.timeout))
        whole = {of: planned for plan in plans for of, planned in plan.items()}
        return reside(what, lint(path, plan=whole)) if plans else None

    def failed(self, *of: str) -> bool:
        return of in {(each.doing, each.variant, each.function) for each in self.unfinished}

    def missing(self, residency: Sequence[Residency]) -> Iterator[str]:
        if self.host.mac.virtual:
            yield VIRTUAL
        elif "ane" not in self.host.devices:
            yield NO_ENGINE
        elif not self.host.has_plans:
            yield NO_PLAN
        for each in residency:
            for placed in each.placed:
                if placed.measured is None and not self.failed("plan", each.variant, placed.function):
                    of = f"{each.variant} ({placed.function})"
                    yield f"{SHARE} of {of}: the compute plan knows none of its operations"

    def measurement(
        self,
        repo: str,
        protocol: str,
        packages: dict[str, str],
        fidelity: Sequence[Fidelity],
        latency: Sequence[Latency],
        residency: Sequence[Residency],
        started: float,
        greedy: Sequence[Greedy] = (),
        failures: Sequence[str] = (),
    ) -> Measurement:
        return Measurement(
            repo=repo,
            mac=self.host.mac,
            protocol=protocol,
            units=tuple(self.units),
            packages=packages,
            fidelity=tuple(fidelity),
            latency=tuple(latency),
            residency=tuple(residency),
            greedy=tuple(greedy),
            failures=tuple(failures),
            unfinished=tuple(self.unfinished),
            not_measured=tuple(self.missing(residency)),
            hft2ane=version("hft2ane"),
            coremltools=version("coremltools"),
            python=platform.python_version(),
            seconds=round(time.monotonic() - started, 2),
        )


class Comparing:
    """The packages that compile, against the original, on the protocol's inputs."""

    def __init__(self, asking: Asking, job: Job, exported: Exported, compiled: Mapping[str, Compiled]) -> None:
        self.asking, self.job, self.exported, self.compiled = asking, job, exported, compiled
        self.packages = [each for each in exported.packages if each.what in compiled]
        self.original = load(asking.folder / "source", exported.task)
        self.tokenizer = Tokenizer(asking.folder / "source", self.original.vocabulary)
        names = rewrite(self.original).inputs
        self.rows = list(verify.rows(self.tokenizer, self.original, job.recipe.lengths, names, exported))
        self.failures: list[str] = []

    def example(self, of: Package, length: int) -> Mapping[str, Array]:
        first = next(row for row in self.rows if row.length == length)
        return verify.ask(self.original, first, self.exported)[of.part][0].arrays

    def fidelity(self) -> list[Fidelity]:
        """A bar for each package and unit that computed every row."""
        found = []
        for each in self.packages:
            bars = self.compare(each)
            self.failures += [f"{bar.what} ({bar.backend}): {text}" for bar in bars for text in bar.failures()]
            found += [fidelity for bar in bars if (fidelity := bar.fidelity())]
        return found

    def compare(self, of: Package) -> list[Bar]:
        gate, compiled = self.job.gates.of(of.variant), self.compiled[of.what]
        bars = {
            unit: Bar(of.what, measurements.BACKEND.format(unit), gate, unopened, of.part) for unit in self.asking.units
        }
        for function in of.functions:
            self.asking.progress(f"compare {of.what} {function.name}", 0.5)
            with contextlib.ExitStack() as opened:
                for unit in list(bars):
                    with self.dropping(bars, of, function.name, unit):
                        running = self.asking.running(compiled, function.name, unit)
                        bars[unit].runs[function.length] = opened.enter_context(running)
                for row in (row for row in self.rows if row.length == function.length):
                    question = verify.ask(self.original, row, self.exported)[of.part]
                    for unit in list(bars):
                        with self.dropping(bars, of, function.name, unit):
                            bars[unit].compare(*question)
        return list(bars.values())

    @contextlib.contextmanager
    def dropping(self, bars: dict[Unit, Bar], of: Package, function: str, unit: Unit) -> Iterator[None]:
        """A bar that lacks some rows says nothing."""
        before = len(self.asking.unfinished)
        with self.asking.trying("predict", of.what, function, unit):
            yield
        if len(self.asking.unfinished) > before:
            del bars[unit]

    def texts(self) -> list[Greedy]:
        """What the packages write on each unit, if all of them compile."""
        if len(self.packages) < len(self.exported.packages):
            return []
        found: list[Greedy] = []
        for unit in self.asking.units:
            with self.asking.trying("write texts", unit=unit), contextlib.ExitStack() as opened:
                runners = {each.what: [(f"coreml {unit}", self.opening(each, unit, opened))] for each in self.packages}
                found += list(verify.texts(self.original, self.tokenizer, self.exported, runners))
        return found

    def opening(self, of: Package, unit: Unit, opened: contextlib.ExitStack) -> verify.Runner:
        names = {function.length: function.name for function in of.functions}
        compiled = self.compiled[of.what]
        return lambda length: opened.enter_context(self.asking.running(compiled, names[length], unit))


def unopened(length: int) -> verify.Run:
    raise AssertionError(f"the runner at {length} tokens is opened before it is asked")


def reside(what: str, found: Lint) -> Residency:
    """What is not on the engine, operations of one kind and reason counted as one, the most costly first."""
    groups: dict[tuple[Any, ...], list[Verdict]] = {}
    for v in found.verdicts:
        if v.measured not in (None, "ane"):
            of = (v.function, v.type, pattern(v.layer), v.measured, v.supported, v.predicted, v.why)
            groups.setdefault(of, []).append(v)
    off = [
        Off(
            function=first.function,
            type=first.type,
            layer=pattern(first.layer),
            count=len(group),
            measured=first.measured or "unknown",
            supported=first.supported,
            predicted=first.predicted,
            cost=round(sum(costs), 6) if (costs := [v.cost for v in group if v.cost is not None]) else None,
            why=reason(first),
        )
        for group in groups.values()
        for first in group[:1]
    ]
    off.sort(key=lambda each: (-(each.cost or 0), -each.count, each.type))
    return Residency(what, found.placed, tuple(off), found.calibration)


def reason(verdict: Verdict) -> str:
    """Why an operation is not on the engine: Core ML says whether it could be, the linter why not."""
    core_ml = SUPPORTED if "ane" in verdict.supported else UNSUPPORTED
    return f"{core_ml}; {verdict.why or 'no rule of the linter foresaw it'}"
