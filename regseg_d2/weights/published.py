"""Converting the checkpoints of other packages to a network of this one."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import Tensor

from regseg_d2.common.errors import CheckpointError, listed
from regseg_d2.weights import detectron2_names, hrnet, mmseg, segformer, timm_names, torchvision
from regseg_d2.weights.load_report import LoadReport
from regseg_d2.weights.network import BACKBONE, NOT_NEEDED, Network
from regseg_d2.weights.parts import AUGMENT, AUXILIARY, Part, parts_of
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
#: Key of a converted file that says which of them it was.
CONVERTED_FROM = "converted_from"
#: Share of the backbone's tensors that a checkpoint must have.
MIN_BACKBONE_SHARE = 0.9
#: How the names of tensors begin that take no part in inference.
AUXILIARY_PREFIXES = ("auxiliary_head.", "aux_classifier.")


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
        backbone_parts: stem and stages of the backbone, and what the file has of them.
        head_parts: the same of the head.
        head_kind: whose head the file has, or "".
        images: what the checkpoint's network reads.
        warning: what of the config does not agree with the file, or "".
    """

    source: Source
    weights: dict[str, Tensor]
    misfits: dict[str, Tensor]
    dropped: dict[str, Tensor]
    report: LoadReport
    backbone_share: float
    backbone_parts: Sequence[Part]
    head_parts: Sequence[Part]
    head_kind: str
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
    min_backbone_share: float | None = None,
    *,
    whole: bool = False,
    backbone_only: bool = False,
) -> Conversion:
    """Puts a checkpoint's tensors under a network's names, and sorts out those that fit.

    Args:
        state: tensors by the file's names.
        source: where they come from.
        network: the network that they are for.
        path: the file, for errors.
        min_backbone_share: share of the backbone's tensors that must be found; None is
            ``MIN_BACKBONE_SHARE``.
        whole: whether the decode head must be found whole or not at all, and, without a share, every stage of
            the backbone.
        backbone_only: whether to leave the file's head out.

    Raises:
        CheckpointError: there are no rules for the backbone, too little of it is found, or a stage of the
            network is found in part.
    """
    try:
        renamed, unknown = source.rename(state, network)
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': {error}") from error
    weights, misfits = {}, {}
    dropped = {name: value for name, value in unknown.items() if not name.endswith(NOT_NEEDED)}
    for name, value in renamed.items():
        if backbone_only and network.is_of_head(name):
            dropped[name] = value
        elif name not in network.shapes:
            if not name.endswith(NOT_NEEDED):
                dropped[name] = value
        elif value.shape == network.shapes[name]:
            weights[name] = value
        else:
            misfits[name] = value
    backbone_parts, head_parts = parts_of(weights, misfits, network)
    wanted = network.backbone_tensors
    images = source.image_values(state, network.cfg)
    conversion = Conversion(
        source=source,
        weights=weights,
        misfits=misfits,
        dropped=dropped,
        report=_report(weights, misfits, dropped, network),
        backbone_share=sum(name in weights for name in wanted) / max(len(wanted), 1),
        backbone_parts=backbone_parts,
        head_parts=head_parts,
        head_kind=source.describe_head(state),
        images=images,
        warning=image_warning(source, images, network.cfg),
    )
    _check_backbone(conversion, network, path, min_backbone_share, whole)
    _check_head(conversion, network, path, whole)
    return conversion


