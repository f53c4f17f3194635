"""The Mac: Core ML itself, asked in processes of its own, because Apple's compilers may hang or take a process down.

Elsewhere `available()` is false, and nothing is measured.
"""

import sys

from hft2ane.coreml.model import Model, keep, kept
from hft2ane.coreml.process import (
    ROUNDS,
    TIMEOUT,
    WARM_UP,
    Child,
    Compiled,
    Host,
    Runner,
    compile_package,
    plan,
    probe,
    timed,
)

__all__ = [
    "ROUNDS",
    "TIMEOUT",
    "WARM_UP",
    "Child",
    "Compiled",
    "Host",
    "Model",
    "Runner",
    "available",
    "compile_package",
    "keep",
    "kept",
    "plan",
    "probe",
    "timed",
]


def available() -> bool:
    return sys.platform == "darwin"
