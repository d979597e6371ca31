"""SIGTERM and Ctrl-C: a checkpoint at the end of the step, and a run that goes on to the bit."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from regseg_d2.data.loader import build_train_loader
from regseg_d2.engine import launch
from regseg_d2.engine.interruption import INTERRUPTED_EXIT_CODE, STOP_SIGNALS, Interrupted, StopSignals
from regseg_d2.weights.reading import load_file
from tests.data.data_helpers import registered, toy_spec, write_toy
from tests.data.data_helpers import toy_cfg as loader_cfg
from tests.distributed.launching import run_processes
from tests.engine.runs import ROOT, environment
from tests.engine.toys import ToyTrainer, register_toy_test_set, same_state, toy_cfg


def train(cfg, *, resume=False, signal_at=None, number=signal.SIGTERM, trainer_class=ToyTrainer):
    """Trains; gets a signal in the middle of step ``signal_at``."""
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    step = trainer.training_step.run

    def step_with_signal(batches, **arguments):
        if trainer.iter == signal_at:
            os.kill(os.getpid(), number)
        return step(batches, **arguments)

    trainer.training_step.run = step_with_signal
    if signal_at is None:
        trainer.train()
    else:
        with pytest.raises(Interrupted, match=rf"after step {signal_at + 1} of {trainer.max_iter}.*--resume"):
            trainer.train()
    return trainer


def same_files(first, second, *names):
    return all(same_state(load_file(str(first / name)), load_file(str(second / name))) for name in names)


@pytest.fixture(autouse=True)
def a_terminal():
    """Tests may run under nohup, which has them, and what they start, ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(("step", "file"), [(1, "model_0000001"), (2, "model_0000002"), (5, "model_final")])
def test_a_signal_ends_the_run_after_its_step_and_it_goes_on_to_the_bit(tmp_path, number, step, file, capfd):
    keys = {"SOLVER__OPTIMIZER": "AdamW", "SOLVER__BASE_LR": 0.01}
    handlers = [signal.getsignal(s) for s in STOP_SIGNALS]
    train(toy_cfg(tmp_path / "a", **keys))
    stopped = train(toy_cfg(tmp_path / "b", **keys), signal_at=step, number=number)
    assert (stopped.completed_steps, stopped.finished) == (step + 1, False)
    assert (tmp_path / "b" / "last_checkpoint").read_text() == f"{file}.pth"
    assert load_file(str(tmp_path / "b" / f"{file}.pth"))["iteration"] == step
    assert f"{signal.Signals(number).name}: stopping after this step" in capfd.readouterr().err
    assert [signal.getsignal(s) for s in STOP_SIGNALS] == handlers
    resumed = train(toy_cfg(tmp_path / "b", **keys), resume=True)
    assert resumed.start_iter == step + 1
    assert same_files(tmp_path / "a", tmp_path / "b", "model_final.pth")


class SignalInEvaluation(ToyTrainer):
    """Gets SIGTERM at the second image of evaluation ``evaluation``."""

    evaluation = None
    seen = 0

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        cls.seen += 1

        class Loader(list):
            def __iter__(self):
                for number, batch in enumerate(super().__iter__()):
                    if number == 1 and cls.seen == cls.evaluation:
                        os.kill(os.getpid(), signal.SIGTERM)
                    yield batch

        return Loader([[record] for record in DatasetCatalog.get(dataset_name)])


@pytest.mark.parametrize("evaluation", [1, 2, 3])
def test_a_signal_cuts_an_evaluation_short_and_it_is_made_up_for(tmp_path, evaluation):
    name = register_toy_test_set(tmp_path, "toy_signals")
    keys = {"DATASETS__TEST": (name,), "TEST__EVAL_PERIOD": 2, "TEST__NUM_IMAGES_SHOWN": 0}
    straight = train(toy_cfg(tmp_path / "a", **keys))

    class Trainer(SignalInEvaluation):
        pass

    Trainer.evaluation = evaluation
    trainer = Trainer(toy_cfg(tmp_path / "b", **keys))
    trainer.resume_or_load(resume=False)
    with pytest.raises(Interrupted):
        trainer.train()
    assert trainer.completed_steps == 2 * evaluation  # 2, 4 and the end
    report = tmp_path / "b" / "evaluation" / f"{name}.json"
    assert report.exists() == (evaluation > 1)  # that of an evaluation before
    resumed = train(toy_cfg(tmp_path / "b", **keys), resume=True)
    assert resumed.start_iter == 2 * evaluation
    assert resumed.results == straight.results
    assert same_files(tmp_path / "a", tmp_path / "b", "model_final.pth", "model_best.pth")
    assert report.read_bytes() == (tmp_path / "a" / "evaluation" / f"{name}.json").read_bytes()


def test_a_signal_in_the_step_before_an_evaluation_leaves_that_to_the_resumed_run(tmp_path):
    name = register_toy_test_set(tmp_path, "toy_signals_2")
    keys = {"DATASETS__TEST": (name,), "TEST__EVAL_PERIOD": 2}
    train(toy_cfg(tmp_path / "a", **keys))
    train(toy_cfg(tmp_path / "b", **keys), signal_at=3)
    report = json.loads((tmp_path / "b" / "evaluation" / f"{name}.json").read_text())
    assert report["model"]["completed_steps"] == 2  # not 4
    train(toy_cfg(tmp_path / "b", **keys), resume=True)
    assert same_files(tmp_path / "a", tmp_path / "b", "model_final.pth", "model_best.pth")


