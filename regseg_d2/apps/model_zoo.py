"""The page of all configs of the papers' tables: networks, their size, the papers' figures and ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from detectron2.config import CfgNode
from pydantic import ConfigDict, PlainValidator
from pydantic.dataclasses import dataclass
from tabulate import tabulate

from regseg_d2.common.schema import checked
from regseg_d2.common.yaml_files import read_yaml
from regseg_d2.config.files import load_config
from regseg_d2.segmentor.build import build_model
from regseg_d2.segmentor.export import inference_model

INTRODUCTION = """\
# Model zoo

<!-- Written by tools/make_model_zoo.py from model_zoo.yaml, where figures are changed. -->

The configs of the main tables of the five papers. Each has its paper's own schedule, and differs from its
baseline in the method alone. A file is `<head>_<backbone>.yaml`, with the method behind it if there is one;
where two papers train the same baseline in different ways, it is `<head>_<backbone>_<method>_baseline.yaml`.
`_multi_scale` behind a name is the same training, tested at several scales. `configs/cityscapes_test` is for
the test server of Cityscapes. The papers' other tables are in `configs/ablations`, a file a row, whose first
line says which.

- **Paper**: mIoU (%) **as the paper prints it**. None of these was measured with this package. The config
  tests as the paper did: at one scale, or as `configs/_base_/protocols` says. `tests/paper_values/` has what
  each paper prints, what a config has where it prints nothing, and where it deviates, with the reasons.
- **Ours**: mIoU (%) measured with this package, `-` where it was not; how is in [results.md](results.md).
- **Parameters**: millions, of the exported network: without regularizers and auxiliary heads (OCRNet's stays,
  which it reads), linear convolutions folded (what stays of them is a bias). CAR's networks have fewer than
  their baselines where its 1×1 convolution takes the place of a 3×3 one, and more where it comes behind a
  head that has no such block. MDRL's stage stays, its memory is not counted.

All but those of CamVid start from ImageNet weights that are downloaded, see [weights.md](weights.md).
"""


def _figure(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"(\d\d\.\d\d?)?", value):
        raise ValueError("a text such as '78.10'")
    return value


Figure = Annotated[str, PlainValidator(_figure)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Row:
    """A config in a table.

    Attributes:
        config: path below the folder of configs, without suffix.
        network: head and backbone, as the paper calls them.
        paper: the paper's figure as it is printed, or "" where it has none.
        ours: our figure, or "".
        quoted: whether the paper has its figure from another work.
    """

    config: str
    network: str
    paper: Figure = ""
    ours: Figure = ""
    quoted: bool = False


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Table:
    """A table of the page."""

    title: str
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Zoo:
    """All that the page shows but for what is counted."""

    tables: tuple[Table, ...]
    left_out: tuple[str, ...]

    @property
    def configs(self) -> list[str]:
        """Each config once, in the order of the page."""
        return list(dict.fromkeys(row.config for table in self.tables for row in table.rows))


def read_zoo(path: str | Path) -> Zoo:
    """Reads the data of the page.

    Raises:
        ConfigError: if the file is no YAML of the expected form.
    """
    return checked(Zoo, read_yaml(Path(path)), Path(path), advice="It is not the data of a model zoo.")


def count_parameters(config_files: Iterable[str | Path]) -> dict[str, int]:
    """Parameters of the exported networks of configs, by file; they are built without memory.

    Configs of the same network are built once.
    """
    counts: dict[str, int] = {}
    by_network: dict[str, int] = {}
    for path in config_files:
        cfg = load_config(str(path))
        network = _without_training(cfg)
        if network not in by_network:
            by_network[network] = count_inference_parameters(cfg)
        counts[str(path)] = by_network[network]
    return counts


def count_inference_parameters(cfg: CfgNode) -> int:
    """Number of parameters of the exported network of a config."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = inference_model(build_model(cfg))
    return sum(parameter.numel() for parameter in model.parameters())


def _without_training(cfg: CfgNode) -> str:
    """What the exported network follows from, as a text."""
    cfg = cfg.clone()
    cfg.defrost()
    # A stage that stays (AUGMENT) has its sizes there.
    mdrl = cfg.MODEL.REGULARIZERS.MDRL.dump() if cfg.MODEL.SEM_SEG_HEAD.AUGMENT else ""
    cfg.MODEL.pop("REGULARIZERS")
    return cfg.MODEL.dump() + mdrl


def render(zoo: Zoo, configs: str | Path, parameters: Mapping[str, int]) -> str:
    """The page."""
    parts = [INTRODUCTION]
    for table in zoo.tables:
        parts.append(f"## {table.title}\n")
        if table.note:
            parts.append(f"{table.note.strip()}\n")
        parts.append(_render_table(table, Path(configs), parameters) + "\n")
    parts.append("## Rows that are not here\n")
    parts.append("\n".join(f"- {text.strip()}" for text in zoo.left_out) + "\n")
    return "\n".join(parts)


def _render_table(table: Table, configs: Path, parameters: Mapping[str, int]) -> str:
    rows = []
    for row in table.rows:
        names = load_config(str(configs / f"{row.config}.yaml")).MODEL.REGULARIZERS.NAMES
        cells: list[Any] = [
            f"[{row.config.rpartition('/')[2]}](../configs/{row.config}.yaml)",
            row.network,
            ", ".join(names) or "-",
            f"{parameters[row.config] / 1e6:.2f}",
            f"{row.paper} (quoted)" if row.quoted else row.paper or "-",
            row.ours or "-",
        ]
        rows.append(cells)
    headers = ["config", "network", "trained with", "parameters (M)", "paper", "ours"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
