"""Preparation of data sets: checks of a download, conversion of its labels, descriptions of the splits.

The scripts in ``datasets/`` only parse arguments; each has its :class:`Preparation` here.
"""

from regseg_d2.dataset_tools.preparation.checks import check_files, check_number, check_sum
from regseg_d2.dataset_tools.preparation.conversion import (
    Conversion,
    convert_files,
    reported_writing,
    write_label,
)

__all__ = [
    "Conversion",
    "check_files",
    "check_number",
    "check_sum",
    "convert_files",
    "reported_writing",
    "write_label",
]
