"""What an exported file says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

import regseg_d2
from regseg_d2.apps.experiment.records import current_commit
from regseg_d2.apps.export.folded import FOLDED_SUFFIX, read_folded_metadata
from regseg_d2.apps.export.formats import FORMATS
from regseg_d2.apps.export.network import HEAD_SCORES, LABELS
from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import format_config
from regseg_d2.engine.provenance import weights_hash
from regseg_d2.prediction.classes import ClassList


def describe_network(
    cfg: CfgNode, segmentor: Any, output: str, *, size: tuple[int, int] | None, normalizes: bool
) -> dict[str, Any]:
    """Describes input, output, classes and origin of a network, for the file and whoever reads it.

    Args:
        cfg: its config.
        segmentor: the segmentor.
        output: one of ``OUTPUTS``.
        size: the only height and width that it takes, or None.
        normalizes: whether normalization is inside.

    Raises:
        ConfigError: the config names no data set, whose classes these are.
    """
    classes = ClassList.of_config(cfg)
    height, width = size or ("height", "width")
    pads = cfg.TEST.PADDING == "stride"
    return {
        "package": f"regseg_d2 {regseg_d2.__version__}",
        "commit": current_commit(),
        "input": {
            "shape": ["batch", 3, height, width],
            "dtype": "float32",
            "channels": cfg.INPUT.FORMAT,
            "values": "0 to 255" if normalizes else "(value - mean) / std of values 0 to 255",
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "normalization": "inside" if normalizes else "by the caller",
            "padding": _padding(segmentor, pads),
        },
        "output": {
            "kind": output,
            "shape": _output_shape(output, len(classes.names), height, width),
            "values": _values(segmentor, output),
        },
        "classes": list(classes.names),
        "palette": classes.colors.tolist(),
        "weights_sha256": weights_hash(segmentor.state_dict()),
        "config": format_config(cfg),
    }


def _padding(segmentor: Any, pads: bool) -> str:
    if not pads:
        return "none"
    height, width = segmentor.padded_size(1, 1)
    return f"inside, to multiples of {height} x {width}"


def _output_shape(output: str, classes: int, height: Any, width: Any) -> list[Any]:
    if output == HEAD_SCORES:
        return ["batch", classes, "rows", "columns"]
    return ["batch", height, width] if output == LABELS else ["batch", classes, height, width]


def _values(segmentor: Any, output: str) -> str:
    if output == LABELS:
        return "class indices"
    return "scores of classified masks" if segmentor.gives_probabilities else "logits"


def read_description(path: str | Path) -> dict[str, Any]:
    """Reads what an exported file says about itself.

    Args:
        path: a file that ``tools/export.py`` wrote, of any format.

    Raises:
        UserError: its name tells no format, or a package that reads it is not installed.
    """
    path = Path(path)
    if path.suffix == FOLDED_SUFFIX:
        return json.loads(read_folded_metadata(path))
    for file_format in FORMATS.values():
        if path.suffix == file_format.suffix:
            file_format.require()
            return json.loads(file_format.read_metadata(path))
    known = ", ".join([*(each.suffix for each in FORMATS.values()), FOLDED_SUFFIX])
    raise ConfigError(f"'{path}' is no exported file by its name; expected one that ends with {known}.")


def without_normalization(segmentor: Any) -> nn.Module:
    """Makes a segmentor take images that are normalized already; it is changed."""
    segmentor.pixel_mean.zero_()
    segmentor.pixel_std.fill_(1)
    return segmentor
