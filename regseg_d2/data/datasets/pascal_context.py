"""Pascal Context: VOC 2010 with every pixel labelled, in its 59 most frequent classes, or 60 with background.

The labels are index PNGs that ``datasets/prepare_pascal_context.py`` makes from what is published;
mmsegmentation's converter makes the same. The order of the classes is that of their ids among the 459 labels
of the data set; the authors' list ``59_labels.txt`` has another, with the classes of VOC first.
"""

from __future__ import annotations

from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.data.datasets.spec import DatasetSpec

PASCAL_CONTEXT_SPLITS = ("train", "val")
# Below the folder of all data sets; the other paths are below this one.
PASCAL_CONTEXT_FOLDER = "VOCdevkit/VOC2010"
PASCAL_CONTEXT_IMAGES = "JPEGImages"
PASCAL_CONTEXT_LABELS = "SegmentationClassContext"
PASCAL_CONTEXT_LISTS = "ImageSets/SegmentationContext"


def pascal_context_spec(classes: int, split: str) -> DatasetSpec:
    """Describes ``pascal_context_<classes>_<split>``.

    Args:
        classes: 59, where background is ignored, or 60, where it is class 0.
        split: one of ``PASCAL_CONTEXT_SPLITS``.
    """
    return load_definition(f"pascal_context_{classes}").spec(
        f"pascal_context_{classes}_{split}",
        f"{PASCAL_CONTEXT_FOLDER}/{PASCAL_CONTEXT_IMAGES}",
        f"{PASCAL_CONTEXT_FOLDER}/{PASCAL_CONTEXT_LABELS}",
        image_suffixes=(".jpg",),
        list_file=f"{PASCAL_CONTEXT_FOLDER}/{PASCAL_CONTEXT_LISTS}/{split}.txt",
        how_to_get="datasets/README.md says where to get Pascal Context; datasets/prepare_pascal_context.py "
        "makes its labels and lists.",
    )


def pascal_context_specs() -> list[DatasetSpec]:
    """All splits, with 59 and with 60 classes."""
    return [pascal_context_spec(classes, split) for classes in (59, 60) for split in PASCAL_CONTEXT_SPLITS]
