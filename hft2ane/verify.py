"""The verify step: the original, our rewrite and the saved packages on the same inputs -> report.json, or GateFailed.

Two bars: *rewrite* is our torch module against transformers, both in fp32; each variant's *package* is the saved
package, evaluated from its files, against transformers in fp32. A pair has both for each of its parts.
"""

import hashlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hft2ane import greedy, keys, measurements, package, protocol, records
from hft2ane.errors import GateFailed
from hft2ane.mil import open_package
from hft2ane.mil.lint import lint
from hft2ane.progress import Progress, silent
from hft2ane.protocol import Inputs
from hft2ane.psnr import Deviation, cosine, deviation, top1
from hft2ane.records.fidelity import CAP, Fidelity, Greedy, Measure
from hft2ane.records.job import Job
from hft2ane.records.lint import Lint
from hft2ane.records.package import Exported, Package, Part, named, per_token
from hft2ane.records.recipe import Task
from hft2ane.records.release import Report
from hft2ane.reference import Original, Tokenizer, load
from hft2ane.rewrite import rewrite

Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]  # int32 rows by input name -> outputs by name
Runner = Callable[[int], Run]  # by length in tokens


@dataclass(frozen=True)
class Row:
    """One row of inputs: int64 (1, …) by input name. `masked`, bool (S,): where the mask token stands."""

    kind: str
    length: int
    name: str
    tensors: Mapping[str, Tensor]
    masked: Array | None
    task: Task

    @property
    def tokens(self) -> Array:
        """bool (S,), or (choices, S): what is not padding."""
        return self.tensors["attention_mask"][0].bool().numpy()

    @property
    def arrays(self) -> dict[str, Array]:
        """Ids and masks as int32, numbers as they are."""
        return {name: (t if t.is_floating_point() else t.int()).numpy() for name, t in self.tensors.items()}


@dataclass(frozen=True)
class Compared:
    """One output on one row."""

    name: str
    deviation: Deviation
    cosine: float
    top1: float | None

    def psnr(self, peak: float) -> float:
        """Against the peak of several rows: a score near 0 has no peak of its own to be measured by."""
        return capped(replace(self.deviation, peak=peak))


def verify(folder: Path, progress: Progress = silent) -> Report:
    """Measures everything and writes report.json; raises GateFailed after that when something is below its gate."""
    started = time.monotonic()
    job, exported = records.read(folder / "job.json", Job), records.read(folder / "export.json", Exported)
    (folder / "report.json").unlink(missing_ok=True)  # while there is none, nothing gets published
    progress("load the original", 0.0)
    original = load(folder / "source", exported.task)
    module = rewrite(original)
    tokenizer = Tokenizer(folder / "source", original.vocabulary)
    bars = [
        Bar(named("rewrite", part), "torch-float32", job.gates.rewrite, torch_backend(its_module), part)
        for part, its_module in module.parts.items()
    ]
    runners = {each.what: backends(folder, each) for each in exported.packages}
    for each in exported.packages:
        gate = job.gates.of(each.variant)
        bars += [Bar(each.what, name, gate, runner, each.part) for name, runner in runners[each.what]]
    asked = list(rows(tokenizer, original, job.recipe.lengths, module.inputs, exported))
    for n, row in enumerate(asked):
        progress(f"measure at {row.length} tokens", 0.1 + 0.8 * n / len(asked))
        questions = ask(original, row, exported)
        for bar in bars:
            bar.compare(*questions[bar.part])
    progress("write texts", 0.9)
    written = tuple(texts(original, tokenizer, exported, runners))
    digests = {each.what: package.digest(folder / each.file) for each in exported.packages}
    failures = [
        f"{each.file} is not the package that export.json describes: export it again"
        for each in exported.packages
        if digests[each.what] != each.digest
    ]
    linted = tuple(judge(folder, each) for each in exported.packages)
    failures += [
        f"{each.package}: {finding.rule} at {finding.layer or 'the whole function'}: {finding.message}"
        for each in linted
        for finding in each.findings
        if finding.severity == "error"
    ]
    report = Report(
        protocol=keys.PROTOCOL,
        verify_key=keys.verify_key(digests, keys.PROTOCOL, keys.BACKEND),
        fidelity=tuple(fidelity for bar in bars if (fidelity := bar.fidelity())),
        failures=(*failures, *(f"{bar.what} ({bar.backend}): {text}" for bar in bars for text in bar.failures())),
        not_measured=(measurements.ELSEWHERE,),
        seconds=round(time.monotonic() - started, 2),
        lint=linted,
        greedy=written,
    )
    records.write(folder / "report.json", report)
    progress("verified", 1.0)
    if report.failures:
        more = f" (and {len(report.failures) - 1} more in {folder / 'report.json'})" if len(report.failures) > 1 else ""
        raise GateFailed(report.failures[0] + more)
    return report


