"""What a SLURM job does: one run, in a process of its own.

Imports little: all that this process does is wait, and the memory is the run's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from submitit.helpers import Checkpointable, DelayedSubmission, JobEnvironment


class SlurmJob(Checkpointable):
    """Makes a run; ends with its exit status, or is queued again by submitit when its time is up.

    ``interrupted`` is the command's exit status after SIGTERM.
    """

    def __init__(self, command: list[str], log: Path, interrupted: int) -> None:
        self.command = command
        self.log = log
        self.interrupted = interrupted

    def __call__(self) -> None:
        """Starts the run and waits for it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a") as file:
            self._run = subprocess.Popen(
                self.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=_ignore_the_end_of_time,
            )
        self._wait()
        status = self._run.wait()
        while status == self.interrupted:
            # SLURM has sent SIGTERM to both processes, and will end the job or queue it again.
            signal.pause()
        if status:
            sys.exit(status)

    def checkpoint(self) -> DelayedSubmission:
        """Ends the run with a checkpoint; the job that follows goes on from there."""
        self._run.terminate()
        self._wait()
        return DelayedSubmission(SlurmJob(self.command, self.log, self.interrupted))

    def _wait(self) -> None:
        # Not Popen.wait: it cannot be entered twice, and a signal calls checkpoint() in the middle of it.
        if self._run.returncode is None:
            os.waitid(os.P_PID, self._run.pid, os.WEXITED | os.WNOWAIT)


def _ignore_the_end_of_time() -> None:
    """SLURM sends the signal that submitit asks for to all processes of a job."""
    signal.signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"), signal.SIG_IGN)
