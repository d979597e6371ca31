"""Where a regularizer listens: the taps that its keys stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from detectron2.layers import ASPP
from detectron2.projects.deeplab import DeepLabV3Head
from torch import nn
from yacs.config import CfgNode

from regseg_d2.common.errors import ConfigError
from regseg_d2.regularizers.recorder import tap_channels
from regseg_d2.regularizers.taps import (
    DROPOUTS,
    declared_channels,
    dropout_before,
    has_module,
    module_of,
    parse_tap,
    tap_before,
)
from regseg_d2.state.distribution_memory import DistributionMemory

AUXILIARY_CLASSIFIER = "sem_seg_head.auxiliary.predictor"
LINEAR_CONVOLUTION = "sem_seg_head.projection.linear"
MDRL_STAGE = "sem_seg_head.augment"


class Classifier(NamedTuple):
    """What ``CLASSIFIER`` says, or ``auto`` stands for.

    Attributes:
        path: path of a module that turns features into logits, or a tap of logits.
        features: tap of the features that it reads; ``""`` where the module tells.
    """

    path: str
    features: str = ""


MAIN_CLASSIFIER = Classifier("sem_seg_head.predictor")


@dataclass(frozen=True)
class Place:
    """The taps of one regularizer.

    Attributes:
        feature_tap: tap of the regularized feature.
        channels: channels of that feature.
        logits_tap: tap of the logits of the same head.
        memory: memory of the head's MDRL stage, at the place that this stage is; else None.
        replaces_papers: nobody named the place, and the network has not the one that the paper names.
    """

    feature_tap: str
    channels: int
    logits_tap: str
    memory: DistributionMemory | None = None
    replaces_papers: bool = False


def find_place(
    cfg: CfgNode,
    network: nn.Module,
    method: str,
    paper_place: str = "penultimate",
    *,
    reads_logits: bool = True,
    main_classifier: Classifier = MAIN_CLASSIFIER,
) -> Place:
    """Resolves ``CLASSIFIER`` and ``FEATURES`` of a method.

    Args:
        cfg: a full config, as with the keys of the place in the method's section.
        network: the module that tap paths start from.
        method: name of the method's section in ``MODEL.REGULARIZERS``.
        paper_place: what ``FEATURES: auto`` stands for where ``CLASSIFIER`` is ``auto``, too: a name in
            :data:`PAPER_PLACES`. Else, and where the network has no such place, it is
            :func:`penultimate_tap`.
        reads_logits: the method reads the classifier's output, which has to be that of the classes then.
        main_classifier: what ``CLASSIFIER: auto`` stands for.

    Raises:
        ConfigError: if there is no such module, lists the near names; if the classifier has another number
            of outputs than there are classes, lists those that have it.
    """
    section = cfg.MODEL.REGULARIZERS[method]
    key = f"MODEL.REGULARIZERS.{method}"
    main = main_classifier if section.CLASSIFIER == "auto" else Classifier(section.CLASSIFIER)
    if not main.path:
        raise ConfigError(
            f"{key}.CLASSIFIER is 'auto', and nothing tells where the classifier of this network is: "
            f"expected the path of the module that turns features into logits. {_candidates(network, cfg)}"
        )
    if main.path == AUXILIARY_CLASSIFIER and not has_module(network, main.path):
        raise ConfigError(
            f"{key}.CLASSIFIER is {main.path!r}, and the head has no auxiliary head: set "
            "MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE to a backbone feature, such as 'res4'"
        )
    logits_tap = _logits_tap(network, main.path)
    _check_logits(cfg, network, logits_tap, f"{key}.CLASSIFIER", reads_logits=reads_logits)
    classifier = main.path.partition(":")[0]
    before = main.features or penultimate_tap(network, classifier)
    tap, memory, replaces_papers = section.FEATURES, None, False
    if section.CLASSIFIER == tap == "auto":
        papers = PAPER_PLACES[paper_place](network)
        tap, replaces_papers = papers or before, not papers and paper_place != "penultimate"
        memory = _stage_memory(network) if tap == f"{MDRL_STAGE}.base_predictor:in" else None
    elif tap == "auto":
        tap = before
    declares = main.features or _mask_features(network, classifier)
    if not declares and tap == before and ":masks" in logits_tap:
        raise ConfigError(
            f"{key}.FEATURES is 'auto', and nothing tells what the masks of {classifier!r} are made of: "
            "expected a tap, such as 'sem_seg_head.pixel_decoder.mask_features:in'"
        )
    # A dropout does not tell its channels; they are the classifier's.
    is_before = not declares and tap in (before, f"{dropout_before(network, classifier)}:in")
    is_before |= tap == before and isinstance(_module_of(network, before), DROPOUTS)
    measured = f"{classifier}:in" if is_before else tap
    channels = tap_channels(network, measured, f"{key}.FEATURES")
    return Place(tap, channels, logits_tap, memory, replaces_papers)


def _check_logits(cfg: CfgNode, network: nn.Module, tap: str, key: str, *, reads_logits: bool) -> None:
    parsed = parse_tap(tap, key)
    module_of(network, parsed, key)
    if not reads_logits or parsed.side == "masks":  # of how many classes masks are is seen in a forward only
        return
    outputs = tap_channels(network, tap, key)
    if outputs != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        raise ConfigError(_no_classifier(network, key, parsed.path, outputs, cfg))


def _logits_tap(network: nn.Module, classifier: str) -> str:
    if ":" in classifier:
        return classifier
    if not _mask_features(network, classifier):
        return f"{classifier}:out"
    # MaskFormer's per-pixel baseline has a query a class.
    is_per_pixel = not getattr(network.get_submodule(classifier), "mask_classification", True)
    return f"{classifier}:out[pred_masks]" if is_per_pixel else f"{classifier}:masks"


def _mask_features(network: nn.Module, classifier: str) -> str:
    """Path of what the masks of MaskFormer and Mask2Former are made of, or ``""`` with another classifier."""
    path = f"{classifier.rpartition('.')[0]}.pixel_decoder.mask_features"
    if not (has_module(network, path) and has_module(network, classifier)):
        return ""
    tap = parse_tap(f"{classifier}:out", "classifier")
    return path if declared_channels(network.get_submodule(classifier), tap) is None else ""


def _no_classifier(network: nn.Module, key: str, classifier: str, outputs: int, cfg: CfgNode) -> str:
    wanted = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return (
        f"{key} is {classifier!r}, which has {outputs} outputs, and there are {wanted} classes "
        "(MODEL.SEM_SEG_HEAD.NUM_CLASSES): expected the last convolution of a head. "
        + _candidates(network, cfg)
    )


def _candidates(network: nn.Module, cfg: CfgNode) -> str:
    wanted = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    found = [
        name for name, module in network.named_modules() if getattr(module, "out_channels", None) == wanted
    ]
    return f"With {wanted} outputs there are {found[:5]}." if found else f"None has {wanted} outputs."


def _module_of(network: nn.Module, tap: str) -> nn.Module:
    return module_of(network, parse_tap(tap, "features"), "features")


def penultimate_tap(network: nn.Module, classifier: str) -> str:
    """Tap of the feature that a classifier reads, before the dropout where the head has one in between.

    Behind a dropout two views of a pixel differ, and a class center is one of features with missing channels.
    Of a network that classifies masks it is what their features are projected from, so that a loss does not
    fight the product of mask features and queries.

    Args:
        network: the module that tap paths start from.
        classifier: module path of the classifier.
    """
    masks = _mask_features(network, classifier)
    if masks:
        return f"{masks}:in"
    path = classifier.rpartition(".")[0]
    aspp = _last_aspp(network.get_submodule(path))
    if aspp:
        # Detectron2's ASPP ends in a functional dropout, behind its last block.
        return f"{path}.{aspp}.project:out"
    return tap_before(network, classifier)


def classified_feature_tap(model: nn.Module) -> str:
    """Tap of the feature that the classifier of a built model reads; see :func:`penultimate_tap`.

    Args:
        model: a meta-architecture; one that is not of this package has its classifier where Detectron2's have
            it.

    Raises:
        ConfigError: there is no such classifier.
    """
    find = getattr(model, "find_classifier", None)
    classifier = find(dict(model.named_children())) if find else MAIN_CLASSIFIER
    path = classifier.path.partition(":")[0]
    if not classifier.features and not (path and has_module(model, path)):
        raise ConfigError(
            f"{type(model).__name__} has no classifier {path!r}, so nothing tells where its feature is: "
            "name the tap."
        )
    return classifier.features or penultimate_tap(model, classifier.path)


def _last_aspp(head: nn.Module) -> str:
    """Path of the ASPP whose dropped output is the feature before a head's classifier, or ``""``."""
    path = "aspp" if isinstance(head, DeepLabV3Head) else ""
    if getattr(head, "context_comes_last", False) and has_module(head, "context.aspp"):
        path = "context.aspp"
    aspp = head.get_submodule(path) if path else None
    return path if isinstance(aspp, ASPP) and aspp.dropout > 0 else ""


