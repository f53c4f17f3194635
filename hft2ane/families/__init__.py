"""One file a family, found by its name: `bert.py` serves model_type `bert`, `xlm_roberta.py` serves `xlm-roberta`.

A family file has
  TASKS    task -> module class, mostly a head of `_heads` on the family's encoder; it has ORIGINAL (the transformers
           class whose outputs it gives), WEIGHTS (module path -> checkpoint path, see `ane.fill`), UNWANTED
           (expressions of tensors it does not use), OUTPUTS, and CONFIG for what is so in this task only
  CONFIG   config key -> the values it reproduces, or what gives them for a config; any other value is refused
  HEADS    expressions of tensors that a checkpoint may hold for tasks other than the wanted one
  PARTS    of a family whose models are made of two others': part -> the task that it has there
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hft2ane.errors import UnknownFamily, UnknownTask, UnsupportedConfig
from hft2ane.records.package import Part
from hft2ane.records.recipe import TASKS, Task

if TYPE_CHECKING:  # the names of the families are for the light half too
    from torch import Tensor

FAMILIES = tuple(
    sorted(p.stem.replace("_", "-") for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
)


@dataclass(frozen=True)
class Between:
    """The numbers from `least` to `most`, whole ones if both are, as the values of a config key."""

    least: float
    most: float

    def __contains__(self, value: object) -> bool:
        numbers = int if isinstance(self.least, int) and isinstance(self.most, int) else int | float
        return isinstance(value, numbers) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"


@dataclass(frozen=True)
class Such:
    """The values that `holds` is true of, as those of a config key; `about` says which."""

    about: str
    holds: Callable[[Any], bool]

    def __contains__(self, value: object) -> bool:
        return self.holds(value)

    def __str__(self) -> str:
        return self.about


# The values of a config key that are reproduced; what gives them for a config, where they depend on other keys.
Allowed = Container[Any] | Callable[[Any], Container[Any]]

FEATURES = "feature-extraction"  # the task of an encoder without a head; every family of one has it
WRITING = "text-generation"  # that of a decoder, with or without an encoder's states

# What a decoder with cross-attention takes besides ids and their mask.
STATES, STATES_MASK = "encoder_hidden_states", "encoder_attention_mask"

SIZE = Between(1, 1 << 22)
LAYERS = Between(1, 256)
EPSILON = Between(1e-15, 0.1)


class TaskModule(Protocol):
    """What a family's class for a task gives. Called with tensors in the order of `inputs`, answers as OUTPUTS.

    `parts`: the modules that become packages, by default itself."""

    ORIGINAL: ClassVar[str]
    WEIGHTS: ClassVar[Mapping[str, str]]
    UNWANTED: tuple[str, ...]
    OPTIONAL: ClassVar[tuple[str, ...]]
    CONFIG: ClassVar[Mapping[str, Allowed]]
    OUTPUTS: tuple[str, ...]
    inputs: tuple[str, ...]

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None: ...

    @staticmethod
    def limit(config: Any) -> int: ...

    @classmethod
    def weights(cls, config: Any) -> Mapping[str, str]: ...

    @property
    def parts(self) -> Mapping[Part, Any]: ...

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class Family:
    model_type: str
    tasks: Mapping[str, type[TaskModule]]
    config: Mapping[str, Allowed]
    heads: Collection[str]
    parts: Mapping[Part, str]

    def check(self, config: Any, task: str, where: str) -> None:
        """UnsupportedConfig when a key that changes the function has a value that is not reproduced."""
        for key, value, allowed in self.unlike(config, task):
            choices = ", ".join(map(repr, allowed)) if isinstance(allowed, Iterable) else allowed
            raise UnsupportedConfig(
                f"{where}: {key} = {value!r} is not reproduced by the {self.model_type} family (only {choices})"
            )
        for part, its_task in self.parts.items():
            self.check_part(part, its_task, getattr(config, part), where)
        if self.parts:
            return
        if config.hidden_size % config.num_attention_heads:
            size, heads = (config.attribute_map.get(key, key) for key in ("hidden_size", "num_attention_heads"))
            raise UnsupportedConfig(
                f"{where}: {size} = {config.hidden_size} is no multiple of {heads} = {config.num_attention_heads}"
            )
        size = config.hidden_size // config.num_attention_heads
        if size % 2 and getattr(config, "rope_parameters", None):
            raise UnsupportedConfig(
                f"{where}: num_attention_heads = {config.num_attention_heads} of hidden_size = {config.hidden_size} "
                f"have {size} channels each, which is odd: rotary positions turn pairs of channels"
            )
        if config.pad_token_id is not None and not -1 <= config.pad_token_id < config.vocab_size:
            raise UnsupportedConfig(
                f"{where}: pad_token_id = {config.pad_token_id} is outside vocab_size = {config.vocab_size}"
            )
        if self.tasks[task].limit(config) < 1:
            raise UnsupportedConfig(
                f"{where}: max_position_embeddings = {config.max_position_embeddings} leave no token a position after "
                f"pad_token_id = {config.pad_token_id}"
            )

    def unlike(self, config: Any, task: str) -> Iterator[tuple[str, Any, Container[Any]]]:
        """The keys of the config with other values than the task reproduces, and which those are."""
        for key, values in {**self.config, **self.tasks[task].CONFIG}.items():
            allowed = reproduced(values, config)
            if hasattr(config, key) and (value := getattr(config, key)) not in allowed:
                yield key, value, allowed

    def check_kind(self, part: Part, model_type: str, where: str) -> None:
        """UnsupportedConfig when no family has the part's task for this model_type."""
        task = self.parts[part]
        if model_type not in FAMILIES or task not in family(model_type).tasks:
            raise UnsupportedConfig(
                f"{where}: {part}.model_type = {model_type!r} is not reproduced: no family has {task} for it"
            )

    @staticmethod
    def check_part(part: Part, task: str, config: Any, where: str) -> None:
        """A part of a pair is checked by its own family, in the task that it has there."""
        family(config.model_type).check(config, task, f"{where}: {part}")
        if part == "decoder" and not config.add_cross_attention:
            raise UnsupportedConfig(f"{where}: decoder: add_cross_attention = False: it would not see the encoder")

    def is_head(self, tensor: str) -> bool:
        """Whether a tensor of this name (without the base model's prefix) serves other tasks only."""
        return any(re.fullmatch(head, tensor) for head in self.heads)

    def task(self, wanted: str | None, config: Any, stored: Collection[str], where: str) -> str:
        """The task: the one wanted, else what the config's `architectures` name and the checkpoint's tensors (`stored`:
        their names) bear out. A head that none of them is for is not there: what is left are features."""
        known = ", ".join(self.tasks)
        if wanted is not None:
            if wanted not in self.tasks:
                raise UnknownTask(f"{where}: the {self.model_type} family has no task {wanted!r}; it has {known}")
            return wanted
        architectures = config.architectures
        there = {task: self.has_head(task, config, stored) for task in self.tasks}
        for task, module in self.tasks.items():
            if module.ORIGINAL in (architectures or ()):
                return task if there[task] else FEATURES
        found = [task for task in self.tasks if there[task] and task != FEATURES]
        if len(found) > 1:  # one head may serve two tasks, of an encoder and of a decoder
            found = [task for task in found if not any(self.unlike(config, task))] or found
        if not architectures and len(found) < 2:
            return found[0] if found else FEATURES
        raise UnknownTask(
            f"{where}: config.json names {architectures or 'no architecture'}, which is no task of the "
            f"{self.model_type} family; say `task:` in the manifest, one of {', '.join(found) or known}"
        )

    def rows(self, task: str, config: Any) -> Collection[str]:
        """The checkpoint's side of the task's weight table; nothing where the family has no such task."""
        return self.tasks[task].weights(config).values() if task in self.tasks else ()

    def has_head(self, task: str, config: Any, stored: Collection[str]) -> bool:
        """Whether there is a tensor for what the task has besides the encoder."""
        head, encoder = (set(self.rows(each, config)) for each in (task, FEATURES))
        head -= encoder
        return not head or any(name.rpartition(".")[0] in head for name in stored)


