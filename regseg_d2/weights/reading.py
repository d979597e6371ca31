"""Reading files of weights without running code that they may carry."""

from __future__ import annotations

import argparse
import collections
import difflib
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regseg_d2.errors import CheckpointError

ENDINGS = (".pth", ".pkl", ".pyth", ".pt", ".bin", ".safetensors")
#: Keys under which training programs keep the weights, beside the rest of a run.
WRAPPERS = ("state_dict", "model", "model_state")


class _History:
    """Stands for mmengine's curves of logged scalars, which whole training checkpoints hold."""


def _attribute_of_history(owner: Any, name: str) -> None:
    """What ``getattr`` is in a file: those curves name their methods so; every other use is refused."""
    if owner is not _History:
        raise pickle.UnpicklingError(f"Unsupported attribute {name!r} of {owner!r}")


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """What old pickles call to make bytes of a text; every other encoding is refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"Unsupported encoding {encoding!r}")
    return text.encode("latin1")


def _array_globals() -> dict[str, Any]:
    """What pickled NumPy arrays and numbers name, by its dotted name in old and new NumPy."""
    reconstruct = np.ndarray.__reduce__(np.zeros(1))[0]
    scalar = np.float64(0).__reduce__()[0]
    found: dict[str, Any] = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for package in ("numpy.core", "numpy._core"):
        found[f"{package}.multiarray._reconstruct"] = reconstruct
        found[f"{package}.multiarray.scalar"] = scalar
    return found


#: Beside tensors and plain containers: values that run nothing, whatever a file says is in them.
_HARMLESS: dict[str, Any] = {
    **_array_globals(),
    **{f"numpy.dtypes.{type(np.dtype(c)).__name__}": type(np.dtype(c)) for c in "?bBhHiIlLqQefdSUO"},
    "argparse.Namespace": argparse.Namespace,
    "mmengine.logging.history_buffer.HistoryBuffer": _History,
    "builtins.getattr": _attribute_of_history,
    "__builtin__.getattr": _attribute_of_history,
}
_PICKLE_GLOBALS: dict[str, Any] = {
    **_array_globals(),
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": _latin1_bytes,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain containers and NumPy arrays, and nothing that could run."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in _PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"Unsupported global: {name}")
        return _PICKLE_GLOBALS[name]


def load_file(path: str, *, trust_pickle: bool = False) -> Any:
    """Reads a file of weights to the CPU, without running code unless ``trust_pickle``.

    Args:
        path: a ``.safetensors`` file, a ``.pkl`` file of NumPy arrays, or, under any other name, one of
            ``torch.save``.
        trust_pickle: read files that hold more than tensors, arrays and plain containers.

    Raises:
        CheckpointError: the file is missing, damaged, or needs more than that.
    """
    if not os.path.isfile(path):
        raise CheckpointError(missing_message(path))
    return _read(path, lambda: _reader(path, trust_pickle)(path))


def read_weights(path: str, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """Reads the weights alone of a file of any kind that :func:`load_file` reads.

    Raises:
        CheckpointError: see :func:`load_file`; or there are no weights in it.
    """
    return weights_in(load_file(path, trust_pickle=trust_pickle), path)


def weights_in(content: Any, path: str) -> dict[str, Tensor]:
    """Takes the weights out of what a training program saved around them.

    Args:
        content: what was read.
        path: the file, for the error.

    Returns:
        Tensors by name, without the ``module.`` of wrapped models.

    Raises:
        CheckpointError: there are none, or they are no tensors.
    """
    while isinstance(content, Mapping) and (inner := [w for w in WRAPPERS if _is_mapping(content, w)]):
        content = content[inner[0]]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"'{path}' holds a {type(content).__name__}; expected a dict of weights.")
    if "blobs" in content:
        content = content["blobs"]
    weights = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in content.items()}
    others = [str(key) for key, value in weights.items() if not isinstance(value, Tensor)]
    if others or not weights:
        raise CheckpointError(
            f"'{path}' has no weights where they were expected: "
            f"{', '.join(others[:3]) or 'it is empty'}{', ...' if len(others) > 3 else ''}"
            f"{' are no tensors' if others else ''}. Expected a dict of tensors, by itself or under one of "
            f"{', '.join(WRAPPERS)}."
        )
    if all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return weights


def missing_message(path: str) -> str:
    """What to say about a file that is not there, with those that are."""
    wanted = Path(path.split("?")[0])
    message = f"The checkpoint '{path}' does not exist"
    if not wanted.parent.is_dir():
        return f"{message}, nor does its folder."
    there = sorted(p.name for p in wanted.parent.iterdir() if p.suffix in ENDINGS)
    near = difflib.get_close_matches(wanted.name, there, n=3, cutoff=0.4) or there[:5]
    return f"{message}. In its folder there are: {', '.join(near) or 'no checkpoints'}."


def _is_mapping(content: Mapping[Any, Any], key: str) -> bool:
    return isinstance(content.get(key), Mapping)


def _reader(path: str, trust_pickle: bool) -> Callable[[str], Any]:
    if path.endswith(".safetensors"):
        return _read_safetensors
    if path.endswith(".pkl"):
        return _read_trusted_pickle if trust_pickle else _read_pickled_arrays
    return _read_trusted_torch if trust_pickle else _read_torch


def _read_safetensors(path: str) -> Any:
    from safetensors.torch import load_file as load_safetensors

    return load_safetensors(path)


def _read_pickled_arrays(path: str) -> Any:
    with open(path, "rb") as file:
        # Files of Python 2 hold their texts as bytes.
        return _ArrayUnpickler(file, encoding="latin1").load()


def _read_trusted_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")


def _read_torch(path: str) -> Any:
    with torch.serialization.safe_globals([(value, name) for name, value in _HARMLESS.items()]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_trusted_torch(path: str) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)


def _read(path: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:
        # A damaged file may fail anywhere in its reader, with any error.
        is_refused = isinstance(error, pickle.UnpicklingError) and "truncated" not in str(error)
        raise CheckpointError((_refused_message if is_refused else _damaged_message)(path, error)) from error


def _damaged_message(path: str, error: Exception) -> str:
    return (
        f"'{path}' is damaged, or no checkpoint "
        f"({str(error).splitlines()[0] if str(error) else 'it ends early'}). "
        "Copy or download it again, or use an earlier checkpoint."
    )


def _refused_message(path: str, error: Exception) -> str:
    # Without torch's advice to switch the protection off.
    reasons = [line.strip() for line in str(error).splitlines() if "nsupported" in line]
    reason = reasons[0] if reasons else " ".join(str(error).split())
    return (
        f"Refused to load '{path}': it holds more than tensors, arrays and plain containers, or is no "
        f"checkpoint ({reason}). Loading it may run any code. Only if you trust where it comes from: "
        "--trust-pickle, or MODEL.TRUST_PICKLE True."
    )
