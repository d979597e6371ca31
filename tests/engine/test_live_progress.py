"""The bar of progress: on a terminal of 80 columns, and nowhere else."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from tests.engine.runs import ROOT, environment

BAR = "\u2501"
SCRIPT = """
import sys
from pathlib import Path
from detectron2.utils.logger import setup_logger
from tests.engine.toys import ToyBatches, ToyTrainer, register_toy_test_set, toy_cfg

class CountedBatches(ToyBatches):
    dataset = range(4)

class CountingTrainer(ToyTrainer):
    @classmethod
    def build_train_loader(cls, cfg, *, seed, start_iter):
        return CountedBatches(cfg, seed, start_iter)

folder = Path(sys.argv[1])
name = register_toy_test_set(folder, "toy_progress")
cfg = toy_cfg(folder / "run", DATASETS__TEST=(name,), TEST__EVAL_PERIOD=4, WRITERS=sys.argv[2].split(","))
setup_logger(cfg.OUTPUT_DIR, name="regseg_d2")
trainer = CountingTrainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
print("the end", trainer.results[name]["sem_seg"]["mIoU"])
"""


def on_a_terminal(folder, writers="terminal", **variables):
    """Output of the script on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    kept = {name: value for name, value in environment().items() if name not in ("CI", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), writers],
        cwd=ROOT,
        env=kept | {"TERM": "xterm"} | variables,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    output = b""
    try:
        while data := os.read(ours, 65536):
            output += data
    except OSError:
        pass  # Linux says so when the other end is closed
    os.close(ours)
    assert process.wait(60) == 0, output.decode()
    return output.decode()


def pictures(output):
    """What was drawn, bar by bar: its line and the one below it."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    lines = re.split(r"[\r\n]+", plain)
    return [(line, below) for line, below in zip(lines, lines[1:], strict=False) if BAR in line]


@pytest.mark.slow
def test_a_terminal_of_80_columns_shows_two_lines(tmp_path):
    output = on_a_terminal(tmp_path)
    drawn = pictures(output)
    assert all(len(line) <= 80 for picture in drawn for line in picture if "regseg_d2" not in line)
    bar, text = next(picture for picture in reversed(drawn) if picture[0].startswith("6/6"))
    print(bar, text, sep="\n")
    assert re.fullmatch(rf"6/6 {BAR}+ 100% eta 0:00:00 *", bar) and len(bar) == 80
    score = re.search(r"the end ([\d.]+)", output).group(1)
    (shown,) = re.fullmatch(
        r"epoch 3\.0/3\.0  loss [\d.]+  lr [\d.]+e-\d\d  data \d\.\d{3} s  mIoU ([\d.]+) *", text
    ).groups()
    rows = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    at_step_4 = next(row for row in rows if "sem_seg/mIoU" in row)
    assert float(shown) == pytest.approx(json.loads(at_step_4)["sem_seg/mIoU"], abs=0.006)
    # No score before the first evaluation; the lines of the log are above the bar, in the file without it.
    assert all("mIoU" not in text for bar, text in drawn if bar.startswith(("0/6", "1/6", "2/6", "3/6")))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert BAR not in log and log.count("iter: ") == 6
    assert output.count("iter: ") == 6
    assert output.rstrip().endswith(score) and "\x1b[?25h" in output  # the cursor is back


@pytest.mark.slow
@pytest.mark.parametrize("what", ["pipe", "CI", "dumb", "no terminal writer"])
def test_nowhere_else(tmp_path, what):
    if what == "pipe":
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), "terminal"]
        variables = environment(TERM="xterm", FORCE_COLOR="1")
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
        output = done.stdout + done.stderr
    elif what == "no terminal writer":
        output = on_a_terminal(tmp_path, "metrics_json")
    else:
        output = on_a_terminal(tmp_path, **({"CI": "true"} if what == "CI" else {"TERM": "dumb"}))
    assert BAR not in output and "\x1b[?25" not in output
    assert output.count("iter: ") == (0 if what == "no terminal writer" else 6)
