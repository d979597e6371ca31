"""One run of an experiment, from nothing or from its last checkpoint to its record."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch

from regseg_d2.apps.experiment.plan import Run
from regseg_d2.apps.experiment.records import (
    REMOVAL,
    VERSION,
    collect_results,
    config_digest,
    current_commit,
    remove_weights,
    write_json,
)
from regseg_d2.config.files import load_config
from regseg_d2.engine.devices import with_available_device
from regseg_d2.engine.launch import build_argument_parser
from regseg_d2.engine.main import main as train
from regseg_d2.engine.run_lock import locked
from regseg_d2.engine.trained_model import FINAL_WEIGHTS, load_trained_model
from regseg_d2.evaluation.measuring import measure
from regseg_d2.segmentor.places import classified_feature_tap


def perform(run: Run, output: Path, *, keep_weights: bool = False) -> None:
    """Trains a run to its end, measures it, and writes its record; does nothing where that is there.

    Raises:
        FolderInUseError: another process works on it.
        UserError: the training failed for a reason that the user can cure.
    """
    folder = run.existing or run.folder(output)
    with locked(run.folder(output) / "lock"):
        if run.record.is_file():
            return
        commit = current_commit()
        started = time.time()
        if run.existing is None:
            _train(run, output)
            cfg = load_config(str(run.experiment.base), run.options(output))
        else:
            cfg = load_config(str(folder / "config.yaml"))
        record = {
            "version": VERSION,
            "experiment": run.experiment.name,
            "condition": run.condition,
            "arm": run.arm,
            "control": run.experiment.arms[run.arm].control,
            "seed": run.seed,
            "commit": commit,
            "config_digest": config_digest(cfg),
            "overrides": run.overrides,
            "iterations": cfg.SOLVER.MAX_ITER,
            **collect_results(folder, list(cfg.DATASETS.TEST)),
            "measures": _measures(run, folder, cfg),
            "run": {
                "seconds": round(time.time() - started, 1),
                "finished": time.strftime("%Y-%m-%d %H:%M"),
                "machine": platform.machine(),
                "torch": torch.__version__,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            },
        }
        removes = run.existing is None and not keep_weights
        if removes:
            (folder / REMOVAL).touch()
        write_json(run.record, record)
        if removes:
            remove_weights(folder)


def _train(run: Run, output: Path) -> None:
    words = ["--config-file", str(run.experiment.base), "--resume", *run.options(output)]
    train(build_argument_parser().parse_args(words))


def _measures(run: Run, folder: Path, cfg: Any) -> dict[str, Any]:
    wanted = run.experiment.measures
    if wanted is None:
        return {}
    cfg = with_available_device(cfg)
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(folder / FINAL_WEIGHTS)
    cfg.OUTPUT_DIR = str(folder)
    model = load_trained_model(cfg).model
    return measure(
        cfg,
        model,
        wanted.datasets or list(cfg.DATASETS.TEST),
        train_images=wanted.train_images,
        corruptions=wanted.corruptions,
        tap=classified_feature_tap(model),
    )
