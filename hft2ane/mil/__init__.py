"""Core ML programs as protobuf and weight.bin: written, read and evaluated anywhere, no Mac and no converter needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hft2ane.mil.evaluate import Program

__all__ = ["Program", "open_package"]


def open_package(path: Path) -> "Program":
    """The program in the .mlpackage at `path`, every offset and name in it checked. PackageError: it is not sound."""
    from hft2ane.mil.evaluate import Program
    from hft2ane.mil.load import load

    return Program(load(path))


def __getattr__(name: str) -> Any:
    """Evaluating brings torch, which reading a package, and Core ML on a Mac, do without."""
    if name != "Program":
        raise AttributeError(f"module 'hft2ane.mil' has no attribute {name!r}")
    from hft2ane.mil.evaluate import Program

    return Program
