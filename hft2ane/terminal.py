"""What people see in a terminal: progress bars and tables."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from hft2ane import records
from hft2ane.records import Audit, Exported, Finding, Job, Lint, Report, Run, Task

if TYPE_CHECKING:  # they bring torch and numpy
    from hft2ane.mil.compare import Compared, Layer
    from hft2ane.mil.evaluate import Array
    from hft2ane.mil.inspect import Summary

STYLES = {
    "create": "green",
    "convert": "green",
    "card": "cyan",
    "published": "green",
    "unchanged": "dim",
    "skip": "dim",
    "blocked": "yellow",
    "failed": "red",
    "error": "red",
    "warning": "yellow",
    "info": "dim",
}


class Screen:
    """Where the user looks: standard output, or what it was before it was sent elsewhere."""

    def __init__(self) -> None:
        self.kept: TextIO | None = None

    def __call__(self) -> Console:
        file = self.kept or sys.stdout
        # Nothing wraps a file or a pipe, so there the width is what a table needs.
        return Console(file=file, width=None if file.isatty() else 160)

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

    Where there is no terminal, a line when a model is done."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[model]}"),
            BarColumn(24),
            TextColumn("{task.fields[what]}", style="dim"),
            TimeElapsedColumn(),
            console=console,
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
def bar(model: str) -> Iterator[records.Progress]:
    """One bar, on standard error so that standard output stays clean."""
    with Bars(Console(stderr=True)) as bars:
        yield lambda what, share: bars(model, what, share)


def table(title: str | None, *columns: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """`whole` columns are never folded."""
    made = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    return made


def styled(word: str) -> str:
    return f"[{STYLES[word]}]{word}[/]"


def show_plan(jobs: Sequence[Job]) -> None:
    made = table(None, "", "model", "to", "why")
    for job in jobs:
        made.add_row(styled(job.action), escape(job.id), escape(job.repo), escape(job.why))
    screen().print(made if jobs else "No manifest names a model.")


def show_run(run: Run, title: str) -> None:
    """One row a model: what was done and why, how exact it is, where it is."""
    right = ("rewrite dB", "package dB", "MB", "s")
    made = table(
        title, "model", "task", "done", "why", *right, "published as", right=right, whole=("model", "published as")
    )
    for o in run.outcomes:
        made.add_row(
            escape(o.id),
            o.task or "",
            styled(o.status),
            escape(o.error or o.why),
            number(o.rewrite, 1),
            number(o.artefact, 1),
            number(None if o.size is None else o.size / 1e6, 1),
            number(o.seconds or None, 1),
            escape(f"{o.repo}@{o.tag}") if o.tag else "",
        )
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
    screen().print(made)
    for text in report.not_measured:
        screen().print(f"[dim]Not measured here: {escape(text)}[/]")


def show_ranges(audit: Audit) -> None:
    """In the order in which they are computed; red is what does not fit."""
    right = ("largest", "bits of headroom", "subnormal")
    made = table(f"fp16 ranges on {audit.rows} rows, {audit.tokens} tokens", "layer", "values", *right, right=right)
    for r in audit.layers:
        figures = (f"{r.max:.5g}", f"{r.headroom_bits:.1f}", f"{r.subnormal:.1%}")
        made.add_row(escape(r.path or "model"), r.kind, *figures)
    screen().print(made)
    for c in audit.conditioned:
        screen().print(
            f"{escape(c.path)} computes with 2^-{c.exponent} of its values: {c.kind} were up to {c.max_before:g}"
        )
    for text in audit.failures:
        screen().print(f"[red]{escape(text)}[/]")


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
    for task in records.TASKS:
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
    for bar_ in report.fidelity:
        figures = f"{bar_.psnr_min:6.1f} dB at least, {bar_.psnr_median:.1f} dB median"
        console.print(f"  {bar_.what:10} {figures} ({bar_.backend})")
    console.print(f"  card       {escape(str(release / 'README.md'))}")
    for text in report.not_measured:
        console.print(f"  [dim]not measured here: {escape(text)}[/]")


def show_package(path: Path, summary: Summary, identity: str) -> None:
    console = screen()
    console.print(f"[bold]{escape(path.name)}[/]  {summary.weight_bytes / 1e6:.1f} MB of weights, specification "
                  f"{summary.specification_version}")  # fmt: skip
    console.print(f"digest  {identity}")
    for function in summary.functions:
        mark = " (default)" if function.name == summary.default and len(summary.functions) > 1 else ""
        made = table(f"\nfunction {function.name}{mark}", "", "name", "shape", "type")
        for kind, features in (("in", function.inputs), ("out", function.outputs)):
            for feature in features:
                made.add_row(kind, feature.name, " × ".join(map(str, feature.shape)), feature.dtype)
        console.print(made)
        counts = ", ".join(f"{count} {op}" for op, count in function.ops.items())
        console.print(f"operations  {counts}")
    made = table("\nmetadata", "", "")
    for key, value in sorted(summary.metadata.items()):
        made.add_row(escape(key), escape(value))
    console.print(made)


def show_lint(lint: Lint) -> None:
    """The findings, what to do about them, and how much of each function will run where."""
    from hft2ane.mil.lint import RULES

    console = screen()
    made = table(lint.package, "", "rule", "where", "what", "×", right=("×",), whole=("rule",))
    for finding in lint.findings:
        where = escape(place(finding, lint))
        made.add_row(styled(finding.severity), finding.rule, where, escape(finding.message), str(finding.count))
    console.print(made if lint.findings else f"{escape(lint.package)}: no findings")
    serious = dict.fromkeys(finding.rule for finding in lint.findings if finding.severity != "info")
    if serious:
        made = table("\nwhat to do", "rule", "", whole=("rule",))
        for rule in serious:
            made.add_row(rule, escape(RULES[rule].fix))
        console.print(made)
    devices = ("ane", "cpu", "unknown")
    made = table("\npredicted, not measured", "function", "ops", *devices, right=("ops", *devices))
    for each in lint.placed:
        shares = (f"{each.share_of_ops.get(d, 0):.1%} ({each.share_of_work.get(d, 0):.2%})" for d in devices)  # type: ignore[call-overload]
        made.add_row(escape(each.function), str(each.ops), *shares)
    console.print(made)
    console.print("[dim]Shares of operations (of estimated floating-point operations). The rules: docs/lint.md[/]")


def place(finding: Finding, lint: Lint) -> str:
    """The layers; in which functions, where that is not all of them; and the operation's type and shape."""
    few = len(finding.functions) < len(lint.placed)
    functions = f"{', '.join(finding.functions)}: " if few else ""
    shape = f"{finding.type} {'×'.join(map(str, finding.shape))}" if finding.type else ""
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
        made.add_row(escape(name), " × ".join(map(str, values.shape)), str(values.dtype), *figures, shown)
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
    """Marks the first layer below `least` dB."""
    made = table("\nby layer", "layer", "values", "PSNR", "worst value", "", right=("values", "PSNR"))
    first = next((layer for layer in layers if layer.worst.below(least)), None)
    for layer in layers:
        mark = f"first below {least:g} dB" if layer is first else ""
        row = (escape(layer.name), str(layer.values), decibels(layer.worst), escape(layer.worst.name), mark)
        made.add_row(*row, style="red" if mark else "")
    screen().print(made)


def decibels(value: Compared) -> str:
    if value.psnr is None:
        return escape(value.why)
    return "equal" if value.psnr == float("inf") else f"{value.psnr:.1f} dB"
