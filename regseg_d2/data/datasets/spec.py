"""Declaring a segmentation data set: where its files are, what its labels mean, how they pair."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from detectron2.data import DatasetCatalog, MetadataCatalog

from regseg_d2.common.errors import DatasetError, listed
from regseg_d2.data.datasets.guessing import IMAGE_SUFFIXES, LABEL_SUFFIXES
from regseg_d2.data.datasets.splits import ListLine, Part, files_by_stem, read_list, without_suffix
from regseg_d2.data.labels import LabelReader

_SPECS: dict[str, DatasetSpec] = {}


def datasets_root() -> Path:
    """Folder of all data sets: ``$DETECTRON2_DATASETS``, or ``datasets`` in the working folder."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def registered_spec(name: str) -> DatasetSpec | None:
    """Returns the declaration behind a name of the catalogs; None for a data set declared elsewhere."""
    return _SPECS.get(name)


@dataclass(frozen=True)
class DatasetSpec:
    """One split of a data set in two folders, one of images and one of label files.

    An image and a label belong together if their paths below the folders are equal once the suffix is
    cut off. A suffix is the whole end of the name: ``_leftImg8bit.png`` pairs with
    ``_gtFine_labelTrainIds.png``. Case does not matter in suffixes; sub-folders are searched; hidden
    files are passed over. The split has all files of the folders, or those that a list names, or a part
    that is drawn by a hash of the stems.

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
        list_file: text file, absolute or below ``base()``, with a stem in each line, or with the paths of
            an image and its label below ``base()`` (:func:`~regseg_d2.data.datasets.splits.read_list`).
            The folders may then hold files that the list does not name.
        part: takes this part of the stems only.
        leaves_out_unlabelled: images without a label are passed over; of folders, not of a list.

    Raises:
        DatasetError: the declaration contradicts itself.
    """

    name: str
    image_root: str
    label_root: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    image_suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    label_suffixes: tuple[str, ...] = LABEL_SUFFIXES
    label_map: Mapping[int, int] | None = None
    color_table: Mapping[tuple[int, int, int], int] | None = None
    ignore_value: int = 255
    base: Callable[[], Path] = datasets_root
    how_to_get: str = ""
    list_file: str = ""
    part: Part | None = None
    leaves_out_unlabelled: bool = False

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
        self.label_reader()

    def label_reader(self) -> LabelReader:
        """Returns the reader of its labels."""
        return LabelReader(
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
        """Pairs images and labels.

        Returns:
            One record ``{"file_name", "sem_seg_file_name", "image_id", "dataset_name"}`` a pair, in the
            order of the list, or sorted by ``image_id``. That is the stem: the path below the folder
            without the suffix.

        Raises:
            DatasetError: a folder, the list, or a file that it names is missing, a folder holds no file of
                the kind, an image or label has no partner, two files have the same stem, or the part is
                empty.
        """
        pairs = self._listed_pairs() if self.list_file else self._folder_pairs()
        total = len(pairs)
        if self.part is not None:
            chosen = self.part.choose(pairs)
            pairs = {stem: pair for stem, pair in pairs.items() if stem in chosen}
        if self.part is not None and not pairs:
            raise DatasetError(
                f'Data set "{self.name}" is empty: none of {total} images falls into its part of '
                f"{self.part.stop - self.part.start:.3g}. Take another seed, or lists instead of fractions."
            )
        same = next((image for image, label in pairs.values() if image == label), None)
        if same is not None:
            raise DatasetError(
                f'Data set "{self.name}": {same} is an image and its own label. Name different folders, or '
                "suffixes that tell images and labels apart."
            )
        return [self.record(stem, image, label) for stem, (image, label) in pairs.items()]

    def record(self, stem: str, image: Path, label: Path) -> dict:
        """Returns the record of a pair."""
        return {
            "file_name": str(image),
            "sem_seg_file_name": str(label),
            "image_id": stem,
            "dataset_name": self.name,
        }

    def files(self, kind: str) -> dict[str, list[Path]]:
        """Finds the files of a kind, "image" or "label", by stem; more than one of a stem is an ambiguity."""
        roots = {"image": self.base() / self.image_root, "label": self.base() / self.label_root}
        suffixes = {"image": self.image_suffixes, "label": self.label_suffixes}
        other = suffixes["label" if kind == "image" else "image"] if len(set(roots.values())) == 1 else ()
        return files_by_stem(roots[kind], suffixes[kind], other)

    def _folder_pairs(self) -> dict[str, tuple[Path, Path]]:
        """All files of the folders, which must all have partners."""
        base = self.base()
        images = self._files("image")
        labels = self._files("label")
        self._check_partners(labels, images, "label", "image", base / self.image_root)
        if self.leaves_out_unlabelled:
            images = {stem: image for stem, image in images.items() if stem in labels}
        self._check_partners(images, labels, "image", "label", base / self.label_root)
        return {stem: (images[stem], labels[stem]) for stem in sorted(images)}

    def _listed_pairs(self) -> dict[str, tuple[Path, Path]]:
        """The files that the list names."""
        base = self.base()
        path = base / self.list_file
        if not path.is_file():
            raise DatasetError(
                f'Data set "{self.name}": its list {path.absolute()} does not exist.'
                + self._root_hint(self.list_file)
                + self._cure()
            )
        lines = read_list(path)
        if lines[0].label is None:
            return self._pairs_of_stems(path, lines)
        pairs: dict[str, tuple[Path, Path]] = {}
        for line in lines:
            image, label = base / line.image, base / (line.label or "")
            for kind, file in (("image", image), ("label", label)):
                if not file.is_file():
                    raise DatasetError(
                        f'Data set "{self.name}": {path}, line {line.number} names the {kind} {file}, which '
                        "does not exist. Paths in a list are absolute or below "
                        f"{base.absolute()}; correct the line or add the file."
                    )
            stem = self._stem_of_path(line.image, base)
            if stem in pairs:
                raise DatasetError(
                    f'Data set "{self.name}": {path}, line {line.number}: {image} and {pairs[stem][0]} have '
                    f'the same stem "{stem}". Rename one of them.'
                )
            pairs[stem] = (image, label)
        return pairs

    def _pairs_of_stems(self, path: Path, lines: list[ListLine]) -> dict[str, tuple[Path, Path]]:
        stems = [without_suffix(line.image, self.image_suffixes) for line in lines]
        twice = [stem for stem, count in Counter(stems).items() if count > 1]
        if twice:
            raise DatasetError(
                f'Data set "{self.name}": {path} names "{twice[0]}" twice, with and without a suffix. Remove '
                "one of the lines."
            )
        images = self._files("image", wanted=set(stems))
        labels = self._files("label", wanted=set(stems))
        for kind, files, root in (("image", images, self.image_root), ("label", labels, self.label_root)):
            missing = [
                (line.number, stem) for line, stem in zip(lines, stems, strict=True) if stem not in files
            ]
            if missing:
                shown = listed([f'line {number} "{stem}"' for number, stem in missing])
                suffixes = ", ".join(self.image_suffixes if kind == "image" else self.label_suffixes)
                raise DatasetError(
                    f'Data set "{self.name}": {len(missing)} of {len(lines)} names in {path} have no {kind} '
                    f"file that ends in {suffixes} below {self.base() / root}: {shown}. Correct the "
                    "list, or add the files." + self._cure()
                )
        return {stem: (images[stem], labels[stem]) for stem in stems}

    def _stem_of_path(self, image: str, base: Path) -> str:
        """Stem of an image that a list names by its path; predictions are saved under it."""
        path = PurePosixPath(image)
        if path.is_relative_to(base.as_posix()):
            path = path.relative_to(base.as_posix())
        inner = "/".join(part for part in path.parts if part not in (path.anchor, ".."))
        stem = without_suffix(inner, self.image_suffixes)
        return stem if stem != inner else str(PurePosixPath(inner).with_suffix(""))

    def _files(self, kind: str, wanted: set[str] | None = None) -> dict[str, Path]:
        """Images or labels by stem; of those that are wanted, if only some are."""
        root = self.base() / (self.image_root if kind == "image" else self.label_root)
        if not root.is_dir():
            raise DatasetError(self._missing_root(root, kind))
        files = self.files(kind)
        if wanted is None and not files:
            suffixes = ", ".join(self.image_suffixes if kind == "image" else self.label_suffixes)
            raise DatasetError(
                f'Data set "{self.name}" is empty: no {kind} file that ends in {suffixes} below {root}.'
                + self._cure()
            )
        return {
            stem: self._only(paths, stem, kind)
            for stem, paths in files.items()
            if wanted is None or stem in wanted
        }

    def _only(self, paths: list[Path], stem: str, kind: str) -> Path:
        if len(paths) > 1:
            raise DatasetError(
                f'Data set "{self.name}": two {kind} files have the stem "{stem}": {paths[0]} and '
                f"{paths[1]}. Keep one of them."
            )
        return paths[0]

    def _missing_root(self, root: Path, kind: str) -> str:
        declared = self.image_root if kind == "image" else self.label_root
        return (
            f'Data set "{self.name}": the folder of its {kind}s, {root.absolute()}, does not exist.'
            + self._root_hint(declared)
            + self._cure()
        )

    def _root_hint(self, declared: str) -> str:
        """Says what a relative path starts from, where that is the folder of all data sets."""
        if self.base is not datasets_root or Path(declared).is_absolute():
            return ""
        variable = os.environ.get("DETECTRON2_DATASETS")
        state = "is not set" if variable is None else f"is {variable}"
        return f" ($DETECTRON2_DATASETS, the folder of all data sets, {state}.)"

    def _cure(self) -> str:
        return f" {self.how_to_get}" if self.how_to_get else " See docs/datasets.md for the layout."

    def _check_partners(
        self, have: dict[str, Path], want: dict[str, Path], kind: str, partner: str, root: Path
    ) -> None:
        lonely = sorted(have.keys() - want.keys())
        if lonely:
            shown = listed([have[stem] for stem in lonely])
            raise DatasetError(
                f'Data set "{self.name}": {len(lonely)} of {len(have)} {kind} files have no {partner} of the '
                f"same stem in {root}: {shown}. Add the missing files or remove these."
            )
