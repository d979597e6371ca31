"""What is done with a file of each kind: all that the package does with it before it is believed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from regseg_d2.apps.compare.runs import read_evaluation
from regseg_d2.common.errors import UserError
from regseg_d2.config.files import load_config
from regseg_d2.data.class_weights import read_frequencies
from regseg_d2.data.datasets.declared import read_declaration
from regseg_d2.data.images import read_image
from regseg_d2.data.labels import LabelReader
from regseg_d2.dataset_tools.coco.conversion import CocoSplit, convert_coco
from regseg_d2.dataset_tools.inspection.samples import inspect_sample
from regseg_d2.dataset_tools.preparation.archives import unpack
from regseg_d2.dataset_tools.preparation.matlab import label_values, read_matlab
from regseg_d2.engine.checkpoint_history import damage_of
from regseg_d2.weights.reading import read_weights
from tests.weights.attacks import read_checkpoint

# An image of as many pixels as Pillow allows takes seconds of honest work, however small its file is.
_MOST_PIXELS = 1 << 21
_COLORS = {(0, 0, 0): 255, (255, 255, 255): 2, (1, 2, 3): 0}
_LABEL_READERS = (
    LabelReader(num_classes=3),
    LabelReader(num_classes=3, label_map={0: 255, 1: 0, 7: 2, 70000: 1, -5: 0}),
    LabelReader(num_classes=3, color_table=_COLORS),
)


def read_weights_file(path: Path) -> None:
    """Reads a checkpoint, all that is in it and its weights alone, and looks for damage as a resume does."""
    damage_of(path)
    try:
        read_weights(str(path))
    except UserError as error:
        assert path.name in str(error)
    read_checkpoint(path)


def read_config(path: Path) -> None:
    """Reads a config file as ``--config-file`` does."""
    load_config(str(path))


def declare(path: Path) -> None:
    """Reads the declaration of a data set; what it declares lies beside it, or nowhere."""
    assert read_declaration(path)


def read_image_and_label(path: Path) -> None:
    """Reads a file as an image and as a label, and inspects it as both."""
    Image.MAX_IMAGE_PIXELS = _MOST_PIXELS
    record = {"image_id": "x", "file_name": str(path), "sem_seg_file_name": str(path)}
    failures = []
    for reader in _LABEL_READERS:
        inspect_sample(record, reader)
        try:
            label = reader(path)
            assert label.ndim == 2 and set(np.unique(label).tolist()) <= {0, 1, 2, 255}
        except UserError as error:
            assert path.name in str(error)
            failures.append(error)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
    if len(failures) == len(_LABEL_READERS):
        raise failures[0]


def convert_annotations(path: Path) -> None:
    """Draws the labels of a COCO file whose image ``images/a.jpg`` lies beside it."""
    output = path.parent / "labels"
    shutil.rmtree(output, ignore_errors=True)
    (path.parent / "images").mkdir(exist_ok=True)
    (path.parent / "images" / "a.jpg").touch()
    convert_coco("fuzz", [CocoSplit("train", path, path.parent / "images")], output)


def read_class_counts(path: Path) -> None:
    """Reads the counts of ``tools/check_dataset.py --json`` of three classes."""
    read_frequencies(path, 3)


def read_scores(path: Path) -> None:
    """Reads the evaluation of a run."""
    read_evaluation(path)


def read_matlab_label(path: Path) -> None:
    """Reads a label of a MATLAB file."""
    label_values(read_matlab(path, ["S", "G"])["S"], path, "S", 200)


def unpack_beside(path: Path) -> None:
    """Unpacks an archive into the folder ``unpacked`` beside it.

    Args:
        path: the archive.
    """
    folder = path.parent / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    unpack(path, folder)
    assert all(path.parent in file.resolve().parents for file in folder.rglob("*"))


READERS = {
    "checkpoints": read_weights_file,
    "pickles": read_weights_file,
    "configs": read_config,
    "declarations": declare,
    "coco": convert_annotations,
    "counts": read_class_counts,
    "evaluations": read_scores,
    "archives": unpack_beside,
    "images": read_image_and_label,
    "matlab": read_matlab_label,
}


def read_any(path: Path) -> None:
    """Reads a file of the kind that its folder is named after.

    Args:
        path: ``<kind>/<name>``.
    """
    READERS[path.parent.name](path)
