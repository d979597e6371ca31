"""The numbers behind the figures, as files that other programs read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regseg_d2.apps.explore.study import Study
from regseg_d2.common.files import atomic_writer, write_text
from regseg_d2.drawing.figures.tables import csv_text, latex_table
from regseg_d2.drawing.figures.texts import safe_names

Rows = list[list[Any]]


def write_numbers(study: Study, folder: Path) -> list[Path]:
    """Writes the findings of each network, and all positions of projections, as ``.npz``."""
    names = safe_names([each.name for each in study.explored])
    files = [folder / f"{name}.npz" for name in names]
    for each, file in zip(study.explored, files, strict=True):
        each.findings.save(file)
    arrays: dict[str, np.ndarray] = {"pixels": study.pixels, "regions": study.regions}
    for what, found in (("pixels", study.pixel_projections), ("regions", study.region_projections)):
        for method, positions in found.items():
            arrays |= {f"{what}_{method}_{name}": xy for name, xy in zip(names, positions, strict=True)}
    with atomic_writer(folder / "projections.npz", "wb") as opened:
        np.savez_compressed(opened, **arrays)
    return [*files, folder / "projections.npz"]


def write_tables(study: Study, folder: Path) -> list[Path]:
    """Writes tables as CSV, and those that fit a page as LaTeX, too."""
    files = []
    for name, headers, rows, is_short in _tables(study):
        files.append(folder / f"{name}.csv")
        write_text(files[-1], csv_text(headers, rows))
        if is_short:
            files.append(folder / f"{name}.tex")
            write_text(files[-1], latex_table(headers, rows))
    return files


def _tables(study: Study) -> Iterator[tuple[str, Sequence[str], Rows, bool]]:
    """Yields name, headers, rows, and whether there is a LaTeX table of it."""
    explored, classes = study.explored, study.classes
    names = [each.name for each in explored]
    metrics = [each.metrics() for each in explored]
    yield (
        "metrics",
        ["run", *metrics[0]],
        [[n, *m.values()] for n, m in zip(names, metrics, strict=True)],
        True,
    )
    for name, columns in (
        ("class_iou", [each.findings.metrics.iou for each in explored]),
        ("boundary_iou", [each.findings.boundary_iou for each in explored]),
        ("intra_inter", [each.ratios for each in explored]),
    ):
        rows = [[each, *(column[k] for column in columns)] for k, each in enumerate(classes)]
        yield name, ["class", *names], rows, True
    for each, safe in zip(explored, safe_names(names), strict=True):
        table = [[name, *row] for name, row in zip(classes, each.findings.confusion.tolist(), strict=True)]
        yield f"confusion_{safe}", ["true \\ predicted", *classes], table, False
    image_names = explored[0].findings.image_names.tolist()
    scores = [each.image_scores.tolist() for each in explored]
    yield (
        "image_miou",
        ["image", *names],
        [list(row) for row in zip(image_names, *scores, strict=True)],
        False,
    )
    yield "pixels", *_pixels(study), False


def _pixels(study: Study) -> tuple[list[str], Rows]:
    """The pixels of the projections, one a row."""
    first, chosen = study.explored[0].findings, study.pixels
    headers = ["image", "y", "x", "label"]
    columns: list[Any] = [
        first.image_names[first.pixel_image[chosen]].tolist(),
        first.pixel_y[chosen].tolist(),
        first.pixel_x[chosen].tolist(),
        [study.classes[k] for k in first.pixel_label[chosen]],
    ]
    for position, each in enumerate(study.explored):
        headers += [f"{each.name}: predicted", f"{each.name}: confidence"]
        columns.append([study.classes[k] for k in each.findings.pixel_predicted[chosen]])
        columns.append(each.findings.pixel_confidence[chosen].tolist())
        for method, positions in study.pixel_projections.items():
            headers += [f"{each.name}: {method} {axis}" for axis in "xy"]
            columns += positions[position].T.tolist()
    return headers, [list(row) for row in zip(*columns, strict=True)]
