"""What a manifest asks for: the recipe of a model's packages, and the gates that they must pass."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from hft2ane.records import STRICT
from hft2ane.records.fidelity import CAP

LEAST_LENGTH = 8  # tokens: room for the special tokens and a few words

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
