"""Declaring a segmentation data set: where its files are, what its labels mean, how they pair."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from regseg_d2.data.labels import LabelReader
from regseg_d2.errors import DatasetError

_SHOWN = 5
_SPECS: dict[str, DatasetSpec] = {}


def datasets_root() -> Path:
    """Folder of all data sets: ``$DETECTRON2_DATASETS``, or ``datasets`` in the working folder."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


@dataclass(frozen=True)
class DatasetSpec:
    """One split of a data set in two folders, one of images and one of label files.

    An image and a label belong together if their paths below the folders are equal once the suffix is
    cut off. A suffix is the whole end of the name: ``_leftImg8bit.png`` pairs with
    ``_gtFine_labelTrainIds.png``. Case does not matter in suffixes; sub-folders are searched; hidden
    files are passed over.

    Args:
        name: name in the catalogs, for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        image_root: folder of the images, absolute or below ``base()``.
        label_root: folder of the labels, absolute or below ``base()``.
        classes: class names, in the order of the class indices.
        colors: one ``(r, g, b)`` a class, for pictures.
        image_suffixes: ends of image names.
        label_suffixes: ends of label names.
        label_map: ``{file value: class index or ignore_value}``; None where they are equal.
        color_table: ``{(r, g, b): file value}`` for labels encoded by colour.
        ignore_value: class index of pixels that count nowhere.
        base: gives the folder that relative roots start from; called when the data set is loaded.
        how_to_get: what to do if a folder is missing, for the error message.

    Raises:
        DatasetError: the declaration contradicts itself.
    """

    name: str
    image_root: str
    label_root: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    image_suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png")
    label_suffixes: tuple[str, ...] = (".png",)
    label_map: Mapping[int, int] | None = None
    color_table: Mapping[tuple[int, int, int], int] | None = None
    ignore_value: int = 255
    base: Callable[[], Path] = datasets_root
    how_to_get: str = ""

    def __post_init__(self) -> None:
        """Checks the declaration, label map and colour table included."""
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise DatasetError(f'Data set "{self.name}": class names must be at least one and all different.')
        if len(self.colors) != len(self.classes):
            raise DatasetError(
                f'Data set "{self.name}" has {len(self.classes)} classes and {len(self.colors)} colours; '
                "expected one colour a class."
            )
        if 0 <= self.ignore_value < len(self.classes):
            raise DatasetError(
                f'Data set "{self.name}": ignore_value {self.ignore_value} is also the index of class '
                f'"{self.classes[self.ignore_value]}"; take another, usually 255.'
            )
        LabelReader(
            label_map=self.label_map,
            color_table=self.color_table,
            ignore_value=self.ignore_value,
            num_classes=len(self.classes),
        )

    def register(self) -> None:
        """Puts the data set in Detectron2's catalogs; files are looked for when it is loaded.

        Raises:
            DatasetError: another data set has this name. (Registering the same one again is allowed.)
        """
        if self.name in DatasetCatalog:
            if _SPECS.get(self.name) == self:
                return
            raise DatasetError(f'A data set named "{self.name}" is registered already; choose another name.')
        _SPECS[self.name] = self
        DatasetCatalog.register(self.name, self.load)
        MetadataCatalog.get(self.name).set(
            stuff_classes=list(self.classes),
            stuff_colors=[list(color) for color in self.colors],
            ignore_label=self.ignore_value,
            evaluator_type="sem_seg",
            label_map=None if self.label_map is None else dict(self.label_map),
            color_table=None if self.color_table is None else dict(self.color_table),
            image_root=self.image_root,
            sem_seg_root=self.label_root,
        )

    def load(self) -> list[dict]:
        """Pairs the files of the two folders.

        Returns:
            One record ``{"file_name", "sem_seg_file_name", "image_id", "dataset_name"}`` a pair,
            sorted by ``image_id``, the path below the folder without the suffix.

        Raises:
            DatasetError: a folder is missing or holds no file of the kind, an image or label has no
                partner, or two files have the same stem.
        """
        base = self.base()
        images = self._files(base / self.image_root, self.image_suffixes, "image")
        labels = self._files(base / self.label_root, self.label_suffixes, "label")
        self._check_partners(images, labels, "image", "label", base / self.label_root)
        self._check_partners(labels, images, "label", "image", base / self.image_root)
        return [
            {
                "file_name": str(images[stem]),
                "sem_seg_file_name": str(labels[stem]),
                "image_id": stem,
                "dataset_name": self.name,
            }
            for stem in sorted(images)
        ]

    def _files(self, root: Path, suffixes: tuple[str, ...], kind: str) -> dict[str, Path]:
        """Files below ``root`` with one of the suffixes, by stem."""
        if not root.is_dir():
            raise DatasetError(self._missing_root(root, kind))
        # The longest suffix that fits is cut off, so that "_label.png" goes before ".png".
        ordered = sorted((suffix.lower() for suffix in suffixes), key=len, reverse=True)
        files: dict[str, Path] = {}
        for path in sorted(root.rglob("*")):
            suffix = next((suffix for suffix in ordered if path.name.lower().endswith(suffix)), None)
            if suffix is None or path.name.startswith(".") or not path.is_file():
                continue
            stem = path.relative_to(root).as_posix()[: -len(suffix)]
            if stem in files:
                raise DatasetError(
                    f'Data set "{self.name}": two {kind} files have the stem "{stem}": {files[stem]} and '
                    f"{path}. Keep one of them."
                )
            files[stem] = path
        if not files:
            raise DatasetError(
                f'Data set "{self.name}" is empty: no {kind} file that ends in {", ".join(suffixes)} below '
                f"{root}." + self._cure()
            )
        return files

    def _missing_root(self, root: Path, kind: str) -> str:
        variable = os.environ.get("DETECTRON2_DATASETS")
        state = "is not set" if variable is None else f"is {variable}"
        return (
            f'Data set "{self.name}": the folder of its {kind}s, {root.absolute()}, does not exist. '
            f"($DETECTRON2_DATASETS, the folder of all data sets, {state}.)" + self._cure()
        )

    def _cure(self) -> str:
        return f" {self.how_to_get}" if self.how_to_get else " See docs/datasets.md for the layout."

    def _check_partners(
        self, have: dict[str, Path], want: dict[str, Path], kind: str, partner: str, root: Path
    ) -> None:
        lonely = sorted(have.keys() - want.keys())
        if lonely:
            shown = ", ".join(str(have[stem]) for stem in lonely[:_SHOWN])
            more = f" and {len(lonely) - _SHOWN} more" if len(lonely) > _SHOWN else ""
            raise DatasetError(
                f'Data set "{self.name}": {len(lonely)} of {len(have)} {kind} files have no {partner} of the '
                f"same stem in {root}: {shown}{more}. Add the missing files or remove these."
            )
