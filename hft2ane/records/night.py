"""run.json: what became of a night's plan."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime

from hft2ane.records import SCHEMA, STRICT
from hft2ane.records.job import Action


@dataclass(frozen=True)
class Outcome:
    """What became of one line of the plan. `error`: the line that says why not, `kind`: its class, `signature`: what
    it has in common with failures of the same reason. PSNR in dB, `size` in bytes.

    `family`: the model_type, as far as it is known; `worker`: the machine that did it, in the try of this number;
    `next`: when it is tried again, None: not by itself, or nothing is left to do; `log`: an address or a file."""

    __pydantic_config__ = STRICT
    id: str
    repo: str
    action: Action
    why: str
    status: Literal["published", "unchanged", "failed", "held", "blocked", "orphan", "skip"]
    error: str | None = None
    task: str | None = None
    rewrite: float | None = None
    artefact: float | None = None
    size: int | None = None
    tag: str | None = None
    seconds: float = 0.0
    kind: str | None = None
    family: str = ""
    signature: str | None = None
    next: AwareDatetime | None = None
    worker: str = ""
    tries: int = 1
    log: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Run:
    """One night: run.json, and runs/<its beginning>.json of the organisation's state, there without what was skipped.

    `failed`: models that fail or are blocked and were not in the run before, or for another reason: somebody must look
    at them. `warnings`: what went wrong without harm. `skipped`: models that needed nothing. `broken`: why it broke off
    before its end, the error's class first. `only`: the models that were asked for, when it was not for all."""

    __pydantic_config__ = STRICT
    started: AwareDatetime
    outcomes: tuple[Outcome, ...]
    failed: tuple[str, ...]
    seconds: float
    warnings: tuple[str, ...] = ()
    skipped: int = 0
    broken: str | None = None
    only: tuple[str, ...] = ()
    schema: Literal[1] = SCHEMA

    @property
    def whole(self) -> bool:
        """Whether it came to its end, with all that was wanted."""
        return self.broken is None and not self.only

    @property
    def ended(self) -> datetime:
        return self.started + timedelta(seconds=self.seconds)
