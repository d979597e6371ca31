"""Makes labels for semantic segmentation of COCO's annotations, of instances or panoptic, or of LabelMe's.

    regseg convert-coco --name farm --output farm/labels \
        --split train farm/train.json farm/images --split val farm/val.json farm/images

A folder in place of the JSON file holds those of LabelMe. Writes farm/labels/train/*.png,
farm/labels/train.txt and so on, and prints the YAML file that declares the data set (docs/own_data.md). Can
be stopped and started again.
"""

from __future__ import annotations

import os
from pathlib import Path

from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program
from regseg_d2.common.files import write_text
from regseg_d2.dataset_tools.coco.conversion import BACKGROUND, IGNORE, CocoSplit, convert_coco
from regseg_d2.dataset_tools.coco.labelme import write_coco_of_labelme


def main() -> None:
    """Parses the arguments, converts, and prints the declaration."""
    parser = command_parser(__doc__)
    parser.add_argument("--name", required=True, help="name of the data set")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="folder of the labels")
    parser.add_argument(
        "--split",
        required=True,
        action="append",
        nargs="+",
        metavar="X",
        help="name of a split, JSON file (or folder of LabelMe's) and folder of the images; for panoptic "
        "files also the folder of the PNGs (default: the JSON file's name without .json)",
    )
    parser.add_argument(
        "--uncovered",
        default="",
        choices=[BACKGROUND, IGNORE],
        help=f"what pixels are that no annotation covers (default: {BACKGROUND} for instances, {IGNORE} for "
        "panoptic files)",
    )
    parser.add_argument("--declaration", type=Path, metavar="FILE", help="YAML file to write as well")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that draw labels; 0 draws in this one (default: %(default)s)",
    )
    args = parser.parse_args()
    if not all(3 <= len(split) <= 4 for split in args.split):
        parser.error("--split takes a name, a JSON file, a folder of images, and at most one folder of PNGs")
    splits = [CocoSplit(name, *map(Path, paths)) for name, *paths in args.split]
    with errors_end_the_program():
        splits = write_coco_of_labelme(splits, args.output)
        text = convert_coco(args.name, splits, args.output, uncovered=args.uncovered, workers=args.workers)
        if args.declaration:
            write_text(args.declaration, text)
    print(text, end="")
