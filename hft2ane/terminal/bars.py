"""Progress bars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from hft2ane import progress
from hft2ane.terminal.console import STYLES, styled


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
