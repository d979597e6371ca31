"""The file of an experiment: what it means, and what it refuses."""

import json
from pathlib import Path

import pytest

from regseg_d2.apps.experiment.plan import as_words, choose_runs, plan_runs
from regseg_d2.apps.experiment.records import config_digest
from regseg_d2.apps.experiment.running import write_description
from regseg_d2.apps.experiment.spec import read_experiment
from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import load_config

BASE = Path("configs/cooccurrence/deeplabv3_efficientnet_lite0.yaml").resolve()
FILE = """
base: {base}
common: {{SOLVER: {{MAX_ITER: 100, STEPS: [50, 80]}}, INPUT.CROP.SIZE: [64, 64]}}
arms:
  baseline: {{}}
  head: {{overrides: {{MODEL.SEM_SEG_HEAD.PROJECTION: LinearConvBlock}}}}
  car: {{control: head, seeds: [0, 2], overrides: {{MODEL.REGULARIZERS.NAMES: [CAR]}}}}
conditions:
  full: {{}}
  few: {{arms: [baseline], seeds: 3-4, overrides: {{SOLVER.MAX_ITER: 50}}}}
seeds: 0-2
primary: {{condition: full, dataset: cooccurrence_val}}
schedule_check: {{arm: baseline, condition: few, factor: 3, seeds: [7]}}
"""


def write(folder, text=FILE, **replacements):
    text = text.format(base=BASE)
    for old, new in replacements.values():
        assert old in text
        text = text.replace(old, new)
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def test_the_plan(tmp_path):
    experiment = read_experiment(write(tmp_path))
    assert experiment.name == "my" and experiment.results == tmp_path / "my"
    assert [arm.control for arm in experiment.arms.values()] == [None, "baseline", "head"]
    runs = plan_runs(experiment)
    assert [run.name for run in runs] == [
        "full/baseline/seed0",
        "full/head/seed0",
        "full/car/seed0",
        "full/baseline/seed1",
        "full/head/seed1",
        "full/baseline/seed2",
        "full/head/seed2",
        "full/car/seed2",
        "few/baseline/seed3",
        "few/baseline/seed4",
        "few@x3/baseline/seed7",
    ]
    assert runs[2].overrides["MODEL.REGULARIZERS.NAMES"] == ["CAR"]
    assert runs[-2].overrides["SOLVER.MAX_ITER"] == 50
    assert runs[-1].overrides["SOLVER.MAX_ITER"] == 150 and list(runs[-1].overrides["SOLVER.STEPS"]) == [
        150,
        240,
    ]
    cfg = load_config(str(experiment.base), runs[2].options(Path("out")))
    assert cfg.SEED == 0 and cfg.OUTPUT_DIR == "out/my/full/car/seed0"
    assert list(cfg.INPUT.CROP.SIZE) == [64, 64] and cfg.SOLVER.MAX_ITER == 100
    assert [run.name for run in choose_runs(runs, ["full/*/seed0", "few/*"])] == [
        "full/baseline/seed0",
        "full/head/seed0",
        "full/car/seed0",
        "few/baseline/seed3",
        "few/baseline/seed4",
    ]
    with pytest.raises(ConfigError, match="'full/cra/\\*'"):
        choose_runs(runs, ["full/cra/*"])
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "classes.json").write_text("{}")
    write_description(experiment)
    described = json.loads((tmp_path / "my" / "experiment.json").read_text())
    assert list(described["arms"]) == ["baseline", "head", "car"]
    assert list(described["conditions"]) == ["full", "few"]


