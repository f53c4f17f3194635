"""job.json: one line of the plan."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from hft2ane.records import SCHEMA, STRICT
from hft2ane.records.mac import Measurement
from hft2ane.records.recipe import Gates, Recipe
from hft2ane.records.source import RemoteFile

# verify: measure again what is published · held: to be done, but not now · orphan: published, and wanted by nobody
Action = Literal["create", "convert", "verify", "card", "held", "blocked", "orphan", "skip"]
TO_DO: tuple[Action, ...] = ("create", "convert", "verify", "card")
# Why something is to be done, the most urgent first: a manifest asks for it, the original has changed, the figures are
# to be taken again, our own code or tools have changed.
Cause = Literal["request", "upstream", "verify", "toolchain"]
CAUSES: tuple[Cause, ...] = get_args(Cause)


@dataclass(frozen=True)
class Job:
    """job.json: one line of the plan. `files` are the upstream files that the job consumes.

    `cause`: its priority; None where nothing is to be done. `work`: estimated 10^12 floating-point operations. `macs`:
    what was measured on Macs of what is published, and is not in its report yet."""

    __pydantic_config__ = STRICT
    action: Action
    why: str
    id: str
    repo: str
    commit: str | None = None
    files: tuple[RemoteFile, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    gates: Gates = field(default_factory=Gates)
    license: str | None = None
    cause: Cause | None = None
    work: float = 0.0
    major: int = 1
    retired: str | None = None
    macs: tuple[Measurement, ...] = ()
    schema: Literal[1] = SCHEMA

    @property
    def to_do(self) -> bool:
        return self.action in TO_DO