def encoder_output_tap(network: nn.Module) -> str:
    """Tap of what the encoder hands to the head.

    That is all stages side by side where the head's fusion keeps them so (SegFormer, HRNet), else the feature
    of the largest stride, before any feature pyramid; ``""`` where there is no backbone of Detectron2's.
    """
    fusion = "sem_seg_head.fusion"
    if has_module(network, fusion) and getattr(network.get_submodule(fusion), "keeps_levels_apart", False):
        return f"{fusion}:out"
    path = "backbone.bottom_up" if has_module(network, "backbone.bottom_up") else "backbone"
    if not has_module(network, path):
        return ""
    encoder: Any = network.get_submodule(path)  # a Backbone of Detectron2
    shapes = encoder.output_shape()
    # Dilated stages share a stride: the later one is the wider one, or else the one of the larger name.
    deepest = max(shapes, key=lambda name: (shapes[name].stride, shapes[name].channels, name))
    return f"{path}:out[{deepest}]"


def _linear_convolution_tap(network: nn.Module) -> str:
    return f"{LINEAR_CONVOLUTION}:out" if has_module(network, LINEAR_CONVOLUTION) else ""


def _mdrl_stage_tap(network: nn.Module) -> str:
    return f"{MDRL_STAGE}.base_predictor:in" if _stage_memory(network) is not None else ""


def _stage_memory(network: nn.Module) -> DistributionMemory | None:
    if not has_module(network, f"{MDRL_STAGE}.memory"):
        return None
    memory = network.get_submodule(f"{MDRL_STAGE}.memory")
    return memory if isinstance(memory, DistributionMemory) else None


#: Where papers take the feature: functions of the network that give the tap, or "" where it has no such
#: place.
PAPER_PLACES: dict[str, Callable[[nn.Module], str]] = {
    "penultimate": lambda network: "",
    "linear convolution": _linear_convolution_tap,
    "encoder output": encoder_output_tap,
    "MDRL stage": _mdrl_stage_tap,
}
