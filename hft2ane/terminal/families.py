"""What can be converted: a table of families and tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hft2ane.records.recipe import TASKS, Task
from hft2ane.terminal.console import screen, table


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
