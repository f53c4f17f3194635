"""What a package contains, without evaluating it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hft2ane.mil.load import Feature, load


@dataclass(frozen=True)
class FunctionSummary:
    """One entry point: its contract, its operations by type, most frequent first, and how many constants it names."""

    name: str
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    ops: Mapping[str, int]
    constants: int


@dataclass(frozen=True)
class Summary:
    """`weight_bytes`: size of the weight files, which the functions share."""

    functions: tuple[FunctionSummary, ...]
    default: str
    weight_bytes: int
    metadata: Mapping[str, str]
    specification_version: int


def inspect(path: Path) -> Summary:
    """The contents of the package at `path`. PackageError."""
    package = load(path)
    functions = tuple(
        FunctionSummary(
            name=function.name,
            inputs=function.inputs,
            outputs=function.outputs,
            ops=dict(Counter(op.type for op in function.ops).most_common()),
            constants=len(function.constants),
        )
        for function in package.functions.values()
    )
    return Summary(
        functions=functions,
        default=package.default,
        weight_bytes=package.weight_bytes,
        metadata=package.metadata,
        specification_version=package.specification_version,
    )
