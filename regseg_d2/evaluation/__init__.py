"""Evaluation of semantic segmentation: metrics of a confusion matrix, and who collects it."""
