"""Records of registered data sets, as the loaders and checks take them."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.common.suggestions import did_you_mean


def require_registered(dataset_name: str) -> None:
    """Raises ConfigError where no data set has this name; the nearest names are listed."""
    if dataset_name not in DatasetCatalog:
        raise ConfigError(
            f'No data set is named "{dataset_name}"{did_you_mean(dataset_name, DatasetCatalog.list())}. '
            "DATASETS.TRAIN and DATASETS.TEST take registered names; docs/datasets.md lists those that are "
            "built in and says how to register one."
        )


def load_records(dataset_name: str) -> list[dict]:
    """Loads the records of one registered data set, each with its ``dataset_name`` and ``image_id``.

    Raises:
        ConfigError: no data set has this name.
        DatasetError: the data set cannot be loaded or holds nothing.
    """
    require_registered(dataset_name)
    records = DatasetCatalog.get(dataset_name)
    if not records:
        raise DatasetError(f'The data set "{dataset_name}" is empty; its loader returned no record.')
    if "sem_seg_file_name" not in records[0]:
        raise DatasetError(
            f'The records of the data set "{dataset_name}" have no sem_seg_file_name, so it is not one for '
            "semantic segmentation with label files."
        )
    return [
        {**record, "dataset_name": dataset_name, "image_id": str(record.get("image_id", record["file_name"]))}
        for record in records
    ]


def load_training_records(dataset_names: Sequence[str]) -> list[dict]:
    """Loads several data sets one after the other and compares their classes.

    Raises:
        ConfigError: there is no name, or a name is unknown.
        DatasetError: the class lists differ, or a data set cannot be loaded.
    """
    if not dataset_names:
        raise ConfigError("DATASETS.TRAIN names no data set; expected at least one.")
    records = [record for name in dataset_names for record in load_records(name)]
    check_equal_classes(dataset_names)
    return records


def check_equal_classes(dataset_names: Sequence[str]) -> None:
    """Compares the class lists of registered data sets.

    Raises:
        DatasetError: two lists differ; the first difference is named.
    """
    if not dataset_names:
        return
    first_name, *others = dataset_names
    first = list(MetadataCatalog.get(first_name).get("stuff_classes", []))
    for name in others:
        classes = list(MetadataCatalog.get(name).get("stuff_classes", []))
        if classes != first:
            place = next(
                (i for i, (a, b) in enumerate(zip(first, classes, strict=False)) if a != b),
                min(len(first), len(classes)),
            )
            raise DatasetError(
                f'The class lists of "{first_name}" ({len(first)} classes) and "{name}" ({len(classes)} '
                f"classes) differ, first at index {place}: {first[place : place + 1]} and "
                f"{classes[place : place + 1]}. Data sets of one run need the same classes in the same order."
            )
