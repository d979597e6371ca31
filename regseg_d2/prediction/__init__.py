"""A trained model as one object: from anything that is an image to labels; docs/predictor.md shows how."""

from regseg_d2.prediction.classes import ClassList
from regseg_d2.prediction.predictor import Predictor
from regseg_d2.prediction.result import Prediction

__all__ = ["ClassList", "Prediction", "Predictor"]
