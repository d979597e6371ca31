"""Runs as SLURM jobs: what is asked of SLURM, found again, reported, and stopped in time."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import submitit

from regseg_d2.apps.experiment import slurm
from regseg_d2.apps.experiment.plan import plan_runs
from regseg_d2.apps.experiment.running import Options, RunsFailed, log_of
from regseg_d2.apps.experiment.slurm import parse_parameters, work_off_with_slurm
from regseg_d2.apps.experiment.slurm_job import SlurmJob
from regseg_d2.apps.experiment.spec import read_experiment
from regseg_d2.commands.experiment import main
from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.engine.run_lock import locked
from tests.apps.experiment import fake_slurm, synthetic
from tests.apps.experiment.test_running import call, command, copy_of_tiny, wait_for
from tests.engine.runs import ROOT, environment

WORDS = ["time=4:00:00", "partition=gpu", "--gres=gpu:1", "mail-user=x@y", "exclusive"]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("240", 240), ("90:30", 91), ("4:00:00", 240), ("1-12", 2160), ("2-0:30", 2910), ("0-0:0:1", 1)],
)
def test_times_are_those_of_sbatch(text, minutes):
    assert parse_parameters([f"time={text}"], 1)["timeout_min"] == minutes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["partition=gpu"], "has no time"),
        (["time=soon"], "time is 'soon'"),
        (["time=0"], "time is '0'"),
        (["time=1-"], "time is '1-'"),
        (["time"], "time is True"),
        (["time=5", "partition="], "'partition='"),
        (["time=5", "time=6"], "'time=6'"),
        (["time=5", "ntasks-per-node=2"], "sets ntasks_per_node"),
        (["time=5", "array=0-3"], "sets array"),
        (["time=5", "cpus_per_task=many"], "cpus_per_task is 'many'"),
    ],
)
def test_words_that_cannot_be_used(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_parameters(words, 1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A SLURM that starts no job."""
    for key, value in fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(slurm, "_SECONDS_BETWEEN_LOOKS", 0.01)
    (tmp_path / "slurm" / "hold").touch()
    yield tmp_path / "slurm"
    for job in (tmp_path / "slurm" / "jobs").iterdir():
        job.unlink()  # ends the controllers


@pytest.fixture
def runs(tmp_path):
    return plan_runs(read_experiment(copy_of_tiny(tmp_path / "x")))


def submit(runs, options, *words):
    return slurm._submit(runs, options, parse_parameters(words or WORDS, options.jobs))


def finish(run):
    metrics = {"cooccurrence_val": {"mIoU": 12.5}}
    synthetic.write(run.record, synthetic.record("all", run.arm, None, run.seed, metrics=metrics))


def test_what_sbatch_is_asked_for(home, runs, tmp_path):
    submit(runs, Options(tmp_path / "out", jobs=2))
    script = (home / "scripts" / "100.sh").read_text()
    asked = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {"time=240", "partition=gpu", "gres=gpu:1", "mail-user=x@y", "exclusive", "array=0-5%2"} <= asked
    assert {"nodes=1", "ntasks-per-node=1", "cpus-per-task=1", "job-name=tiny"} <= asked
    assert "srun --unbuffered" in script and "--cpus-per-task=1 " in script
    executor = submitit.AutoExecutor(tmp_path / "out" / "tiny" / "_slurm", cluster="slurm")
    job = executor._executor.job_class(executor.folder, "100_4").submission().function
    assert job.command[-4:] == ["--run", runs[4].name, "--output", str(tmp_path / "out")]
    assert job.log == log_of(runs[4], Options(tmp_path / "out"))


def test_one_run_with_more_cores_is_a_job_of_its_own(home, runs, tmp_path):
    submit(runs[:1], Options(tmp_path / "out"), "time=5", "cpus_per_task=4", "job-name=mine")
    script = (home / "scripts" / "100.sh").read_text()
    assert "--array" not in script and script.count("--cpus-per-task=4") == 2 and "--job-name=mine" in script


def test_jobs_are_found_again_and_only_others_are_queued(home, runs, tmp_path, capsys):
    options = Options(tmp_path / "out", jobs=2)
    first = submit(runs, options)
    assert list(first.values()) == [f"100_{i}" for i in range(6)]
    assert submit(runs, options) == first
    (home / "jobs" / "100_2").unlink()
    (home / "jobs" / "100_3").unlink()
    with locked(runs[3].folder(options.output) / "lock"):  # a call without --slurm works on it
        second = submit(runs, options)
    assert second == {**first, runs[2].name: "101"}
    assert len(list((home / "scripts").iterdir())) == 2
    assert "'scancel 101' ends them" in capsys.readouterr().out
    with (
        locked(options.output / "tiny" / "_slurm" / "lock"),
        pytest.raises(UserError, match="is in use: another process"),
    ):
        submit(runs, options)


def test_the_call_ends_with_the_last_job_and_names_what_failed(home, runs, tmp_path, capsys, monkeypatch):
    options, looks = Options(tmp_path / "out", jobs=2), []

    def happen():
        looks.append(None)
        if (
            len(looks) == 2
        ):  # a look at a SLURM that is down, or a job that ends before its record shows, is no end
            (home / "jobs" / "100_0").unlink()
            (home / "down").touch()
            return real()
        (home / "down").unlink(missing_ok=True)
        if len(looks) == 4:
            finish(runs[0])
        if len(looks) == 6:
            log_of(runs[1], options).write_text("It ran\nout of memory\n")
            (home / "jobs" / "100_1").unlink()
        return real()

    real = slurm.queued_jobs
    monkeypatch.setattr(slurm, "queued_jobs", happen)
    with pytest.raises(RunsFailed, match=f"1 of 2 runs failed: {runs[1].name}"):
        work_off_with_slurm(runs[:2], options, parse_parameters(WORDS, options.jobs))
    out = capsys.readouterr().out
    assert "Unable to contact slurm controller. Trying again." in out
    assert "[1/2] all/baseline/seed0: 100 s, cooccurrence_val mIoU 12.50; about 1 min left" in out
    assert "FAILED in SLURM job 100_1" in out and "out of memory" in out


