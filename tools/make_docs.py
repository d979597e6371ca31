#!/usr/bin/env python3
"""Builds the documentation as a site; ``make docs`` runs this. A warning is an error.

The pages are those of the repository, below the paths that they have there, so that a link works in both. The
reference is made of docstrings. Pages are copied to build/docs; the site is in build/site.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"
STAGED = ROOT / "build" / "docs"
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")
# Folders with pages, or with files that pages link to; and the kinds of these.
FOLDERS = ("docs", "experiments", "examples", "configs", "datasets", "tools")
SUFFIXES = {".md", ".png", ".svg", ".yaml", ".py", ".ipynb", ".sbatch"}
# Pages of the reference, and whose docstrings are on them.
REFERENCE = {
    "Regularizers": (
        *(f"regseg_d2.regularizers.{name}" for name in ("CAR", "RegionContrast", "RCH", "PNE", "MDRL")),
        "regseg_d2.regularizers.ContrastSeg",
    ),
    "On a network": (
        *(f"regseg_d2.regularizers.{name}" for name in ("attach", "Regularized", "RegularizerList")),
        *(f"regseg_d2.regularizers.{name}" for name in ("Regularizer", "RegularizerInput", "LabelSampling")),
    ),
    "Detectron2 models": (
        "regseg_d2.config.get_regseg_cfg",
        "regseg_d2.config.files.load_config",
        "regseg_d2.segmentor.build.build_model",
        "regseg_d2.segmentor.meta_architecture.RegularizationMixin",
        "regseg_d2.segmentor.meta_architecture.RegularizedSegmentor",
        "regseg_d2.segmentor.huggingface.HuggingFaceSegmentor",
        "regseg_d2.segmentor.export.inference_model",
    ),
    "Evaluation": (
        "regseg_d2.evaluation.evaluator",
        "regseg_d2.evaluation.metrics",
        "regseg_d2.evaluation.measures",
        "regseg_d2.evaluation.looking.findings",
        "regseg_d2.evaluation.looking.relations",
        "regseg_d2.evaluation.looking.projections",
    ),
    "Figures": tuple(
        f"regseg_d2.drawing.figures.{name}"
        for name in ("matrix", "scatter", "distributions", "bars", "curves", "maps", "heat_maps", "tables")
    ),
}


def stage() -> None:
    """Copies the pages and what they link to, and writes the pages of the reference."""
    shutil.rmtree(STAGED, ignore_errors=True)
    wanted = [ROOT / name for name in FILES]
    for folder in FOLDERS:
        wanted += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    for path in wanted:
        target = STAGED / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (STAGED / "reference").mkdir()
    for title, names in REFERENCE.items():
        blocks = "\n\n".join(f"::: {name}" for name in names)
        (STAGED / reference_page(title)).write_text(f"# {title}\n\n{blocks}\n", encoding="utf-8")


def reference_page(title: str) -> str:
    """The path of a page of the reference in the site's source."""
    return f"reference/{title.lower().replace(' ', '_')}.md"


def build() -> int:
    """Builds the site of the pages that are staged; returns the exit status of mkdocs."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["nav"].append({"Reference": [{title: reference_page(title)} for title in REFERENCE]})
    for key in ("docs_dir", "site_dir"):
        config[key] = str((CONFIG.parent / config[key]).resolve())
    config["plugins"][-1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    complete = STAGED.parent / "mkdocs.yml"
    complete.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(complete)]
    # The theme advertises its successor in every build.
    return subprocess.run(command, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}).returncode


def main() -> None:
    """Stages and builds."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    stage()
    sys.exit(build())


if __name__ == "__main__":
    main()
