"""Hugging Face models for the Apple Neural Engine: `load` runs a published one. Everything else may move."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hft2ane.errors import Truncated
    from hft2ane.runtime.loading import load
    from hft2ane.runtime.model import Model

PLACES = {"Model": "hft2ane.runtime.model", "Truncated": "hft2ane.errors", "load": "hft2ane.runtime.loading"}
__all__ = ["Model", "Truncated", "load"]


def __getattr__(name: str) -> Any:
    """What runs a model is imported when it is asked for: planning and publishing do without numpy."""
    if name not in PLACES:
        raise AttributeError(f"module 'hft2ane' has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)
