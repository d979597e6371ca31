"""Converting the checkpoints of other packages to a network of this one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import Tensor

from regseg_d2.engine.load_report import LoadReport
from regseg_d2.errors import CheckpointError
from regseg_d2.weights import detectron2_names, hrnet, mmseg, segformer, timm_names, torchvision
from regseg_d2.weights.network import BACKBONE, BATCH_COUNTER, HEAD, Network
from regseg_d2.weights.sources import ImageValues, Source

logger = logging.getLogger(__name__)

#: By the name that ``tools/convert_weights.py --from`` knows, in the order in which they are told apart.
SOURCES: dict[str, Source] = {
    "mmseg": mmseg.SOURCE,
    "torchvision": torchvision.SOURCE,
    "hrnet": hrnet.SOURCE,
    "segformer": segformer.SOURCE,
    "detectron2": detectron2_names.SOURCE,
    "timm": timm_names.SOURCE,
}
#: Share of the backbone's tensors that a checkpoint must have.
MIN_BACKBONE_SHARE = 0.9
#: How the names of tensors begin that take no part in inference.
AUXILIARY_PREFIXES = ("auxiliary_head.", "aux_classifier.")
# Ends of the names of what a network computes by itself.
_DERIVED = (BATCH_COUNTER, ".relative_position_index", ".attn_mask")


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Attributes:
        source: where it comes from.
        weights: tensors by the network's names, of the network's shapes.
        misfits: tensors by the network's names, of other shapes.
        dropped: tensors by the file's names that have no place.
        report: all of that, and what the file has nothing for.
        backbone_share: share of the backbone's tensors that the file has.
        images: what the checkpoint's network reads.
        warning: what of the config does not agree with the file, or "".
    """

    source: Source
    weights: dict[str, Tensor]
    misfits: dict[str, Tensor]
    dropped: dict[str, Tensor]
    report: LoadReport
    backbone_share: float
    images: ImageValues
    warning: str


def recognise(state: Mapping[str, Tensor], network: Network) -> Source | None:
    """Tells where a checkpoint comes from by the names of its tensors; None for this package's own."""
    if _is_own(state, network):
        return None
    return next((source for source in SOURCES.values() if source.recognises(state, network)), None)


def convert(
    state: Mapping[str, Tensor],
    source: Source,
    network: Network,
    path: str,
    min_backbone_share: float = MIN_BACKBONE_SHARE,
) -> Conversion:
    """Puts a checkpoint's tensors under a network's names, and sorts out those that fit.

    Args:
        state: tensors by the file's names.
        source: where they come from.
        network: the network that they are for.
        path: the file, for errors.
        min_backbone_share: share of the backbone's tensors that must be found.

    Raises:
        CheckpointError: there are no rules for the backbone, or too little of it is found.
    """
    renamed, unknown = source.rename(state, network)
    weights, misfits = {}, {}
    dropped = {name: value for name, value in unknown.items() if not name.endswith(_DERIVED)}
    for name, value in renamed.items():
        if name not in network.shapes:
            if not name.endswith(_DERIVED):
                dropped[name] = value
        elif value.shape == network.shapes[name]:
            weights[name] = value
        else:
            misfits[name] = value
    report = _report(weights, misfits, dropped, network)
    wanted = network.backbone_tensors
    share = sum(name in weights for name in wanted) / max(len(wanted), 1)
    if share < min_backbone_share:
        raise CheckpointError(
            f"'{path}', read as a checkpoint of {source.title}, has {share:.0%} of the backbone's "
            f"{len(wanted)} tensors; expected at least {min_backbone_share:.0%}:\n{report.table()}\n"
            "Is it a checkpoint of this backbone (MODEL.BACKBONE.NAME and its keys)?"
        )
    images = source.image_values(state, network.cfg)
    warning = image_warning(source, images, network.cfg)
    return Conversion(source, weights, misfits, dropped, report, share, images, warning)


def convert_if_published(
    state: Mapping[str, Tensor], network: Network, path: str
) -> dict[str, Tensor] | None:
    """Converts a checkpoint of another package, and logs so; None for this package's own.

    Returns:
        Tensors under the network's names, those of other shapes among them, and what has no place under the
        file's.

    Raises:
        CheckpointError: see :func:`convert`.
    """
    source = recognise(state, network)
    if source is None:
        return None
    conversion = convert(state, source, network, path)
    logger.info(
        "'%s' is a checkpoint of %s: %d of its %d tensors have a place in this network.",
        path,
        source.title,
        len(conversion.weights) + len(conversion.misfits),
        len(state),
    )
    if conversion.warning:
        logger.warning(conversion.warning)
    return {**conversion.dropped, **conversion.misfits, **conversion.weights}


def _is_own(state: Mapping[str, Tensor], network: Network) -> bool:
    """Whether the names are ours: those of a head or a regularizer, or of nothing but the backbone."""
    if any(name.startswith("regularizers.") for name in state):
        return True
    heads = [name for name in state if name.startswith(HEAD)]
    if heads:
        return any(name in network.shapes for name in heads) and not detectron2_names.has_foreign_head(
            state, network
        )
    return all(name.startswith(BACKBONE) and name in network.shapes for name in state)


def _report(
    weights: Mapping[str, Tensor],
    misfits: Mapping[str, Tensor],
    dropped: Mapping[str, Tensor],
    network: Network,
) -> LoadReport:
    new = [n for n in network.shapes if n not in weights and n not in misfits]
    shapes = tuple((n, tuple(v.shape), tuple(network.shapes[n])) for n, v in misfits.items())
    report = LoadReport(tuple(weights), tuple(new), tuple(dropped), shapes)
    return report.without_suffix(BATCH_COUNTER)


def image_warning(source: Source, images: ImageValues, cfg: CfgNode) -> str:
    """Says how a config's images differ from those that a checkpoint's network reads; "" if they do not."""
    if images.agrees_with(cfg):
        return ""
    return (
        f"The images are not prepared as the checkpoint of {source.title} expects: {images}; the config has "
        f"INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}, MODEL.PIXEL_STD "
        f"{list(cfg.MODEL.PIXEL_STD)}."
    )
