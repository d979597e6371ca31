"""Reading files of weights without running code that they may carry."""

from __future__ import annotations

import difflib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from regseg_d2.common.errors import CheckpointError, printable
from regseg_d2.common.yaml_files import shown
from regseg_d2.weights import torch_files
from regseg_d2.weights.pickle_arrays import plain_names
from regseg_d2.weights.pickle_machine import Window, read_pickle
from regseg_d2.weights.pickle_values import Budget, Refused

ENDINGS = (".pth", ".pkl", ".pyth", ".pt", ".bin", ".safetensors")
#: Keys under which training programs keep the weights, beside the rest of a run.
WRAPPERS = ("state_dict", "model", "model_state")


def load_file(path: str, *, trust_pickle: bool = False) -> Any:
    """Reads a file of weights to the CPU, without running code unless ``trust_pickle``.

    Args:
        path: a ``.safetensors`` file, or, under any other name, one of ``torch.save`` or a pickle
            of NumPy arrays.
        trust_pickle: read files that hold more than tensors, arrays and plain containers.

    Raises:
        CheckpointError: the file is missing, damaged, or needs more than that.
    """
    if not os.path.isfile(path):
        raise CheckpointError(missing_message(path))
    try:
        return _read(path, trust_pickle)
    except Refused as error:
        raise CheckpointError(
            f"Refused to load '{path}': it holds more than tensors, arrays and plain containers, or is no "
            f"checkpoint ({printable(str(error))}). Loading it may run any code. Only if you trust where it "
            "comes from: --trust-pickle, or MODEL.TRUST_PICKLE True."
        ) from error
    except Exception as error:  # a damaged file may fail anywhere in its reader, with any error
        early = "it ends early" if isinstance(error, EOFError) else type(error).__name__
        raise CheckpointError(
            f"'{path}' is damaged, or no checkpoint ({printable(str(error)) or early}). Copy or download it "
            "again, or use an earlier checkpoint."
        ) from error


def read_weights(path: str, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """Reads the weights alone of a file of any kind that :func:`load_file` reads.

    Raises:
        CheckpointError: see :func:`load_file`; or there are no weights in it.
    """
    return weights_in(load_file(path, trust_pickle=trust_pickle), path)


def weights_in(content: Any, path: str) -> dict[str, Tensor]:
    """Takes the tensors by name, without ``module.``, out of what a training program saved around them.

    Raises:
        CheckpointError: there are none, or they are no tensors.
    """
    taken_out: set[int] = set()
    while isinstance(content, Mapping) and (
        inner := [w for w in WRAPPERS if isinstance(content.get(w), Mapping)]
    ):
        if id(content) in taken_out:
            raise CheckpointError(f"'{path}' holds a dict that holds itself; expected a dict of weights.")
        taken_out.add(id(content))
        content = content[inner[0]]
    if isinstance(content, Mapping) and "blobs" in content:
        content = content["blobs"]
    check_names(content, path)
    weights = {key: as_tensor(value) for key, value in content.items()}
    others = [printable(key, 80) for key, value in weights.items() if not isinstance(value, Tensor)]
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


def check_names(content: Any, path: str) -> None:
    """Checks that the content of a file is a dict whose keys are texts; raises CheckpointError."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"'{path}' holds a {type(content).__name__}; expected a dict of weights.")
    others = [shown(key) for key in content if not isinstance(key, str)]
    if others:
        raise CheckpointError(
            f"'{path}' has keys that are no names of weights: {', '.join(others[:3])}. Expected a dict of "
            f"tensors by their names, by itself or under one of {', '.join(WRAPPERS)}."
        )


def missing_message(path: str) -> str:
    """What to say about a file that is not there, with those that are."""
    wanted = Path(path.split("?")[0])
    message = f"The checkpoint '{path}' does not exist"
    if not wanted.parent.is_dir():
        return f"{message}, nor does its folder."
    there = sorted(p.name for p in wanted.parent.iterdir() if p.suffix in ENDINGS)
    near = difflib.get_close_matches(wanted.name, there, n=3, cutoff=0.4) or there[:5]
    return f"{message}. In its folder there are: {', '.join(near) or 'no checkpoints'}."


def as_tensor(value: Any) -> Any:
    """Makes a tensor of an array of numbers; anything else stays what it is."""
    is_numeric = isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
    return torch.from_numpy(value) if is_numeric else value


def _read(path: str, trust_pickle: bool) -> Any:
    if path.endswith(".safetensors"):
        return safetensors.torch.load_file(path)
    if not trust_pickle:
        return _read_data(path)
    if path.endswith(".pkl"):
        with open(path, "rb") as file:
            return pickle.load(file, encoding="latin1")
    return torch.load(path, map_location="cpu", weights_only=False)


def _read_data(path: str) -> Any:
    """Reads what torch or Python's pickle wrote, told apart by its first bytes."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(torch_files.LEGACY_START))
        file.seek(0)
        if start.startswith(torch_files.ZIP_START):
            return torch_files.read_zip(file, size)
        if start == torch_files.LEGACY_START:
            return torch_files.read_legacy(Window(file, size))
        # Twice: once for the text of old protocols that becomes bytes, once for the array of these.
        copied = Budget(2 * size)
        return read_pickle(Window(file, size), plain_names(copied), copied)
