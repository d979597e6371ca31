"""Regularizers on any network: what it is, with losses on its features while it trains."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from regseg_d2.common.distributed import Processes
from regseg_d2.common.errors import ConfigError
from regseg_d2.regularizers.base import Regularizer
from regseg_d2.regularizers.inputs import FEATURES, LOGITS, LabelSampling, RegularizerInput
from regseg_d2.regularizers.recorder import TapRecorder, tap_channels
from regseg_d2.regularizers.regularizer_list import RegularizerList
from regseg_d2.regularizers.taps import tap_before


def attach(
    model: nn.Module,
    regularizers: Regularizer | RegularizerList | Iterable[Regularizer],
    *,
    classifier: str | None = None,
    features: str | None = None,
    logits: str | None = None,
    label_sampling: LabelSampling | None = None,
    process_group: dist.ProcessGroup | None = None,
    example: Any = None,
) -> Regularized:
    """Puts regularizers on a network.

    Call it before the network is given to an optimizer, to DistributedDataParallel or to ``fully_shard``.

    Args:
        model: the network. It gets hooks, and stays as it is otherwise.
        regularizers: one, or several with different names. One whose ``feature_tap`` or ``logits_tap`` was
            given keeps it.
        classifier: path of the module, in the network, that turns features into logits, such as
            ``"classifier.4"``: the features are what it reads, before the dropout of an ``nn.Sequential``,
            and the logits what it puts out.
        features: tap of the features in place of that; see :mod:`regseg_d2.regularizers.taps`.
        logits: tap of the logits; needed where a regularizer looks at predictions.
        label_sampling: how labels come down to the size of a feature.
        process_group: processes whose batches make up the whole batch, of all regularizers; None leaves them
            as they are.
        example: an argument of the network, or a tuple of all, from which it is seen how many channels a
            feature has that its module does not tell; by default two images of 64 x 64. Nothing is computed
            on it.

    Raises:
        ConfigError: there is no such module, or nothing tells the channels of a feature.
    """
    if isinstance(regularizers, RegularizerList):
        together = regularizers
    else:
        together = RegularizerList([regularizers] if isinstance(regularizers, Regularizer) else regularizers)
    if classifier is not None:
        logits = logits or f"{classifier}:out"
        if features is None:
            tap_channels(model, f"{classifier}:in", "classifier", example)  # there is such a module
            features = tap_before(model, classifier)
    for regularizer in together.all():
        _place(model, regularizer, features, logits, classifier, example)
        if process_group is not None:
            regularizer.processes = Processes(process_group)
    return Regularized(model, together, label_sampling or LabelSampling())


def _place(
    model: nn.Module,
    regularizer: Regularizer,
    features: str | None,
    logits: str | None,
    classifier: str | None,
    example: Any,
) -> None:
    for name, default, tap in (("feature_tap", FEATURES, features), ("logits_tap", LOGITS, logits)):
        if name == "logits_tap" and not regularizer.reads_logits:
            continue
        if getattr(regularizer, name) == default:
            if tap is None:
                cure = f"give classifier=… or {default}=…"
                raise ConfigError(f"{regularizer.name}: nothing says where its {default} are; {cure}")
            setattr(regularizer, name, tap)
    if regularizer.channels is None and regularizer.needs_channels:
        tap = regularizer.feature_tap
        # A dropout does not tell its channels; they are those of the classifier behind it.
        is_before = classifier is not None and tap == tap_before(model, classifier)
        measured = f"{classifier}:in" if is_before else tap
        regularizer.set_channels(tap_channels(model, measured, f"{regularizer.name}: feature_tap", example))


class Regularized(nn.Module):
    """A network that returns its output and, in training with labels, the losses of its regularizers.

    In evaluation, or without labels, it is the network, bit for bit. Made by :func:`attach`.

    Args:
        model: the network.
        regularizers: its regularizers, whose taps and channels are known.
        label_sampling: how labels come down to the size of a feature.

    Raises:
        ConfigError: if a tap does not exist.
    """

    def __init__(
        self, model: nn.Module, regularizers: RegularizerList, label_sampling: LabelSampling
    ) -> None:
        super().__init__()
        self.model = model
        self.regularizers = regularizers
        self.label_sampling = label_sampling
        self._recorder = TapRecorder(model, regularizers.taps)
        # For good, unlike those of a Detectron2 network: a compiled graph holds the hooks that were there at
        # first.
        self._hooks = self._recorder.hook(model)
        self._model_takes_labels = "labels" in inspect.signature(model.forward).parameters

    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Runs the network.

        Args:
            *args: arguments of the network.
            labels: ``(N, H, W)`` class ids of the images. A network that has an argument of this name, as
                those of Hugging Face, gets them, too.
            **kwargs: arguments of the network.

        Returns:
            What the network returns; in training with labels a tuple of that and ``{"loss_<name>_<term>":
            scalar}``.
        """
        if self._model_takes_labels and labels is not None:
            kwargs["labels"] = labels
        if not self.training or labels is None:
            return self.model(*args, **kwargs)
        if not len(self.regularizers):  # a baseline, in the same loop
            return self.model(*args, **kwargs), {}
        with self._recorder.listen() as taps:
            output = self.model(*args, **kwargs)
        return output, self.regularizers(self._inputs(taps, labels))

    def _inputs(self, taps: dict[str, Tensor], labels: Tensor) -> RegularizerInput:
        first = self.regularizers.all()[0]
        return RegularizerInput(taps, labels, first.num_classes, first.ignore_index, self.label_sampling)

    def plain_state_dict(self) -> dict[str, Any]:
        """The state dict of the network alone: what it was before, and is saved for inference."""
        return self.model.state_dict()

    def detach(self) -> nn.Module:
        """Takes the hooks off the network, when training is over.

        Returns:
            The network, as it was given to :func:`attach` but for its weights: what ``torch.jit.script``
            takes, and what a file of it, ``torch.save(network)``, holds without this package.
        """
        while self._hooks:
            self._hooks.pop().remove()
        return self.model
