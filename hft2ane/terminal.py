"""What people see in a terminal: progress bars and tables."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from hft2ane import measurements, progress, records
from hft2ane.records.job import Job
from hft2ane.records.lint import Device, Finding, Lint, Placed
from hft2ane.records.mac import Measurement, Residency
from hft2ane.records.night import Run
from hft2ane.records.package import Audit, Exported, Range
from hft2ane.records.recipe import TASKS, Task
from hft2ane.records.release import Report

if TYPE_CHECKING:  # they bring torch and numpy
    from hft2ane.doctor import Check
    from hft2ane.mil.compare import Compared, Layer
    from hft2ane.mil.evaluate import Array
    from hft2ane.mil.inspect import Summary
    from hft2ane.rebuild import Rebuilt
    from hft2ane.recheck import Checked

STYLES = {
    "create": "green",
    "convert": "green",
    "verify": "cyan",
    "card": "cyan",
    "held": "yellow",
    "orphan": "yellow",
    "published": "green",
    "unchanged": "dim",
    "skip": "dim",
    "blocked": "yellow",
    "failed": "red",
    "error": "red",
    "warning": "yellow",
    "info": "dim",
    "ok": "green",
    "problem": "red",
}


class Screen:
    """Where the user looks: standard output, or what it was before it was sent elsewhere."""

    def __init__(self) -> None:
        self.kept: TextIO | None = None

    def __call__(self) -> Console:
        file = self.kept or sys.stdout
        # Nothing wraps a file or a pipe, so there the width is what a table needs.
        return Console(file=file, width=None if file.isatty() else 1000, highlight=False)

    @contextlib.contextmanager
    def at(self, descriptor: int) -> Iterator[None]:
        with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as file:
            self.kept = file
            try:
                yield
            finally:
                self.kept = None


screen = Screen()


class Bars:
    """One bar a model. Called with the model's id, what it does now, and the share done.

    They go when all is done, as a table then says more. Where there is no terminal, a line when a model is done."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[model]}"),
            BarColumn(24),
            TextColumn("{task.fields[what]}", style="dim"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.console = console
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def begin(self, model: str, what: str = "") -> None:
        self.tasks[model] = self.progress.add_task("", total=1.0, model=escape(model), what=what)

    def end(self, model: str, what: str = "done") -> None:
        self.progress.update(self.tasks[model], completed=1.0, what=what)

    def __call__(self, model: str, what: str, share: float) -> None:
        if "plan" in self.tasks and model not in self.tasks:
            self.end("plan")
        if model not in self.tasks:
            self.begin(model)
        self.progress.update(self.tasks[model], completed=share, what=escape(what))
        if share >= 1 and what in STYLES and not self.console.is_terminal:
            self.console.print(f"  {styled(what)} {escape(model)}")


@contextlib.contextmanager
def bar(model: str) -> Iterator[progress.Progress]:
    """One bar, on standard error so that standard output stays clean."""
    with Bars(Console(stderr=True)) as bars:
        yield lambda what, share: bars(model, what, share)


def table(title: str | None, *columns: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """`whole` columns and those of numbers are never folded."""
    made = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole or column in right)
    return made


def styled(word: str) -> str:
    return f"[{STYLES[word]}]{word}[/]"


def show_plan(jobs: Sequence[Job]) -> None:
    """Of what is to be done also where it will be; then sums. `TFLOP`: estimated 10^12 floating-point operations."""
    made = table(None, "", "model", "cause", "TFLOP", "why", right=("TFLOP",), whole=("", "model"))
    for job in jobs:
        work = number(job.work or None, 1 if job.work >= 1 else 3)
        model = f"{job.id}\n→ {job.repo}" if job.to_do else job.id
        made.add_row(styled(job.action), escape(model), job.cause or "", work, escape(job.why))
    if not jobs:
        screen().print("No manifest names a model.")
        return
    screen().print(made)
    counts = Counter(f"to {job.action}" if job.to_do else job.action for job in jobs)
    text = ", ".join(f"{count} {what}" for what, count in counts.items())
    if whole := sum(job.work for job in jobs if job.to_do):
        text += f"; {whole:.1f} TFLOP (10^12 floating-point operations), estimated from the sizes of the files"
    screen().print(f"\n{text}")


def show_run(run: Run, title: str) -> None:
    """One row a model: what was done and why, how exact it is, where it is. In a narrow terminal words are below the
    model's name; what no model has is left out."""
    console = screen()
    narrow = console.width < 120
    figures = ("rewrite\ndB", "package\ndB", "MB", "s") if any(o.seconds for o in run.outcomes) else ()
    tasks = any(o.task for o in run.outcomes) and not narrow
    words = ("done",) if narrow else ("task", "done", "why") if tasks else ("done", "why")
    made = table(None, "model", *words, *figures, right=figures, whole=("done",) if narrow else ("done", "model"))
    for o in run.outcomes:
        place = f"→ {o.repo}@{o.tag}" if o.tag else ""
        told = {"task": o.task or "", "done": styled(o.status), "why": escape(o.error or o.why)}
        below = [told[word] for word in ("task", "why") if narrow]
        model = "\n".join(filter(None, (escape(o.id), escape(place), *below)))
        values = (o.rewrite, o.artefact, None if o.size is None else o.size / 1e6, o.seconds or None)
        numbers = (number(value, 1) for value in values[: len(figures)])
        made.add_row(model, *(told[word] for word in words), *numbers)
    console.print(f"[bold]{escape(title)}[/]")
    if run.outcomes:
        console.print(made)
    for warning in run.warnings:
        console.print(f"[yellow]{escape(warning)}[/]")


def show_nights(owner: str, runs: Sequence[Run]) -> None:
    """One row a night, the newest first."""
    from hft2ane.nights import headline

    made = table(f"nights of {owner}", "started, UTC", "min", "", right=("min",))
    for run in runs:
        began = f"{run.started.astimezone(UTC):%Y-%m-%d %H:%M}"
        made.add_row(began, f"{run.seconds / 60:.0f}", escape(headline(run)), style="red" if run.failed else "")
    screen().print(made if runs else f"No night of {escape(owner)} is known.")


def show_audit(found: Sequence[Checked]) -> None:
    made = table(None, "", "repo", "commit", "PSNR, worst row, dB: published, now", "")
    for each in found:
        word = "[red]untrue[/]" if each.problems else "[green]true[/]" if each.commit else "[dim]nothing[/]"
        figures = ", ".join(f"{variant} {old:.1f}, {now:.1f}" for variant, old, now in each.measured)
        said = "; ".join((*each.problems, *each.notes))
        made.add_row(word, escape(each.repo), (each.commit or "")[:12], figures, escape(said))
    screen().print(made if found else "No manifest names a model.")


def show_checks(checks: Sequence[Check]) -> None:
    made = table(None, "", "check", "found", "to do now", whole=("check",))
    for each in checks:
        made.add_row(styled(each.verdict), each.name, escape(each.found), escape(each.todo))
    screen().print(made)


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def show_report(report: Report) -> None:
    title = f"{report.protocol}: PSNR in dB against transformers in fp32"
    right = ("tokens", "rows", "all", "worst row", "median", "top-1")
    made = table(title, "", "by", "output", "tokens", "inputs", *right[1:], right=right)
    for bar_ in report.fidelity:
        for m in bar_.measures:
            agreed = "" if m.top1 is None else f"{m.top1:.1%}"
            figures = (f"{m.psnr:.1f}", f"{m.psnr_min:.1f}", f"{m.psnr_median:.1f}", agreed)
            made.add_row(bar_.what, bar_.backend, m.output, str(m.length), m.inputs, str(m.rows), *figures)
    console = screen()
    console.print(made)
    for mac in report.macs:
        show_measurement(mac)
    for text in report.not_measured:
        console.print(f"[dim]Not measured here: {escape(text)}[/]")


def show_measurement(m: Measurement) -> None:
    """What Core ML itself took, computed and planned on one Mac."""
    console, right = screen(), ("PSNR dB", "median ms", "p90", "least", "load s", "again", "peak MB")
    made = table(f"\n{m.mac}", "", "function", "on", *right, right=right)
    least = {(bar.what, bar.backend): bar.psnr_min for bar in m.fidelity}
    for each in m.latency:
        figures = (each.median_ms, each.p90_ms, each.least_ms)
        made.add_row(
            escape(each.variant),
            escape(each.function),
            each.unit,
            number(least.get((each.variant, measurements.BACKEND.format(each.unit))), 1),
            *(f"{value:.2f}" for value in figures),
            f"{each.load_s:.1f}",
            f"{each.reload_s:.1f}",
            f"{(each.footprint or each.peak) / 1e6:.0f}",
        )
    if m.latency:
        console.print(made)
    for found in m.residency:
        console.print(f"\n[bold]{escape(found.variant)}[/]")
        show_placed(found.placed)
        show_off(found)
    for text in m.failures:
        console.print(f"[yellow]Below the gate: {escape(text)}[/]")
    for text in measurements.told(m):
        console.print(f"[dim]Not measured: {escape(text)}[/]")


def show_off(found: Residency) -> None:
    """What is not on the engine, and how the linter's rules did."""
    console, right = screen(), ("×", "of the cost")
    made = table("\nnot on the engine", "operation", "layer", "×", "on", "predicted", "of the cost", "why", right=right)
    for each in found.off:
        cost = "" if each.cost is None else f"{each.cost:.2%}"
        values = (each.type, each.layer, str(each.count), each.measured, each.predicted, cost, each.why)
        made.add_row(*map(escape, values))
    if found.off:
        console.print(made)
    made = table("\npredicted and measured", "rule", "operation", "predicted", "measured", "×", right=("×",))
    for row in found.calibration:
        style = "" if row.predicted == row.measured else "yellow"
        made.add_row(escape(row.rule), escape(row.type), row.predicted, row.measured, str(row.ops), style=style)
    console.print(made)


def show_ranges(audit: Audit) -> None:
    """In the order in which they are computed: layers that differ by their numbers are one row, of the one with the
    least headroom. What does not fit is said in words below."""
    rows: dict[tuple[str, str], tuple[int, Range]] = {}
    for r in audit.layers:
        of = (re.sub(r"(?<=\.)\d+(?=\.|$)", "{i}", r.path), r.kind)
        count, least = rows.get(of, (0, r))
        rows[of] = (count + 1, min(least, r, key=lambda each: each.headroom_bits))
    console, right = screen(), ("×", "largest", "bits", "lost")
    made = table(
        f"fp16 ranges on {audit.rows} rows, {audit.tokens} tokens",
        "layer",
        "values",
        *right,
        "in",
        right=right,
        whole=("layer",),
    )
    for (layer, _), (count, r) in rows.items():
        numbered = re.search(r"\.(\d+)(?:\.|$)", r.path)
        worst = f"layer {numbered[1]}" if numbered and count > 1 else ""
        figures = (str(count), f"{r.max:.5g}", f"{r.headroom_bits:.1f}", f"{r.subnormal:.1%}")
        made.add_row(escape((layer if count > 1 else r.path) or "model"), r.kind, *figures, worst)
    console.print(made)
    console.print(
        "[dim]largest: magnitude, of the layer with the least headroom to 65504; bits: that headroom; "
        "lost: share below fp16's least normal number. Every layer: ranges.json[/]"
    )
    for c in audit.conditioned:
        console.print(
            f"{escape(c.path)} computes with 2^-{c.exponent} of its values: {c.kind} were up to {c.max_before:g}"
        )
    for text in audit.failures:
        console.print(f"[red]{escape(text)}[/]")


def show_families(catalogue: Mapping[str, Sequence[Task]]) -> None:
    """One row a task, one column a family."""
    made = table(None, "task", *catalogue)
    for task, marks in by_task(catalogue):
        made.add_row(task, *marks)
    screen().print(made)


def markdown_families(catalogue: Mapping[str, Sequence[Task]]) -> str:
    """The same as the table of the README."""
    lines = ["| | " + " | ".join(f"`{name}`" for name in catalogue) + " |", "|:--|" + ":-:|" * len(catalogue)]
    lines += [f"| {task} | " + " | ".join(marks) + " |" for task, marks in by_task(catalogue)]
    return "\n".join(lines)


def by_task(catalogue: Mapping[str, Sequence[Task]]) -> Iterator[tuple[str, list[str]]]:
    """Each task that a family has, and a mark for each family that has it."""
    for task in TASKS:
        marks = ["✓" if task in tasks else "" for tasks in catalogue.values()]
        if any(marks):
            yield task, marks


def show_release(folder: Path, release: Path) -> None:
    """What `convert` made, in a few lines."""
    exported, report = records.read(folder / "export.json", Exported), records.read(folder / "report.json", Report)
    console = screen()
    for package in exported.packages:
        console.print(f"[bold]{escape(str(release / package.file))}[/]")
        console.print(f"  {package.size / 1e6:.1f} MB, from {package.minimum_os}")
    wide = max(10, *(len(bar_.what) for bar_ in report.fidelity))
    for bar_ in report.fidelity:
        figures = f"{bar_.psnr_min:6.1f} dB at least, {bar_.psnr_median:.1f} dB median"
        console.print(f"  {bar_.what:{wide}} {figures} ({bar_.backend})")
    for each in report.greedy:
        written = (
            f"{each.equal} of {each.tokens} tokens as the original's, {each.same} of {each.texts} texts to the end"
        )
        console.print(f"  {each.what:{wide}} writes {written} ({each.backend})")
    console.print(f"  {'card':{wide}} {escape(str(release / 'README.md'))}")
    for text in report.not_measured:
        console.print(f"  [dim]not measured here: {escape(text)}[/]")


def show_rebuilt(rebuilt: Rebuilt) -> None:
    """Which packages came out the same, and if not all did, what is to be blamed for it."""
    console = screen()
    for file, published, now in rebuilt.packages:
        how = "the same bytes" if now == published else f"not the same: published {published}, now {now}"
        console.print(f"{escape(file)}  {how}")
    if rebuilt.same:
        return
    if rebuilt.differences:
        console.print("Made otherwise than then, which may be why:")
        for line in rebuilt.differences:
            console.print(f"  {escape(line)}")
    else:
        console.print("Toolchain, code and machine are as then: only the bytes differ, which should not be.")


def show_package(path: Path, summary: Summary, identity: str) -> None:
    """Contract by function, operations beside one another, since functions mostly have the same."""
    console = screen()
    console.print(f"[bold]{escape(path.name)}[/]")
    console.print(f"specification {summary.specification_version}, from {summary.system} on")
    kinds = ", ".join(f"{megabytes(size)} of {kind}" for kind, size in summary.weights.items() if size >= 5000)
    console.print(f"{megabytes(summary.weight_bytes)} of weights" + (f": {kinds}" if kinds else ""))
    console.print(f"digest {identity}")
    for function in summary.functions:
        mark = " (default)" if function.name == summary.default and len(summary.functions) > 1 else ""
        made = table(f"\nfunction {escape(function.name)}{mark}", "", "name", "shape", "type")
        for kind, ports in (("in", function.inputs), ("out", function.outputs), ("state", function.states)):
            for port in ports:
                shape = " or ".join(port.may_be) or dimensions(port.shape, " × ")
                made.add_row(kind, escape(port.name), shape, port.dtype)
        console.print(made)
    alike = all(function.ops == summary.functions[0].ops for function in summary.functions)
    columns = summary.functions[:1] if alike else summary.functions
    names = ["number" if alike else escape(function.name) for function in columns]
    made = table(
        "\noperations" + (" of each function" if alike and len(summary.functions) > 1 else ""), "", *names, right=names
    )
    for op in dict.fromkeys(op for function in columns for op in function.ops):
        made.add_row(op, *(str(function.ops.get(op, 0)) for function in columns))
    made.add_row("[bold]all[/]", *(str(sum(function.ops.values())) for function in columns))
    console.print(made)
    made = table("\nmetadata", "", "", whole=("key",))
    for key, value in (*summary.about.items(), *sorted(summary.metadata.items())):
        made.add_row(escape(key), escape(value))
    if summary.about or summary.metadata:
        console.print(made)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 5e4 else f"{size / 1e3:.1f} kB"


def dimensions(shape: Sequence[int], times: str = "×") -> str:
    """`1×?×384`; −1 stands for a size that is not fixed."""
    return times.join("?" if size < 0 else str(size) for size in shape)


SHOWN = 5  # findings of one rule


def show_lint(lint: Lint) -> None:
    """The findings by rule with what to do about them, and how much of each function will run where."""
    from hft2ane.mil.lint import RULES

    console = screen()
    console.print(f"[bold]{escape(lint.package)}[/]")
    by_rule: dict[str, list[Finding]] = {}
    for finding in lint.findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    for rule, findings in by_rule.items():
        fix = RULES[rule].fix
        console.print(f"\n{styled(RULES[rule].severity)} [bold]{rule}[/]  {escape(fix)}")
        made = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        made.add_column(width=2)
        made.add_column(justify="right", no_wrap=True)
        made.add_column(overflow="fold")
        made.add_column(overflow="fold", style="dim")
        for finding in findings[:SHOWN]:
            made.add_row("", f"{finding.count} ×", escape(finding.message), escape(place(finding, lint)))
        console.print(made)
        if more := findings[SHOWN:]:
            console.print(f"    [dim]and {sum(each.count for each in more)} × elsewhere: --json[/]")
    counts = Counter(finding.severity for finding in lint.findings)
    words = (
        f"{counts['error']} error{'s'[counts['error'] == 1 :]}",
        f"{counts['warning']} warning{'s'[counts['warning'] == 1 :]}",
    )
    console.print("\n" + (f"{', '.join(words)}, {counts['info']} info" if lint.findings else "no findings"))
    show_placed(lint.placed)
    console.print("[dim]A prediction from the file; work is in floating-point operations. The rules: docs/lint.md[/]")


def show_placed(places: Sequence[Placed]) -> None:
    """Shares by device, rounded down so that 100 % means all."""
    devices: tuple[Device, ...] = ("ane", "gpu", "cpu", "unknown")
    seen = [d for d in devices if d != "gpu" or any(d in (p.measured or p).share_of_ops for p in places)]
    made = table("", "", "function", "of", *seen, right=seen)

    def add(what: str, function: str, of: str, shares: Mapping[Device, float]) -> None:
        made.add_row(what, escape(function), of, *(percent(shares.get(device, 0)) for device in seen))

    for each in places:
        add("predicted", each.function, f"{each.ops} operations", each.share_of_ops)
        add("", "", flops(each.work), each.share_of_work)
        if each.measured:
            add("measured", "", f"{each.measured.ops} operations", each.measured.share_of_ops)
            add("", "", "their work", each.measured.share_of_work)
            if each.measured.share_of_cost:
                add("", "", "their cost to Core ML", each.measured.share_of_cost)
    screen().print(made)


def percent(share: float) -> str:
    return f"{math.floor(share * 1e3 + 1e-6) / 10:.1f} %"


def flops(work: float) -> str:
    """`1.4 GFLOP`"""
    step = min(max(int(math.log10(max(work, 1))) // 3, 0), 4)
    return f"{work / 1000**step:.3g} {('', 'k', 'M', 'G', 'T')[step]}FLOP"


def place(finding: Finding, lint: Lint) -> str:
    """The layers; in which functions, where that is not all of them; and the operation's type and shape."""
    few = len(finding.functions) < len(lint.placed)
    functions = f"{', '.join(finding.functions)}: " if few else ""
    shape = f"{finding.type} {dimensions(finding.shape)}" if finding.type else ""
    return f"{functions}{finding.layer} {shape}".strip()


def show_arrays(arrays: Mapping[str, Array]) -> None:
    numeric = ("least", "greatest", "mean")
    made = table(None, "output", "shape", "type", *numeric, "finite", right=numeric)
    for name, values in arrays.items():
        numbers = values.astype("float64")
        taken = (numbers.min(), numbers.max(), numbers.mean()) if values.size else ()
        figures = [f"{each:.6g}" for each in taken] or [""] * 3
        finite = bool((abs(numbers) < float("inf")).all())
        shown = "yes" if finite else "[red]no[/]"
        made.add_row(escape(name), dimensions(values.shape, " × "), str(values.dtype), *figures, shown)
    screen().print(made)


def show_times(times: Mapping[str, Sequence[float]]) -> None:
    """`times`: seconds of each operation, by type."""
    whole = sum(map(sum, times.values()))
    columns = ("operation", "number", "ms", "share")
    made = table(f"\n{whole * 1e3:.1f} ms in operations", *columns, right=columns[1:])
    for name, seconds in sorted(times.items(), key=lambda each: -sum(each[1])):
        spent = sum(seconds)
        made.add_row(escape(name), str(len(seconds)), f"{spent * 1e3:.2f}", f"{spent / whole:.1%}")
    screen().print(made)


def show_compared(found: Sequence[Compared], gate: float | None) -> None:
    made = table(None, "output", "PSNR", right=("PSNR",))
    for each in found:
        style = "" if gate is None else "red" if each.below(gate) else "green"
        made.add_row(escape(each.name), decibels(each), style=style)
    screen().print(made)


def show_layers(layers: Sequence[Layer], least: float) -> None:
    """Then the first value below `least` dB, and what makes it."""
    made = table("\nby layer", "layer", "values", "PSNR", "worst value", right=("values", "PSNR"), whole=("layer",))
    parted = next(((layer, value) for layer in layers for value in layer.values if value.below(least)), None)
    for layer in layers:
        row = (
            escape(layer.name),
            str(len(layer.values)),
            decibels(layer.worst),
            escape(inner(layer.worst.name, layer)),
        )
        made.add_row(*row, style="red" if parted and layer is parted[0] else "")
    screen().print(made)
    if parted:
        value = parted[1]
        screen().print(f"first below {least:g} dB: {escape(value.name)}, {decibels(value)}")


def inner(value: str, layer: Layer) -> str:
    """Its name without the layer's, which stands beside it."""
    return value.removeprefix(f"{layer.name}_") if value != layer.name else ""


def decibels(value: Compared) -> str:
    if value.psnr is None:
        return escape(value.why)
    return "equal" if value.psnr == float("inf") else f"{value.psnr:.1f} dB"


def show_answers(titles: Sequence[str], found: Sequence[Any]) -> None:
    """A model's answers, each below what was asked: texts, vectors, or rows of what they are made of."""
    console = screen()
    for title, answer in zip(titles, found, strict=True):
        if isinstance(answer, str):
            console.print(escape(answer), soft_wrap=True)
            continue
        console.print(f"[bold]{escape(title)}[/]", soft_wrap=True)
        if not answer:
            console.print("  nothing found")
        elif not isinstance(answer[0], list):
            console.print(answer_table(answer))
        elif isinstance(answer[0][0], Mapping):  # a text with several masks
            for mask in answer:
                console.print(answer_table(mask))
        else:
            console.print(f"  {len(answer)} tokens, {len(answer[0])} numbers each")


def answer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Scores first; of a vector its beginning; where it is in a text as one column."""
    columns = [name for name in rows[0] if name not in ("token", "corpus_id", "index", "end")]
    columns.sort(key=lambda name: (name != "score", name == "start"))
    made = table(None, *("at" if name == "start" else name for name in columns), right=("score",))
    for row in rows:
        made.add_row(*(escape(answer_cell(name, row)) for name in columns))
    return made


def answer_cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if name == "start":
        return f"{value}–{row['end']}"
    if isinstance(value, list):
        return " ".join(f"{number:.3f}" for number in value[:4]) + " …"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
