"""The meta-architecture: an ordinary segmentor that regularizers listen to while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, SemanticSegmentor
from torch import Tensor, nn

from regseg_d2.modeling.feature_logits import feature_logits, gives_feature_logits
from regseg_d2.modeling.layers import pad_to
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.modeling.process_batch_norm import make_exact
from regseg_d2.regularizers import LabelSampling, Regularizer, RegularizerInput, RegularizerList
from regseg_d2.regularizers.recorder import TapRecorder
from regseg_d2.segmentor.diagnostics import EventStorageObserver
from regseg_d2.segmentor.places import MAIN_CLASSIFIER, Classifier
from regseg_d2.segmentor.regularizers import build_label_sampling, build_pretrain_forwards, build_regularizers
from regseg_d2.segmentor.targets import pad_labels, semantic_labels


class RegularizationMixin(nn.Module):
    """Adds regularizers to a Detectron2 meta-architecture.

    Put it before the meta-architecture in the bases; that one's constructor and ``from_config`` are
    Detectron2's (``@configurable``), its ``backbone`` (or what ``reads_images`` names) is called with the
    padded images, and its inputs have ``sem_seg``, or ``instances`` with masks. It stays as it is: a
    training forward runs unchanged while hooks record the taps, then each regularizer adds its losses. In
    evaluation nothing is added. Parameters and buffers of the regularizers are under ``regularizers.``;
    without them the state dict is that of the meta-architecture, and so is the output in evaluation, bit
    for bit. Where the constructor is another one, call :meth:`add_regularizers` at its end.

    Args:
        regularizers: regularizers by name.
        label_sampling: how labels come down to the size of a feature.
        pretrain_forwards: training forwards before the network's own losses set in.
        diagnostics_period: iterations between two records of the regularizers' diagnostics.
        exact_sync_norm: make the layers of ``naiveSyncBN`` exact over processes.
        channels_last: keep weights, and with them the features, in channels-last memory format.
        **network: arguments of the meta-architecture.
    """

    # What the meta-architecture has.
    backbone: Backbone
    sem_seg_head: nn.Module
    device: torch.device
    pixel_mean: Tensor
    pixel_std: Tensor

    #: Path of the classifier that ``CLASSIFIER: auto`` stands for; its first name is that of the head.
    main_classifier: ClassVar[str] = MAIN_CLASSIFIER.path
    #: Path of the module that is called with the padded images.
    reads_images: ClassVar[str] = "backbone"
    #: Whether a training forward leaves parameters out, which DistributedDataParallel has to look for then.
    has_unused_parameters: ClassVar[bool] = False

    @configurable
    def __init__(
        self,
        *,
        regularizers: Mapping[str, Regularizer],
        label_sampling: LabelSampling | None = None,
        pretrain_forwards: int = 0,
        diagnostics_period: int = 20,
        channels_last: bool = False,
        exact_sync_norm: bool = False,
        **network: Any,
    ) -> None:
        super().__init__(**network)
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.add_regularizers(regularizers, label_sampling, pretrain_forwards, diagnostics_period)
        if exact_sync_norm:
            make_exact(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the parts of the meta-architecture, and the regularizers; ``NORM: auto`` is resolved."""
        is_auto, cfg = cfg.MODEL.NORM == "auto", resolve_auto_norm(cfg)
        parts = super().from_config(cfg)  # type: ignore[misc]  # of the meta-architecture
        network = _Network(parts, cls.run_parts)
        return {
            **parts,
            "regularizers": build_regularizers(cfg, network, cls.find_classifier(parts)),
            **cls.regularization_settings(cfg),
            "channels_last": cfg.MODEL.CHANNELS_LAST,
            "exact_sync_norm": is_auto and cfg.MODEL.NORM == "naiveSyncBN",
        }

    @classmethod
    def find_classifier(cls, parts: Mapping[str, Any]) -> Classifier:
        """Tells what ``CLASSIFIER: auto`` stands for, given the arguments of the meta-architecture."""
        return Classifier(cls.main_classifier)

    @classmethod
    def run_parts(cls, parts: nn.Module, images: Tensor) -> Any:
        """Runs the modules among the arguments of the meta-architecture, before it exists.

        Args:
            parts: a module that holds them under their names.
            images: ``(N, 3, H, W)``.
        """
        head = parts.get_submodule(cls.main_classifier.partition(".")[0])
        return head(parts.get_submodule("backbone")(images))

    @staticmethod
    def regularization_settings(cfg: CfgNode) -> dict[str, Any]:
        """Reads what :meth:`add_regularizers` takes beside the regularizers."""
        return {
            "label_sampling": build_label_sampling(cfg),
            "pretrain_forwards": build_pretrain_forwards(cfg),
            "diagnostics_period": cfg.MODEL.REGULARIZERS.DIAGNOSTICS_PERIOD,
        }

    def add_regularizers(
        self,
        regularizers: Mapping[str, Regularizer],
        label_sampling: LabelSampling | None = None,
        pretrain_forwards: int = 0,
        diagnostics_period: int = 20,
    ) -> None:
        """Takes the regularizers in and checks their taps.

        Args:
            regularizers: regularizers by name.
            label_sampling: how labels come down to the size of a feature; None takes the pixels at the
                centers of its cells.
            pretrain_forwards: training forwards in which the network's own losses have weight 0.
            diagnostics_period: iterations between two records of diagnostics in Detectron2's EventStorage.

        Raises:
            ConfigError: if a tap does not exist.
        """
        self.regularizers = RegularizerList(regularizers)
        for regularizer in self.regularizers.all():
            regularizer.observer = EventStorageObserver(diagnostics_period)
        self._tap_recorder = TapRecorder(self, self.regularizers.taps)
        self._label_sampling = label_sampling or LabelSampling()
        self._pretrain_forwards = pretrain_forwards

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Runs the network; in training with the losses of the regularizers.

        Args:
            batched_inputs: see Detectron2's ``SemanticSegmentor``.

        Returns:
            In training a dict of scalar losses, in evaluation what the meta-architecture returns.

        Raises:
            UserError: the inputs have no labels, or they are larger than the images.
        """
        if not self.training or not self.regularizers:
            return super().forward(batched_inputs)
        first = self.regularizers.all()[0]
        batched_inputs, labels = self._with_labels(batched_inputs)
        sizes: list[torch.Size] = []
        reader = self.get_submodule(self.reads_images)
        handle = reader.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-2:]))
        try:
            with self._tap_recorder.record(self) as taps:
                losses = super().forward(batched_inputs)
        finally:
            handle.remove()
        padded = pad_labels(labels, sizes[0], first.ignore_index)
        inputs = RegularizerInput(taps, padded, first.num_classes, first.ignore_index, self._label_sampling)
        if self._pretrain_forwards:
            # The regularizers count forwards, in buffers. The losses stay attached: no parameter is unused.
            begun = (first.num_forwards >= self._pretrain_forwards).float()
            losses = {name: loss * begun for name, loss in losses.items()}
        losses.update(self.regularizers(inputs))
        return losses

    def plain_state_dict(self) -> dict[str, Any]:
        """The state dict of the meta-architecture alone, with its metadata, as is saved for inference."""
        state: Any = self.state_dict()
        for keys in (state, state._metadata):
            for key in [key for key in keys if key.partition(".")[0] == "regularizers"]:
                del keys[key]
        return state

    def regularizer_targets(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        """Gives the labels that the regularizers see; a meta-architecture with other inputs writes its own.

        Args:
            batched_inputs: what :meth:`forward` was called with.

        Returns:
            Class ids ``(H, W)`` of each image before its padding: ``sem_seg``, or painted from ``instances``.

        Raises:
            UserError: an input has neither.
        """
        ignore_index = self.regularizers.all()[0].ignore_index
        return [semantic_labels(sample, ignore_index) for sample in batched_inputs]

    def _with_labels(self, batched_inputs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Tensor]]:
        """Brings the labels to the network's device, and into the inputs, so that they travel once."""
        targets = self.regularizer_targets(batched_inputs)
        device = next(self.parameters()).device
        labels = [target.to(device) for target in targets]
        moved = [
            {**sample, "sem_seg": label} if sample.get("sem_seg") is target else sample
            for sample, target, label in zip(batched_inputs, targets, labels, strict=True)
        ]
        return moved, labels

    @property
    def gives_feature_logits(self) -> bool:
        """Whether :meth:`feature_logits` can be called; not with a head whose steps are unknown."""
        head = getattr(self, "sem_seg_head", None)
        return head is not None and gives_feature_logits(head)

    @property
    def gives_probabilities(self) -> bool:
        """Whether evaluation gives probabilities of classes already, and not logits."""
        return False

    def feature_logits(self, images: Tensor, *, pad: bool = True) -> Tensor:
        """Runs backbone and head without the head's last step, which stretches the logits over the image.

        Args:
            images: ``(N, 3, H, W)``, as in the inputs of :meth:`forward`.
            pad: pad to the backbone's stride, as :meth:`forward` does.

        Returns:
            Logits ``(N, K, h, w)``; the padded images are :meth:`feature_stride` times as large.
        """
        normalized = (images.to(self.device) - self.pixel_mean) / self.pixel_std
        if pad:
            normalized = pad_to(normalized, self.padded_size(*normalized.shape[-2:]))
        return feature_logits(self.sem_seg_head, self.backbone(normalized))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the input that an image of this size is padded to."""
        constraints = self.backbone.padding_constraints
        if side := constraints.get("square_size", 0):
            height = width = side
        divisor = max(constraints.get("size_divisibility", self.backbone.size_divisibility), 1)
        return (height + divisor - 1) // divisor * divisor, (width + divisor - 1) // divisor * divisor

    def feature_stride(self, logits: Tensor, size: tuple[int, int]) -> float:
        """How many times as large as its feature logits the padded input of an image is.

        Args:
            logits: what :meth:`feature_logits` gave.
            size: height and width of the image.
        """
        return cast(Any, self.sem_seg_head).common_stride


class _Network(nn.Module):
    """Stands for a segmentor that does not exist yet: tap paths start here."""

    def __init__(self, parts: Mapping[str, Any], run: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self._run = run
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)

    def forward(self, images: Tensor) -> Any:
        return self._run(self, images)


@META_ARCH_REGISTRY.register()
class RegularizedSegmentor(RegularizationMixin, SemanticSegmentor):
    """Detectron2's ``SemanticSegmentor`` with regularizers.

    Any backbone and any head of Detectron2's registries can be used, unedited.
    """
