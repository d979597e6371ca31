"""Training-time regularizers for semantic segmentation on Detectron2."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regseg_d2.prediction import Prediction, Predictor

__version__ = "0.1.0"
__all__ = ["Prediction", "Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports the predictor when it is asked for: the core of this package does without Detectron2."""
    if name in ("Prediction", "Predictor"):
        return getattr(importlib.import_module("regseg_d2.prediction"), name)
    raise AttributeError(f"module 'regseg_d2' has no attribute {name!r}")
