"""What a package contains, without evaluating it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hft2ane.mil.load import Feature, Function, Package, load, sizes
from hft2ane.mil.target import every, system


@dataclass(frozen=True)
class Port:
    """An input, output or state; `may_be`: the shapes that a flexible one (−1 in `shape`) may have, in words."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    may_be: tuple[str, ...]


@dataclass(frozen=True)
class FunctionSummary:
    """One entry point: its contract, its operations by type, most frequent first, and how many constants it names."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[Port, ...]
    ops: Mapping[str, int]
    constants: int


@dataclass(frozen=True)
class Summary:
    """`weight_bytes`: size of the weight files, which the functions share; `weights`: bytes by the type in which they
    are stored. `system`: the first that the specification version is for."""

    functions: tuple[FunctionSummary, ...]
    default: str
    weight_bytes: int
    weights: Mapping[str, int]
    about: Mapping[str, str]
    metadata: Mapping[str, str]
    specification_version: int
    system: str


def inspect(path: Path) -> Summary:
    """The contents of the package at `path`. PackageError."""
    package = load(path)
    return Summary(
        functions=tuple(summary(function) for function in package.functions.values()),
        default=package.default,
        weight_bytes=package.weight_bytes,
        weights=stored(package),
        about=package.about,
        metadata=package.metadata,
        specification_version=package.specification_version,
        system=system(package.specification_version),
    )


def summary(function: Function) -> FunctionSummary:
    def ports(features: Sequence[Feature]) -> tuple[Port, ...]:
        return tuple(
            Port(each.name, each.shape, each.dtype, tuple(map(sizes, function.flexible.get(each.name, ()))))
            for each in features
        )

    return FunctionSummary(
        name=function.name,
        inputs=ports(function.inputs),
        outputs=ports(function.outputs),
        states=ports(function.states),
        ops=dict(Counter(op.type for op in every(function.ops)).most_common()),
        constants=len(function.constants),
    )


def stored(package: Package) -> dict[str, int]:
    """Each constant once, whatever takes it; most bytes first. Text is none."""
    constants = {
        id(each): each
        for function in package.functions.values()
        for op in every(function.ops)
        for bindings in op.inputs.values()
        for each in (function.constants.get(b) if isinstance(b, str) else b for b in bindings)
        if each is not None and each.dtype != "string"
    }
    found: Counter[str] = Counter()
    for each in constants.values():
        found[each.dtype] += each.stored.nbytes
    return dict(found.most_common())
