"""From names in a config, with a place or without, to regularizers."""

from __future__ import annotations

import inspect
import logging
import re
from functools import partial

from detectron2.config import CfgNode
from torch import nn

from regseg_d2.common.errors import ConfigError, OptionError
from regseg_d2.common.suggestions import did_you_mean, registered
from regseg_d2.config.regularizers import key_of, method_options, method_weights
from regseg_d2.modeling.norms import get_norm
from regseg_d2.ops.labels import LABEL_RULES
from regseg_d2.regularizers import REGULARIZER, LabelSampling, Regularizer
from regseg_d2.segmentor.places import AUXILIARY_CLASSIFIER, MAIN_CLASSIFIER, Classifier, find_place

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


def build_regularizers(
    cfg: CfgNode, network: nn.Module, main_classifier: Classifier = MAIN_CLASSIFIER
) -> dict[str, Regularizer]:
    """Builds the regularizers named in ``MODEL.REGULARIZERS.NAMES``.

    Args:
        cfg: a full config.
        network: the module that tap paths start from.
        main_classifier: what ``CLASSIFIER: auto`` stands for.

    Returns:
        Regularizers by name, in alphabetical order: the order in the config has no effect.

    Raises:
        ConfigError: if a name is unknown or named twice, or a regularizer cannot be built.
    """
    names = list(cfg.MODEL.REGULARIZERS.NAMES)
    for name in names:
        method, _ = split_name(name)
        registered(REGULARIZER, method, "MODEL.REGULARIZERS.NAMES")
    if len(set(names)) != len(names):
        raise ConfigError(
            f"MODEL.REGULARIZERS.NAMES names a regularizer twice: {names}; for a second one at another "
            "place write, for example, 'PNE@aux'"
        )
    _warn_about_unused_places(cfg, names)
    regularizers = {name: _build(cfg, name, network, main_classifier) for name in sorted(names)}
    augment = getattr(getattr(network, "sem_seg_head", None), "augment", None)
    if augment is not None and hasattr(augment, "check_regularizers"):
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


def _build(cfg: CfgNode, name: str, network: nn.Module, main_classifier: Classifier) -> Regularizer:
    method, place = split_name(name)
    if not place:
        return _build_method(cfg, method, network, main_classifier)
    try:
        regularizer = _build_method(with_place_keys(cfg, name), method, network, main_classifier)
    except ConfigError as error:
        # It names the method's section, which the keys of the place were put into.
        raise ConfigError(f"{name}: {error}") from error
    regularizer.name = f"{regularizer.name}@{place}"
    return regularizer


def _build_method(cfg: CfgNode, name: str, network: nn.Module, main_classifier: Classifier) -> Regularizer:
    method, section, head = REGULARIZER.get(name), cfg.MODEL.REGULARIZERS[name], cfg.MODEL.SEM_SEG_HEAD
    arguments = {argument: section[key_of(method, argument)] for argument in method_options(method)}
    from_elsewhere = {"norm": partial(get_norm, head.NORM), "seed": cfg.SEED}
    taken = inspect.signature(method.__init__).parameters
    try:
        regularizer = method(
            head.NUM_CLASSES,
            weights=method_weights(method, section),
            ignore_index=head.IGNORE_VALUE,
            # Forwards are counted, and a step may have several.
            warmup_iters=section.WARMUP_ITERS * cfg.SOLVER.ACCUM_STEPS,
            warmup_method=section.WARMUP_METHOD,
            until_iter=section.UNTIL_ITER * cfg.SOLVER.ACCUM_STEPS,
            warn_zero_steps=cfg.MODEL.REGULARIZERS.WARN_ZERO_STEPS,
            **arguments,
            **{argument: value for argument, value in from_elsewhere.items() if argument in taken},
        )
    except OptionError as error:
        key = "WEIGHT" if error.argument == "weights" else key_of(method, error.argument)
        raise ConfigError(f"MODEL.REGULARIZERS.{name}.{key} {error.problem}") from error
    place = find_place(
        cfg,
        network,
        name,
        method.paper_place,
        reads_logits=regularizer.reads_logits,
        main_classifier=main_classifier,
    )
    if place.replaces_papers and method.without_paper_place:
        logger.warning("%s reads %s: %s.", name, place.feature_tap, method.without_paper_place)
    if place.memory is not None:
        regularizer.take_memory(place.memory)
    regularizer.feature_tap, regularizer.logits_tap = place.feature_tap, place.logits_tap
    try:
        regularizer.set_channels(place.channels)
    except ConfigError as error:
        raise ConfigError(f"MODEL.REGULARIZERS.{name}: {error}") from error
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
    return LabelSampling(node.LABELS, node.LABEL_PURITY)


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
