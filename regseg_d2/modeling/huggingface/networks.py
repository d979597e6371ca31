"""Networks and weights of transformers, by a name of the hub, a folder, or a config."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from regseg_d2.common.errors import CheckpointError, ConfigError, error_line, listed
from regseg_d2.common.suggestions import did_you_mean

KEY = "MODEL.HUGGINGFACE"
# How configs call the label that a network's own loss leaves out.
_IGNORE_INDICES = ("semantic_loss_ignore_index", "loss_ignore_index")
_MAPPINGS = ("SEMANTIC", "UNIVERSAL", "INSTANCE")
logger = logging.getLogger(__name__)


def import_transformers() -> ModuleType:
    """Imports transformers.

    Raises:
        ConfigError: it is not installed, or too old.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            "MODEL.META_ARCHITECTURE is 'HuggingFaceSegmentor', and transformers cannot be imported "
            f"({error}): pip install 'transformers>=5', or this package with its extra 'huggingface'."
        ) from error
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise ConfigError(
            f"transformers is {transformers.__version__}; expected 5 or newer: pip install 'transformers>=5'."
        )
    return transformers


def load_config(
    name: str, model_type: str, changes: Mapping[str, Any], *, num_classes: int, ignore_value: int
) -> Any:
    """Makes the config of a network.

    Args:
        name: a repository of the hub, ``owner/name`` or ``owner/name@revision``, or a folder; or ``""``.
        model_type: what transformers calls the family, where there is no name.
        changes: values of the config that differ from those of the name or family.
        num_classes: number of classes.
        ignore_value: label of void pixels.

    Returns:
        A config of transformers.

    Raises:
        ConfigError: it cannot be found, or a value cannot be used.
    """
    transformers = import_transformers()
    if bool(name) == bool(model_type):
        raise ConfigError(
            f"{KEY}.NAME is {name!r} and {KEY}.MODEL_TYPE {model_type!r}; expected one of them: a name of "
            "the hub or a folder, or a family such as 'mask2former', which has random weights."
        )
    values = _values_of_name(transformers, name) if name else {"model_type": model_type}
    kind = _config_class(transformers, values.get("model_type", ""), name)
    _check_known(transformers, kind(), changes, f"{KEY}.CONFIG")
    try:
        config = kind.from_dict(_merged(values, changes))
    except Exception as error:  # whatever a config of transformers does with values of another type
        raise ConfigError(f"{KEY}.CONFIG: {error_line(error)}") from error
    config.num_labels = num_classes
    for key in _IGNORE_INDICES:
        if hasattr(config, key):
            setattr(config, key, ignore_value)
    _check_supported(config)
    return config


def _values_of_name(transformers: ModuleType, name: str) -> dict[str, Any]:
    try:
        if Path(name).is_dir() and not Path(name, "config.json").is_file():
            raise FileNotFoundError("there is no config.json in it")
        return transformers.PreTrainedConfig.get_config_dict(**_where(name))[0]
    except Exception as error:  # of the hub, of its HTTP library, of the disk
        raise ConfigError(_cannot_be_had(name, error)) from error


