"""The Mac: Core ML itself. The only place that needs macOS; elsewhere `available()` is false, nothing is measured."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
        self.model = coremltools.models.MLModel(
            str(package), compute_units=coremltools.ComputeUnit[unit], function_name=name
        )

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """int32 inputs by name -> outputs by name."""
        outputs = self.model.predict({name: value.astype(np.int32) for name, value in inputs.items()})
        return {name: np.asarray(value) for name, value in outputs.items()}
