"""The evaluation of a model on all test sets of a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from detectron2.config import CfgNode
from detectron2.evaluation import inference_context, inference_on_dataset
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from regseg_d2.engine.devices import synchronize_buffers, unwrap_model
from regseg_d2.engine.hooks import Results
from regseg_d2.engine.interruption import StoppableEvaluation
from regseg_d2.engine.provenance import describe_model
from regseg_d2.evaluation.evaluator import StreamingSemSegEvaluator
from regseg_d2.evaluation.inference import build_predictor


class EvaluationParts(Protocol):
    """What builds the parts of an evaluation: a ``Trainer``, or a class derived from it."""

    def build_test_loader(self, cfg: CfgNode, dataset_name: str) -> Any:
        """Returns an iterable of this process's share of a test set."""

    def build_evaluator(
        self, cfg: CfgNode, dataset_name: str, provenance: Mapping[str, Any], num_images_shown: int = 0
    ) -> StreamingSemSegEvaluator:
        """Returns the evaluator of a test set."""


def evaluate_on_all(
    parts: EvaluationParts,
    cfg: CfgNode,
    model: nn.Module,
    completed_steps: int | None,
    is_stopping: Callable[[], bool],
) -> Results:
    """Evaluates on DATASETS.TEST; see ``Trainer.test``."""
    model = unwrap_model(model)
    synchronize_buffers(model)
    provenance = describe_model(cfg, model, completed_steps)
    predictor = build_predictor(cfg, model)
    results: Results = {}
    for number, name in enumerate(cfg.DATASETS.TEST):
        shown = cfg.TEST.NUM_IMAGES_SHOWN if number == 0 and has_event_storage() else 0
        evaluator = parts.build_evaluator(cfg, name, provenance, num_images_shown=shown)
        stoppable = StoppableEvaluation(evaluator, parts.build_test_loader(cfg, name), is_stopping)
        with inference_context(model):
            results[name] = inference_on_dataset(predictor, stoppable.loader, stoppable)
        for i, panel in enumerate(evaluator.panels):
            get_event_storage().put_image(f"{name}/{i}", panel.transpose(2, 0, 1))
    return results