def reproduced(allowed: Allowed, config: Any) -> Container[Any]:
    """The values themselves, beside those that the config has for other keys."""
    return allowed(config) if callable(allowed) else allowed


def catalogue() -> dict[str, tuple[Task, ...]]:
    """The tasks of each family, in the order of `records.TASKS`. What gives features also gives sentence embeddings."""
    found = {}
    for name in FAMILIES:
        tasks = set(family(name).tasks)
        found[name] = tuple(
            task for task in TASKS if task in tasks or (task == "sentence-embedding" and FEATURES in tasks)
        )
    return found


def renamed(tasks: Mapping[str, type[Any]], prefix: str) -> dict[str, type[Any]]:
    """The same classes for a model that transformers has under another name: RobertaModel -> XLMRobertaModel, say."""
    theirs = tasks[FEATURES].ORIGINAL.removesuffix("Model")
    return {
        task: type(module.__name__, (module,), {"ORIGINAL": prefix + module.ORIGINAL.removeprefix(theirs)})
        for task, module in tasks.items()
    }


def family(model_type: str) -> Family:
    """UnknownFamily when there is no file for it; an error inside the file is left as it is."""
    file = f"{model_type.replace('-', '_')}.py"
    if model_type not in FAMILIES:
        raise UnknownFamily(
            f"no family for model_type {model_type!r}; there are: {', '.join(FAMILIES)}. "
            f"To add it: hft2ane/families/{file} and a row in tests/families/{file} (CONTRIBUTING.md, Add a family)"
        )
    module = importlib.import_module(f"{__name__}.{file.removesuffix('.py')}")
    return Family(model_type, module.TASKS, module.CONFIG, module.HEADS, getattr(module, "PARTS", {}))
