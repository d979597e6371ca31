"""What a run says of itself: few lines before the first step, and at the end what to do next."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from regseg_d2.common.metric_names import current_names
from regseg_d2.engine.run_report import next_commands
from tests.engine.runs import ROOT, environment, finish, train
from tests.engine.toys import ToyTrainer, register_toy_test_set, toy_cfg, train_or_die

CONFIG = ROOT / "configs" / "cooccurrence" / "deeplabv3_efficientnet_lite0_res4.yaml"


@pytest.mark.slow
def test_the_first_step_comes_within_forty_lines_and_the_last_commands_run_as_they_are(tmp_path):
    folder = tmp_path / "a run"
    keys = {
        "OUTPUT_DIR": folder,
        "SOLVER.MAX_ITER": 2,
        "LOG_PERIOD": 1,
        "SOLVER.IMS_PER_BATCH": 2,
        "INPUT.CROP.SIZE": [64, 64],
        "DATASETS.TEST": "[cooccurrence_val]",
        "TEST.NUM_PIXELS_SHOWN": 0,
        "DATALOADER.NUM_WORKERS": 0,
        "SEED": -1,
        "MODEL.REGULARIZERS.NAMES": "[ContrastSeg]",
    }
    output = finish(train(CONFIG, *(word for pair in keys.items() for word in pair)))
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if "iter: 0" in line)
    print(f"{first} lines before that of the first step")
    assert first < 40
    assert "  epoch: 0.01  " in lines[first]  # two of four hundred images
    assert (folder / "config.yaml").is_file() and "PyTorch" in (folder / "environment.txt").read_text()
    seed = re.search(r"^SEED: (\d+)$", (folder / "config.yaml").read_text(), re.M).group(1)
    assert f"SEED {seed} (drawn" in output and f"skipped; SEED {seed}." in output

    # The summary is what is said last.
    (start,) = [number for number, line in enumerate(lines) if "Done: 2 steps" in line]
    summary = lines[start:]
    assert len(summary) == 7
    commands = {line.split()[0]: line.split(maxsplit=1)[1] for line in summary[-3:]}
    assert list(commands) == ["evaluate", "compare", "predict"]
    before = (folder / "evaluation" / "cooccurrence_val.json").read_bytes()
    for command in commands.values():
        program, *words = shlex.split(command)
        assert program == "regseg"
        done = subprocess.run(
            [sys.executable, "-m", "regseg_d2", *words], cwd=ROOT, env=environment(), capture_output=True
        )
        assert done.returncode == 0, done.stderr
    assert (folder / "evaluation" / "cooccurrence_val.json").read_bytes() == before
    assert list((folder / "predictions").iterdir())


def test_the_summary_names_best_and_last(tmp_path, caplog):
    caplog.set_level("INFO")
    name = register_toy_test_set(tmp_path, "toy_summary")
    cfg = toy_cfg(tmp_path / "run", DATASETS__TEST=(name,), TEST__EVAL_PERIOD=2, SOLVER__EMA__ENABLED=True)
    trainer = ToyTrainer(cfg)
    trainer.resume_or_load(resume=False)
    train_or_die(trainer)
    (text,) = [record.getMessage() for record in caplog.records if "Done: " in record.getMessage()]
    assert caplog.records[-1].getMessage() == text
    scores = trainer.results[name]
    last = f"{name}: sem_seg/mIoU {scores['sem_seg']['mIoU']:.2f}, ema/sem_seg/mIoU "
    assert last + f"{scores['ema/sem_seg']['mIoU']:.2f}" in text
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    best = {row["sem_seg/mIoU"]: row["iteration"] for row in reversed(rows) if "sem_seg/mIoU" in row}
    step = min(max(best.items())[1] + 1, 6)
    assert f"best sem_seg/mIoU {max(best):.2f} after step {step}: {tmp_path}/run/model_best.pth" in text
    assert "epoch" not in rows[0]  # this loader does not tell how many images there are


def test_commands_can_be_pasted():
    cfg = CfgNode({"OUTPUT_DIR": "out put", "DATASETS": {"TEST": []}})
    assert next_commands(cfg) == {}
    cfg.DATASETS.TEST = [register_toy_test_set(Path("/nowhere"), "toy_commands", 0)]
    assert next_commands(cfg) == {
        "evaluate": "regseg eval --config-file 'out put/config.yaml' "
        "OUTPUT_DIR 'out put' MODEL.WEIGHTS 'out put/model_final.pth'",
        "compare": "regseg compare 'out put'",
    }


def test_losses_have_one_name_in_old_and_new_files():
    old = {"iteration": 19, "loss_car_intra_c2p": 0.1, "car/loss_intra_c2p": 1.0, "car/classes": 3.0}
    new = {
        "iteration": 19,
        "loss_car_intra_c2p": 0.1,
        "unweighted/loss_car_intra_c2p": 1.0,
        "car/classes": 3.0,
    }
    assert current_names(old) == current_names(new) == new
    assert current_names({"PNE@aux/loss_pne": 2.0}) == {"unweighted/loss_PNE@aux_pne": 2.0}