def test_ctrl_c_twice_stops_at_once():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_under_nohup_the_terminal_may_go():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


# Prints in each step, as a training does, and waits in one until its terminal or its reader is gone.
LOSES_ITS_OUTPUT = """
import sys, time
from regseg_d2.engine.launch import guarded
from tests.engine.toys import ToyTrainer, toy_cfg

class Slow(ToyTrainer):
    def run_step(self):
        print("step", self.iter, flush=self.iter < 3)
        while self.iter == 2 and self.signals.received is None:
            time.sleep(0.01)
        super().run_step()

def main(folder):
    trainer = Slow(toy_cfg(folder))
    trainer.resume_or_load(resume=False)
    trainer.train()

guarded(main, sys.argv[1])
"""


def started(folder, **outputs):
    command = [sys.executable, "-c", LOSES_ITS_OUTPUT, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, **outputs)


def read_until(descriptor, words):
    text = b""
    while words not in text:
        text += os.read(descriptor, 1000)


def test_a_closed_terminal_leaves_a_checkpoint_and_status_75(tmp_path):
    terminal, inner = pty.openpty()

    def take_the_terminal():
        os.setsid()
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)

    process = started(tmp_path, stdout=inner, stderr=inner, preexec_fn=take_the_terminal)
    os.close(inner)
    read_until(terminal, b"step 2\r\n")
    os.close(terminal)  # the system sends SIGHUP
    assert process.wait(timeout=60) == INTERRUPTED_EXIT_CODE
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


def test_a_reader_that_ctrl_c_ends_first_leaves_a_checkpoint_and_status_75(tmp_path):
    """``train_net.py 2>&1 | tee log``: the terminal sends the signal to both."""
    reading, writing = os.pipe()
    process = started(tmp_path, stdout=writing, stderr=writing)
    os.close(writing)
    read_until(reading, b"step 2\n")
    os.close(reading)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == INTERRUPTED_EXIT_CODE
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


def test_outside_the_main_thread_nothing_is_set():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with StopSignals() as signals:
            seen.append((signal.getsignal(signal.SIGTERM), signals.received))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


def test_the_exit_status_of_an_interrupted_run(capsys):
    def main(args):
        raise Interrupted("stopped after step 3")

    handlers = [signal.getsignal(s) for s in STOP_SIGNALS]
    try:
        with pytest.raises(SystemExit) as info:
            launch.guarded(main, None)
    finally:
        for number, handler in zip(STOP_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
    assert info.value.code == INTERRUPTED_EXIT_CODE == 75
    assert capsys.readouterr().err == "\nstopped after step 3\n"


def test_workers_outlive_signals_to_the_whole_job_and_obey_their_trainer(tmp_path):
    write_toy(tmp_path)
    with registered(toy_spec(tmp_path)):
        loader = build_train_loader(loader_cfg(DATALOADER__NUM_WORKERS=2), seed=0)
        batches = iter(loader)
        next(batches)
        workers = loader.loader._iterator._workers
        # Not from here: they obey this process. As SLURM does it: from another one.
        for worker in workers:
            for number in ("TERM", "INT", "HUP"):
                assert os.spawnlp(os.P_WAIT, "kill", "kill", f"-{number}", str(worker.pid)) == 0
        for _ in range(12):
            assert len(next(batches)) == 4
        assert all(worker.is_alive() for worker in workers)
        loader.loader._iterator._shutdown = True  # else torch would say that one was killed
        torch.utils.data._utils.signal_handling._remove_worker_pids(id(loader.loader._iterator))
        workers[0].terminate()
        workers[0].join(timeout=5)
        assert workers[0].exitcode == 0
        workers[1].terminate()


def signal_on_one(folder, rank_with_signal):
    """Trains on two processes, of which one gets SIGTERM in step 2."""
    trainer = ToyTrainer(toy_cfg(folder, SOLVER__IMS_PER_BATCH=2))
    trainer.resume_or_load(resume=False)
    step = trainer.training_step.run

    def step_with_signal(batches, **arguments):
        if trainer.iter == 2 and comm.get_rank() == rank_with_signal:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batches, **arguments)

    trainer.training_step.run = step_with_signal
    try:
        trainer.train()
    except Interrupted as interruption:
        # When it is raised, the checkpoint is on the disk, whichever process looks.
        there = os.path.exists(os.path.join(folder, "model_0000002.pth"))
        return trainer.completed_steps, there, str(interruption)
    return trainer.completed_steps, False, "not interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes_gets_the_signal_and_both_stop_at_the_same_step(tmp_path, rank):
    results = run_processes(signal_on_one, 2, tmp_path, str(tmp_path / "run"), rank)
    assert [result[:2] for result in results] == [(3, True), (3, True)]
    assert all("after step 3 of 6" in result[2] for result in results)


def test_no_step_waits_for_the_device_for_the_sake_of_signals(tmp_path, monkeypatch):
    """What the processes tell each other is in the step's one transfer."""
    fetched = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: fetched.append(self.shape) or original(self))
    trainer = ToyTrainer(toy_cfg(tmp_path, SOLVER__MAX_ITER=3, SOLVER__CHECKPOINT_PERIOD=0))
    trainer.resume_or_load(resume=False)
    trainer.train()
    # Two verdicts, one loss, the signal and the bad files: one message a step.
    assert fetched == [(5,)] * 3
