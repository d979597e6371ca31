"""From a trained model and images to labels: whole images, sliding windows, several scales and flips."""

from regseg_d2.evaluation.inference.predictor import Predictor, build_predictor
from regseg_d2.evaluation.inference.protocol import InferenceProtocol, refuse_unsupported

__all__ = ["InferenceProtocol", "Predictor", "build_predictor", "refuse_unsupported"]
