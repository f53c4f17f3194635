"""A model's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from hft2ane.terminal.console import screen, table

CELL = 200  # letters of an answer that a table shows


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
            for number, mask in enumerate(answer, 1):
                console.print(f"mask {number}")
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
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text if len(text) <= CELL else f"{text[:CELL]}…"
