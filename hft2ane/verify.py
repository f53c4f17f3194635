"""The verify step: the original, our rewrite and the saved packages on the same inputs -> report.json, or GateFailed.

Two bars: *rewrite* is our torch module against transformers, both in fp32; each variant's *artefact* is the saved package,
evaluated from its files, against transformers in fp32.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hft2ane import coreml, keys, protocol, records
from hft2ane.errors import GateFailed
from hft2ane.mil import open_package
from hft2ane.protocol import Inputs
from hft2ane.psnr import cosine, psnr, top1
from hft2ane.records import Exported, Fidelity, Job, Measure, Package, Progress, Report, silent
from hft2ane.reference import Original, Tokenizer, load
from hft2ane.rewrite import rewrite

Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]  # int32 rows by input name -> outputs by name

# Equal arrays have no finite PSNR; the figure is capped here.
CAP = 300.0


@dataclass(frozen=True)
class Case:
    """One row of inputs with the original's answers, cut to what counts: the tokens that are not padding."""

    kind: str
    length: int
    name: str
    inputs: dict[str, Array]
    answers: dict[str, Array]
    tokens: Array  # bool (S,), or (choices, S): not padding
    masked: Array | None  # bool (S,): holds the mask token


# Outputs with an entry, or a row, for each token; `logits` too where they have three axes.
PER_TOKEN = ("last_hidden_state", "token_embeddings", "start_logits", "end_logits")


def verify(folder: Path, progress: Progress = silent) -> Report:
    """Measures everything and writes report.json; raises GateFailed after that when something is below its gate."""
    started = time.monotonic()
    job, exported = records.read(folder / "job.json", Job), records.read(folder / "export.json", Exported)
    progress("load the original", 0.0)
    original = load(folder / "source", exported.task)
    progress("ask the original", 0.1)
    cases = ask(original, folder / "source", job.recipe.lengths, exported)
    bars: list[tuple[str, str, float, Callable[[int], Run]]] = [
        ("rewrite", "torch-float32", job.gates.rewrite, lambda _: torch_runner(rewrite(original)))
    ]
    for package in exported.packages:
        bars += [(package.variant, name, job.gates.artefact, runner) for name, runner in backends(folder, package)]
    fidelity, failures = [], []
    for n, (what, backend, gate, runner) in enumerate(bars):
        progress(f"measure {what} ({backend})", 0.2 + 0.8 * n / len(bars))
        measured, failed = measure(cases, runner)
        bar = summary(what, backend, gate, measured)
        fidelity += [bar] if bar else []
        failures += [f"{what} ({backend}): {text}" for text in failed + below(bar)]
    report = Report(
        protocol=keys.PROTOCOL,
        verify_key=keys.verify_key({p.variant: p.digest for p in exported.packages}, keys.PROTOCOL, keys.BACKEND),
        fidelity=tuple(fidelity),
        failures=tuple(failures),
        not_measured=()
        if coreml.available()
        else ("Core ML on a Mac: its own results, share of operations on the Neural Engine, latency, memory",),
        seconds=round(time.monotonic() - started, 2),
    )
    records.write(folder / "report.json", report)
    progress("verified", 1.0)
    if failures:
        more = f" (and {len(failures) - 1} more in {folder / 'report.json'})" if len(failures) > 1 else ""
        raise GateFailed(failures[0] + more)
    return report


def backends(folder: Path, package: Package) -> list[tuple[str, Callable[[int], Run]]]:
    """What can run the saved package here: our evaluator anywhere, Core ML's compute units on a Mac."""
    path = folder / package.file
    program = open_package(path)
    names = {function.length: function.name for function in package.functions}
    found: list[tuple[str, Callable[[int], Run]]] = [
        (keys.BACKEND, lambda length: lambda inputs: program.evaluate(inputs, names[length]))
    ]
    if coreml.available():
        for unit in coreml.UNITS:
            found.append((f"coreml-{unit}", lambda length, unit=unit: coreml.Runner(path, names[length], unit)))  # type: ignore[misc]
    return found


def torch_runner(module: Any) -> Run:
    """Our module in fp32."""

    @torch.no_grad()
    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = module(*(torch.from_numpy(inputs[name]) for name in module.inputs))
        return {name: output.numpy() for name, output in zip(module.OUTPUTS, outputs, strict=True)}

    return run


