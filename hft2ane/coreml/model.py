"""A package in this very process, for those who use it: what is measured has processes of its own."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hft2ane.errors import EvaluationError
from hft2ane.records.mac import Unit

Array = np.ndarray[Any, Any]


class Model:
    """One function of a package on one compute unit. EvaluationError: Core ML does not load it."""

    def __init__(self, package: Path, function: str, unit: Unit) -> None:
        from coremltools import ComputeUnit
        from coremltools.models import MLModel

        # A package with one function takes no name.
        name = None if function == "main" else function
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # MLModel warns where Core ML cannot compile or load
            try:
                self.model = MLModel(str(package), compute_units=ComputeUnit[unit], function_name=name)
            except RuntimeWarning as err:
                raise EvaluationError(f"Core ML does not load {package.name} ({function}) on {unit}: {err}") from err

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name, integers or floats, -> outputs by name."""
        given = {name: v.astype(np.float16 if v.dtype.kind == "f" else np.int32) for name, v in inputs.items()}
        return {name: np.asarray(value) for name, value in self.model.predict(given).items()}
