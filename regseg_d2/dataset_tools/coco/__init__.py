"""COCO files as labels: annotations of instances or panoptic segments, drawn into images."""
