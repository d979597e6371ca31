"""Regularizers: losses on features that exist in training only, one method a file."""

from regseg_d2.regularizers.base import (
    REGULARIZER,
    Regularizer,
    RegularizerInput,
    build_regularizers,
)
from regseg_d2.regularizers.car import CAR

__all__ = ["CAR", "REGULARIZER", "Regularizer", "RegularizerInput", "build_regularizers"]
