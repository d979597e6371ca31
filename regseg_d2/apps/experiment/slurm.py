"""Works off the runs of an experiment as SLURM jobs, by submitit."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regseg_d2.apps.experiment.plan import Run
from regseg_d2.apps.experiment.running import Options, Progress, command_of, log_of, raise_if_any_failed
from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.common.files import write_text
from regseg_d2.engine.interruption import INTERRUPTED_EXIT_CODE
from regseg_d2.engine.run_lock import FolderInUseError, locked

# So often a job whose time is up is queued again; each time it goes on from its checkpoint.
_MOST_TIMEOUTS = 100
_SECONDS_BETWEEN_LOOKS = 10.0
# Each run is a job of one process, and these are how submitit and we see to that.
_OURS = ("array", "error", "nodes", "ntasks", "ntasks_per_node", "open_mode", "output", "signal")


def work_off_with_slurm(runs: Sequence[Run], options: Options, parameters: Mapping[str, Any]) -> None:
    """Makes all runs that have no record yet, each in a job; jobs that an earlier call has queued are kept.

    ``options.jobs`` is how many of the jobs may run at a time.

    Raises:
        UserError: SLURM refuses a job.
        RunsFailed: some runs ended with an error.
    """
    waiting = [run for run in runs if not run.record.is_file()]
    progress = Progress(len(runs), len(runs) - len(waiting), options.jobs)
    if waiting:
        jobs = _submit(waiting, options, parameters)
        _watch(waiting, jobs, options, progress)


def parse_parameters(words: Sequence[str], jobs: int) -> dict[str, Any]:
    """Returns the arguments of submitit's ``AutoExecutor.update_parameters``.

    Args:
        words: ``KEY=VALUE``, or ``KEY`` alone, as sbatch takes them: ``partition=gpu``, ``gres=gpu:1``.
        jobs: jobs at a time.

    Raises:
        ConfigError: a word cannot be used, or there is no ``time``.
    """
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if not key or (equals and not value) or key in given:
            raise ConfigError(f"--slurm has {word!r}; expected each KEY=VALUE of sbatch once.")
        if key in _OURS:
            raise ConfigError(f"--slurm sets {key}, which is chosen here: a run is a job of one process.")
        given[key] = value if equals else True
    if "time" not in given:
        raise ConfigError("--slurm has no time, the limit of each job: time=240 (minutes) or time=4:00:00.")
    cpus = given.pop("cpus_per_task", "1")
    if not str(cpus).isdigit() or int(cpus) < 1:
        raise ConfigError(f"--slurm cpus_per_task is {cpus!r}; expected a whole number from 1 on.")
    return {
        "timeout_min": _minutes(given.pop("time")),
        "nodes": 1,
        "tasks_per_node": 1,
        "cpus_per_task": int(cpus),
        # SLURM's srun does not take it over from sbatch.
        "slurm_srun_args": [f"--cpus-per-task={cpus}"],
        "slurm_array_parallelism": jobs,
        "slurm_additional_parameters": given,
    }


def _minutes(text: Any) -> int:
    """SLURM's ways to write a time: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; seconds are rounded up."""
    days, dash, rest = str(text).rpartition("-")
    parts = rest.split(":")
    if all(part.isdigit() for part in [*parts, days or "0"]) and len(parts) <= 3 and bool(days) == bool(dash):
        numbers = [int(part) for part in parts]
        if dash or len(parts) == 3:
            hours, minutes, seconds = [*numbers, 0, 0][:3]
        else:
            hours, minutes, seconds = [0, *numbers, 0][:3]
        total = (24 * int(days or 0) + hours) * 60 + minutes + -(-seconds // 60)
        if total > 0:
            return total
    raise ConfigError(f"--slurm time is {text!r}; expected minutes, H:M:S or D-H, as sbatch takes them.")


def require_slurm() -> None:
    """Does nothing where jobs can be submitted.

    Raises:
        UserError: SLURM or submitit is not there.
    """
    for program in ("sbatch", "srun", "squeue"):
        if shutil.which(program) is None:
            raise UserError(
                f"--slurm: there is no '{program}' here. Call this where SLURM jobs are submitted, or leave "
                "--slurm out to train on this machine."
            )
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"--slurm needs submitit ({error}); run: pip install submitit, or install regseg_d2[slurm]."
        ) from error


