"""Writes the page: one HTML file that holds all it needs, and can reach no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from regseg_d2.apps.explore.page.content import PageContent, PageImage, PagePixels, check_content, check_image
from regseg_d2.apps.explore.page.features import Moments, QuantizedRun, directions_within
from regseg_d2.apps.explore.page.overview import number, overview_of, signed
from regseg_d2.apps.explore.page.packing import (
    file_uri,
    jpeg_uri,
    pack,
    pack_classes,
    pack_positions,
    shown_text,
    shrunken,
    thinned,
)
from regseg_d2.common.errors import UserError
from regseg_d2.common.files import write_text

# Bytes of a page.
BUDGET = 20_000_000
# Longer sides in pixels that pictures may have, the best first, and what share of the bytes they may take.
SIDES = (768, 640, 512, 400, 320, 240, 160)
PICTURES_SHARE = 0.6
# Colours of cosines.
COLORMAP = "viridis"
_SCRIPTS = ("core.js", "painting.js", "viewer.js", "confusions.js", "scatter.js", "page.js")


def write_page(content: PageContent, path: str | Path) -> None:
    """Writes a page, the same bytes from call to call.

    Pictures are made smaller, and features are kept on fewer directions, until all fits; the page says what
    is left of features.

    Args:
        content: what is shown.
        path: of the HTML file.

    Raises:
        UserError: arrays do not fit together, a figure cannot be read, plotly is not installed, or the page
            cannot be made small enough.
    """
    write_text(path, page_text(content))


def page_text(content: PageContent, *, budget: int = BUDGET) -> str:
    """The page that :func:`write_page` writes, of at most so many bytes."""
    check_content(content)
    frame = _Frame(content)
    none = [0] * len(content.runs)
    moments = _moments(content)
    pictures = _pictures_within(content, int(PICTURES_SHARE * (budget - frame.size([], [], none))))
    quantized = _quantized_runs(content, moments)
    room = budget - frame.size(pictures, quantized, none)
    kept = directions_within(quantized, room)
    if room < 0 or (pictures and 0 in kept):
        raise UserError(
            f"{len(pictures)} images do not fit into a page of {budget / 1e6:.1f} MB: it has "
            f"{(budget - room) / 1e6:.1f} MB before any feature is in it. Show fewer images, pixels or "
            "figures, or allow more."
        )
    return frame.render(pictures, quantized, kept)


@dataclass(frozen=True)
class _Picture:
    """An image of the page, packed: what the script is told, and the picture itself."""

    facts: dict[str, Any]
    jpeg: str

    @property
    def size(self) -> int:
        packed = [self.facts["label"], *(run["predicted"] for run in self.facts["runs"])]
        return len(self.jpeg) + sum(len(array["data"]) for array in packed)


def _pictures_within(content: PageContent, budget: int) -> list[_Picture]:
    """The images of a page, as large as they can be; the smallest where all are too large."""
    for side in SIDES:
        pictures, size = [], 0
        for image in content.images:
            pictures.append(_picture(image, content, side))
            size += pictures[-1].size
            if size > budget and side != SIDES[-1]:
                break
        else:
            break
    return pictures


def _picture(image: PageImage, content: PageContent, side: int) -> _Picture:
    label = np.asarray(image.label)
    height, width = label.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(scale * height)), max(1, round(scale * width))
    K = len(content.classes)
    runs = [
        {
            "predicted": pack_classes(thinned(np.asarray(run.predicted), size), K),
            "iou": pack(np.asarray(run.iou, np.float32)),
            "mean": None if np.isnan(run.mean_iou) else round(float(run.mean_iou), 2),
            "cells": list(np.shape(run.feature)[1:]),
            "cell": [float(length) for length in run.cell_size],
        }
        for run in image.runs
    ]
    facts = {
        "index": list(content.image_names).index(image.name),
        "size": [height, width],
        "picture": list(size),
        "label": pack_classes(thinned(label, size), K),
        "runs": runs,
    }
    return _Picture(facts, jpeg_uri(shrunken(np.asarray(image.pixels, np.uint8), size)))


def _moments(content: PageContent) -> list[Moments]:
    """Goes through all images for the first time: looks at them, and sums up the features of each run."""
    moments = [Moments() for _ in content.runs]
    for image in content.images:
        check_image(image, content)
        for run, made in zip(moments, image.runs, strict=True):
            run.add(made.feature)
    return moments


def _quantized_runs(content: PageContent, moments: Sequence[Moments]) -> list[QuantizedRun]:
    runs = [QuantizedRun(*run.directions()) for run in moments]
    for image in content.images:
        for run, made in zip(runs, image.runs, strict=True):
            run.add(made.feature)
    return runs


class _Frame:
    """The page around its images."""

    def __init__(self, content: PageContent) -> None:
        self.content = content
        loader = PackageLoader("regseg_d2.apps.explore.page", "")
        environment = Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
        )
        environment.filters |= {"number": number, "signed": signed, "shown": shown_text, "broken": _broken}

        def source(name: str) -> str:
            return loader.get_source(environment, name)[0]

        plotly = _plotly_source()
        script = "".join(source(name) for name in _SCRIPTS)
        self.template = environment.get_template("page.html")
        self.names = [shown_text(name) for name in content.image_names]
        self.fixed = {
            "content": content,
            "overview": overview_of(content),
            "names": self.names,
            "figures": [(caption, file_uri(path)) for caption, path in content.figures],
            "style": Markup(source("page.css")),
            "script": Markup(script),
            "plotly": pack(np.frombuffer(plotly.encode(), np.uint8)),
            # Of all scripts only these two run, whatever the names in the page are.
            "hashes": [_hash(script), _hash(plotly)],
        }
        self.data = {
            "classes": [shown_text(name) for name in content.classes],
            "colors": np.asarray(content.colors).tolist(),
            "names": self.names,
            "runs": [
                {
                    "name": shown_text(run.name),
                    "confusion": pack(np.asarray(run.confusion, np.float64)),
                    "pairs": pack(np.asarray(run.pair_images, np.int32)),
                }
                for run in content.runs
            ],
            "pixels": None if content.pixels is None else _packed_pixels(content.pixels),
            "colormap": matplotlib.colormaps[COLORMAP](np.arange(256), bytes=True)[:, :3].tolist(),
        }

    def size(self, pictures: Sequence[_Picture], runs: Sequence[QuantizedRun], kept: Sequence[int]) -> int:
        """Bytes of the page."""
        return len(self.render(pictures, runs, kept).encode())

    def render(self, pictures: Sequence[_Picture], runs: Sequence[QuantizedRun], kept: Sequence[int]) -> str:
        """The page with its images, whose features are kept on so many directions of each run."""
        features = [
            {"directions": D, "share": run.share_kept(D), "error": run.error(D)}
            for run, D in zip(runs, kept, strict=False)
        ]
        images = []
        for i, picture in enumerate(pictures):
            made = [
                facts | {"feature": run.packed(i, D)}
                for facts, run, D in zip(picture.facts["runs"], runs, kept, strict=False)
            ]
            images.append(picture.facts | {"runs": made})
        return self.template.render(
            **self.fixed,
            data=self.data | {"images": images},
            features=features,
            pictures=pictures,
        )


def _packed_pixels(pixels: PagePixels) -> dict[str, Any]:
    return {
        "count": len(pixels.image),
        "image": pack(np.asarray(pixels.image, np.int32)),
        "y": pack(np.asarray(pixels.y, np.uint16)),
        "x": pack(np.asarray(pixels.x, np.uint16)),
        "label": pack(np.asarray(pixels.label, np.uint16)),
        "predicted": [pack(np.asarray(of_run, np.uint16)) for of_run in pixels.predicted],
        "confidence": [
            pack(np.rint(255 * np.asarray(of_run)).astype(np.uint8)) for of_run in pixels.confidence
        ],
        "projections": [
            {"method": shown_text(method), "runs": [pack_positions(of_run) for of_run in positions]}
            for method, positions in pixels.projections.items()
        ],
    }


def _plotly_source() -> str:
    """The script of plotly.js.

    Raises:
        UserError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # an extra: training does without it
    except ModuleNotFoundError as error:
        raise UserError(
            f"The page needs plotly ({error}); run: pip install plotly, or install regseg_d2[explore]."
        ) from error
    return get_plotlyjs()


def _broken(text: str) -> Markup:
    """A key of a config, which lines may break behind its dots and underscores."""
    return escape(text).replace(".", Markup(".<wbr>")).replace("_", Markup("_<wbr>"))


def _hash(script: str) -> str:
    """How a content security policy names a script that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
