"""The terminal itself: where it is, and of what everything shown is made."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, TextIO

from rich.console import Console
from rich.table import Table

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


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def dimensions(shape: Sequence[int], times: str = "×") -> str:
    """`1×?×384`; −1 stands for a size that is not fixed."""
    return times.join("?" if size < 0 else str(size) for size in shape)
