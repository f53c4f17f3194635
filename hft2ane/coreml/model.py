"""A package in this very process, for those who use it: what is measured has processes of its own."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hft2ane.errors import EvaluationError
from hft2ane.records.mac import Unit

Array = np.ndarray[Any, Any]


def prepared(inputs: Mapping[str, Array]) -> dict[str, Any]:
    """Integers or floats, as coremltools' `predict` takes them: int32 and float32, of which Core ML makes what a
    package declares. float16 it widens anew at each call; of an array that it may not write to it says that its type
    is not convertible."""
    return {name: v.astype(np.float32 if v.dtype.kind == "f" else np.int32, order="C") for name, v in inputs.items()}


class Model:
    """One function of a package on one compute unit. EvaluationError: Core ML does not load it, or does not run it."""

    def __init__(self, package: Path, function: str, unit: Unit) -> None:
        from coremltools import ComputeUnit
        from coremltools.models import MLModel

        self.what = f"{package.name} ({function}) on {unit}"
        # A package with one function takes no name.
        name = None if function == "main" else function
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # MLModel warns where Core ML cannot compile or load
            try:
                self.model = MLModel(str(package), compute_units=ComputeUnit[unit], function_name=name)
            except RuntimeWarning as err:
                raise EvaluationError(f"Core ML does not load {self.what}: {err}") from err

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name, integers or floats, -> outputs by name; of float16 coremltools makes float32."""
        try:
            found = self.model.predict(prepared(inputs))
        except Exception as err:
            raise EvaluationError(f"Core ML does not run {self.what}: {err}") from err
        return {name: np.asarray(value) for name, value in found.items()}
