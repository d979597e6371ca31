"""How much each loss of a trained model pulls at the backbone, beside the cross entropy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.data.loader import build_train_loader
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.class_weighting import apply_class_weighting
from regseg_d2.engine.devices import backbone_prefix, with_available_device
from regseg_d2.engine.seeding import seed_everything
from regseg_d2.segmentor.build import build_model
from regseg_d2.weights.names import AUTO

REFERENCE = "loss_sem_seg"


class GradientShare(NamedTuple):
    """One loss, averaged over batches.

    Attributes:
        value: its value, weighted as in training.
        share: length of its gradient on the backbone's parameters, as a multiple of the cross entropy's.
        cosine: of the angle between the two gradients: 1 pulls the same way, 0 elsewhere, -1 against it.
    """

    loss: str
    value: float
    share: float
    cosine: float


def measure_gradient_shares(model: nn.Module, batches: Sequence[list[dict[str, Any]]]) -> list[GradientShare]:
    """Compares the gradients of the losses of a training step.

    The state of the model moves as in training.

    Raises:
        ConfigError: if the model has no loss named ``loss_sem_seg``, or nothing to train in its backbone.
    """
    model.train()
    backbone = model.get_submodule(backbone_prefix(model)[:-1])
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("The backbone is frozen (MODEL.BACKBONE.FREEZE_AT): no loss has a gradient on it.")
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for batch in batches:
        losses = model(batch)
        if REFERENCE not in losses:
            raise ConfigError(f"The losses {sorted(losses)} have no {REFERENCE!r} to compare with.")
        reference = _gradient(losses[REFERENCE], parameters)
        for name, loss in losses.items():
            gradient = _gradient(loss, parameters)
            length = (gradient.norm() / reference.norm()).item()
            cosine = nn.functional.cosine_similarity(gradient, reference, dim=0).item()
            rows.setdefault(name, []).append((loss.item(), length, cosine))
    return [
        GradientShare(name, *(sum(column) / len(column) for column in zip(*values, strict=True)))
        for name, values in rows.items()
    ]


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The gradient on all parameters in one vector, in double precision."""
    gradients = torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten().double() for gradient in gradients])


def run(cfg: CfgNode, num_batches: int) -> str:
    """Measures MODEL.WEIGHTS of a config on training batches; returns a table.

    Raises:
        CheckpointError: there are no weights, or they do not fit the model and its regularizers.
    """
    cfg = with_available_device(cfg)
    seed_everything(max(cfg.SEED, 0))
    model = build_model(cfg)
    checkpointer = SafeCheckpointer(
        model, cfg.OUTPUT_DIR, trust_pickle=cfg.MODEL.TRUST_PICKLE, save_to_disk=False
    )
    if cfg.MODEL.WEIGHTS in ("", AUTO):
        raise ConfigError(
            f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}; give the checkpoint of a run: MODEL.WEIGHTS FILE"
        )
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[], strict=True)
    register_declared(cfg.DATASETS.DECLARED)
    apply_class_weighting(cfg, model)
    batches = list(islice(build_train_loader(cfg, seed=max(cfg.SEED, 0)), num_batches))
    return format_shares(measure_gradient_shares(model, batches))


def format_shares(shares: Sequence[GradientShare]) -> str:
    """A table of the shares."""
    return tabulate(
        [(s.loss, f"{s.value:.3f}", f"{s.share:.3f}", f"{s.cosine:+.2f}") for s in shares],
        headers=["loss", "value", f"gradient / {REFERENCE}'s", "cosine to it"],
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", "right", "right", "right"),
    )
