"""One file a family, found by its name: `bert.py` serves model_type `bert`, `xlm_roberta.py` serves `xlm-roberta`.

A family file has
  TASKS    task -> module class; a class has ORIGINAL (the transformers class whose outputs it gives), WEIGHTS (module
           path -> checkpoint path, see `ane.fill`), UNWANTED (expressions of tensors it does not use), and OUTPUTS
  CONFIG   config key -> the values it reproduces; any other value is refused
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from hft2ane.errors import UnknownFamily, UnknownTask, UnsupportedConfig

FAMILIES = tuple(
    sorted(p.stem.replace("_", "-") for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
)


class TaskModule(Protocol):
    """What a family's class for a task gives. Called with the inputs in INPUTS order, answers a tuple in OUTPUTS order."""

    ORIGINAL: ClassVar[str]
    WEIGHTS: ClassVar[Mapping[str, str]]
    UNWANTED: ClassVar[tuple[str, ...]]
    OUTPUTS: ClassVar[tuple[str, ...]]
    inputs: tuple[str, ...]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class Family:
    model_type: str
    tasks: Mapping[str, Any]
    config: Mapping[str, tuple[Any, ...]]

    def check(self, config: Any, where: str) -> None:
        """UnsupportedConfig when a key that changes the function has a value that is not reproduced."""
        for key, allowed in self.config.items():
            value = getattr(config, key, allowed[0])
            if value not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise UnsupportedConfig(
                    f"{where}: {key} = {value!r} is not reproduced by the {self.model_type} family (only {choices})"
                )

    def task(self, wanted: str | None, architectures: list[str] | None, where: str) -> str:
        """The task: the one wanted, else what the checkpoint's `architectures` names."""
        known = ", ".join(self.tasks)
        if wanted is not None:
            if wanted not in self.tasks:
                raise UnknownTask(f"{where}: the {self.model_type} family has no task {wanted!r}; it has {known}")
            return wanted
        for architecture in architectures or []:
            for task, module in self.tasks.items():
                if module.ORIGINAL == architecture:
                    return task
        raise UnknownTask(
            f"{where}: config.json names {architectures or 'no architecture'}, which is no task of the "
            f"{self.model_type} family; say `task:` in the manifest, one of {known}"
        )


def family(model_type: str) -> Family:
    """UnknownFamily when there is no file for it; an error inside the file is left as it is."""
    if model_type not in FAMILIES:
        raise UnknownFamily(
            f"no family for model_type {model_type!r}; there are: {', '.join(FAMILIES)}. "
            f"To add it: hft2ane/families/{model_type.replace('-', '_')}.py and a row in tests/test_families.py "
            "(CONTRIBUTING.md, Add a family)"
        )
    module = importlib.import_module(f"{__name__}.{model_type.replace('-', '_')}")
    return Family(model_type, module.TASKS, module.CONFIG)
