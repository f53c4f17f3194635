"""Core ML programs as protobuf and weight.bin: written, read and evaluated anywhere, no Mac and no converter needed."""

from pathlib import Path

from hft2ane.mil.evaluate import Program
from hft2ane.mil.load import load

__all__ = ["Program", "open_package"]


def open_package(path: Path) -> Program:
    """The program in the .mlpackage at `path`, every offset and name in it checked. PackageError: it is not sound."""
    return Program(load(path))
