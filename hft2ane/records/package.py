"""The packages that are made of an original: ranges.json and export.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hft2ane.records import SCHEMA, STRICT
from hft2ane.records.recipe import Form, Task, Variant

SINGLE_OS, SEVERAL_OS = "iOS 16 / macOS 13", "iOS 18 / macOS 15"  # what packages of one and of several lengths need
Part = Literal["", "encoder", "decoder"]  # of a model that is more than one package


# Outputs with an entry, or a row, for each token; `logits` are such by their axes, or by the task.
PER_TOKEN = ("last_hidden_state", "token_embeddings", "start_logits", "end_logits")


def per_token(output: str, axes: int, task: Task) -> bool:
    """Whether an output of so many axes has an entry, or a row, for each token. Its size would not tell: a vector may
    be as long as the text."""
    return output in PER_TOKEN or (output == "logits" and (axes == 3 or task == "replaced-token-detection"))


def named(what: str, part: Part) -> str:
    """What a figure is of, `rewrite` or a variant, and of which part of it: `float16 decoder`."""
    return f"{what} {part}".rstrip()


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


def bars(packages: Sequence[Package]) -> tuple[str, ...]:
    """What a report must have figures of."""
    parts = dict.fromkeys(package.part for package in packages)
    return (*(named("rewrite", part) for part in parts), *(package.what for package in packages))
