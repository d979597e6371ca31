"""The check of a GPU: parts end within their time, what they printed is kept; steps run small on a CPU."""

import subprocess
import sys
from pathlib import Path

from benchmarks import large_steps as benchmark_large_steps
from regseg_d2.apps import gpu_check
from regseg_d2.apps.gpu_check import Part, parts

ROOT = Path(__file__).parents[2]


def test_parts_fit_in_nine_minutes(tmp_path):
    assert sum(part.seconds for part in parts(tmp_path)) <= 9 * 60 - 30
    for part in parts(tmp_path):
        for word in part.command:
            if word.endswith((".py", ".yaml")):
                assert (ROOT / word).is_file()


def test_what_parts_print_is_kept_and_failures_are_counted(tmp_path):
    chosen = [
        Part("good", ("-c", "print('all well')"), 20),
        Part("bad", ("-c", "print('oh'); raise SystemExit(3)"), 20),
        Part("slow", ("-c", "import time; print('begun', flush=True); time.sleep(60)"), 2),
        Part("open", ("-c", "import time; print('one by one', flush=True); time.sleep(60)"), 2, True),
    ]
    assert gpu_check.run(tmp_path, chosen) == 2
    text = (tmp_path / "gpu_check.txt").read_text()
    for expected in (
        "good: status 0",
        "all well",
        "bad: status 3",
        "slow: ended by its time",
        "begun",
        "one by one",
    ):
        assert expected in text


def test_without_a_gpu_it_says_so():
    code = subprocess.run(
        [sys.executable, "tools/gpu_check.py"],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert code.returncode == 2 and "no GPU" in code.stderr


def test_a_step_of_each_kind(tmp_path):
    config = tmp_path / "thin.yaml"
    config.write_text(
        f"_BASE_: {ROOT}/configs/_base_/models/deeplabv3_efficientnet_lite0_res4.yaml\n"
        "MODEL: {NORM: BN, SEM_SEG_HEAD: {NUM_CLASSES: 4, CONVS_DIM: 8, CONTEXT_CHANNELS: 8}}\n"
    )
    for names in ([], ["CAR"]):
        cfg = benchmark_large_steps._config(config, names, "cpu")
        benchmark_large_steps.make_step(cfg, 2, (64, 128))()