def _check_backbone(
    conversion: Conversion, network: Network, path: str, min_share: float | None, whole: bool
) -> None:
    share, least = conversion.backbone_share, MIN_BACKBONE_SHARE if min_share is None else min_share
    every_stage = whole and min_share is None
    wrong = [
        part
        for part in conversion.backbone_parts
        if part.is_half or part.does_not_fit or (every_stage and part.is_needed and part.missing)
    ]
    if share < least:
        problem = (
            f"has {share:.0%} of the backbone's {len(network.backbone_tensors)} tensors; expected at least "
            f"{least:.0%}:\n{conversion.report.table()}"
        )
    elif wrong:
        problem = f"does not fill the backbone:\n{_described(wrong, conversion, network)}"
        if network.backbone_kind == "dilated_resnet" and any(part.name.endswith("stem") for part in wrong):
            problem += "\nMODEL.RESNETS.STEM_TYPE and STEM_OUT_CHANNELS say which stem the network has."
    else:
        return
    raise CheckpointError(
        f"'{path}', read as a checkpoint of {conversion.source.title}, {problem}\n"
        f"Is it a checkpoint of this backbone ({network.keys[0]})?"
        + (f" The file's head: {conversion.head_kind}." if conversion.head_kind else "")
    )


def _check_head(conversion: Conversion, network: Network, path: str, whole: bool) -> None:
    """Refuses parts that are found by half; with ``whole`` also a decode head of which a part is missing."""
    wrong = [part for part in conversion.head_parts if part.is_half]
    unused: list[str] = []
    if whole and has_decode_head(conversion):
        may_be_new = {AUGMENT} if "OCR" in network.stages else {AUGMENT, AUXILIARY}
        wrong = [p for p in conversion.head_parts if p.is_half or (p.missing and p.name not in may_be_new)]
        unused = unused_head_tensors(conversion)
    if not wrong and not unused:
        return
    lines = [_described(wrong, conversion, network)] if wrong else []
    if unused:
        lines.append(f"  of the file's head, nothing here has a place for {listed(unused, most=6)}")
    kind = conversion.head_kind or f"is it a checkpoint of this head ({network.keys[1]})?"
    raise CheckpointError(
        f"'{path}', read as a checkpoint of {conversion.source.title}, fits the head in part:\n"
        + "\n".join(lines)
        + f"\nOf the file's head: {kind}\n"
        "To take its backbone alone: tools/convert_weights.py --backbone-only."
    )


def _described(parts: Sequence[Part], conversion: Conversion, network: Network) -> str:
    return "\n".join(f"  {part.describe(conversion.misfits, network)}" for part in parts)


def has_decode_head(conversion: Conversion) -> bool:
    """Whether anything of the file's decode head was taken, its auxiliary head aside."""
    return any(part.found for part in conversion.head_parts if part.name != AUXILIARY)


def unused_head_tensors(conversion: Conversion) -> list[str]:
    """The file's names of tensors of its decode head that have no place in the network."""
    pattern = conversion.source.head
    return [name for name in conversion.dropped if pattern is not None and re.match(pattern, name)]


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
    heads = [name for name in state if network.is_of_head(name)]
    if heads:
        return any(name in network.shapes for name in heads) and not detectron2_names.has_foreign_head(
            state, network
        )
    prefix = network.backbone_prefix if network.model_type else BACKBONE
    return all(name.startswith(prefix) and name in network.shapes for name in state)


def _report(
    weights: Mapping[str, Tensor],
    misfits: Mapping[str, Tensor],
    dropped: Mapping[str, Tensor],
    network: Network,
) -> LoadReport:
    new = [n for n in network.shapes if n not in weights and n not in misfits]
    shapes = tuple((n, tuple(v.shape), tuple(network.shapes[n])) for n, v in misfits.items())
    report = LoadReport(tuple(weights), tuple(new), tuple(dropped), shapes)
    return report.without_suffix(*NOT_NEEDED)


def image_warning(source: Source, images: ImageValues, cfg: CfgNode) -> str:
    """Says how a config's images differ from those that a checkpoint's network reads; "" if they do not."""
    if images.agrees_with(cfg):
        return ""
    return (
        f"The images are not prepared as the checkpoint of {source.title} expects: {images}; the config has "
        f"INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}, MODEL.PIXEL_STD "
        f"{list(cfg.MODEL.PIXEL_STD)}."
    )
