"""A release: report.json, conversion.json and published.json."""

from dataclasses import dataclass, field
from typing import Literal

from hft2ane.records import SCHEMA, STRICT
from hft2ane.records.fidelity import Fidelity, Greedy
from hft2ane.records.lint import Lint
from hft2ane.records.mac import Measurement
from hft2ane.records.package import Generation, Made, Package
from hft2ane.records.recipe import Recipe, Task
from hft2ane.records.source import Source


@dataclass(frozen=True)
class Report:
    """report.json: what was measured. `failures` is empty exactly when the gates are passed. `lint`: a prediction for
    each package, with a verdict only for what leaves the engine. `macs`: what Core ML does with the same packages on
    Macs, one each at most."""

    __pydantic_config__ = STRICT
    protocol: str
    verify_key: str
    fidelity: tuple[Fidelity, ...]
    failures: tuple[str, ...]
    not_measured: tuple[str, ...]
    seconds: float
    lint: tuple[Lint, ...] = ()
    greedy: tuple[Greedy, ...] = ()
    macs: tuple[Measurement, ...] = ()
    schema: Literal[1] = SCHEMA


@dataclass(frozen=True)
class Conversion:
    """conversion.json of a published repo: where it is from, what it is made of, and the three keys. `major`: within
    one, `interface` stays as it is; `retired`: why nothing is done for it any more; `made`: with what its packages
    were, None in records of before there was this; `macs`: digests of the measurements in its report, by the Mac."""

    __pydantic_config__ = STRICT
    source: Source
    recipe: Recipe
    family: str
    task: Task
    original: str
    license: str
    packages: tuple[Package, ...]
    labels: tuple[str, ...]
    problem: str | None
    convert_key: str
    verify_key: str
    card_key: str
    protocol: str
    psnr: dict[str, float]
    toolchain: dict[str, str]
    hft2ane: str
    generation: Generation | None = None
    major: int = 1
    retired: str | None = None
    made: Made | None = None
    macs: dict[str, str] = field(default_factory=dict)
    schema: Literal[1] = SCHEMA


@dataclass(frozen=True)
class Published:
    """published.json: the release is on the Hub, checked file by file at `commit`, and tagged."""

    __pydantic_config__ = STRICT
    repo: str
    commit: str
    tag: str
    url: str
    changed: bool
    schema: Literal[1] = SCHEMA