def test_a_job_that_never_began_shows_what_slurm_wrote(home, runs, tmp_path, capsys, monkeypatch):
    options = Options(tmp_path / "out")
    real = slurm._submit

    def lose(*arguments):
        jobs = real(*arguments)
        (home / "jobs" / "100").unlink()
        (tmp_path / "out" / "tiny" / "_slurm" / "100_0_log.err").write_text("python: not found\n")
        return jobs

    monkeypatch.setattr(slurm, "_submit", lose)
    with pytest.raises(RunsFailed):
        work_off_with_slurm(runs[:1], options, parse_parameters(WORDS, options.jobs))
    assert "python: not found" in capsys.readouterr().out


def test_what_slurm_refuses_is_shown(home, runs, tmp_path):
    options = Options(tmp_path / "out")
    with pytest.raises(UserError, match="SLURM refuses the jobs: .*invalid partition specified"):
        submit(runs, options, "time=5", "partition=nowhere")
    (home / "down").touch()
    with pytest.raises(UserError, match="Unable to contact slurm controller"):
        submit(runs, options)
    assert not list((tmp_path / "out").rglob("slurm_job"))


def test_without_slurm_or_submitit_nothing_is_written(tmp_path, home, monkeypatch, capsys):
    def refused(*words):
        monkeypatch.setattr(sys, "argv", ["experiment.py", str(file), "--slurm", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        return capsys.readouterr().err

    file = copy_of_tiny(tmp_path / "x")
    assert "--slurm has no time" in refused("partition=gpu")
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "--slurm needs submitit" in (text := refused("time=5")) and "pip install submitit" in text
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shutil.which("sbatch") is None
    assert "there is no 'sbatch' here" in refused("time=5")
    assert list((tmp_path / "x").iterdir()) == [file]


# Trains until SIGTERM; then again, from its checkpoint, to its end.
RUN = """
import os, pathlib, signal, sys, time
checkpoint = pathlib.Path(sys.argv[1])
def stop(number, frame):
    checkpoint.touch()
    print("stopped", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
os.kill(os.getpid(), signal.SIGUSR2)  # as SLURM does it
print("begun", os.environ["OMP_NUM_THREADS"], flush=True)
if not checkpoint.exists():
    time.sleep(60)
print("done", flush=True)
sys.exit(int(sys.argv[2]))
"""


def local_job(folder, status, delay):
    """A run in a job of submitit's local executor, whose time is up after 15 seconds less the delay."""
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(timeout_min=0.25, signal_delay_s=delay)
    words = [sys.executable, "-c", RUN, str(folder / "checkpoint"), str(status)]
    return executor.submit(SlurmJob(words, folder / "run" / "run.log", interrupted=75))


@pytest.mark.slow
def test_when_its_time_is_up_a_run_writes_a_checkpoint_and_is_queued_again(tmp_path):
    job = local_job(tmp_path, 0, delay=10)
    job.wait()
    assert (tmp_path / "run" / "run.log").read_text().split("\n")[:-1] == [
        "begun 1",
        "stopped",
        "begun 1",
        "done",
    ]
    assert job.exception() is None


def test_a_run_that_fails_is_a_job_that_fails(tmp_path):
    (tmp_path / "checkpoint").touch()
    job = local_job(tmp_path, 3, delay=0)
    job.wait()
    assert not job.paths.result_pickle.exists() and (tmp_path / "run" / "run.log").read_text().endswith(
        "done\n"
    )


@pytest.mark.slow
def test_runs_go_on_without_the_process_that_queued_them_and_are_trained_once(tmp_path):
    variables = fake_slurm.install(tmp_path / "slurm")
    there, here = copy_of_tiny(tmp_path / "there"), copy_of_tiny(tmp_path / "here")
    words = ["--only", "all/*/seed0", "--slurm", "time=9"]
    process = subprocess.Popen(
        command(there, tmp_path / "a", *words),
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    hold = tmp_path / "slurm" / "hold"
    wait_for(lambda: list((tmp_path / "a").rglob("run.log")), process)
    hold.touch()  # the second job waits
    wait_for(lambda: list((tmp_path / "there" / "tiny").rglob("seed*.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with subprocess.Popen(
        command(there, tmp_path / "a", *words),
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        text = ""
        while "jobs of an earlier call" not in text:
            line = process.stdout.readline()
            assert line, text
            text += line
        hold.unlink()
        text += process.stdout.read()
    assert "1 of 2 runs are done" in text and "1 runs are in jobs of an earlier call" in text
    assert "[2/2] all/contrast_seg/seed0" in text
    assert len(list((tmp_path / "slurm" / "scripts").iterdir())) == 1
    logs = list((tmp_path / "a").rglob("run.log"))
    assert [log.read_text().count("Training from step 0") for log in logs] == [1, 1]
    call(here, tmp_path / "b", "--only", "all/*/seed0", "--jobs", "2")
    for arm in ("baseline", "contrast_seg"):
        records = [
            json.loads((p / "tiny" / "all" / arm / "seed0.json").read_text())
            for p in (there.parent, here.parent)
        ]
        assert {**records[0], "run": None} == {**records[1], "run": None}
