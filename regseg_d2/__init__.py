"""Training-time regularizers for semantic segmentation on Detectron2."""

__version__ = "0.1.0"