def ask(original: Original, source: Path, lengths: Iterable[int], exported: Exported) -> list[Case]:
    """Every row of the protocol at every length, with the original's answers for the outputs of the package."""
    tokenizer = Tokenizer(source, original.config.vocab_size)
    function = exported.packages[0].functions[0]
    names, outputs = [t.name for t in function.inputs], [t.name for t in function.outputs]
    candidates = function.inputs[0].shape[1] if original.task == "multiple-choice" else 1
    cases = []
    for length in lengths:
        kinds = protocol.inputs(tokenizer, original.config.vocab_size, length, original.task, "token_type_ids" in names)
        for rows in choices(kinds, candidates) if original.task == "multiple-choice" else kinds:
            for i, name in enumerate(rows.names):
                tensors = {key: tensor[i : i + 1] for key, tensor in rows.tensors.items() if key in names}
                answers = original.answer(tensors)
                cases.append(
                    Case(
                        rows.kind,
                        length,
                        name,
                        {key: tensor.int().numpy() for key, tensor in tensors.items()},
                        {key: answers[key].numpy() for key in outputs},
                        tensors["attention_mask"][0].bool().numpy(),
                        None if rows.masked is None else rows.masked[i].numpy(),
                    )
                )
    return cases


def choices(kinds: Iterable[Inputs], candidates: int) -> Iterable[Inputs]:
    """Rows regrouped as questions with some candidates each: (rows, candidates, length)."""
    for rows in kinds:
        questions = max(1, len(rows.names) // candidates)
        index = torch.arange(questions * candidates) % len(rows.names)
        tensors = {key: t[index].reshape(questions, candidates, -1) for key, t in rows.tensors.items()}
        yield Inputs(rows.kind, rows.length, tensors, tuple(f"question {i + 1}" for i in range(questions)))


def measure(cases: Sequence[Case], runner: Callable[[int], Run]) -> tuple[list[Measure], list[str]]:
    """A Measure for each output, length and kind of input, and what must not be compared at all, in words."""
    groups: dict[tuple[str, int, str], list[tuple[str, float, float, float | None]]] = defaultdict(list)
    failures: list[str] = []
    seen: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    runs: dict[int, Run] = {}
    for case in cases:
        run = runs.setdefault(case.length, runner(case.length)) if case.length not in runs else runs[case.length]
        got = run(case.inputs)
        for output, answer in case.answers.items():
            place = f"{output} at {case.length} tokens on {case.kind} ({shorten(case.name)})"
            value = got[output].astype(np.float32)
            try:
                if value.shape != answer.shape:
                    raise ValueError(f"shape {value.shape}, expected {answer.shape}")
                expected, actual = counted(case, output, answer), counted(case, output, value)
                decibel = min(psnr(expected, actual), CAP)
            except ValueError as err:
                failures.append(f"{place}: {err}")
                continue
            seen[output, case.length].add(actual.tobytes())
            groups[output, case.length, case.kind].append(
                (case.name, decibel, cosine(expected, actual), agreement(case, output, answer, value))
            )
    failures += [
        f"{output} at {length} tokens: the same result for every input"
        for (output, length), results in seen.items()
        if len(results) == 1
    ]
    return [condense(*key, rows) for key, rows in groups.items()], failures


def counted(case: Case, output: str, value: Array) -> Array:
    """The part of an output (1, …) that is compared: without what stands at padding."""
    per_token = output in PER_TOKEN or (output == "logits" and value.ndim == 3)
    return value[0, case.tokens] if per_token else value[0]


def agreement(case: Case, output: str, answer: Array, value: Array) -> float | None:
    """Top-1 agreement for logits: over the last axis, at the masked tokens where there are any."""
    if "logits" not in output or answer.shape[-1] == 1:
        return None
    if case.masked is not None and case.masked.any():
        return top1(answer[0, case.masked], value[0, case.masked])
    return top1(counted(case, output, answer), counted(case, output, value))


def condense(output: str, length: int, kind: str, rows: list[tuple[str, float, float, float | None]]) -> Measure:
    name, least, _, _ = min(rows, key=lambda row: row[1])
    agreed = [row[3] for row in rows if row[3] is not None]
    return Measure(
        output=output,
        length=length,
        inputs=kind,
        rows=len(rows),
        psnr_min=round(least, 2),
        psnr_median=round(statistics.median(row[1] for row in rows), 2),
        cosine_min=round(min(row[2] for row in rows), 7),
        top1=round(statistics.fmean(agreed), 4) if agreed else None,
        worst=shorten(name),
    )


def summary(what: str, backend: str, gate: float, measures: Sequence[Measure]) -> Fidelity | None:
    if not measures:
        return None
    agreed = [m.top1 for m in measures if m.top1 is not None]
    return Fidelity(
        what=what,
        backend=backend,
        gate=gate,
        psnr_min=min(m.psnr_min for m in measures),
        psnr_median=round(statistics.median(m.psnr_median for m in measures), 2),
        top1=min(agreed) if agreed else None,
        measures=tuple(measures),
    )


def below(bar: Fidelity | None) -> list[str]:
    return [
        f"{m.output} at {m.length} tokens on {m.inputs}: {m.psnr_min:.1f} dB, the gate is {bar.gate:g} dB "
        f"(worst: {m.worst!r})"
        for m in (bar.measures if bar else ())
        if not m.psnr_min >= bar.gate  # type: ignore[union-attr]
    ]


def shorten(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
