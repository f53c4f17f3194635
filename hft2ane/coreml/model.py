"""A package in this very process, for those who use it: what is measured has processes of its own.

What the system prepares of a compiled model for its Neural Engine, it finds again by the model's full path (guide of
coremltools, Model Prediction). An MLModel of a package compiles into a new temporary folder, so that each process would
wait as long as the first, for a large model minutes. So what is compiled is kept.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hft2ane.errors import EvaluationError
from hft2ane.records.mac import Unit

Array = np.ndarray[Any, Any]

KEPT = "~/Library/Caches/hft2ane"  # nothing in it is needed: it may be deleted when no model is being loaded


def kept(digest: str) -> Path:
    """Where the compiled model of a package is, or will be. `digest`: see `package.digest`."""
    return Path(KEPT).expanduser() / f"{digest}.mlmodelc"


def keep(package: Path, place: Path) -> None:
    """Compiles a package, of which no file is a symbolic link, to a place that `kept` gave. EvaluationError."""
    from coremltools.models.utils import compile_model

    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
        made = Path(temporary) / place.name
        try:
            compile_model(str(package), str(made))
        except Exception as err:
            raise EvaluationError(f"Core ML does not compile {package.name}: {err}") from err
        try:
            made.rename(place)
        except OSError:  # another process was quicker
            if not place.is_dir():
                raise


def prepared(inputs: Mapping[str, Array]) -> dict[str, Any]:
    """Integers or floats, as coremltools' `predict` takes them: int32 and float32, of which Core ML makes what a
    package declares. float16 it widens anew at each call; of an array that it may not write to it says that its type
    is not convertible."""
    return {name: v.astype(np.float32 if v.dtype.kind == "f" else np.int32, order="C") for name, v in inputs.items()}


class Model:
    """One function of a compiled model on one compute unit; `of`: its package, for messages. EvaluationError: Core ML
    does not load it, or does not run it."""

    def __init__(self, compiled: Path, function: str, unit: Unit, of: str) -> None:
        from coremltools import ComputeUnit
        from coremltools.models import CompiledMLModel

        self.what = f"{of} ({function}) on {unit}"
        # A model with one function takes no name.
        name = None if function == "main" else function
        try:
            self.model = CompiledMLModel(str(compiled), compute_units=ComputeUnit[unit], function_name=name)
        except Exception as err:
            raise EvaluationError(f"Core ML does not load {self.what}: {err}") from err

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name, integers or floats, -> outputs by name; of float16 coremltools makes float32."""
        try:
            found = self.model.predict(prepared(inputs))
        except Exception as err:
            raise EvaluationError(f"Core ML does not run {self.what}: {err}") from err
        return {name: np.asarray(value) for name, value in found.items()}
