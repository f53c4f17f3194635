"""What Core ML does with a release's packages on one Mac: a file of measurements/, and a part of the report."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from hft2ane.records import SCHEMA, STRICT
from hft2ane.records.fidelity import Fidelity, Greedy
from hft2ane.records.lint import Calibrated, Device, Placed

Unit = Literal["CPU_ONLY", "CPU_AND_NE", "CPU_AND_GPU", "ALL"]  # names of coremltools.ComputeUnit
UNITS: tuple[Unit, ...] = get_args(Unit)
ENGINE: Final = "CPU_AND_NE"  # what an app asks for that wants the Neural Engine


@dataclass(frozen=True)
class Mac:
    """What every figure of Core ML's is of. `model`: e.g. `Mac14,3`, and `VirtualMac2,1` of a virtual one; `memory`: in
    bytes."""

    __pydantic_config__ = STRICT
    chip: str
    model: str
    memory: int
    macos: str
    build: str

    @property
    def virtual(self) -> bool:
        return self.model.startswith("Virtual")

    def __str__(self) -> str:
        return f"{self.chip}, macOS {self.macos} ({self.build})"

    @property
    def short(self) -> str:
        """For columns: `Apple M2 (24F74)`."""
        return f"{self.chip} ({self.build})"


@dataclass(frozen=True)
class Latency:
    """How long one function of a package takes on one compute unit, in a process of its own: `median_ms`, `p90_ms` and
    `least_ms` of `rounds` predictions after `warm_up` others, by Core ML's own call, without what Python does to arrays
    around it. `variant`: see `Package.what`.

    `compile_s`: package to compiled model; `load_s`: its first load, for which the system compiles it for the device;
    `reload_s`: the second load. `peak`: the most memory that the process had resident, in bytes, of which `before` had
    been before the first load; `footprint`: the most that the system held it to account for, None: not known."""

    __pydantic_config__ = STRICT
    variant: str
    function: str
    unit: Unit
    warm_up: int
    rounds: int
    median_ms: float
    p90_ms: float
    least_ms: float
    compile_s: float
    load_s: float
    reload_s: float
    peak: int
    before: int
    footprint: int | None


@dataclass(frozen=True)
class Off:
    """`count` operations of one type, in the layers that the pattern `layer` stands for, that the compute plan does not
    put on the engine. `supported`: the devices that could run them; `cost`: their share of the function's, None: the
    plan gives none; `predicted`: by the linter; `why`: what the plan and the linter's rule say."""

    __pydantic_config__ = STRICT
    function: str
    type: str
    layer: str
    count: int
    measured: Device
    supported: tuple[Device, ...]
    predicted: Device
    cost: float | None
    why: str


@dataclass(frozen=True)
class Residency:
    """Where the compute plan puts a package's operations when the engine may be used. `calibration`: see `Lint`."""

    __pydantic_config__ = STRICT
    variant: str
    placed: tuple[Placed, ...]
    off: tuple[Off, ...]
    calibration: tuple[Calibrated, ...]


Doing = Literal["compile", "load and time", "predict", "write texts", "plan"]


@dataclass(frozen=True)
class Unfinished:
    """What was to be measured and is not. `function` and `unit` are empty where it is about more than one."""

    __pydantic_config__ = STRICT
    variant: str
    function: str
    unit: Unit | Literal[""]
    doing: Doing
    why: str


@dataclass(frozen=True)
class Measurement:
    """What Core ML does with the packages of a release on one Mac. `repo`: where they are published, or will be;
    `packages`: their digests, by what they are.

    `fidelity`: a bar for each package and unit, of backend `coreml <unit>`. `failures`: figures below their gate, in
    words; `not_measured`: what this Mac cannot say, in words."""

    __pydantic_config__ = STRICT
    repo: str
    mac: Mac
    protocol: str
    units: tuple[Unit, ...]
    packages: dict[str, str]
    fidelity: tuple[Fidelity, ...]
    latency: tuple[Latency, ...]
    residency: tuple[Residency, ...]
    greedy: tuple[Greedy, ...]
    failures: tuple[str, ...]
    unfinished: tuple[Unfinished, ...]
    not_measured: tuple[str, ...]
    hft2ane: str
    coremltools: str
    python: str
    seconds: float
    schema: Literal[1] = SCHEMA
