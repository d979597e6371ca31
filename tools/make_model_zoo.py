#!/usr/bin/env python3
"""Writes docs/model_zoo.md from docs/model_zoo.yaml and the configs.

Example:
    tools/make_model_zoo.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from regseg_d2.apps.model_zoo import count_parameters, read_zoo, render
from regseg_d2.common.errors import errors_end_the_program
from regseg_d2.common.files import write_text

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT / "docs" / "model_zoo.yaml", metavar="FILE")
    parser.add_argument("--configs", type=Path, default=ROOT / "configs", metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "model_zoo.md", metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Counts parameters and writes the page."""
    args = parse_arguments()
    with errors_end_the_program():
        zoo = read_zoo(args.data)
        files = {name: args.configs / f"{name}.yaml" for name in zoo.configs}
        counts = count_parameters(files.values())
        page = render(zoo, args.configs, {name: counts[str(path)] for name, path in files.items()})
        write_text(args.page, page)
    print(f"{args.page}: {len(files)} configs in {len(zoo.tables)} tables")


if __name__ == "__main__":
    main()
