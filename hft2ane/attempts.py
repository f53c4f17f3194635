"""What runs remember of earlier ones: which models failed, how often and with what, and how long they are left alone.

Pure. It is advice: whoever has lost it tries again what would have waited, and nothing worse.
"""

import builtins
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from hft2ane import errors
from hft2ane.records import SCHEMA, STRICT

FIRST = timedelta(hours=2)
DOUBLINGS = 6  # the longest wait is 128 hours
EQUAL = 5  # own failures in a row with one signature: it will not help to try again
FIFTH = 0.2  # of a failure is one of the surroundings
DELETED = timedelta(hours=24)  # an original counts as deleted when runs so far apart do not find it
LONGEST = 300  # characters of an error that are kept

# Not the model's fault. A token that may not write fails every model alike; the system's errors are of disks and nets.
SURROUNDINGS = (errors.Unavailable, errors.AccessDenied, OSError, MemoryError)


@dataclass(frozen=True)
class Attempts:
    """The failures of one model. `subject`: digest of what was tried; `family`: its model_type as far as it is known.

    `signature`: of its last own failure, and `equal`: how many in a row had that; `error`: the last failure's text."""

    __pydantic_config__ = STRICT
    subject: str
    family: str
    signature: str
    equal: int
    count: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    error: str
    last: AwareDatetime

    @property
    def due(self) -> datetime:
        """When it may be tried again."""
        return self.last + FIRST * 2 ** min(self.count, DOUBLINGS)


@dataclass(frozen=True)
class Untrue:
    """An audit found that the release at this commit is not what it says. `mend`: the action that makes it so again."""

    __pydantic_config__ = STRICT
    commit: str
    mend: Literal["convert", "verify", "card"]
    why: str


@dataclass(frozen=True)
class State:
    """By published repo. `blocked`: signatures of why; `gone`: since when an original is not found; `settled`:
    digests of all that the plan said skip to, see `keys.settled`; `renewed`: done in the wave of this digest."""

    __pydantic_config__ = STRICT
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    blocked: Mapping[str, str] = field(default_factory=dict)
    gone: Mapping[str, AwareDatetime] = field(default_factory=dict)
    settled: Mapping[str, str] = field(default_factory=dict)
    renewed: Mapping[str, str] = field(default_factory=dict)
    untrue: Mapping[str, Untrue] = field(default_factory=dict)
    schema: Literal[1] = SCHEMA


REMEMBERED = tuple(each.name for each in fields(State) if each.name != "schema")


def waits(attempts: Attempts, now: datetime) -> str | None:
    """Why the same thing is not tried again now; None: it is."""
    if attempts.equal >= EQUAL:
        return (
            f"it failed {attempts.equal} times with {attempts.error!r}, "
            "and waits until its entry, our code for it or the original changes"
        )
    if attempts.last <= now < attempts.due:  # a time to come was written by a wrong clock
        return f"it failed with {attempts.error!r}, and is tried again from {shown(attempts.due)} on"
    return None


def failed(before: Attempts | None, subject: str, family: str, kind: str, error: str, now: datetime) -> Attempts:
    """After one more failure. `kind`: the name of the error's class."""
    if before is None or before.subject != subject:
        before = Attempts(subject, family, "", 0, 0.0, "", now)
    text = " ".join(error.split())[:LONGEST]
    if of_surroundings(kind):
        return replace(before, count=round(before.count + FIFTH, 1), error=text, last=now)
    own = signature(kind, error)
    equal = before.equal + 1 if own == before.signature else 1
    return replace(before, signature=own, equal=equal, count=round(before.count + 1, 1), error=text, last=now)


def of_surroundings(kind: str) -> bool:
    found = getattr(errors, kind, None) or getattr(builtins, kind, None)
    return isinstance(found, type) and issubclass(found, SURROUNDINGS)


def signature(kind: str, error: str) -> str:
    """What two failures have in common that have the same reason: without paths, ids and numbers.

    >>> signature("GateFailed", "/tmp/x7/job.json: logits has 12.5 dB, the gate is 50 dB")
    'GateFailed: … logits has # dB, the gate is # dB'
    """
    text = re.sub(r"\S*/\S*", "…", error)
    text = re.sub(r"\b(?=\w*\d)[0-9a-fA-F]{7,}\b|\b0x[0-9a-fA-F]+\b", "…", text)
    text = re.sub(r"[-+]?\d+([.,:]\d+)*(e[-+]?\d+)?", "#", text)
    return f"{kind}: {' '.join(text.split())}"[:LONGEST]


def news(before: State, after: State) -> set[str]:
    """Repos whose model fails or is blocked now and was not before, or for another reason."""
    failing = {
        repo
        for repo, now in after.attempts.items()
        if (then := before.attempts.get(repo)) is None or (then.subject, then.signature) != (now.subject, now.signature)
    }
    return failing | {repo for repo, why in after.blocked.items() if before.blocked.get(repo) != why}


def rebase(before: State, after: State, there: State) -> State:
    """`there` with what changed from `before` to `after`: two runs may have remembered at once."""
    merged: dict[str, Any] = {}
    for name in REMEMBERED:
        old, new, now = (getattr(each, name) for each in (before, after, there))
        kept = {repo: value for repo, value in now.items() if repo in new or repo not in old}
        changed = {repo: value for repo, value in new.items() if old.get(repo) != value}
        merged[name] = dict(sorted({**kept, **changed}.items()))
    return State(**merged)


def shown(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