def judge(folder: Path, exported: Package) -> Lint:
    """The linter's prediction, without the verdicts on the thousand operations that are on the engine by all that is
    known."""
    found = lint(folder / exported.file)
    return replace(found, verdicts=tuple(v for v in found.verdicts if v.predicted != "ane"))


def backends(folder: Path, exported: Package) -> list[tuple[str, Runner]]:
    """What can run the saved package on any machine."""
    program = open_package(folder / exported.file)
    names = {function.length: function.name for function in exported.functions}

    def evaluator(length: int) -> Run:
        return lambda inputs: program.evaluate(narrowed(inputs), names[length])

    return [(keys.BACKEND, evaluator)]


def narrowed(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """As a package takes them: numbers as float16."""
    return {name: value.astype(np.float16) if value.dtype.kind == "f" else value for name, value in inputs.items()}


def torch_backend(module: Any) -> Runner:
    return lambda length: torch_runner(module)


def torch_runner(module: Any) -> Run:
    """Our module in fp32."""

    @torch.no_grad()
    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = module(*(torch.from_numpy(inputs[name]) for name in module.inputs))
        return {name: output.numpy() for name, output in zip(module.OUTPUTS, outputs, strict=True)}

    return run


def rows(
    tokenizer: Tokenizer, original: Original, lengths: Iterable[int], names: Sequence[str], exported: Exported
) -> Iterator[Row]:
    """Every row of the protocol at every length, with the inputs of these names."""
    candidates = exported.packages[0].functions[0].inputs[0].shape[1]
    for length in lengths:
        kinds = protocol.rows(tokenizer, original, length, names)
        for several in choices(kinds, candidates) if original.task == "multiple-choice" else kinds:
            for i, name in enumerate(several.names):
                tensors = {key: tensor[i : i + 1] for key, tensor in several.tensors.items() if key in names}
                masked = None if several.masked is None else several.masked[i].numpy()
                yield Row(several.kind, length, name, tensors, masked, exported.task)


def choices(kinds: Iterable[Inputs], candidates: int) -> Iterator[Inputs]:
    """Rows regrouped as questions with some candidates each, (questions, candidates, length), no row twice: equal
    candidates would have equal scores, and no best one."""
    for several in kinds:
        if questions := len(several.names) // candidates:
            shape = (questions, candidates, several.length)
            tensors = {key: t[: questions * candidates].reshape(shape) for key, t in several.tensors.items()}
            names = tuple(f"question {i + 1}" for i in range(questions))
            yield Inputs(several.kind, several.length, tensors, names)


def ask(original: Original, row: Row, exported: Exported) -> dict[Part, tuple[Row, dict[str, Array]]]:
    """For each part the row as it goes in, and the original's answers for the outputs of its packages."""
    outputs = {each.part: [tensor.name for tensor in each.functions[0].outputs] for each in exported.packages}
    return {
        part: (replace(row, tensors=tensors), {name: answers[name].numpy() for name in outputs[part]})
        for part, (tensors, answers) in original.ask(row.tensors).items()
    }


def texts(
    original: Original, tokenizer: Tokenizer, exported: Exported, runners: Mapping[str, Sequence[tuple[str, Runner]]]
) -> Iterator[Greedy]:
    """What each variant writes by each backend, in the shortest of its lengths."""
    length = min(function.length for function in exported.packages[0].functions)
    tasks, how = greedy.tasks(original, tokenizer, length), original.generation
    if not tasks or how is None:
        return
    for each in exported.packages:
        if each.part == "encoder":
            continue
        others = [other for other in exported.packages if (other.variant, other.part) == (each.variant, "encoder")]
        names = [tensor.name for other in others for tensor in other.functions[0].inputs]
        for n, (backend, runner) in enumerate(runners[each.what]):
            decoder = runner(length)
            encoder = runners[others[0].what][n][1](length) if others else None
            got = [greedy.write(task, how, length, decoder, encoder, names) for task in tasks]
            yield greedy.compare(each.variant, backend, length, [task.expected for task in tasks], got)


class Bar:
    """How what one backend computes compares with the original, row by row; no output is kept."""

    def __init__(self, what: str, backend: str, gate: float, runner: Runner, part: Part = "") -> None:
        self.what, self.backend, self.gate, self.runner, self.part = what, backend, gate, runner, part
        self.runs: dict[int, Run] = {}
        self.groups: dict[tuple[str, int, str], list[Compared]] = defaultdict(list)
        self.results: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        self.faults: list[str] = []

    def compare(self, row: Row, answers: Mapping[str, Array]) -> None:
        if row.length not in self.runs:
            self.runs[row.length] = self.runner(row.length)
        got = self.runs[row.length](row.arrays)
        for output, answer in answers.items():
            try:
                compared = self.measure(row, output, answer, got)
            except ValueError as err:
                self.faults.append(f"{output} at {row.length} tokens on {row.kind} ({shorten(row.name)}): {err}")
                continue
            self.groups[output, row.length, row.kind].append(compared)
            self.results[output, row.length].add(hashlib.sha256(got[output].tobytes()).digest())

    @staticmethod
    def measure(row: Row, output: str, answer: Array, got: Mapping[str, Array]) -> Compared:
        """ValueError, in words, for what must not be compared at all."""
        if output not in got:
            raise ValueError(f"it gives only {', '.join(got)}")
        value = got[output].astype(np.float32)
        if value.shape != answer.shape:
            raise ValueError(f"shape {value.shape}, expected {answer.shape}")
        expected, actual = counted(row, output, answer), counted(row, output, value)
        return Compared(
            row.name,
            deviation(expected, actual),
            cosine(expected, actual),
            agreement(row, output, answer, value),
        )

    def measures(self) -> list[Measure]:
        """One for each output, length and kind of input."""
        peaks: dict[tuple[str, int], list[float]] = defaultdict(list)
        for (output, length, _), group in self.groups.items():
            peaks[output, length].append(max(row.deviation.peak for row in group))
        return [
            condense(output, length, kind, group, statistics.median(peaks[output, length]))
            for (output, length, kind), group in self.groups.items()
        ]

    def fidelity(self) -> Fidelity | None:
        measures = self.measures()
        if not measures:
            return None
        agreed = [m.top1 for m in measures if m.top1 is not None]
        return Fidelity(
            what=self.what,
            backend=self.backend,
            gate=self.gate,
            psnr=min(m.psnr for m in measures),
            psnr_min=min(m.psnr_min for m in measures),
            psnr_median=round(statistics.median(m.psnr_median for m in measures), 2),
            top1=min(agreed) if agreed else None,
            measures=tuple(measures),
        )

    def failures(self) -> list[str]:
        """What could not be compared, what says nothing, and what is below the gate, in words."""
        constant = [
            f"{output} at {length} tokens: the same result for every input"
            for (output, length), results in self.results.items()
            if len(results) == 1
        ]
        below = [
            f"{m.output} at {m.length} tokens on {m.inputs}: {m.psnr_min:.1f} dB, the gate is {self.gate:g} dB "
            f"(worst: {m.worst!r})"
            for m in self.measures()
            if not m.psnr_min >= self.gate
        ]
        return self.faults + constant + below


def counted(row: Row, output: str, value: Array) -> Array:
    """The part of an output (1, …) that is compared: without what stands at padding."""
    counts: Array = value[0, row.tokens] if per_token(output, value.ndim, row.task) else value[0]
    return counts


def agreement(row: Row, output: str, answer: Array, value: Array) -> float | None:
    """Top-1 agreement for logits: over the last axis, at the masked tokens where there are any; for replaced tokens, at
    each token whether it is one."""
    if "logits" not in output or answer.shape[-1] == 1:
        return None
    if row.task == "replaced-token-detection":
        return float(np.mean((counted(row, output, answer) > 0) == (counted(row, output, value) > 0)))
    if row.masked is not None and row.masked.any():
        return top1(answer[0, row.masked], value[0, row.masked])
    return top1(counted(row, output, answer), counted(row, output, value))


def condense(output: str, length: int, kind: str, compared: Sequence[Compared], usual: float) -> Measure:
    """`usual`: the median over the kinds of input of the original's largest magnitude. The peak is that of this kind,
    but at least the usual one: a kind may be one row, and that a single score near 0."""
    peak = max(usual, *(row.deviation.peak for row in compared))
    worst = min(compared, key=lambda row: row.psnr(peak))
    together = sum((row.deviation for row in compared), Deviation(peak, 0, 0))
    agreed = [row.top1 for row in compared if row.top1 is not None]
    return Measure(
        output=output,
        length=length,
        inputs=kind,
        rows=len(compared),
        psnr=round(capped(together), 2),
        psnr_min=round(worst.psnr(peak), 2),
        psnr_median=round(statistics.median(row.psnr(peak) for row in compared), 2),
        cosine_min=round(min(row.cosine for row in compared), 7),
        top1=round(statistics.fmean(agreed), 4) if agreed else None,
        worst=shorten(worst.name),
        peak=float(f"{max(row.deviation.peak for row in compared):.4g}"),
    )


def capped(of: Deviation) -> float:
    return min(of.psnr, CAP)


def shorten(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