def _config_class(transformers: ModuleType, model_type: str, name: str) -> Any:
    if model_type in transformers.CONFIG_MAPPING:
        return transformers.CONFIG_MAPPING[model_type]
    where = f"{KEY}.NAME is {name!r}, whose model_type is" if name else f"{KEY}.MODEL_TYPE is"
    known = segmentation_types()
    raise ConfigError(
        f"{where} {model_type!r}, which transformers {transformers.__version__} does not have"
        f"{did_you_mean(model_type, known)}; expected one of {known}"
    )


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the changes in them; of a part of another type nothing is kept."""
    merged = dict(values)
    for name, change in changes.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(change, Mapping):
            is_another = change.get("model_type", old.get("model_type")) != old.get("model_type")
            change = change if is_another else _merged(old, change)
        merged[name] = change
    return merged


def _where(name: str) -> dict[str, Any]:
    if Path(name).is_dir():
        return {"pretrained_model_name_or_path": name}
    repository, _, revision = name.partition("@")
    return {"pretrained_model_name_or_path": repository, "revision": revision or "main"}


def _cannot_be_had(name: str, error: Exception) -> str:
    if Path(name).is_dir():
        there = sorted(path.name for path in Path(name).iterdir())
        return (
            f"{KEY}.NAME is the folder {name!r}, which cannot be read ({error_line(error)}). Expected "
            f"config.json and model.safetensors, as save_pretrained writes them; in it there are {there[:8]}."
        )
    from huggingface_hub import constants

    repository = name.partition("@")[0]
    cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    return (
        f"{KEY}.NAME is {name!r}: there is no such folder, and the hub did not give it "
        f"({error_line(error)}). Without a network: fetch config.json and model.safetensors from "
        f"https://huggingface.co/{repository}/tree/main on another machine into one folder, and set "
        f"{KEY}.NAME to it; or copy the folder '{cache}' from a machine that has it."
    )


def _check_known(transformers: ModuleType, config: Any, changes: Mapping[str, Any], key: str) -> None:
    """Raises for a value that the config does not have; transformers would take it and not use it."""
    known = [name for name in (*config.to_dict(), *config.attribute_map) if not name.startswith("_")]
    for name, value in changes.items():
        if not hasattr(config, name):
            raise ConfigError(
                f"{key}.{name}: {type(config).__name__} has no such value{did_you_mean(name, known)}"
            )
        if isinstance(value, Mapping) and value.get("model_type") in transformers.CONFIG_MAPPING:
            part = transformers.AutoConfig.for_model(value["model_type"])
            _check_known(transformers, part, value, f"{key}.{name}")


def segmentation_types() -> list[str]:
    """The families of transformers that classify pixels or masks."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    names = {
        name for kind in _MAPPINGS for name in getattr(auto, f"MODEL_FOR_{kind}_SEGMENTATION_MAPPING_NAMES")
    }
    return sorted(names)


def _network_class(config: Any) -> type[nn.Module] | None:
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for kind in _MAPPINGS:
        mapping = getattr(auto, f"MODEL_FOR_{kind}_SEGMENTATION_MAPPING")
        if type(config) in mapping:
            return mapping[type(config)]
    return None


def classifies_masks(network: nn.Module | type[nn.Module]) -> bool:
    """Whether a network takes masks as labels, and not the classes of pixels."""
    return "mask_labels" in inspect.signature(network.forward).parameters


def _check_supported(config: Any) -> None:
    kind = _network_class(config)
    if kind is None or not (classifies_masks(kind) or any(hasattr(config, key) for key in _IGNORE_INDICES)):
        raise ConfigError(
            f"{KEY}: a network of the type {config.model_type!r} gives no semantic segmentation that can be "
            f"trained on labels of pixels; transformers' segmentation networks are {segmentation_types()}"
        )
    if config.model_type == "oneformer" and config.is_training:
        raise ConfigError(
            f"{KEY}: is_training of OneFormer's config is True: its contrast of queries and texts needs a "
            f"tokenizer, which is not used here. Set {KEY}.CONFIG.is_training to False."
        )


def build_network(config: Any) -> nn.Module:
    """Builds the network of a config, with random weights.

    Raises:
        ConfigError: transformers refuses.
    """
    kind: Any = _network_class(config)
    try:
        return kind(config)
    except Exception as error:  # whatever a network does with values that do not go together
        raise ConfigError(f"{KEY}: transformers cannot build {kind.__name__}: {error_line(error)}") from error


def pretrained_weights(name: str, config: Any) -> dict[str, Tensor]:
    """Reads the weights of a name, in the names of a network that is built from the config.

    Safetensors come first; a file of ``torch.save`` is read without running code.

    Args:
        name: see :func:`load_config`.
        config: config of the network; where it has other shapes, such as for other classes, a tensor is
            left out.

    Raises:
        CheckpointError: the files cannot be had, or read.
    """
    kind: Any = _network_class(config)
    try:
        network, info = kind.from_pretrained(
            **_where(name),
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            weights_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # of the hub, of its HTTP library, of the reader of a damaged or refused file
        raise CheckpointError(_cannot_be_had(name, error)) from error
    new = {
        key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])
    }
    if info["unexpected_keys"]:
        logger.info("Of %s the network has no %s.", name, listed(sorted(info["unexpected_keys"])))
    return {key: value for key, value in network.state_dict().items() if key not in new}
