"""The Mac: Core ML itself. The only place that needs macOS; elsewhere `available()` is false, nothing is measured."""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hft2ane.errors import EvaluationError

Array = np.ndarray[Any, Any]

UNITS = ("CPU_ONLY", "CPU_AND_NE")


def available() -> bool:
    return sys.platform == "darwin"


class Runner:
    """One function of a package on one compute unit (a name of coremltools.ComputeUnit)."""

    def __init__(self, package: Path, function: str, unit: str) -> None:
        import coremltools

        # A package with one function takes no name.
        name = None if function == "main" else function
        units = coremltools.ComputeUnit[unit]
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # MLModel warns where Core ML cannot compile or load
            try:
                self.model = coremltools.models.MLModel(str(package), compute_units=units, function_name=name)
            except RuntimeWarning as err:
                raise EvaluationError(f"Core ML does not load {package.name} ({function}) on {unit}: {err}") from err

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """int32 inputs by name -> outputs by name."""
        outputs = self.model.predict({name: value.astype(np.int32) for name, value in inputs.items()})
        return {name: np.asarray(value) for name, value in outputs.items()}
