"""Reading labels from MATLAB files, with errors that name the file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regseg_d2.common.errors import DatasetError, printable
from regseg_d2.dataset_tools.preparation.matlab_elements import read_elements

_CURE = "Unpack or download it again."


def read_matlab(path: Path, variables: Sequence[str]) -> dict[str, Any]:
    """Reads variables of a MATLAB file (up to version 7; 7.3 is another format).

    Arrays come by name, cells as lists of their parts, structs as dicts of their fields.

    Raises:
        DatasetError: the file is missing, damaged, of another format, or lacks a variable.
    """
    if not path.is_file():
        raise DatasetError(f"The MATLAB file {path} does not exist. {_CURE}")
    try:
        content = read_elements(path.read_bytes(), variables)
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise DatasetError(
            f"The MATLAB file {path} cannot be read ({printable(str(error))}): it is cut off, damaged or of "
            f"another format. {_CURE}"
        ) from error
    missing = [name for name in variables if name not in content]
    if missing:
        raise DatasetError(f"The MATLAB file {path} has no variable {', '.join(missing)}. {_CURE}")
    return content


def label_values(values: Any, path: Path, variable: str, highest: int) -> np.ndarray:
    """Checks a matrix of labels from 0 to ``highest``; MATLAB's own type of number, double, is fine.

    Values are as :func:`read_matlab` gives them; ``(H, W)`` of int64 comes out.

    Raises:
        DatasetError: it is no matrix of whole numbers from 0 to ``highest``.
    """
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "buif":
        kind = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else type(values)
        raise DatasetError(f"{variable} in {path} is {kind}; expected a matrix of whole numbers. {_CURE}")
    # What is no whole number (NaN is not equal to itself) or out of range; an empty matrix is not a label.
    wrong = ~((values >= 0) & (values <= highest) & (values == np.floor(values)))
    if wrong.any() or not values.size:
        found = f"{values[wrong][0]}" if values.size else "no pixel"
        raise DatasetError(
            f"{variable} in {path} holds {found}; expected whole numbers from 0 to {highest}. {_CURE}"
        )
    return values.astype(np.int64)