def test_arms_of_a_pair_differ_in_their_overrides_alone(tmp_path):
    runs = plan_runs(read_experiment(write(tmp_path)))
    digests = {
        run.name: config_digest(load_config(str(BASE), run.options(Path("anywhere")))) for run in runs[:8]
    }
    assert digests["full/baseline/seed0"] == digests["full/baseline/seed2"]
    assert len(set(digests.values())) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 0-2", "seed: 0-2", "unknown key 'seed' \\(did you mean 'seeds'"),
        ("seeds: 0-2", "seeds: 2-0", "seeds is '2-0'"),
        ("seeds: 0-2", "seeds: [0, 0]", "seeds is \\[0, 0\\]"),
        ("seeds: 0-2", "seeds: [-1]", "seeds is \\[-1\\]"),
        (
            "primary: {condition: full",
            "primary: {condition: ful",
            "primary.condition is 'ful' \\(did you mean",
        ),
        ("dataset: cooccurrence_val", "metric: mIoU", "primary.dataset is missing"),
        ("control: head", "control: heat", "arms.car.control is 'heat'"),
        ("arms: [baseline]", "arms: [car, baseline]", "has 'car' without its control 'head'"),
        ("  car: {control: head", "  c/r: {control: head", "letters, digits"),
        ("SOLVER.MAX_ITER: 50", "SEED: 50", "conditions.few.overrides is .*; expected other keys than SEED"),
        ("SOLVER.MAX_ITER: 50", "OUTPUT_DIR: x", "other keys than SEED and OUTPUT_DIR"),
        ("factor: 3", "factor: 1", "schedule_check.factor is 1"),
        (
            "  baseline: {}",
            "  baseline: {overides: {}}",
            "unknown key 'overides' \\(did you mean 'overrides'",
        ),
        ("  baseline: {}", "  baseline: {runs: [a], seeds: 1-2}", "runs that exist, and overrides or seeds"),
        ("base: ", "base: missing", "there is no"),
    ],
)
def test_errors_name_file_and_key(tmp_path, old, new, message):
    path = write(tmp_path, one=(old, new))
    with pytest.raises(ConfigError, match=message) as error:
        plan_runs(read_experiment(path))
    assert str(path) in str(error.value)


def test_a_missing_file():
    with pytest.raises(ConfigError, match="no file 'nowhere.yaml'"):
        read_experiment("nowhere.yaml")


def test_existing_runs_become_an_arm(tmp_path):
    for seed in (4, 5):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text(f"SEED: {seed}\n")
    path = write(tmp_path, one=("  baseline: {}", "  baseline: {runs: [run4, run5]}"))
    runs = [
        run for run in plan_runs(read_experiment(path)) if run.condition == "full" and run.arm == "baseline"
    ]
    assert [(run.seed, run.existing.name) for run in runs] == [(4, "run4"), (5, "run5")]
    path = write(tmp_path, one=("  baseline: {}", "  baseline: {runs: [run4, run4]}"))
    with pytest.raises(ConfigError, match="one is there twice"):
        plan_runs(read_experiment(path))
    path = write(tmp_path, one=("  baseline: {}", "  baseline: {runs: [run6]}"))
    with pytest.raises(ConfigError, match="no folder of a run"):
        plan_runs(read_experiment(path))


def test_words_of_a_command_line_are_read_back(tmp_path):
    values = {
        "SOLVER.BASE_LR": 1e-05,
        "DATASETS.TEST": ["a", "b"],
        "MODEL.CHANNELS_LAST": True,
        "OUTPUT_DIR": "x y",
    }
    cfg = load_config("", as_words(values))
    assert cfg.SOLVER.BASE_LR == 1e-05 and list(cfg.DATASETS.TEST) == ["a", "b"]
    assert cfg.MODEL.CHANNELS_LAST is True and cfg.OUTPUT_DIR == "x y"


@pytest.mark.parametrize("file", sorted(Path("experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_our_experiments_can_be_run(file):
    """Every arm of every condition resolves, and is another config than its control."""
    experiment = read_experiment(file)
    digests = {}
    for run in plan_runs(experiment):
        key = (run.condition, run.arm)
        if key not in digests:
            digests[key] = config_digest(load_config(str(experiment.base), run.options(Path("output"))))
    for condition, name in digests:
        control = experiment.arms[name].control
        if control is not None:
            assert digests[condition, name] != digests[condition, control]
    assert digests
