"""The protobuf classes of Core ML's specification, without importing coremltools.

`import coremltools` takes seconds, since it brings its converters and torch; its generated classes need neither. They
are loaded here under a parent package of our own, and are the same classes whichever of the two is imported first.
"""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from hft2ane.errors import ToolchainMismatch

PARENT = "hft2ane_coreml_proto"


def _classes(of: str) -> ModuleType:
    spec = find_spec("coremltools")
    if spec is None or spec.origin is None:
        raise ToolchainMismatch("coremltools is not installed: pip install 'hft2ane[evaluate]'")
    if PARENT not in sys.modules:
        parent = ModuleType(PARENT)
        parent.__path__ = [str(Path(spec.origin).parent / "proto")]
        sys.modules[PARENT] = parent
    return importlib.import_module(f"{PARENT}.{of}_pb2")


Model = _classes("Model").Model
ArrayFeatureType = _classes("FeatureTypes").ArrayFeatureType
ValueType, Value = _classes("MIL").ValueType, _classes("MIL").Value
DecodeError = importlib.import_module("google.protobuf.message").DecodeError
