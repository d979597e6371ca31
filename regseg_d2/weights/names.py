"""Names of weights, and the files that they stand for; a file that has to be downloaded stays in a cache."""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import Detectron2Handler
from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from iopath.common.file_io import file_lock, get_cache_dir

from regseg_d2.common.errors import CheckpointError, ConfigError
from regseg_d2.common.files import digest_of
from regseg_d2.common.suggestions import did_you_mean

logger = logging.getLogger(__name__)

#: Stands for the ImageNet weights of the config's backbone.
AUTO = "auto"
TORCHVISION_PREFIX = "torchvision:"
HUB_PREFIX = "hf-hub:"
_CATALOG_PREFIX = "catalog://"
_URL_PREFIXES = ("https://", "http://")
# Files of weights in a repository of the Hugging Face hub, as timm and transformers look for them.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# torch.hub's convention: the first digits of a file's SHA-256 end its name. Eight digits may be a date, too.
_HASH = re.compile(r"-(?!20\d\d[01]\d[0-3]\d\.)([0-9a-f]{8,64})\.\w+$")


def local_file(name: str, key: str) -> str:
    """Returns the file that a name stands for, and downloads it where it is in no cache yet.

    Args:
        name: ``detectron2://...``, ``torchvision:<builder>.<weights>``, ``hf-hub:<owner>/<name>``, with
            ``@<revision>`` or ``/<file>`` behind it or not, a URL, or a file, which need not be there.
        key: key of the config that has the name, for errors.

    Raises:
        ConfigError: torchvision or Detectron2 have no weights of that name.
        CheckpointError: the file cannot be downloaded, or is not the one that its name says.
    """
    if name.startswith(HUB_PREFIX):
        return _hub_name(name, key)
    url = url_of(name, key)
    if url is None:
        return name
    path = cached_path(url)
    if not path.is_file():
        _download(url, path, key)
    _check_hash(path, key)
    logger.info("%s: %s is '%s'.", key, url, path)
    return str(path)


def url_of(name: str, key: str) -> str | None:
    """The URL that a name stands for; None for a file. Errors are those of :func:`local_file`."""
    if name.startswith(_URL_PREFIXES):
        return name
    if name.startswith(Detectron2Handler.PREFIX):
        return Detectron2Handler.S3_DETECTRON2_PREFIX + name.removeprefix(Detectron2Handler.PREFIX)
    if name.startswith(_CATALOG_PREFIX):
        try:
            return ModelCatalog.get(name.removeprefix(_CATALOG_PREFIX))
        except (KeyError, RuntimeError):
            raise ConfigError(f"{key} is '{name}', which Detectron2's catalog does not have") from None
    if name.startswith(TORCHVISION_PREFIX):
        return _torchvision_url(name, key)
    return None


def cached_path(url: str) -> Path:
    """Where a download lies: in torch.hub's folder if its name has a hash, else in Detectron2's cache."""
    path = posixpath.normpath("/" + unquote(urlparse(url).path).lstrip("/"))
    if _HASH.search(path):
        return Path(torch.hub.get_dir()) / "checkpoints" / posixpath.basename(path)
    return Path(get_cache_dir()) / path.lstrip("/")


def hub_file(repository: str, filenames: Sequence[str], key: str) -> str:
    """Returns a file of the Hugging Face hub, from its cache or downloaded into it.

    The repository is ``owner/name``, with ``@revision`` behind it or not; the first of the filenames that is
    there counts.

    Raises:
        CheckpointError: none of them can be had.
    """
    repo, _, revision = repository.partition("@")
    where: dict[str, Any] = {"repo_id": repo, "revision": revision or None}
    for filename in filenames:
        cached = try_to_load_from_cache(filename=filename, **where)
        if isinstance(cached, str):
            return cached
    reason = "the hub has no such file"
    for filename in filenames:
        try:
            return hf_hub_download(filename=filename, **where)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                reason = "no connection to the hub, or HF_HUB_OFFLINE is set"
                break
        except Exception as error:  # of the hub, of its HTTP library, of the disk
            reason = _first_line(error)
            break
    url = hf_hub_url(filename=filenames[0], **where)
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    raise CheckpointError(
        f"{key}: could not download {url} ({reason}). Without a network: fetch that file on another "
        f"machine and give its path, {key} FILE; or copy the folder '{folder}' from a machine that has it."
    )


def _hub_name(name: str, key: str) -> str:
    owner, _, rest = name.removeprefix(HUB_PREFIX).partition("/")
    repository, _, filename = rest.partition("/")
    if not (owner and repository):
        raise ConfigError(
            f"{key} is '{name}'; expected {HUB_PREFIX}OWNER/NAME or {HUB_PREFIX}OWNER/NAME/FILE"
        )
    return hub_file(f"{owner}/{repository}", (filename,) if filename else HUB_FILES, key)


def _torchvision_url(name: str, key: str) -> str:
    try:
        from torchvision.models import get_model_weights, list_models
    except ImportError:
        raise ConfigError(
            f"{key} is '{name}', and torchvision, which knows where these weights are, is not installed: "
            "pip install torchvision, or give a file or URL"
        ) from None
    builder, _, weights = name.removeprefix(TORCHVISION_PREFIX).partition(".")
    if builder not in list_models():
        hint = did_you_mean(builder, list_models())
        raise ConfigError(
            f"{key} is '{name}': torchvision has no network {builder!r}{hint}; "
            "expected torchvision:NETWORK.WEIGHTS, such as torchvision:resnet50.IMAGENET1K_V2"
        )
    known = get_model_weights(builder).__members__
    if weights not in known:
        raise ConfigError(f"{key} is '{name}': torchvision's weights of {builder!r} are {', '.join(known)}")
    return known[weights].url


def _download(url: str, path: Path, key: str) -> None:
    try:
        with file_lock(str(path)):  # processes of this machine: one downloads, the others wait
            if not path.is_file():
                logger.info("Downloading %s to '%s'.", url, path)
                torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
    except Exception as error:  # of the network, of its protocols, of the disk
        raise CheckpointError(
            f"{key}: could not download {url} ({_first_line(error)}). Without a network: fetch that file on "
            f"another machine and put it at '{path}', or give the path that it has, {key} FILE."
        ) from error


def _check_hash(path: Path, key: str) -> None:
    expected = _HASH.search(path.name)
    if expected is None:
        return
    digest = digest_of(path)
    if not digest.startswith(expected[1]):
        raise CheckpointError(
            f"{key}: '{path}' is not the file that its name says: its SHA-256 begins with "
            f"{digest[: len(expected[1])]}. Delete it, and it is downloaded again; or "
            f"give the path of another copy that you trust, {key} FILE."
        )


def _first_line(error: Exception) -> str:
    text = str(error).removeprefix("<urlopen error ").removesuffix(">")
    return next(iter(text.splitlines()), type(error).__name__)
