"""The training loop: Detectron2's loop and hooks around this package's step."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import inference_context, inference_on_dataset, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage, has_event_storage
from torch import nn

from regseg_d2.data.bad_files import BadFileLedger
from regseg_d2.data.loader import build_test_loader, build_train_loader, epochs_per_step
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.class_weighting import apply_class_weighting
from regseg_d2.engine.compilation import compile_parts
from regseg_d2.engine.devices import synchronize_buffers, unwrap_model, with_available_device, wrap_model
from regseg_d2.engine.failures import explain_failure
from regseg_d2.engine.hook_list import build_hooks
from regseg_d2.engine.hooks import CheckpointHook, Results, truncate_metrics
from regseg_d2.engine.interruption import Interrupted, StoppableEvaluation, StopSignals
from regseg_d2.engine.memory_budget import log_memory_budget
from regseg_d2.engine.nan_batches import NanBatchDumper, describe_step
from regseg_d2.engine.optim import build_gradient_clipper, build_lr_scheduler, build_optimizer
from regseg_d2.engine.provenance import describe_model
from regseg_d2.engine.run_report import ClosingSummary
from regseg_d2.engine.run_state import RunState, errors_of_the_file
from regseg_d2.engine.seeding import make_deterministic, resolve_seed, seed_everything, seed_pass
from regseg_d2.engine.step import NonFiniteLossError, TrainingStep, amp_dtype
from regseg_d2.engine.timing import TimedIterator
from regseg_d2.engine.weight_average import FOLDER as AVERAGE
from regseg_d2.engine.weight_average import WeightAverage
from regseg_d2.engine.writers import build_writers, require_writers
from regseg_d2.evaluation.evaluator import StreamingSemSegEvaluator
from regseg_d2.evaluation.inference import InferenceProtocol, build_predictor, refuse_unsupported
from regseg_d2.segmentor.build import build_model
from regseg_d2.segmentor.targets import require_class_masks

logger = logging.getLogger(__name__)


class Trainer(TrainerBase):
    """Trains a segmentor from a config, on one process or many, and can be continued bit for bit.

    Randomness: the initial weights come from SEED alone and are the same on every process. All that a
    step draws (dropout, the regularizers' sampling) comes from generators that are seeded before each
    forward pass from (SEED, step, pass, rank), and the samples of a step from (SEED, sample number).
    No random state lives on between steps, so none is saved: a run that is killed and resumed has the
    same weights, bit for bit, as one that was not, on the same machine with the same number of
    processes.

    Detectron2's ``DefaultTrainer`` is not the base class, because its inner trainer, checkpointer and
    data loader are made before the iteration to start from is known; methods have the same names.

    Attributes:
        cfg: the config that is used: with the seed that was drawn and the device that is there.
        seed_is_given: whether SEED says which, and not chance.
        average: the average of the weights, where SOLVER.EMA asks for one.
        results: the last evaluation's scores, ``{data set: {task: {metric: score}}}``; tasks of the average
            begin with ``ema/``.
        confusions: its confusion matrices by data set, ``(K, K)`` pixels, [true, predicted].
        stop_reason: why training stops before MAX_ITER, or None.
        finished: whether training came to its end (and not to an error or a signal).
        interrupted: whether a process has got a signal to end, which all of them know of.
        epochs_per_step: passes over the training images that a step is; 0 where their number is not known.
        on_first_step: called once, on the main process, when the first step was made.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Builds model, optimizer, schedule, checkpointer and hooks; reads no data yet.

        Raises:
            ConfigError: a value that cannot be used.
        """
        super().__init__()
        refuse_unsupported(cfg)
        require_writers(cfg)
        # Does nothing unless SOLVER.REFERENCE_WORLD_SIZE is set.
        cfg = with_available_device(DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()))
        cfg.defrost()
        self.seed_is_given = cfg.SEED >= 0
        cfg.SEED = resolve_seed(cfg.SEED)
        cfg.freeze()
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.results: Results = {}
        self.confusions: dict[str, np.ndarray] = {}
        self.stop_reason: str | None = None
        self.finished = False
        self.interrupted = False
        self.on_first_step: list[Callable[[], None]] = []
        self.epochs_per_step = 0.0
        self._owns_folder = False
        self.signals = StopSignals()
        self.bad_files = BadFileLedger(cfg.DATALOADER.MAX_BAD_FILES)

        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        if cfg.DETERMINISTIC:
            make_deterministic()
        seed_everything(cfg.SEED)
        plain_model = self.build_model(cfg)
        apply_class_weighting(cfg, plain_model)
        self.optimizer = self.build_optimizer(cfg, plain_model)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self.model = wrap_model(plain_model, find_unused_parameters=cfg.FIND_UNUSED_PARAMETERS)
        self.model.train()
        self.average = WeightAverage(cfg, self.model) if cfg.SOLVER.EMA.ENABLED else None
        if cfg.SOLVER.COMPILE.ENABLED:
            compile_parts(cfg, plain_model)
        self.training_step = TrainingStep(
            self.model,
            self.optimizer,
            accum_steps=cfg.SOLVER.ACCUM_STEPS,
            autocast_dtype=amp_dtype(cfg),
            clipper=build_gradient_clipper(cfg),
            max_nan_steps=cfg.SOLVER.MAX_NAN_STEPS,
            on_not_finite=NanBatchDumper(
                Path(cfg.OUTPUT_DIR) / "nan_batches",
                cfg.SOLVER.MAX_NAN_DUMPS,
                partial(describe_step, weakref.proxy(self)),
            ),
        )
        self.run_state = RunState(cfg, self.seed_is_given, self.optimizer, self.training_step, self.bad_files)
        self.checkpointer = SafeCheckpointer(
            self.model,
            cfg.OUTPUT_DIR,
            cfg=cfg,
            trust_pickle=cfg.MODEL.TRUST_PICKLE,
            trainer=weakref.proxy(self),
        )
        self.register_hooks(self.build_hooks())

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.cfg.SEED

    @property
    def completed_steps(self) -> int:
        """Steps that are done."""
        return self.run_state.completed_steps

    def epochs(self, steps: int) -> float:
        """Passes over the training images that so many steps are."""
        return steps * self.epochs_per_step

    # -------------------------------------------------------------------------- parts, to be overridden

    build_model = staticmethod(build_model)
    build_optimizer = staticmethod(build_optimizer)
    build_lr_scheduler = staticmethod(build_lr_scheduler)
    build_train_loader = staticmethod(build_train_loader)
    build_test_loader = staticmethod(build_test_loader)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, provenance: Mapping[str, Any], num_images_shown: int = 0
    ) -> StreamingSemSegEvaluator:
        """Returns the evaluator of a test set."""
        return StreamingSemSegEvaluator(
            dataset_name,
            cfg.OUTPUT_DIR,
            provenance=provenance,
            protocol=InferenceProtocol.from_config(cfg),
            predictions=cfg.TEST.PREDICTIONS,
            metrics=cfg.TEST.METRICS,
            num_images_shown=num_images_shown,
            image_format=cfg.INPUT.FORMAT,
        )

    def build_hooks(self) -> list[Any]:
        """Returns the hooks in their order; writers come between them, see :meth:`_take_folder`."""
        return build_hooks(self.cfg, self.optimizer, self.scheduler, self.checkpointer, self.average)

    def build_writers(self) -> list[Any]:
        """Returns what prints and writes measurements; called when training begins."""
        return build_writers(self.cfg, self.start_iter, self.max_iter)

    # ----------------------------------------------------------------------------------------- training

    def resume_or_load(self, resume: bool = True) -> None:
        """Continues the run in OUTPUT_DIR, or loads MODEL.WEIGHTS or else MODEL.TIMM.PRETRAINED.

        Raises:
            CheckpointError: the file is missing, damaged, refused, or does not fit.
            ConfigError: the config contradicts the run that is continued, or names no weights.
        """
        there = self.checkpointer.has_checkpoint()
        if resume and not there:
            logger.info("Nothing to resume in '%s': starting at step 0.", self.cfg.OUTPUT_DIR)
        if there and not resume:
            logger.warning(
                "'%s' holds another run: its files will be overwritten once a step is made. (--resume "
                "continues it.)",
                self.cfg.OUTPUT_DIR,
            )
            self.checkpointer.begins_history = True
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)

    def train(self) -> Results:
        """Trains from the step that was loaded to MAX_ITER, or until a hook or a signal asks to stop.

        On SIGTERM, SIGINT (Ctrl-C) and SIGHUP all processes end their step, and a checkpoint is written.

        Returns:
            The scores of the last evaluation, ``{data set: {task: {metric: score}}}``.

        Raises:
            UserError: data, config or losses that training cannot go on with.
            Interrupted: a signal came; the run can be resumed, and is then the same.
        """
        self.iter = self.start_iter = self.completed_steps
        if self.iter >= self.max_iter:
            self._take_folder()
        if self.build_train_loader is build_train_loader:  # another one may have masks of its own
            require_class_masks(self.cfg, unwrap_model(self.model))
        loader = self.build_train_loader(self.cfg, seed=self.seed, start_iter=self.start_iter)
        self._batches = TimedIterator(self.bad_files.watch(loader), self.signals)
        self.epochs_per_step = epochs_per_step(self.cfg, loader)
        epochs = f" ({self.epochs(self.max_iter):.2f} epochs)" if self.epochs_per_step else ""
        seed = f"SEED {self.seed}" + ("" if self.seed_is_given else " (drawn; set it to repeat this run)")
        logger.info("Training from step %d to %d%s, %s.", self.start_iter, self.max_iter, epochs, seed)
        log_memory_budget(self.model)
        with self.signals, EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter and self.stop_reason is None and not self.interrupted:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
                if self.stop_reason is not None:
                    self.training_step.require_progress(self.completed_steps)
                self.finished = not self.interrupted
            except Exception as error:
                explained = explain_failure(error)
                if isinstance(explained, NonFiniteLossError):
                    explained = NonFiniteLossError(f"{explained} {self.checkpointer.last_good()}")
                if explained is None:
                    logger.exception("Training failed at step %d:", self.iter)
                    raise
                raise explained from error
            finally:
                self._end_hooks()
            if self.interrupted:
                # Launchers stop the others once one process has ended, also while it writes.
                comm.synchronize()
                done = f"Stopped by a signal after step {self.completed_steps} of {self.max_iter}"
                raise Interrupted(f"{done}; --resume goes on from its checkpoint in '{self.cfg.OUTPUT_DIR}'.")
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, next(iter(self.results.values())))
        return self.results

    def _end_hooks(self) -> None:
        """Calls ``after_train``; where training failed, an error in there does not hide the first one."""
        if self.finished or self.interrupted:
            self.after_train()
            return
        try:
            self.after_train()
        except Exception:
            logger.warning("A hook could not be ended, either:", exc_info=True)

    def _take_folder(self) -> None:
        """Begins to write, now that a step was made: a start that fails leaves no trace."""
        if self._owns_folder or not comm.is_main_process():
            return
        self._owns_folder = True
        folder = Path(self.cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpointer.require_room()
        truncate_metrics(folder / "metrics.json", self.start_iter)
        for note in self.on_first_step:
            note()
        self.register_hooks([hooks.PeriodicWriter(self.build_writers(), period=self.cfg.LOG_PERIOD)])
        # A step that is in a checkpoint has its line in metrics.json, wherever the process is killed.
        self._hooks.sort(
            key=lambda hook: isinstance(hook, CheckpointHook) + 2 * isinstance(hook, ClosingSummary)
        )

    def run_step(self) -> None:
        """Makes one optimizer step and records its losses."""
        rank = comm.get_rank()
        self._batches.seconds = 0.0
        result = self.training_step.run(
            self._batches,
            before_pass=lambda micro_step: seed_pass(self.seed, self.iter, micro_step, rank),
            share=lambda: (self.signals.received is not None, self.bad_files.num_new),
        )
        self.run_state.completed_steps = self.iter + 1
        if self.completed_steps == self.max_iter:
            self.training_step.require_progress(self.max_iter)  # before a final model is written
        num_stopping, num_bad_files = result.shared
        self.interrupted = num_stopping > 0
        if num_bad_files:
            self.bad_files.share()
        if not result.skipped:
            self._take_folder()
            self.storage.put_scalars(total_loss=result.total_loss, **result.losses)
        if self.epochs_per_step:
            self.storage.put_scalar("epoch", self.epochs(self.completed_steps), smoothing_hint=False)
        self.storage.put_scalar("data_time", self._batches.seconds)
        self.storage.put_scalar("skipped_steps", self.training_step.skipped_steps, smoothing_hint=False)

    def request_stop(self, reason: str) -> None:
        """Ends training after the current step; all processes must ask alike."""
        self.stop_reason = reason
        logger.info("Stopping after step %d: %s.", self.completed_steps, reason)

    # --------------------------------------------------------------------------------------- evaluation

    def evaluate(self) -> Results:
        """Evaluates the current weights on all of DATASETS.TEST, and their average where there is one."""
        test = partial(
            self.test,
            completed_steps=self.completed_steps,
            is_stopping=lambda: self.signals.received is not None,
        )
        self.confusions = {}
        self.results = test(
            self.cfg,
            self.model,
            on_evaluated=lambda name, evaluator: self.confusions.update({name: evaluator.confusion}),
        )
        if self.average is not None:
            logger.info("Evaluating the average of the weights.")
            for name, tasks in test(self.average.cfg, self.average.model).items():
                self.results[name] |= {f"{AVERAGE}/{task}": scores for task, scores in tasks.items()}
        return self.results

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        *,
        completed_steps: int | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
        on_evaluated: Callable[[str, StreamingSemSegEvaluator], None] = lambda name, evaluator: None,
    ) -> Results:
        """Evaluates a model on all of DATASETS.TEST, in float32, one image at a time, as TEST says.

        Args:
            cfg: the config.
            model: the model with the weights to evaluate, wrapped or not.
            completed_steps: steps that it was trained for, where that is known.
            is_stopping: whether this process has got a signal to end.
            on_evaluated: gets the name of each data set, and its evaluator.

        Returns:
            ``{data set: {"sem_seg": {metric: score}}}``, the same on every process.

        Raises:
            EvaluationInterrupted: a process was stopping; nothing of the data set was written.
        """
        model = unwrap_model(model)
        synchronize_buffers(model)
        provenance = describe_model(cfg, model, completed_steps)
        predictor = build_predictor(cfg, model)
        results: Results = {}
        for number, name in enumerate(cfg.DATASETS.TEST):
            shown = cfg.TEST.NUM_IMAGES_SHOWN if number == 0 and has_event_storage() else 0
            evaluator = cls.build_evaluator(cfg, name, provenance, num_images_shown=shown)
            stoppable = StoppableEvaluation(evaluator, cls.build_test_loader(cfg, name), is_stopping)
            with inference_context(model):
                results[name] = inference_on_dataset(predictor, stoppable.loader, stoppable)
            for i, panel in enumerate(evaluator.panels):
                get_event_storage().put_image(f"{name}/{i}", panel.transpose(2, 0, 1))
            on_evaluated(name, evaluator)
        return results

    # -------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs besides the model."""
        return {**self.run_state.state_dict(), "hooks": super().state_dict().get("hooks", {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave; see ``run_state.RunState`` for its errors."""
        with errors_of_the_file():
            self.run_state.load_state_dict(state_dict)
            self.iter = self.start_iter = self.completed_steps
            # After the optimizer: the schedule writes its learning rates into it.
            super().load_state_dict({"iteration": self.completed_steps, "hooks": dict(state_dict["hooks"])})
