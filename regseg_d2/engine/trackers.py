"""Writers for trackers of experiments: W&B and MLflow, each number once, also over a resume."""

from __future__ import annotations

import abc
import importlib.util
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.files import write_text
from regseg_d2.common.json_files import read_json
from regseg_d2.config.keys import flatten_config

PROJECT = "regseg_d2"  # where the tracker's own variable names none


def require_package(writer: str, packages: tuple[str, ...]) -> None:
    """Refuses a writer whose packages are not installed.

    Raises:
        ConfigError: names the extra that has them.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"WRITERS names {writer!r}, which needs {' and '.join(missing)}: not installed. Run pip install "
            f"'regseg_d2[{writer}]', or leave it out."
        )


class Tracker(EventWriter, abc.ABC):
    """Hands each number of a run to a tracker once.

    ``<OUTPUT_DIR>/<name>.json`` holds the tracker's id of the run and the last iteration of each number. A
    run that is resumed goes on under its id, and numbers that it makes again, which are the same, are left
    out. The file is written before the numbers are handed over: where the run is killed in between, a row is
    missing.

    Args:
        cfg: the config of the run.
        start_iter: the first step; 0 begins a new run.
        name: of the tracker.
    """

    def __init__(self, cfg: CfgNode, start_iter: int, name: str) -> None:
        folder = Path(cfg.OUTPUT_DIR)
        self._file = folder / f"{name}.json"
        saved = read_json(self._file) if start_iter > 0 and self._file.is_file() else {}
        if not isinstance(saved, dict) or not isinstance(saved.get("written", {}), dict):
            raise ConfigError(
                f"'{self._file}' is no state of {name!r}: delete it; the run begins anew there."
            )
        self._written: dict[str, int] = dict(saved.get("written", {}))
        config = {key: str(value) for key, value in flatten_config(cfg).items()}
        self._id = self.begin(saved.get("id"), "/".join(folder.absolute().parts[-2:]), config)
        self._save()

    @abc.abstractmethod
    def begin(self, run_id: str | None, run_name: str, config: Mapping[str, str]) -> str:
        """Begins a run, or goes on with the one of an id; returns its id."""

    @abc.abstractmethod
    def log(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Hands over the numbers of an iteration."""

    def write(self) -> None:
        """Hands over what the storage has and the tracker has not."""
        rows: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest().items():
            if iteration > self._written.get(name, -1):
                rows.setdefault(iteration, {})[name] = value
                self._written[name] = iteration
        if rows:
            self._save()
        for iteration, scalars in sorted(rows.items()):
            self.log(iteration, scalars)

    def _save(self) -> None:
        write_text(self._file, json.dumps({"id": self._id, "written": self._written}, indent=1) + "\n")


class WandbWriter(Tracker):
    """A run of Weights & Biases; ``WANDB_MODE=offline`` keeps it in the run's folder, for ``wandb sync``."""

    def begin(self, run_id: str | None, run_name: str, config: Mapping[str, str]) -> str:
        """Begins a run of ``WANDB_PROJECT``."""
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id or uuid.uuid4().hex[:12],
            name=run_name,
            dir=str(self._file.parent),
            config=dict(config),
            resume="allow",
        )
        return self._run.id

    def log(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Logs a step."""
        self._run.log(dict(scalars), step=iteration)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class MlflowWriter(Tracker):
    """A run of MLflow, at ``MLFLOW_TRACKING_URI`` or in ``<OUTPUT_DIR>/mlflow.db``."""

    def begin(self, run_id: str | None, run_name: str, config: Mapping[str, str]) -> str:
        """Begins a run of ``MLFLOW_EXPERIMENT_NAME``."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        file = (self._file.parent / "mlflow.db").absolute()
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{file}"))
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        run = self._client.create_run(number, run_name=run_name).info.run_id
        params = [Param(_allowed(key), value[:6000]) for key, value in config.items()]
        for first in range(0, len(params), 100):  # as many as it takes at once
            self._client.log_batch(run, params=params[first : first + 100])
        return run

    def log(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Logs a step."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [Metric(_allowed(name), value, now, iteration) for name, value in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Ends the run."""
        self._client.set_terminated(self._id)


def _allowed(name: str) -> str:
    """A name with what MLflow allows in one."""
    return re.sub(r"[^\w\-. /]", "_", name)
