"""Where a regularizer listens: the taps that its keys stand for."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.layers import ASPP
from detectron2.projects.deeplab import DeepLabV3Head
from torch import nn
from yacs.config import CfgNode

from regseg_d2.common.errors import ConfigError
from regseg_d2.regularizers.taps import has_module, tap_channels

MAIN_CLASSIFIER = "sem_seg_head.predictor"
AUXILIARY_CLASSIFIER = "sem_seg_head.auxiliary.predictor"
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Place:
    """The taps of one regularizer.

    Attributes:
        feature_tap: tap of the regularized feature.
        channels: channels of that feature.
        logits_tap: tap of the logits of the same head.
    """

    feature_tap: str
    channels: int
    logits_tap: str


def find_place(
    cfg: CfgNode, network: nn.Module, method: str, paper_tap: str = "", *, reads_logits: bool = True
) -> Place:
    """Resolves ``CLASSIFIER`` and ``FEATURES`` of a method.

    Args:
        cfg: a full config, as with the keys of the place in the method's section.
        network: the module that tap paths start from.
        method: name of the method's section in ``MODEL.REGULARIZERS``.
        paper_tap: tap that ``FEATURES: auto`` stands for; by default :func:`penultimate_tap`.
        reads_logits: the method reads the classifier's output, which has to be that of the classes then.

    Raises:
        ConfigError: if there is no such module, lists the near names; if the classifier has another number
            of outputs than there are classes, lists those that have it.
    """
    section = cfg.MODEL.REGULARIZERS[method]
    key = f"MODEL.REGULARIZERS.{method}"
    classifier = MAIN_CLASSIFIER if section.CLASSIFIER == "auto" else section.CLASSIFIER
    if classifier == AUXILIARY_CLASSIFIER and not has_module(network, classifier):
        raise ConfigError(
            f"{key}.CLASSIFIER is {classifier!r}, and the head has no auxiliary head: set "
            "MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE to a backbone feature, such as 'res4'"
        )
    logits_tap = f"{classifier}:out"
    outputs = tap_channels(network, logits_tap, f"{key}.CLASSIFIER")
    if reads_logits and outputs != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        raise ConfigError(_no_classifier(network, f"{key}.CLASSIFIER", classifier, outputs, cfg))
    penultimate = penultimate_tap(network, classifier)
    tap = section.FEATURES
    if tap == "auto":
        tap = paper_tap or penultimate
    # A dropout does not tell its channels; they are the classifier's.
    is_before = tap in (penultimate, f"{dropout_before(network, classifier)}:in")
    measured = f"{classifier}:in" if is_before else tap
    return Place(tap, tap_channels(network, measured, f"{key}.FEATURES"), logits_tap)


def _no_classifier(network: nn.Module, key: str, classifier: str, outputs: int, cfg: CfgNode) -> str:
    wanted = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    others = [
        name for name, module in network.named_modules() if getattr(module, "out_channels", None) == wanted
    ]
    return (
        f"{key} is {classifier!r}, which has {outputs} outputs, and there are {wanted} classes "
        "(MODEL.SEM_SEG_HEAD.NUM_CLASSES): expected the last convolution of a head. "
        + (f"With {wanted} outputs there are {others[:5]}." if others else f"None has {wanted} outputs.")
    )


def penultimate_tap(network: nn.Module, classifier: str) -> str:
    """Tap of the feature that a classifier reads, before the dropout where the head has one in between.

    Behind a dropout two views of a pixel differ, and a class center is one of features with missing channels.

    Args:
        network: the module that tap paths start from.
        classifier: module path of the classifier.
    """
    path = classifier.rpartition(".")[0]
    aspp = _last_aspp(network.get_submodule(path))
    if aspp:
        # Detectron2's ASPP ends in a functional dropout, behind its last block.
        return f"{path}.{aspp}.project:out"
    dropout = dropout_before(network, classifier)
    if dropout and network.get_submodule(dropout).p > 0:
        return f"{dropout}:in"
    return f"{classifier}:in"


def _last_aspp(head: nn.Module) -> str:
    """Path of the ASPP whose dropped output is the feature before a head's classifier, or ``""``."""
    path = "aspp" if isinstance(head, DeepLabV3Head) else ""
    if getattr(head, "context_comes_last", False) and has_module(head, "context.aspp"):
        path = "context.aspp"
    aspp = head.get_submodule(path) if path else None
    return path if isinstance(aspp, ASPP) and aspp.dropout > 0 else ""


def dropout_before(network: nn.Module, classifier: str) -> str:
    """Path of the dropout whose output a classifier reads, or ``""``.

    That is the module before it in an ``nn.Sequential``, or ``dropout`` of a head that says
    ``dropout_feeds_predictor`` of itself.

    Args:
        network: the module that tap paths start from.
        classifier: module path of the classifier.
    """
    path, _, name = classifier.rpartition(".")
    head = network.get_submodule(path)
    candidate = ""
    if isinstance(head, nn.Sequential):
        names = list(head._modules)
        earlier = names[: names.index(name)]
        candidate = next((x for x in reversed(earlier) if not isinstance(head._modules[x], nn.Identity)), "")
    elif getattr(head, "dropout_feeds_predictor", False) and name == "predictor":
        candidate = "dropout"
    if not candidate or not isinstance(head.get_submodule(candidate), DROPOUTS):
        return ""
    return f"{path}.{candidate}" if path else candidate


def encoder_output_tap(network: nn.Module) -> str:
    """Tap of what the encoder hands to the head.

    That is all stages side by side where the head's fusion keeps them so (SegFormer, HRNet), else the feature
    of the largest stride, before any feature pyramid.
    """
    fusion = "sem_seg_head.fusion"
    if has_module(network, fusion) and getattr(network.get_submodule(fusion), "keeps_levels_apart", False):
        return f"{fusion}:out"
    path = "backbone.bottom_up" if has_module(network, "backbone.bottom_up") else "backbone"
    shapes = network.get_submodule(path).output_shape()
    # Dilated stages share a stride: the later one is the wider one, or else the one of the larger name.
    deepest = max(shapes, key=lambda name: (shapes[name].stride, shapes[name].channels, name))
    return f"{path}:out[{deepest}]"
