"""The pairs of a data set, also of one whose files do not all pair up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.spec import DatasetSpec, registered_spec
from regseg_d2.data.datasets.splits import read_list, without_suffix
from regseg_d2.data.loader import load_records
from regseg_d2.dataset_tools.inspection.samples import FILES, Problem


@dataclass(frozen=True)
class _Candidate:
    """The files that could be one sample: one image and one label, if all is well."""

    stem: str
    images: Sequence[Path]
    labels: Sequence[Path]
    named_by: str = ""


def find_pairs(name: str) -> tuple[list[dict], list[Problem]]:
    """Loads the records of a data set; where that fails, pairs what can be paired.

    Returns the records, and a problem for each file or folder that is missing, lonely or ambiguous.

    Raises:
        ConfigError: no data set has this name.
    """
    try:
        return load_records(name), []
    except DatasetError as error:
        spec = registered_spec(name)
        problems = [] if spec is None else _missing_folders(spec)
        if spec is None or problems:
            return [], problems or [Problem(FILES, "", str(error))]
        try:
            candidates = _listed(spec) if spec.list_file else _in_folders(spec)
        except DatasetError as list_error:
            return [], [Problem(FILES, "", str(list_error))]
        if spec.part is not None:
            chosen = spec.part.choose(candidate.stem for candidate in candidates)
            candidates = [candidate for candidate in candidates if candidate.stem in chosen]
        problems = [problem for candidate in candidates for problem in _problems(candidate, spec)]
        # Without one, the error is about something else, and says all that is known.
        return _records(candidates, spec), problems or [Problem(FILES, "", str(error))]


def _missing_folders(spec: DatasetSpec) -> list[Problem]:
    return [
        Problem(FILES, str(folder), f"The folder of the {kind}s, {folder.absolute()}, does not exist.")
        for kind, folder in (
            ("image", spec.base() / spec.image_root),
            ("label", spec.base() / spec.label_root),
        )
        if not folder.is_dir()
    ]


def _in_folders(spec: DatasetSpec) -> list[_Candidate]:
    images, labels = spec.files("image"), spec.files("label")
    stems = labels.keys() if spec.leaves_out_unlabelled else images.keys() | labels.keys()
    return [_Candidate(stem, images.get(stem, ()), labels.get(stem, ())) for stem in sorted(stems)]


def _listed(spec: DatasetSpec) -> list[_Candidate]:
    """Samples of a list of stems, or of a list of paths."""
    base = spec.base()
    path = base / spec.list_file
    lines = read_list(path)
    if lines[0].label is not None:
        return [
            _Candidate(
                line.image,
                _there(base / line.image),
                _there(base / (line.label or "")),
                f"{path}, line {line.number}",
            )
            for line in lines
        ]
    images, labels = spec.files("image"), spec.files("label")
    candidates = []
    for line in lines:
        stem = without_suffix(line.image, spec.image_suffixes)
        candidates.append(
            _Candidate(stem, images.get(stem, ()), labels.get(stem, ()), f"{path}, line {line.number}")
        )
    return candidates


def _there(path: Path) -> list[Path]:
    return [path] if path.is_file() else []


def _problems(candidate: _Candidate, spec: DatasetSpec) -> list[Problem]:
    problems = []
    for kind, files, partners, root, suffixes in (
        ("image", candidate.images, candidate.labels, spec.image_root, spec.image_suffixes),
        ("label", candidate.labels, candidate.images, spec.label_root, spec.label_suffixes),
    ):
        if len(files) > 1:
            text = (
                f'{len(files)} {kind} files have the stem "{candidate.stem}": {", ".join(map(str, files))}.'
            )
            problems.append(Problem(FILES, str(files[0]), f"{text} Keep one."))
        elif not files:
            wanted_by = candidate.named_by or str(partners[0])
            expected = f"{spec.base() / root / candidate.stem} with the ending {' or '.join(suffixes)}"
            text = f'{wanted_by} has no {kind} for "{candidate.stem}"; expected {expected}.'
            problems.append(Problem(FILES, wanted_by, text))
    return problems


def _records(candidates: Sequence[_Candidate], spec: DatasetSpec) -> list[dict]:
    """Records as :meth:`DatasetSpec.load` makes them, of what is complete."""
    return [
        spec.record(candidate.stem, candidate.images[0], candidate.labels[0])
        for candidate in candidates
        if len(candidate.images) == len(candidate.labels) == 1
    ]
