"""The frozen records that pass between steps, and the JSON files of a job's folder that hold them.

Inside the program they are plain dataclasses; `read` checks them at the border (unknown keys, wrong types and other
schema numbers fail), `write` puts them on disk atomically, so that a file's existence means that its step is done.
"""

import contextlib
import errno
import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar, get_args

from pydantic import AwareDatetime, ConfigDict, RootModel, TypeAdapter, ValidationError

from hft2ane.errors import BadInput, NoSpace

SCHEMA: Final = 1
SUMS = "SHA256SUMS"  # of a release: a line a file
CAP = 300.0  # dB: equal arrays have no finite PSNR, and JSON no infinity
SINGLE_OS, SEVERAL_OS = "iOS 16 / macOS 13", "iOS 18 / macOS 15"  # what packages of one and of several lengths need
LEAST_LENGTH = 8  # tokens: room for the special tokens and a few words
STRICT = ConfigDict(extra="forbid", frozen=True)

Task = Literal[
    "feature-extraction",
    "sentence-embedding",
    "fill-mask",
    "text-classification",
    "token-classification",
    "question-answering",
    "next-sentence-prediction",
    "multiple-choice",
    "replaced-token-detection",
    "text-generation",
    "text2text-generation",
]
TASKS: tuple[Task, ...] = get_args(Task)
Form = Literal["float16", "int8", "palettized-8", "palettized-6", "palettized-4"]  # of the weights of a linear layer
FORMS: tuple[Form, ...] = get_args(Form)
Mixed = Literal["mixed-6", "mixed-4"]  # each layer has a form of its own
Variant = Literal[Form, Mixed]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
Part = Literal["", "encoder", "decoder"]  # of a model that is more than one package
# verify: measure again what is published · held: to be done, but not now · orphan: published, and wanted by nobody
Action = Literal["create", "convert", "verify", "card", "held", "blocked", "orphan", "skip"]
TO_DO: tuple[Action, ...] = ("create", "convert", "verify", "card")
# Why something is to be done, the most urgent first: a manifest asks for it, the original has changed, the figures are
# to be taken again, our own code or tools have changed.
Cause = Literal["request", "upstream", "verify", "toolchain"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
Severity = Literal["error", "warning", "info"]
Device = Literal["ane", "gpu", "cpu", "unknown"]
Unit = Literal["CPU_ONLY", "CPU_AND_NE", "CPU_AND_GPU", "ALL"]  # names of coremltools.ComputeUnit
UNITS: tuple[Unit, ...] = get_args(Unit)
ENGINE: Final = "CPU_AND_NE"  # what an app asks for that wants the Neural Engine


# Outputs with an entry, or a row, for each token; `logits` are such by their axes, or by the task.
PER_TOKEN = ("last_hidden_state", "token_embeddings", "start_logits", "end_logits")


def per_token(output: str, axes: int, task: Task) -> bool:
    """Whether an output of so many axes has an entry, or a row, for each token. Its size would not tell: a vector may
    be as long as the text."""
    return output in PER_TOKEN or (output == "logits" and (axes == 3 or task == "replaced-token-detection"))


def named(what: str, part: Part) -> str:
    """What a figure is of, `rewrite` or a variant, and of which part of it: `float16 decoder`."""
    return f"{what} {part}".rstrip()


# Steps say how far they are: what they do now, and the share done (0 to 1).
Progress = Callable[[str, float], None]


def silent(what: str, share: float) -> None:
    """The Progress of those who do not want to know."""


@dataclass(frozen=True)
class Gates:
    """The least PSNR in dB, over all inputs and outputs, that may be published. `float16`: a package in fp16; `bits…`:
    one whose weights have so many bits; `fall`: by how much a figure may be below that of the version before."""

    __pydantic_config__ = STRICT
    rewrite: float = 90.0
    float16: float = 50.0
    bits8: float = 35.0
    bits6: float = 30.0
    bits4: float = 25.0
    fall: float = 3.0

    def of(self, what: str) -> float:
        """The gate of the rewrite, or of a variant: of each of its parts where it has several."""
        return {
            "rewrite": self.rewrite,
            "float16": self.float16,
            "int8": self.bits8,
            "palettized-8": self.bits8,
            "palettized-6": self.bits6,
            "palettized-4": self.bits4,
            "mixed-6": self.bits6,
            "mixed-4": self.bits4,
        }[what.partition(" ")[0]]


UNGATED = Gates(0, 0, 0, 0, 0, fall=CAP)  # for what is published already, and keeps its figures


@dataclass(frozen=True)
class Recipe:
    """Everything of a manifest entry that shapes the package. `task` None: derived from the checkpoint."""

    __pydantic_config__ = STRICT
    task: Task | None = None
    lengths: tuple[int, ...] = (128,)
    variants: tuple[Variant, ...] = ("float16",)
    target: Literal["coreml"] = "coreml"


@dataclass(frozen=True)
class Wanted:
    """One model that the manifests ask for, defaults applied. `where` is `manifests/demo.yaml:7`."""

    id: str
    repo: str
    where: str
    revision: str = "main"
    recipe: Recipe = field(default_factory=Recipe)
    gates: Gates = field(default_factory=Gates)
    license: str | None = None
    paused: str | None = None
    major: int = 1


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repo at one commit. `oid`: SHA-256 of the content when `lfs`, else git's blob SHA-1."""

    __pydantic_config__ = STRICT
    path: str
    size: int
    oid: str
    lfs: bool


@dataclass(frozen=True)
class CardFields:
    """What our card takes over from the upstream card's front matter, and nothing else of it."""

    __pydantic_config__ = STRICT
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None


@dataclass(frozen=True)
class Upstream:
    """A model repo as the Hub shows it at one commit. `id` is its present name: a renamed repo answers by that."""

    id: str
    commit: str
    files: tuple[RemoteFile, ...]
    card: CardFields = field(default_factory=CardFields)


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
    macs: "tuple[Measurement, ...]" = ()
    schema: Literal[1] = SCHEMA

    @property
    def to_do(self) -> bool:
        return self.action in TO_DO


@dataclass(frozen=True)
class Source:
    """source.json: the pinned files are in source/, checked. `commit` of a local folder is `local`."""

    __pydantic_config__ = STRICT
    id: str
    commit: str
    files: tuple[RemoteFile, ...]
    card: CardFields
    schema: Literal[1] = SCHEMA


@dataclass(frozen=True)
class Tensor:
    """One input or output of a package's function. `about` is for people."""

    __pydantic_config__ = STRICT
    name: str
    shape: tuple[int, ...]
    dtype: Literal["int32", "float16", "float32"]
    about: str


@dataclass(frozen=True)
class Function:
    """One function of a package: the model at one fixed length, in tokens."""

    __pydantic_config__ = STRICT
    name: str
    length: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Raised:
    """A linear layer of a mixed variant in another form than most. `share`: its part, 0 to 1, of what the outputs lose
    when all layers have the form of most, to first order."""

    __pydantic_config__ = STRICT
    path: str
    form: Form
    share: float


@dataclass(frozen=True)
class Mixture:
    """How the weights of a mixed variant were chosen: `form` is that of most linear layers, `raised` are the others.

    `aim`, `before` (with none raised) and `after`: PSNR in dB, of the worst row, by our module with these weights."""

    __pydantic_config__ = STRICT
    form: Form
    aim: float
    before: float
    after: float
    raised: tuple[Raised, ...]


@dataclass(frozen=True)
class Package:
    """One .mlpackage. `digest`: see `package.digest`. `minimum_os`: e.g. `iOS 16 / macOS 13`. `weights`: in what form
    they are kept, and which of them are not compressed. `mixture`: of a mixed variant. `part`: of a model that is more
    than one package."""

    __pydantic_config__ = STRICT
    variant: Variant
    file: str
    digest: str
    size: int
    minimum_os: str
    functions: tuple[Function, ...]
    default_function: str
    weights: str = "fp16"
    mixture: Mixture | None = None
    part: Part = ""

    @property
    def what(self) -> str:
        """By which its figures go."""
        return named(self.variant, self.part)


@dataclass(frozen=True)
class Generation:
    """How a text that is written begins and ends, in ids. `start`: the first of a decoder that reads another text, None
    where a text is continued; `end`: any of these is the last; `pad`: stands where nothing is yet."""

    __pydantic_config__ = STRICT
    start: int | None
    end: tuple[int, ...]
    pad: int


@dataclass(frozen=True)
class Range:
    """One kind of value of one layer, on the texts of the audit. `path`: the module's, "" for the whole model.

    `max`: the largest magnitude; `headroom_bits`: log2(65504 / max); `subnormal`: share of the values other than zero
    that are below fp16's least normal number, so that they lose digits or become zero."""

    __pydantic_config__ = STRICT
    path: str
    kind: str
    max: float
    headroom_bits: float
    subnormal: float


@dataclass(frozen=True)
class Conditioned:
    """What was done for a layer: what goes into `path` is 2^-exponent of the original's, and so are `scaled`'s weights.

    `kind`, `max_before`: what was too large there, and how large. `eps_error`: the most by which the result of a norm
    changes, as a share of it, because eps · 2^(-2 · exponent) is not a number of fp16."""

    __pydantic_config__ = STRICT
    path: str
    exponent: int
    scaled: tuple[str, ...]
    kind: str
    max_before: float
    headroom_bits_before: float
    eps_error: float


@dataclass(frozen=True)
class Audit:
    """ranges.json: how large the numbers of the conditioned network get. `failures`: what does not fit, in words."""

    __pydantic_config__ = STRICT
    rows: int
    tokens: int
    layers: tuple[Range, ...]
    conditioned: tuple[Conditioned, ...]
    failures: tuple[str, ...]
    schema: Literal[1] = SCHEMA


@dataclass(frozen=True)
class Made:
    """With what the packages were made, and on what kind of machine. `hft2ane`: its version.

    `commit`: of its git checkout, `changed`: with changes that are not committed, `lock`: SHA-256 of its
    constraints.txt; None where hft2ane is installed from a wheel. `tools`: installed versions, by package."""

    __pydantic_config__ = STRICT
    hft2ane: str
    commit: str | None
    changed: bool
    lock: str | None
    tools: dict[str, str]
    system: str
    machine: str
    python: str


@dataclass(frozen=True)
class Exported:
    """export.json: the packages are in the job's folder."""

    __pydantic_config__ = STRICT
    family: str
    task: Task
    original: str
    convert_key: str
    packages: tuple[Package, ...]
    labels: tuple[str, ...]
    problem: str | None
    audit: Audit
    toolchain: dict[str, str]
    seconds: float
    generation: Generation | None = None
    made: Made | None = None
    schema: Literal[1] = SCHEMA


@dataclass(frozen=True)
class Measure:
    """One output on one set of inputs at one length. `psnr` of all rows taken together; `psnr_min`, `psnr_median` and
    `cosine_min` over rows; for the peak see `verify.condense`. `top1` where the output is logits.

    `worst` is the text (or the name) of the row with the least PSNR; `peak` the original's largest magnitude over these
    rows, None in reports of before there was this."""

    __pydantic_config__ = STRICT
    output: str
    length: int
    inputs: str
    rows: int
    psnr: float
    psnr_min: float
    psnr_median: float
    cosine_min: float
    top1: float | None
    worst: str
    peak: float | None = None


@dataclass(frozen=True)
class Fidelity:
    """One bar: `what` is `rewrite` or a variant's name (see `named`), `backend` says what computed it.

    `psnr` and `psnr_min` are the least of the measures'; the gate stands on `psnr_min`."""

    __pydantic_config__ = STRICT
    what: str
    backend: str
    gate: float
    psnr: float
    psnr_min: float
    psnr_median: float
    top1: float | None
    measures: tuple[Measure, ...]

    @property
    def is_rewrite(self) -> bool:
        return self.what.startswith("rewrite")


@dataclass(frozen=True)
class Greedy:
    """Texts that the packages of a variant write, the best token each time, beside those of transformers' `generate`.

    `same`: texts that are the same to the end; `equal`: of the original's `tokens`, those before the first that
    differs."""

    __pydantic_config__ = STRICT
    what: str
    backend: str
    length: int
    texts: int
    same: int
    tokens: int
    equal: int


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

    def __str__(self) -> str:
        return f"{self.chip}, macOS {self.macos} ({self.build})"

    @property
    def short(self) -> str:
        """For columns: `Apple M2 (24F74)`."""
        return f"{self.chip} ({self.build})"


@dataclass(frozen=True)
class Latency:
    """How long one function of a package takes on one compute unit, in a process of its own: `median_ms`, `p90_ms` and
    `least_ms` of `rounds` predictions after `warm_up` others. `variant`: see `Package.what`.

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


def bars(packages: Sequence[Package]) -> tuple[str, ...]:
    """What a report must have figures of."""
    parts = dict.fromkeys(package.part for package in packages)
    return (*(named("rewrite", part) for part in parts), *(package.what for package in packages))


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
    at them. `warnings`: what went wrong without harm. `skipped`: models that needed nothing."""

    __pydantic_config__ = STRICT
    started: AwareDatetime
    outcomes: tuple[Outcome, ...]
    failed: tuple[str, ...]
    seconds: float
    warnings: tuple[str, ...] = ()
    skipped: int = 0
    schema: Literal[1] = SCHEMA

    @property
    def ended(self) -> datetime:
        return self.started + timedelta(seconds=self.seconds)


R = TypeVar("R")


def read(path: Path, record: type[R]) -> R:
    """The record in the JSON file `path`. BadInput: missing, not JSON, or not this record."""
    if not path.is_file():
        raise BadInput(f"{path} is missing: the step that writes it has not been done in this folder")
    return parse(path.read_bytes(), record, str(path))


def parse(data: bytes | str, record: type[R], where: str) -> R:
    """The record in this JSON text; `where` is for the message only."""
    try:
        found: R = _reader(record).validate_json(data)  # type: ignore[arg-type]  # to mypy, types are not hashable
        return found
    except ValidationError as err:
        first = err.errors()[0]
        spot = ".".join(map(str, first["loc"])) or "the whole file"
        raise BadInput(f"{where} is not a {record.__name__} record of this version: {spot}: {first['msg']}") from err


@functools.cache
def _reader(record: type[Any]) -> TypeAdapter[Any]:
    """Making one takes longer than reading a record with it."""
    return TypeAdapter(record)


def dump(record: object) -> bytes:
    """Canonical JSON: two spaces, fields in their order, a newline at the end."""
    return RootModel[Any](record).model_dump_json(indent=2, by_alias=True).encode() + b"\n"


def write(path: Path, record: object) -> None:
    write_bytes(path, dump(record))


def write_bytes(path: Path, data: bytes) -> None:
    """All of it or nothing: temporary name, fsync, rename. NoSpace."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as err:
        if err.errno == errno.ENOSPC:
            raise NoSpace(f"the disk of {path.parent} is full: free some of it, and run this again") from err
        raise
    finally:
        with contextlib.suppress(OSError):  # there may be none, nor a folder to have it
            temporary.unlink(missing_ok=True)


def need_room(folder: Path, need: int, what: str) -> None:
    """NoSpace: the disk of `folder` has not `need` bytes free; `what` is for the message."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise NoSpace(
            f"{what} needs {need / 1e9:.1f} GB of free disk, {folder} has {free / 1e9:.1f} GB: "
            "make room, or work on another disk"
        )


def clear(folder: Path, keep: str) -> None:
    """Empties a folder, if there is one, but for `keep`."""
    for old in folder.iterdir() if folder.is_dir() else ():
        if old.name != keep:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()


def canonical(value: Mapping[str, Any]) -> bytes:
    """The JSON text that keys are digests of: sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
