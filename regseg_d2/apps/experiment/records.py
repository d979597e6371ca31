"""What is kept of a run: one small JSON file, the same bytes for the same run but for ``run``."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from detectron2.config import CfgNode
from pydantic import AliasPath, BeforeValidator, Field, model_validator

import regseg_d2
from regseg_d2.apps.compare.runs import read_evaluation
from regseg_d2.common.errors import ConfigError
from regseg_d2.common.files import write_text
from regseg_d2.common.json_files import read_json, read_json_lines
from regseg_d2.common.metric_names import current_names
from regseg_d2.common.schema import Number, Part, Whole, checked
from regseg_d2.config.keys import flatten_config
from regseg_d2.engine.weight_average import FOLDER as AVERAGE

VERSION = 1
#: A file in the folder of a run whose checkpoints go once the record is there, and have not gone yet.
REMOVAL = "weights_are_removed"
# Keys that say where and how fast a run is, not what comes out; SEED has a field of its own.
_NOT_IN_DIGEST = (
    "OUTPUT_DIR",
    "SEED",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.PREFETCH",
    "FIND_UNUSED_PARAMETERS",
    "LOG_PERIOD",
    "WRITERS",
    "TEST.METRICS",
    "TEST.NUM_PIXELS_SHOWN",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINT_MAX_TO_KEEP",
    "SOLVER.COMPILE.ENABLED",
    "SOLVER.COMPILE.BACKEND",
    "SOLVER.EMA.ENABLED",
    "SOLVER.EMA.DECAY",
    "VERSION",
)
_LOSS_POINTS = 20
_SCORE = "sem_seg/mIoU"


def current_commit() -> str:
    """The commit of the code that runs, as records have it.

    Its name, with ``+changes`` where files under version control differ from it; the package's version where
    there is no git.
    """
    folder = Path(regseg_d2.__file__).parent

    def git(*words: str) -> str | None:
        try:
            result = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    name = git("rev-parse", "HEAD")
    if name is None:
        return f"version {regseg_d2.__version__}"
    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", str(folder), str(folder.parent / "configs")
    )
    return f"{name}+changes" if changed else name


def config_digest(cfg: CfgNode) -> str:
    """A hash of all values that decide what comes out, the seed left out."""
    values = {key: value for key, value in flatten_config(cfg).items() if key not in _NOT_IN_DIGEST}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_json(path: Path, data: Mapping[str, Any], *, sort_keys: bool = True) -> None:
    """Writes a file whole or not at all; the same data give the same bytes."""
    text = json.dumps(_rounded(data), indent=1, sort_keys=sort_keys, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def _rounded(value: Any) -> Any:
    """Numbers with seven digits: what is behind them no table shows."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def remove_weights(folder: Path) -> None:
    """Removes the checkpoints of a run that has its record."""
    for file in (*folder.glob("*.pth"), *(folder / AVERAGE).glob("*.pth")):
        file.unlink()
    (folder / REMOVAL).unlink(missing_ok=True)


