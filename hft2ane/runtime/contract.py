"""What an app must know of a release to run it, read from its conversion.json or from a package itself.

A release may come from a later version of hft2ane than this one: what is read here stays as it is within a major
version (see `interface`), and what is not known is passed over.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hft2ane.errors import BadInput, PackageError
from hft2ane.mil.load import load as read_package
from hft2ane.records import SCHEMA

RECORD = "conversion.json"
# In a package's own metadata.
ORIGINAL, TASK, VARIANT = "co.huggingface.exporters.name", "co.huggingface.exporters.task", "com.github.hft2ane.variant"
LENIENT = ConfigDict(extra="ignore", frozen=True)


@dataclass(frozen=True)
class Port:
    """An input or output; a size of −1 is the call's to choose."""

    __pydantic_config__ = LENIENT
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Function:
    """The model at one length, in tokens."""

    __pydantic_config__ = LENIENT
    name: str
    length: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Package:
    """One .mlpackage; `part` is `encoder` or `decoder` of a model that is both. `digest`: see `package.digest`."""

    __pydantic_config__ = LENIENT
    variant: str
    file: str
    functions: tuple[Function, ...]
    digest: str = ""
    part: str = ""

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(function.length for function in self.functions)


@dataclass(frozen=True)
class Source:
    """Of what it is a conversion."""

    __pydantic_config__ = LENIENT
    id: str


@dataclass(frozen=True)
class Generation:
    """How a text that is written begins and ends, in ids; see `records.Generation`."""

    __pydantic_config__ = LENIENT
    start: int | None
    end: tuple[int, ...]
    pad: int


@dataclass(frozen=True)
class Contract:
    """`packages`: those of one variant after `choose`. `task` "": the package does not say. `psnr`: by variant."""

    __pydantic_config__ = LENIENT
    task: str
    source: Source
    packages: tuple[Package, ...]
    labels: tuple[str, ...] = ()
    problem: str | None = None
    generation: Generation | None = None
    retired: str | None = None
    psnr: Mapping[str, float] = field(default_factory=dict)

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(package.variant for package in self.packages))

    @property
    def main(self) -> Package:
        """The package that answers, or that reads the text of which another is written."""
        return next((package for package in self.packages if package.part == "encoder"), self.packages[0])


def parse(data: bytes, where: str) -> Contract:
    """BadInput: `data` is no conversion.json that this version can use."""
    try:
        found: Any = json.loads(data)
        schema = found["schema"]
    except (ValueError, LookupError, TypeError) as err:
        raise BadInput(f"{where} is no record of a release: load a repo or a folder that hft2ane has made") from err
    if schema != SCHEMA:
        raise BadInput(f"{where} has schema {schema}, this hft2ane reads {SCHEMA}: pip install --upgrade hft2ane")
    try:
        contract = TypeAdapter(Contract).validate_python(found)
    except ValidationError as err:
        first = err.errors()[0]
        spot = ".".join(map(str, first["loc"])) or "the whole file"
        raise BadInput(f"{where}: {spot}: {first['msg']}; pip install --upgrade hft2ane may read it") from err
    if odd := [each.file for each in contract.packages if not re.fullmatch(r"[^/\\.][^/\\]*\.mlpackage", each.file)]:
        raise BadInput(f"{where}: {odd[0]!r} is no name of a package in a release: nothing is taken")
    return contract


def choose(contract: Contract, variant: str | None, where: str) -> Contract:
    """With the packages of one variant: the one asked for, or else float16, or else the one with the highest PSNR."""
    if not contract.packages:
        raise BadInput(f"{where} names no package: it cannot be run")
    if variant is not None and variant not in contract.variants:
        raise BadInput(f"{where} has no variant {variant!r}; there are {', '.join(contract.variants)}")
    # Of a part of a model the key is `int8 decoder`.
    least = {
        name: min((v for key, v in contract.psnr.items() if key.split()[0] == name), default=0.0)
        for name in contract.variants
    }
    best = max(least, key=lambda name: (name == "float16", least[name]))
    return replace(contract, packages=tuple(each for each in contract.packages if each.variant == (variant or best)))


def only(contract: Contract, file: str) -> Contract:
    """With the one package of that name. BadInput: it is a part of a model, or not in the record."""
    (package,) = found if len(found := [each for each in contract.packages if each.file == file]) == 1 else (None,)
    if package is None or package.part:
        raise BadInput(f"{file} alone is not all of the model: load the folder that it is in")
    return replace(contract, packages=(package,))


def of_package(path: Path) -> Contract:
    """What a package says by itself; nothing of labels. Of one from elsewhere task and lengths may not be known.

    PackageError."""
    package = read_package(path)
    functions = tuple(
        Function(
            name,
            _length(function.inputs),
            tuple(Port(each.name, each.shape, each.dtype) for each in function.inputs),
            tuple(Port(each.name, each.shape, each.dtype) for each in function.outputs),
        )
        for name, function in package.functions.items()
    )
    if any(function.states for function in package.functions.values()):
        raise PackageError(f"{path} keeps a state from call to call, which is not run here: use Core ML itself")
    about = package.metadata
    entry = Package(about.get(VARIANT, ""), path.name, functions, part=about.get("com.github.hft2ane.part", ""))
    task = "" if entry.part else about.get(TASK, "")
    return Contract(task, Source(about.get(ORIGINAL, path.name)), (entry,))


def _length(inputs: Sequence[Any]) -> int:
    """Tokens of a function that takes ids, else 0."""
    return next((each.shape[-1] for each in inputs if each.name == "input_ids" and each.shape), 0)