def _submit(runs: Sequence[Run], options: Options, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Queues the runs that are in no job yet as one job array; returns the job of each run by name."""
    # An extra: who trains on one machine does without it.
    import submitit

    from regseg_d2.apps.experiment.slurm_job import SlurmJob

    folder = _folder(runs[0], options)
    with locked(folder / "lock"):  # two calls would queue the same runs
        queued, jobs = queued_jobs(), {}
        for run in runs:
            file = _job_file(run, options)
            job = file.read_text().strip() if file.is_file() else ""
            if job in queued or _is_taken(run, options):
                jobs[run.name] = job
        new = [run for run in runs if run.name not in jobs]
        if jobs:
            print(f"{len(jobs)} runs are in jobs of an earlier call or at work already.", flush=True)
        if not new:
            return jobs
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=_MOST_TIMEOUTS)
        executor.update_parameters(name=runs[0].experiment.name, **parameters)
        try:
            submitted = executor.submit_array(
                [
                    SlurmJob(command_of(run, options), log_of(run, options), INTERRUPTED_EXIT_CODE)
                    for run in new
                ]
            )
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM refuses the jobs: {error}") from error
        for run, queued_job in zip(new, submitted, strict=True):
            write_text(_job_file(run, options), queued_job.job_id)
            jobs[run.name] = queued_job.job_id
    number = submitted[0].job_id.partition("_")[0]
    print(
        f"Queued {len(new)} runs as job {number}. They go on without this process, and the same call finds "
        f"them again; 'scancel {number}' ends them.",
        flush=True,
    )
    return jobs


def _watch(runs: Sequence[Run], jobs: dict[str, str], options: Options, progress: Progress) -> None:
    """Reports on runs until each has its record or its job is gone without one."""
    waiting, failed = list(runs), []
    gone: set[str] = set()
    while waiting:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        try:
            queued = queued_jobs()
        except UserError as error:
            print(f"{error} Trying again.", flush=True)
            continue
        for run in list(waiting):
            job = jobs[run.name]
            if run.record.is_file():
                waiting.remove(run)
                progress.finished(run)
            elif job in queued or _is_taken(run, options):
                gone.discard(run.name)
            elif run.name not in gone:
                gone.add(run.name)  # looked at once more: file systems show new files late
            else:
                waiting.remove(run)
                failed.append(run)
                how, log = "in another process", log_of(run, options)
                if job:
                    slurm_log = _folder(run, options) / f"{job}_0_log.err"
                    how = f"in SLURM job {job} ({slurm_log})"
                    log = log if log.is_file() else slurm_log
                progress.failed(run, how, log)
    raise_if_any_failed(failed, progress.total)


def queued_jobs() -> set[str]:
    """Ids of the user's jobs that wait or run.

    Raises:
        UserError: SLURM does not answer.
    """
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise UserError(f"SLURM does not say which jobs there are: {result.stderr.strip()}.")
    return set(result.stdout.split())


def _is_taken(run: Run, options: Options) -> bool:
    """Whether a process works on a run, whoever began it."""
    try:
        with locked(run.folder(options.output) / "lock"):
            return False
    except FolderInUseError:
        return True


def _folder(run: Run, options: Options) -> Path:
    """Folder of submitit's files; no condition can have its name."""
    return options.output / run.experiment.name / "_slurm"


def _job_file(run: Run, options: Options) -> Path:
    return run.folder(options.output) / "slurm_job"