def collect_results(folder: Path, datasets: list[str]) -> dict[str, Any]:
    """Takes the results of a finished run from its folder.

    Returns:
        ``metrics``, ``curve``, ``losses``, ``diagnostics`` and ``skipped_steps`` of the record.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    metrics = {}
    for dataset in datasets:
        file = folder / "evaluation" / f"{dataset}.json"
        if not file.is_file():
            raise ConfigError(f"'{folder}' has no result on '{dataset}': there is no {file}.")
        evaluation = read_evaluation(file)
        metrics[dataset] = {
            **evaluation["metrics"],
            "IoU": {each["name"]: each["IoU"] for each in evaluation["classes"]},
        }
    file = folder / "metrics.json"
    lines = read_json_lines(file)
    if not all(type(line.get("iteration")) is int for line in lines):
        raise ConfigError(
            f"'{file}' has a line without the number of its iteration: it is not of this package."
        )
    return {"metrics": metrics, **_history(lines, datasets)}


def _history(lines: list[dict[str, Any]], datasets: list[str]) -> dict[str, Any]:
    curve: dict[int, dict[str, float]] = {}
    losses: list[dict[str, Any]] = []
    diagnostics: dict[str, list[float]] = {}
    last = max((line["iteration"] for line in lines), default=0)
    # A run with one test set writes its scores without the name.
    keys = {name: f"{name}/{_SCORE}" if len(datasets) > 1 else _SCORE for name in datasets}
    for line in map(current_names, lines):
        scores = {name: line[key] for name, key in keys.items() if key in line}
        if scores:
            # Evaluations are written with the number of completed steps.
            curve.setdefault(line["iteration"], {}).update(scores)
        found = {key: value for key, value in line.items() if key.startswith("loss_") or key == "total_loss"}
        if found:
            losses.append({"iteration": line["iteration"], **found})
        if line["iteration"] >= 0.9 * last:
            for key, value in line.items():
                if "/" in key and "sem_seg/" not in key:
                    diagnostics.setdefault(key, []).append(value)
    step = max(1, -(-len(losses) // _LOSS_POINTS))
    return {
        "curve": [{"iteration": iteration, **scores} for iteration, scores in sorted(curve.items())],
        "losses": losses[::-step][::-1],
        "diagnostics": {key: sum(values) / len(values) for key, values in diagnostics.items()},
        "skipped_steps": int(max((line.get("skipped_steps", 0) for line in lines), default=0)),
    }


def _without_iou(data: Any) -> Any:
    """Takes the IoU of classes, which a file has among the metrics of a data set, into a part of its own."""
    metrics = data.get("metrics") if isinstance(data, dict) else None
    if not isinstance(metrics, dict) or not all(isinstance(entry, dict) for entry in metrics.values()):
        return data  # refused by the type
    return {
        **data,
        "iou": {name: entry.get("IoU", {}) for name, entry in metrics.items()},
        "metrics": {name: {k: v for k, v in entry.items() if k != "IoU"} for name, entry in metrics.items()},
    }


def _point(point: Any) -> Any:
    if not isinstance(point, dict) or point.get("iteration") is None:
        raise ValueError('an object with "iteration"')
    return {key: value for key, value in point.items() if value is not None}


def _with_current_names(numbers: Any) -> Any:
    return current_names(numbers) if isinstance(numbers, dict) else numbers


Numbers = dict[str, Number | None]


class Record(Part):
    """What is kept of a run.

    Attributes:
        control: the arm that it is compared with, or None.
        commit: of the code.
        config_digest: hash of all values that decide what comes out, the seed left out.
        iterations: length of the schedule.
        metrics: ``{data set: {metric: number}}``; None for a number that is not defined.
        iou: ``{data set: {class: percent or None}}``.
        curve: ``[{"iteration": i, data set: mIoU}]``.
        measures: ``{data set: {measure: number or None}}``.
        diagnostics: ``{"regularizer/key": number}``.
        skipped_steps: steps whose loss was not finite.
        seconds: wall time, or None.
    """

    version: Whole
    experiment: str
    condition: str
    arm: str
    control: str | None = None
    seed: Whole
    commit: str
    config_digest: str
    iterations: Whole
    metrics: dict[str, Numbers]
    iou: dict[str, Numbers]
    curve: tuple[Annotated[dict[str, Number], BeforeValidator(_point)], ...] = ()
    measures: dict[str, Numbers] = {}
    diagnostics: Annotated[Numbers, BeforeValidator(_with_current_names)] = {}
    skipped_steps: Whole = 0
    seconds: Annotated[Number | None, Field(validation_alias=AliasPath("run", "seconds"))] = None

    _iou_apart = model_validator(mode="before")(_without_iou)


def read_record(file: Path) -> Record:
    """Reads a record.

    Raises:
        ConfigError: it is damaged, or of another version.
    """
    record: Record = read_checked(Record, file)
    if record.version != VERSION:
        raise ConfigError(
            f"{file}: version is {record.version}; expected {VERSION}, which this code reads; delete it or "
            "use its code"
        )
    return record


def read_checked(kind: Any, file: Path) -> Any:
    """Reads a JSON file of an experiment as a type, see ``schema.checked``.

    Raises:
        ConfigError: it is no JSON, or not of the type.
    """
    advice = f"Delete '{file}', and the next call makes it again."
    try:
        data = read_json(file)
    except ConfigError as error:
        raise ConfigError(f"{error} {advice}") from error
    return checked(kind, data, file, advice=advice)
