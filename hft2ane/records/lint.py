"""Where a package's operations will run: what the linter predicts, beside what a compute plan on a Mac says."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from hft2ane.records import SCHEMA, STRICT

Severity = Literal["error", "warning", "info"]
Device = Literal["ane", "gpu", "cpu", "unknown"]


System = Literal["macOS 26", "macOS 27"]
# Bytes of a compiled model that a system takes for the Neural Engine; above, all of it runs on the CPU, with no word
# (eeANE, measured on macOS 27.0.1 and before; coremltools' mlmodel-utilities has the 1 GiB of iPhones).
WEIGHTS_MOST: Mapping[System, int] = MappingProxyType({"macOS 26": 2 * 2**30, "macOS 27": 2**30})
# A single constant must have less (derived from more-ane-transformers' `Illegal offset = -2144766976`).
CONSTANT_MOST: Final = 2**31


@dataclass(frozen=True)
class LintSettings:
    """What the linter asks for where its sources contradict each other, or where the answer depends on the system.

    `system`: see `WEIGHTS_MOST`. `mask_least`: the most negative
    additive mask that is well (Apple: −1e4 in 2022, −4e4 in 2026). `query_chunk`: queries that attention takes at once
    (argmaxtools 256, ml-stable-diffusion 512, Apple 2026 576). `convolutions`: linear layers should be 1×1 convolutions
    (Apple does so; eeANE and GigaAM leave them and report 97 to 99.9 % on the engine). `fused_norms`: a norm should be
    one op (Apple 2022 wrote its parts by hand). `enumerated`: a list of shapes keeps a network on the engine, a range
    does not (coremltools' documentation; not before macOS 14, coremltools#1909)."""

    __pydantic_config__ = STRICT
    system: System = "macOS 27"
    mask_least: float = -4e4
    query_chunk: int = 512
    convolutions: bool = True
    fused_norms: bool = True
    enumerated: bool = True


@dataclass(frozen=True)
class Finding:
    """Equal findings of one rule, `count` in all functions named: in the operations `ops` (each name once), in the
    layers that the pattern `layer` stands for (`blocks.{i}.attend`).

    `type` and `shape` are of the first; layer, type, shape and ops are empty where it is about a whole function."""

    __pydantic_config__ = STRICT
    rule: str
    severity: Severity
    functions: tuple[str, ...]
    message: str
    layer: str
    type: str
    shape: tuple[int, ...]
    count: int
    ops: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Where one operation will run. `work`: its estimated floating-point operations; `why` is empty on the engine.

    `measured`, `supported` and `cost` are what a compute plan on a Mac says (see `Planned`), None or empty where it
    says nothing or there is none."""

    __pydantic_config__ = STRICT
    function: str
    op: str
    layer: str
    type: str
    shape: tuple[int, ...]
    work: int
    predicted: Device
    why: str
    measured: Device | None = None
    supported: tuple[Device, ...] = ()
    cost: float | None = None


@dataclass(frozen=True)
class Planned:
    """What a compute plan on a Mac says of one operation: the device that Core ML prefers, and those that could run it.
    `cost`: its share of the function's whole, 0 to 1."""

    device: Device
    cost: float | None
    supported: tuple[Device, ...] = ()


# By the function's name and that of the operation's first result.
Plan = Mapping[tuple[str, str], Planned]


@dataclass(frozen=True)
class Measured:
    """Where a compute plan on a Mac puts the `ops` operations of a function that it knows: shares of them, of their
    work as estimated here, and of the cost that the plan itself estimates (empty: it gives none), 0 to 1."""

    __pydantic_config__ = STRICT
    ops: int
    share_of_ops: dict[Device, float]
    share_of_work: dict[Device, float]
    share_of_cost: dict[Device, float]


@dataclass(frozen=True)
class Calibrated:
    """`ops` operations of one type that one rule (none: "") predicted to run on one device, and where a compute plan
    puts them: what the rules are held against."""

    __pydantic_config__ = STRICT
    rule: str
    type: str
    predicted: Device
    measured: Device
    ops: int


@dataclass(frozen=True)
class Placed:
    """How much of a function is predicted to run where: shares of its operations and of its work, 0 to 1."""

    __pydantic_config__ = STRICT
    function: str
    ops: int
    work: int
    share_of_ops: dict[Device, float]
    share_of_work: dict[Device, float]
    measured: Measured | None = None


@dataclass(frozen=True)
class Lint:
    """What the linter says of one package, worst findings first. Predicted from the saved file, on any machine.

    `calibration`: predicted against measured where there is a compute plan, disagreements first."""

    __pydantic_config__ = STRICT
    package: str
    settings: LintSettings
    findings: tuple[Finding, ...]
    placed: tuple[Placed, ...]
    verdicts: tuple[Verdict, ...]
    calibration: tuple[Calibrated, ...] = ()
    schema: Literal[1] = SCHEMA
