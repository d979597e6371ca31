"""The main job from the command line on one process and two, with workers, in float32 and bf16."""

import pytest

from tests.engine.main_job_matrix import (
    JOBS,
    LAUNCHERS,
    PAIRWISE,
    SETTINGS,
    Setting,
    command,
    differences,
    run_setting,
    write_scene,
)
from tests.engine.runs import finish, start


def test_two_processes_with_workers_in_bf16(tmp_path):
    """The shipped defaults with ``--num-gpus 2``, to the end of the evaluation, and evaluated again."""
    config = write_scene(tmp_path)
    setting = Setting("--num-gpus 2", 2, "bf16")
    results = {setting: run_setting(setting, config, tmp_path, jobs=("train", "--eval-only"))}
    assert differences(results) == []


def test_a_run_that_skipped_every_step_fails(tmp_path):
    config = write_scene(tmp_path)
    job = command(Setting("1 process", 0, "float32"), config, tmp_path / "run")
    output = finish(start(*job, "MODEL.PIXEL_STD", "[0.0, 0.0, 0.0]", "SOLVER.MAX_ITER", 3), status=2)
    assert "3 of 3 steps were skipped" in output and "Traceback" not in output
    assert not (tmp_path / "run" / "model_final.pth").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_half_of_the_matrix_in_which_every_pair_meets(tmp_path):
    """All jobs of the twelve settings: ``python -m tests.engine.main_job_matrix``."""
    for kinds in (("launcher", "workers"), ("launcher", "precision"), ("workers", "precision")):
        met, all_pairs = (
            {tuple(getattr(setting, kind) for kind in kinds) for setting in settings}
            for settings in (PAIRWISE, SETTINGS)
        )
        assert met == all_pairs
    config = write_scene(tmp_path)
    results = {
        setting: run_setting(setting, config, tmp_path, jobs=JOBS if setting.workers else ("train",))
        for setting in PAIRWISE
    }
    assert differences(results) == []
    assert [len(jobs) for jobs in results.values()] == [1, 3] * len(LAUNCHERS)
