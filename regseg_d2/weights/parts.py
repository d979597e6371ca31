"""The parts of a network that a checkpoint fills whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from regseg_d2.common.errors import listed
from regseg_d2.weights.network import HEAD, NOT_NEEDED, Network

#: Parts of the head that a checkpoint need not have.
AUXILIARY = f"{HEAD}auxiliary"
AUGMENT = f"{HEAD}augment"
#: How names begin, behind the backbone's prefix, in a numbered stage, and in what stands before the first.
_WRAPPERS = r"(?:network\.)?(?:(?:model|swin)\.)?(?:encoder\.)?"
_STAGE = re.compile(_WRAPPERS + r"((?:res|layers?|stages?|blocks?|transition)[._]?\d+)\b")
_STEM = re.compile(
    _WRAPPERS + r"(?:stem(?:_\d+)?|conv_stem|(?:conv|bn)\d|patch_embed|pos_embed|cls_token|norm_pre|ln_pre"
    r"|embeddings|embedder)\b"
)
#: A part of the head of a network of transformers.
_HUGGINGFACE_PART = re.compile(r"network\.(?:model\.)?(?:pixel_level_module\.)?[^.]+")
_CLASSIFIER = "predictor"


@dataclass
class Part:
    """A stage of the backbone or of the head, and what a checkpoint has of it.

    Attributes:
        name: how the names of its tensors begin.
        is_needed: whether weights of the backbone are of no use without it: its stem, and its stages.
        found: tensors that are taken from the file.
        new: tensors that the file has nothing for.
        misfits: tensors that have another shape in the file.
    """

    name: str
    is_needed: bool
    found: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """All tensors that would stay random."""
        return [*self.new, *self.misfits]

    @property
    def is_half(self) -> bool:
        """Whether some of the tensors are from the file, and others random."""
        return bool(self.found and self.missing)

    @property
    def does_not_fit(self) -> bool:
        """Whether nothing is from the file, which has the tensors in other shapes."""
        return bool(self.misfits and not self.found)

    def describe(self, misfits: Mapping[str, Tensor], network: Network) -> str:
        """Says which of the tensors are not from the file.

        ``misfits`` are tensors of the file that have another shape, by the network's names.
        """
        shapes = [
            f"{name} ({tuple(misfits[name].shape)} in the file, {tuple(network.shapes[name])} here)"
            for name in self.misfits
        ]
        rest = [
            f"{kind}: {listed(n, most=6)}" for kind, n in (("new", self.new), ("other shape", shapes)) if n
        ]
        total = len(self.found) + len(self.missing)
        return f"{self.name}: {len(self.found)} of {total} tensors are from the file; {'; '.join(rest)}"


def is_classifier_of_other_classes(name: str, file: Iterable[int], here: Iterable[int]) -> bool:
    """Whether two shapes are those of a classifier's tensor for different numbers of classes."""
    return name.rpartition(".")[0].endswith(_CLASSIFIER) and list(file)[1:] == list(here)[1:]


def parts_of(
    weights: Iterable[str], misfits: Mapping[str, Tensor], network: Network
) -> tuple[list[Part], list[Part]]:
    """Sorts a network's tensors by the parts of the backbone and those of the head.

    Counters of batches and the like belong to no part, nor do classifiers of other numbers of classes.

    ``weights`` are those of its names that the file has; in ``misfits`` are the file's tensors of another
    shape.
    """
    weights = set(weights)
    backbone: dict[str, Part] = {}
    head: dict[str, Part] = {}
    for name, shape in network.shapes.items():
        if name.endswith(NOT_NEEDED):
            continue
        if name in misfits and is_classifier_of_other_classes(name, misfits[name].shape, shape):
            continue
        if name.startswith(network.backbone_prefix):
            key, is_needed = _backbone_part(name, network.backbone_prefix)
            part = backbone.setdefault(key, Part(key, is_needed))
        elif network.is_of_head(name):
            key = _head_part(name)
            part = head.setdefault(key, Part(key, False))
        else:
            continue
        (part.found if name in weights else part.misfits if name in misfits else part.new).append(name)
    return list(backbone.values()), list(head.values())


def _head_part(name: str) -> str:
    if match := _HUGGINGFACE_PART.match(name):
        return match[0]
    return HEAD + name.removeprefix(HEAD).partition(".")[0]


def _backbone_part(name: str, prefix: str) -> tuple[str, bool]:
    rest = name.removeprefix(prefix)
    if match := _STAGE.match(rest):
        return prefix + match[0], True
    if _STEM.match(rest):
        return f"{prefix}stem", True
    return prefix + rest.rpartition(".")[0], False
