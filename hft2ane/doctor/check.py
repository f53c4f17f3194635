"""One line of what `hft2ane worker doctor` finds."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]
SECONDS = 10.0  # for an answer of the server, or of a program


@dataclass(frozen=True)
class Check:
    """`todo`: what to do now; "" where nothing is to be done."""

    name: str
    verdict: Verdict
    found: str
    todo: str = ""


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warning(name: str, found: str, todo: str) -> Check:
    return Check(name, "warning", found, todo)


def problem(name: str, found: str, todo: str) -> Check:
    return Check(name, "problem", found, todo)
