"""One package, run: by Core ML on a Mac, by our evaluator elsewhere, which is said once."""

import contextlib
import functools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hft2ane import coreml
from hft2ane.errors import BadInput
from hft2ane.package import digest
from hft2ane.records.mac import ENGINE
from hft2ane.runtime.contract import Function, Package, Port

Array = np.ndarray[Any, Any]
log = logging.getLogger("hft2ane")


class Engine:
    """A package's functions, each opened when it is first called."""

    def __init__(self, path: Path, package: Package) -> None:
        self.path, self.package = path, package
        self._models: dict[str, coreml.Model] = {}
        self._run: Callable[[str, Mapping[str, Array]], Mapping[str, Array]]
        if coreml.available():
            self._run = self._predict
        else:
            from hft2ane.mil import open_package

            say_evaluated()
            program = open_package(path)
            self._run = lambda function, inputs: program.evaluate(inputs, function)

    def __call__(self, function: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; fractions in float32."""
        found = self._run(function, inputs)
        return {name: v.astype(np.float32) if v.dtype.kind == "f" else v for name, v in found.items()}

    def _predict(self, function: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if function not in self._models:
            place = coreml.kept(self.package.digest or digest(self.path))
            if not place.is_dir():
                with plain(self.path) as package:
                    coreml.keep(package, place)
            self._models[function] = coreml.Model(place, function, ENGINE, self.path.name)
        return self._models[function](inputs)


@contextlib.contextmanager
def plain(package: Path) -> Iterator[Path]:
    """The Hub's cache has symbolic links, with which coremltools has trouble (huggingface_hub#1240): it gets the files
    themselves, as hard links where that can be."""
    files = [path for path in package.rglob("*") if path.is_file()]
    if not any(path.is_symlink() for path in files):
        yield package
        return
    with tempfile.TemporaryDirectory(prefix="hft2ane-") as folder:
        copy = Path(folder) / package.name
        for path in files:
            target = copy / path.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), target)
            except OSError:
                shutil.copyfile(path, target)
        yield copy


def fitting(function: Function, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
    """The inputs in the types that the function declares, None where they are not for it. BadInput."""
    if inputs.keys() != {port.name for port in function.inputs}:
        return None
    if any(not _fits(inputs[port.name].shape, port.shape) for port in function.inputs):
        return None
    return {port.name: _cast(inputs[port.name], port) for port in function.inputs}


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(size in (-1, n) for n, size in zip(shape, declared, strict=True))


def _cast(array: Array, port: Port) -> Array:
    """BadInput: numbers of `array` are none of that type."""
    whole = port.dtype.startswith("int")
    if array.dtype.kind == "f" and whole:
        raise BadInput(f"input {port.name} is {array.dtype}, must be {port.dtype}: array.astype({port.dtype!r})")
    cast = np.ascontiguousarray(array, port.dtype)
    if whole and not np.array_equal(cast, array):
        raise BadInput(f"input {port.name} has numbers that {port.dtype} does not hold")
    return cast


@functools.cache
def say_evaluated() -> None:
    log.warning(
        "There is no Core ML on this machine (%s): hft2ane's evaluator computes the packages, on the CPU and slower.",
        sys.platform,
    )
