"""Bundles of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, snapshot_download

from regseg_d2.common.errors import CheckpointError, error_line
from regseg_d2.prediction.bundle import FILES


def download_bundle(repository: str, token: str | None = None) -> Path:
    """Returns the folder of a bundle of the hub, downloaded into the hub's cache where it is not there yet.

    Args:
        repository: ``"owner/name"``, or ``"owner/name@revision"``.
        token: of a user who may read it; None is the one that ``hf auth login`` keeps.

    Raises:
        CheckpointError: it cannot be had.
    """
    name, _, revision = repository.partition("@")
    try:
        # No other file is fetched, whatever else is in the repository.
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=list(FILES), token=token)
        )
    except Exception as error:  # of the hub, of its HTTP library, of the disk
        raise CheckpointError(
            f"'{repository}' could not be had from {constants.ENDPOINT} ({error_line(error)}). Expected "
            "owner/name of a repository that tools/bundle.py --push filled; a private one needs a token "
            "(hf auth login, or HF_TOKEN). Without a network: fetch its files on another machine into one "
            f"folder ({', '.join(FILES)}), and load that with Predictor.from_bundle."
        ) from error
