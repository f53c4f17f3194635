"""How far a step is: who calls one gives a Progress, and the step calls that."""

from collections.abc import Callable

# What is done now, and the share done (0 to 1).
Progress = Callable[[str, float], None]


def silent(what: str, share: float) -> None:
    """The Progress of those who do not want to know."""
