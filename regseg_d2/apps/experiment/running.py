"""Works off the runs of an experiment: several at a time, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

import regseg_d2.data  # noqa: F401  registers data sets
from regseg_d2.apps.experiment.plan import Run, as_words
from regseg_d2.apps.experiment.records import (
    REMOVAL,
    config_digest,
    current_commit,
    read_record,
    remove_weights,
    write_json,
)
from regseg_d2.apps.experiment.spec import Experiment
from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.config.files import load_config
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.data.label_counts import count_label_files
from regseg_d2.data.labels import label_reader_for
from regseg_d2.data.records import load_training_records
from regseg_d2.engine.interruption import heeded_signals

#: Exit status of a run that another process works on.
TAKEN = 76
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BEFORE_A_TAKEN_RUN = 10.0


class RunsFailed(UserError):
    """Some runs ended with an error; the others were made."""


@dataclass(frozen=True)
class Options:
    """How runs are worked off."""

    output: Path
    jobs: int = 1
    keep_weights: bool = False
    nice: int = 0


def check_records(runs: Sequence[Run], allow_commit_mix: bool) -> None:
    """Refuses records that do not belong to the experiment's file or to this code.

    Raises:
        ConfigError: a record is damaged, of another commit, or of an arm that has changed since.
    """
    commit = current_commit()
    digests: dict[tuple[str, str], str] = {}
    for run in runs:
        if not run.record.is_file():
            continue
        record = read_record(run.record)
        if record.commit != commit and not allow_commit_mix:
            raise ConfigError(
                f"'{run.record}' was made by commit {record.commit}, and this is {commit}: go on with a "
                "clone at that commit, or say --allow-commit-mix if the difference cannot change results."
            )
        if run.existing is not None or allow_commit_mix:
            continue
        key = (run.condition, run.arm)
        if key not in digests:
            digests[key] = config_digest(load_config(str(run.experiment.base), run.options(Path("output"))))
        if record.config_digest != digests[key]:
            raise ConfigError(
                f"The arm '{run.arm}' in '{run.condition}' has another config than when '{run.record}' was "
                "made: give the changed arm another name, or delete the records of the old one."
            )


def write_description(experiment: Experiment) -> None:
    """Writes ``experiment.json`` and ``classes.json`` beside the records, for the report."""
    # Not sorted: the report has the order of the file.
    write_json(experiment.results / "experiment.json", experiment.as_data(), sort_keys=False)
    file = experiment.results / "classes.json"
    if not file.is_file():
        cfg = load_config(str(experiment.base), as_words(experiment.common))
        write_json(file, training_class_shares(cfg))


def training_class_shares(cfg: CfgNode) -> dict[str, dict[str, float]]:
    """Counts the training labels of a config: ``{training set: {class: share of its labelled pixels}}``.

    Raises:
        UserError: the labels cannot be read.
    """
    register_declared(cfg.DATASETS.DECLARED)
    shares = {}
    for name in cfg.DATASETS.TRAIN:
        counts = count_label_files(load_training_records([name]), {name: label_reader_for(name)}, workers=0)
        pixels = counts.balance().pixels
        classes = MetadataCatalog.get(name).stuff_classes
        shares[name] = {each: float(p / pixels.sum()) for each, p in zip(classes, pixels, strict=True)}
    return shares


def work_off(runs: Sequence[Run], options: Options) -> None:
    """Makes all runs that have no record yet.

    Raises:
        RunsFailed: some ended with an error.
    """
    waiting = [run for run in runs if not run.record.is_file()]
    for run in runs:  # of one that was killed beside its record
        if run.record.is_file() and (run.folder(options.output) / REMOVAL).is_file():
            remove_weights(run.folder(options.output))
    progress = Progress(len(runs), len(runs) - len(waiting), options.jobs)
    running: dict[int, tuple[Run, subprocess.Popen]] = {}
    failed: list[Run] = []
    # A signal ends the trainings, too; they write a checkpoint, and the next call goes on from there.
    for number in heeded_signals():
        if number != signal.SIGINT:  # Python makes an exception of that itself
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        while waiting or running:
            for slot in range(options.jobs):
                if slot not in running and waiting:
                    run = waiting.pop(0)
                    running[slot] = run, _start(run, options, slot)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for slot, (run, process) in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[slot]
                if status == TAKEN:
                    # Another runner's; its record may come, or its process end.
                    waiting.append(run)
                    time.sleep(_SECONDS_BEFORE_A_TAKEN_RUN)
                    waiting = [each for each in waiting if not each.record.is_file()]
                elif status == 0:
                    progress.finished(run)
                else:
                    failed.append(run)
                    progress.failed(run, f"with status {status}", log_of(run, options))
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    raise_if_any_failed(failed, len(runs))


def raise_if_any_failed(failed: Sequence[Run], total: int) -> None:
    """Ends a call in which runs failed with RunsFailed, which names them."""
    if failed:
        names = ", ".join(run.name for run in failed)
        raise RunsFailed(f"{len(failed)} of {total} runs failed: {names}. Their logs are in their folders.")


def _start(run: Run, options: Options, slot: int) -> subprocess.Popen:
    log = log_of(run, options)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        return subprocess.Popen(
            command_of(run, options),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(slot),
            preexec_fn=lambda: _settle(options, slot),
        )


def command_of(run: Run, options: Options) -> list[str]:
    """The command line that makes one run."""
    words = [sys.executable, "-m", "regseg_d2", "experiment", str(run.experiment.file), "--run", run.name]
    words += ["--output", str(options.output)]
    return words + (["--keep-weights"] if options.keep_weights else [])


def log_of(run: Run, options: Options) -> Path:
    """The file of what a run prints."""
    return run.folder(options.output) / "run.log"


def _environment(slot: int) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    return environment


def _settle(options: Options, slot: int) -> None:
    """In the new process: be nice; one core each, where there are enough and no GPU does the work."""
    os.nice(options.nice)
    cores = sorted(os.sched_getaffinity(0))
    if options.jobs <= len(cores) and options.nice == 0 and not torch.cuda.is_available():
        os.sched_setaffinity(0, {cores[slot]})


class Progress:
    """Says after each run how far the whole is, and how long it will still take."""

    def __init__(self, total: int, done: int, jobs: int) -> None:
        self.total = total
        self.done = done
        self.jobs = jobs
        self._seconds: list[float] = []
        print(f"{done} of {total} runs are done.", flush=True)

    def finished(self, run: Run) -> None:
        """Prints a line about a run that has its record."""
        self.done += 1
        record, primary = read_record(run.record), run.experiment.primary
        seconds = record.seconds or 0.0
        self._seconds.append(seconds)
        score = record.metrics.get(primary.dataset, {}).get(primary.metric)
        result = f", {primary.dataset} {primary.metric} {score:.2f}" if score is not None else ""
        self._line(f"{run.name}: {seconds:.0f} s{result}")

    def failed(self, run: Run, how: str, log: Path) -> None:
        """Prints a line about a run that ended with an error, and the end of its log."""
        lines = log.read_text(errors="replace").splitlines()[-8:] if log.is_file() else ["It has no log."]
        tail = "\n".join(f"    {line}" for line in lines)
        self._line(f"{run.name} FAILED {how}:\n{tail}\n    ({log})")

    def _line(self, text: str) -> None:
        left = self.total - self.done
        eta = ""
        if self._seconds and left:
            seconds = left * sum(self._seconds) / len(self._seconds) / self.jobs
            eta = (
                f"; about {seconds / 3600:.1f} h left"
                if seconds > 5400
                else f"; about {seconds / 60:.0f} min left"
            )
        print(f"[{self.done}/{self.total}] {text}{eta}", flush=True)
