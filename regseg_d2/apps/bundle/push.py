"""Bundles on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from regseg_d2.common.errors import ConfigError, error_line
from regseg_d2.prediction.bundle import FILES


def push_bundle(folder: Path, repository: str, *, private: bool = False, overwrite: bool = False) -> None:
    """Uploads a bundle in one commit, into a repository that is made where there is none.

    Args:
        folder: the bundle.
        repository: ``"owner/name"``.
        private: whether others must not see a new repository.
        overwrite: replace files of these names that are there.

    Raises:
        ConfigError: the hub refuses, or cannot be reached; or there are files.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        there = set(api.list_repo_files(repository)) & set(FILES)
    except Exception as error:  # of the hub, of its HTTP library
        raise ConfigError(_refused(folder, repository, api, error)) from error
    if there and not overwrite:
        raise ConfigError(
            f"--push {repository} has {', '.join(sorted(there))} already: name another repository, or say "
            "--overwrite."
        )
    try:
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message=f"Bundle of {folder.absolute().name}",
        )
    except Exception as error:  # as above
        raise ConfigError(_refused(folder, repository, api, error)) from error
    print(f"Pushed it: {commit.commit_url}. Predictor.from_hub({repository!r}) loads it.")


def _refused(folder: Path, repository: str, api: HfApi, error: Exception) -> str:
    return (
        f"'{folder}' could not be pushed to {repository} at {api.endpoint} ({error_line(error)}). Expected "
        "OWNER/NAME of a repository that you may write to, and a token (hf auth login, or HF_TOKEN). "
        f"The folder is whole; hf upload {repository} {folder} tries again."
    )
