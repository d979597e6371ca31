"""Declarations of a toy data set on disk, registered for the length of a test."""

from contextlib import contextmanager

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from regseg_d2.data.datasets import spec as spec_module
from regseg_d2.data.datasets.declared import register_declared

FARM = """
name: farm
root: data
classes: [soil, crop, {name: weed, color: [200, 60, 160]}]
splits:
  train: {images: images, labels: labels}
  val: {images: images, labels: labels}
"""


def declare(folder, text=FARM, **changes):
    """Writes ``farm.yaml``: a text, with keys changed, or removed by None."""
    content = {**yaml.safe_load(text), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    path = folder / "farm.yaml"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


@contextmanager
def declared(*paths):
    """Registers the declarations; afterwards these and all that was registered meanwhile are forgotten."""
    before = set(DatasetCatalog.list())
    try:
        yield register_declared(paths)
    finally:
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)
            spec_module._SPECS.pop(name, None)
