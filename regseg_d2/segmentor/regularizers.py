"""From names in a config, with a place or without, to regularizers."""

from __future__ import annotations

import logging
import re

from detectron2.config import CfgNode
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.ops.labels import LABEL_RULES
from regseg_d2.regularizers.base import REGULARIZER, Regularizer
from regseg_d2.regularizers.inputs import LabelSampling
from regseg_d2.regularizers.places import AUXILIARY_CLASSIFIER

logger = logging.getLogger(__name__)

PLACE_MARK = "@"
_NAME = re.compile(r"(\w+)(?:@([\w-]+))?")
AUXILIARY_PLACE = "aux"


def split_name(name: str) -> tuple[str, str]:
    """Splits ``"PNE@aux"`` into ``("PNE", "aux")``; without a place the second is empty.

    Raises:
        ConfigError: if the name is neither a method nor a method with a place.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"MODEL.REGULARIZERS.NAMES has {name!r}; expected the name of a method, or one with a place made "
            "of letters, digits, _ and -, such as 'PNE@aux'"
        )
    return match[1], match[2] or ""


def with_place_keys(cfg: CfgNode, name: str) -> CfgNode:
    """The config as the regularizer ``name`` shall read it.

    Where the method listens is not taken over: a place with a classifier of its own has ``FEATURES``
    "auto" unless it says otherwise, or the same feature would be regularized twice.

    Args:
        cfg: a full config.
        name: ``"PNE"``, or ``"PNE@aux"``.

    Returns:
        ``cfg`` itself for a name without a place; else a copy whose section of the method is changed
        by the keys of ``MODEL.REGULARIZERS.<name>``, and whose classifier is the auxiliary head's where
        the place is ``aux`` and no other is given.

    Raises:
        ConfigError: for a place other than ``aux`` nothing says where it is.
    """
    method, place = split_name(name)
    if not place:
        return cfg
    changes = dict(cfg.MODEL.REGULARIZERS.get(name, {}))
    if place == AUXILIARY_PLACE and changes.get("CLASSIFIER", "auto") == "auto":
        changes["CLASSIFIER"] = AUXILIARY_CLASSIFIER
    classifier, features = (changes.get(key, "auto") for key in ("CLASSIFIER", "FEATURES"))
    if classifier == "auto" and features == "auto":
        raise ConfigError(
            f"MODEL.REGULARIZERS.NAMES has {name!r}, and nothing says where {place!r} is: set "
            f"MODEL.REGULARIZERS.{name}.CLASSIFIER to the path of a classifier, or .FEATURES to a tap "
            f"(only the place {AUXILIARY_PLACE!r}, the auxiliary head, is known by itself)"
        )
    if classifier != "auto":
        changes["FEATURES"] = features
    cfg = cfg.clone()
    cfg.defrost()
    section = cfg.MODEL.REGULARIZERS[method]
    for key, value in changes.items():
        section[key] = value
    return cfg


def build_regularizers(cfg: CfgNode, network: nn.Module) -> dict[str, Regularizer]:
    """Builds the regularizers named in ``MODEL.REGULARIZERS.NAMES``.

    Args:
        cfg: a full config.
        network: the module that tap paths start from.

    Returns:
        Regularizers by name, in alphabetical order: the order in the config has no effect.

    Raises:
        ConfigError: if a name is unknown or named twice, or a regularizer cannot be built.
    """
    names = list(cfg.MODEL.REGULARIZERS.NAMES)
    for name in names:
        method, _ = split_name(name)
        if method not in REGULARIZER:
            known = [known_name for known_name, _ in REGULARIZER]
            raise ConfigError(
                f"MODEL.REGULARIZERS.NAMES: unknown regularizer {name!r}{did_you_mean(method, known)}; "
                f"known are {sorted(known)}"
            )
    if len(set(names)) != len(names):
        raise ConfigError(
            f"MODEL.REGULARIZERS.NAMES names a regularizer twice: {names}; for a second one at another "
            "place write, for example, 'PNE@aux'"
        )
    _warn_about_unused_places(cfg, names)
    regularizers = {name: _build(cfg, name, network) for name in sorted(names)}
    augment = getattr(getattr(network, "sem_seg_head", None), "augment", None)
    if hasattr(augment, "check_regularizers"):
        augment.check_regularizers(regularizers)
    return regularizers


def _warn_about_unused_places(cfg: CfgNode, names: list[str]) -> None:
    for section in cfg.MODEL.REGULARIZERS:
        if names and PLACE_MARK in section and section not in names:
            logger.warning(
                "MODEL.REGULARIZERS.%s has keys, and is not in MODEL.REGULARIZERS.NAMES %s: they have no "
                "effect.%s",
                section,
                names,
                did_you_mean(section, names),
            )


def _build(cfg: CfgNode, name: str, network: nn.Module) -> Regularizer:
    method, place = split_name(name)
    if not place:
        return REGULARIZER.get(method)(cfg, network)
    try:
        regularizer = REGULARIZER.get(method)(with_place_keys(cfg, name), network)
    except ConfigError as error:
        # It names the method's section, which the keys of the place were put into.
        raise ConfigError(f"{name}: {error}") from error
    regularizer.name = f"{regularizer.name}@{place}"
    return regularizer


def build_label_sampling(cfg: CfgNode) -> LabelSampling:
    """Reads ``MODEL.REGULARIZERS.LABELS`` and ``LABEL_PURITY``.

    Raises:
        ConfigError: if one of them has a value that cannot be used.
    """
    node = cfg.MODEL.REGULARIZERS
    if node.LABELS not in LABEL_RULES:
        raise ConfigError(f"MODEL.REGULARIZERS.LABELS is {node.LABELS!r}; expected one of {LABEL_RULES}")
    if not 0.0 <= node.LABEL_PURITY <= 1.0:
        raise ConfigError(f"MODEL.REGULARIZERS.LABEL_PURITY is {node.LABEL_PURITY}; expected 0 to 1")
    return LabelSampling(node.LABELS, node.LABEL_PURITY, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)


def build_pretrain_forwards(cfg: CfgNode) -> int:
    """Reads ``MODEL.REGULARIZERS.PRETRAIN_ITERS``, in forwards.

    Raises:
        ConfigError: it is negative, or there would be nothing to train with.
    """
    node = cfg.MODEL.REGULARIZERS
    iters = node.PRETRAIN_ITERS
    if iters < 0 or (iters > 0 and not node.NAMES):
        raise ConfigError(
            f"MODEL.REGULARIZERS.PRETRAIN_ITERS is {iters} and NAMES {list(node.NAMES)}; expected 0 or more, "
            "and a regularizer that trains while the network's own losses wait"
        )
    return iters * cfg.SOLVER.ACCUM_STEPS
