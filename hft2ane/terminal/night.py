"""A plan, what became of it, the nights before, an audit, and the checks of a machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC
from typing import TYPE_CHECKING

from rich.markup import escape

from hft2ane.records.job import Job
from hft2ane.records.night import Run
from hft2ane.terminal.console import number, screen, styled, table

if TYPE_CHECKING:  # they bring torch and numpy
    from hft2ane.doctor.check import Check
    from hft2ane.recheck import Checked


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
        made.add_row(
            began, f"{run.seconds / 60:.0f}", escape(headline(run)), style="red" if run.failed or run.broken else ""
        )
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
