"""Comparison of runs: means, spreads, and when it keeps quiet about a gain."""

import json
import math

import pytest

from regseg_d2.apps.compare.groups import (
    Estimate,
    config_differences,
    group_runs,
    judge,
    pooled_std,
)
from regseg_d2.apps.compare.report import as_data, render
from regseg_d2.apps.compare.runs import CompareError, load_run
from tests.apps.compare.small_runs import compared, three_and_three


def test_means_and_spreads_by_hand(make_run):
    groups, _, _ = compared(three_and_three(make_run, 5.0))
    assert [group.name for group in groups] == ["baseline", "CAR"]
    baseline, car = groups
    assert [run.seed for run in baseline.runs] == [0, 1, 2]
    assert baseline.miou("val") == Estimate(52.0, 2.0, 3)
    assert car.miou("val") == Estimate(57.0, 2.0, 3)
    assert baseline.drop("swapped") == Estimate(10.0, 0.0, 3)
    assert car.drop("swapped") == Estimate(4.0, 0.0, 3)
    assert car.class_iou("val", 1) == Estimate(47.0, 2.0, 3)


def test_a_gain_beyond_the_spread_is_called_one(make_run):
    _, (comparison,), _ = compared(three_and_three(make_run, 5.0))
    assert comparison.objections == []
    val, swapped, drop = comparison.differences
    assert (val.what, val.delta, val.noise, val.verdict) == ("val", 5.0, 2.0, "gain")
    assert (swapped.what, swapped.delta, swapped.verdict) == ("swapped", 11.0, "gain")
    assert (drop.what, drop.delta, drop.noise, drop.verdict) == ("drop to swapped", -6.0, 0.0, "smaller drop")


@pytest.mark.parametrize(("gain", "verdict"), [(1.9, "within noise"), (-1.9, "within noise"), (-5.0, "loss")])
def test_differences_within_the_spread_and_losses(make_run, gain, verdict):
    _, (comparison,), _ = compared(three_and_three(make_run, gain))
    assert comparison.differences[0].verdict == verdict


@pytest.mark.parametrize(("count", "verdict"), [(1, "one seed: not evidence"), (2, "2 seeds: not evidence")])
def test_few_seeds_are_no_evidence(make_run, count, verdict):
    _, (comparison,), _ = compared(three_and_three(make_run, 50.0)[: 2 * count])
    assert comparison.differences[0].delta == 50.0
    assert comparison.differences[0].verdict.startswith(verdict)


def test_pooled_spread():
    a, b = Estimate(0.0, 3.0, 3), Estimate(0.0, 1.0, 5)
    assert pooled_std(a, b) == pytest.approx(math.sqrt((2 * 9 + 4 * 1) / 6))
    alone = Estimate(0.0, math.nan, 1)
    assert pooled_std(a, alone) == pytest.approx(3.0)
    assert math.isnan(pooled_std(alone, alone))
    assert judge(0.0, 0.0, 3) == "within noise"
    assert judge(math.nan, 1.0, 3) == "not defined"


def test_without_a_baseline_nothing_is_claimed(make_run):
    runs = [make_run(f"c{s}", s, {"val": (60.0, 40.0)}, regularizers=["CAR"]) for s in range(3)]
    groups, (comparison,), notes = compared(runs)
    assert comparison.baseline is None
    assert comparison.differences == []
    text = render(groups, [comparison], notes)
    assert "CAR: no gain is claimed, because there is no baseline" in text


def test_another_schedule_is_no_baseline_and_the_keys_are_named(make_run):
    groups, (comparison,), notes = compared(three_and_three(make_run, 5.0, SOLVER__BASE_LR=0.5))
    assert comparison.objections == ["the nearest baseline has another schedule: SOLVER.BASE_LR"]
    assert {difference.verdict for difference in comparison.differences} == {"no gain is claimed"}
    assert "no gain is claimed, because the nearest baseline has another schedule" in render(
        groups, [comparison], notes
    )


def test_regularizer_stages_of_the_head_and_neutral_keys_are_the_same_schedule(make_run):
    keys = {
        "MODEL__SEM_SEG_HEAD__AUGMENT": "MDRL",
        "MODEL__SEM_SEG_HEAD__PROJECTION": "LinearConvBlock",
        "MODEL__SEM_SEG_HEAD__PROJECTION_KERNEL_SIZE": 1,
        "MODEL__REGULARIZERS__CAR__WEIGHT": 0.5,
        "DATALOADER__NUM_WORKERS": 7,
        "LOG_PERIOD": 3,
        "TEST__EVAL_PERIOD": 50,
    }
    groups, (comparison,), _ = compared(three_and_three(make_run, 5.0, **keys))
    assert comparison.objections == []
    differing = config_differences(groups)
    assert differing["MODEL.SEM_SEG_HEAD.PROJECTION"] == ["ConvBlock", "LinearConvBlock"]
    assert differing["MODEL.REGULARIZERS.CAR.WEIGHT"] == [None, 0.5]
    assert "LOG_PERIOD" not in differing


def test_of_two_baselines_the_nearest_is_taken(make_run):
    runs = three_and_three(make_run, 5.0, MODEL__SEM_SEG_HEAD__PROJECTION="LinearConvBlock")
    linear = {"MODEL__SEM_SEG_HEAD__PROJECTION": "LinearConvBlock"}
    runs += [make_run(f"l{s}", s, {"val": (60.0, 50.0), "swapped": (50.0, 40.0)}, **linear) for s in range(3)]
    groups, (comparison,), _ = compared(runs)
    assert [group.name for group in groups] == ["baseline (1)", "baseline (2)", "CAR"]
    assert comparison.baseline.first.config["MODEL.SEM_SEG_HEAD.PROJECTION"] == "LinearConvBlock"


def test_keys_of_unused_regularizers_do_not_split_groups(make_run):
    a = make_run("a", 0, {"val": (1.0, 2.0)})
    b = make_run("b", 1, {"val": (1.0, 2.0)}, MODEL__REGULARIZERS__CAR__WEIGHT=0.3)
    groups, _ = group_runs([a, b])
    assert len(groups) == 1
    assert groups[0].miou("val").count == 2


def test_a_method_at_another_place_reads_its_section(make_run):
    runs = [
        make_run(
            f"{weight}",
            0,
            {"val": (1.0, 2.0)},
            regularizers=["PNE@aux"],
            MODEL__REGULARIZERS__PNE__WEIGHT=weight,
        )
        for weight in (0.3, 0.6)
    ]
    groups, _ = group_runs(runs)
    assert config_differences(groups) == {"MODEL.REGULARIZERS.PNE.WEIGHT": [0.3, 0.6]}


def test_of_a_regularizer_only_keys_that_are_not_the_default_are_shown(make_run):
    key = "MODEL__REGULARIZERS__CAR__WEIGHT"
    text = render(*compared(three_and_three(make_run, 5.0, **{key: 0.5})))
    shown = [line.split() for line in text.splitlines() if line.startswith("MODEL.REGULARIZERS.CAR.")]
    assert shown == [["MODEL.REGULARIZERS.CAR.WEIGHT", "-", "0.5"]]


def test_early_stopping_makes_its_period_count(make_run):
    a = make_run("a", 0, {"val": (1.0, 2.0)}, TEST__PATIENCE=2, TEST__EVAL_PERIOD=10)
    b = make_run("b", 1, {"val": (1.0, 2.0)}, TEST__PATIENCE=2, TEST__EVAL_PERIOD=20)
    assert len(group_runs([a, b])[0]) == 2


def test_the_same_seed_twice_counts_once_and_is_said(make_run):
    a, b = (make_run(name, 3, {"val": (1.0, 2.0)}) for name in "ab")
    groups, notes = group_runs([a, b, a])
    assert [len(group.runs) for group in groups] == [1]
    assert len(notes) == 1
    assert "same settings and SEED 3" in notes[0]


def test_unfinished_runs_and_other_images_are_objections(make_run):
    base = [make_run(f"b{s}", s, {"val": (60.0, 40.0)}) for s in range(3)]
    short = [make_run(f"c{s}", s, {"val": (70.0, 50.0)}, regularizers=["CAR"], steps=80) for s in range(3)]
    _, (comparison,), _ = compared(base + short)
    assert "c0' was evaluated after 80 of 100 steps" in comparison.objections[0]
    other = [
        make_run(f"d{s}", s, {"val": (70.0, 50.0)}, regularizers=["CAR"], pixels=(1, 2)) for s in range(3)
    ]
    _, (comparison,), _ = compared(base + other)
    assert comparison.objections == ["the runs were evaluated on different images or labels of val"]


def test_undefined_classes(make_run):
    runs = []
    for seed in range(2):
        runs.append(make_run(f"b{seed}", seed, {"val": (60.0, None)}))
        runs.append(make_run(f"c{seed}", seed, {"val": (60.0, None)}, regularizers=["CAR"]))
    groups, comparisons, notes = compared(runs)
    assert math.isnan(groups[0].class_iou("val", 1).mean)
    data = as_data(groups, comparisons, notes)
    assert (
        json.loads(json.dumps(data, allow_nan=False))["groups"][0]["datasets"]["val"]["IoU"]["car"]["mean"]
        is None
    )


def test_order_of_data_sets_is_that_of_the_config(make_run):
    run = make_run("a", 0, {"val": (1.0, 1.0), "swapped": (0.0, 0.0)})
    assert list(run.evaluations) == ["val", "swapped"]


MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)
)


def _evaluation(data):
    return lambda folder: (folder / "evaluation" / "val.json").write_bytes(data)


def _changed(key, value):
    def change(folder):
        file = folder / "evaluation" / "val.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return change


def _config(text):
    return lambda folder: (folder / "config.yaml").write_text(text, errors="surrogateescape")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "it has no config.yaml"),
        (
            lambda folder: (folder / "config.yaml").write_text("A: 1"),
            "SEED, MODEL.REGULARIZERS.NAMES, DATASETS.TEST are missing",
        ),
        (lambda folder: (folder / "evaluation" / "val.json").unlink(), "has no evaluation"),
        (lambda folder: (folder / "evaluation" / "val.json").write_text("{"), "val.json' is not valid JSON"),
        (
            lambda folder: (folder / "evaluation" / "val.json").write_text("{}"),
            "metrics, classes, num_images are missing. It is no evaluation of this package",
        ),
        (_evaluation(b"null"), "val.json: the content is None; expected a mapping"),
        (_evaluation(b"[" * 9999), "val.json' is not valid JSON: it is nested too deep"),
        (_evaluation(b'"\xff"'), "val.json' is not valid JSON"),
        (_changed("metrics", []), r"val.json: metrics is \[\]; expected a mapping"),
        (
            _changed("metrics", {"mIoU": "x"}),
            "val.json: metrics.mIoU is 'x'; expected a finite number",
        ),
        (
            _changed("classes", [{"name": 1, "IoU": 1.0, "pixels": 1}]),
            r"val.json: classes\[0\].name is 1; expected a text",
        ),
        (_changed("classes", {}), "val.json: classes is {}; expected a list"),
        (_changed("num_images", None), "val.json: num_images is None; expected a whole number"),
        (
            _changed("model", {"completed_steps": "x"}),
            "val.json: model.completed_steps is 'x'; expected a whole number",
        ),
        (_config("SEED: [1]\n"), r"config.yaml: SEED is \[1\]; expected a whole number"),
        (
            _config("SEED: 1\nDATASETS: {TEST: x}\nMODEL: {REGULARIZERS: {NAMES: []}}\n"),
            "DATASETS.TEST is 'x'",
        ),
        (_config("SEED: &a [*a]\n"), "config.yaml: a list or mapping holds itself"),
        (_config("SEED: [\n"), "config.yaml: not valid YAML"),
        (_config("\udcff"), "config.yaml: not a text file in UTF-8"),
        (_config(MERGES), "config.yaml: more than 1000000 values"),
    ],
)
def test_broken_runs(make_run, break_it, message):
    run = make_run("a", 0, {"val": (1.0, 1.0)})
    break_it(run.path)
    with pytest.raises(CompareError, match=message):
        load_run(run.path)


def test_no_run_at_all():
    with pytest.raises(CompareError, match="no run to compare"):
        group_runs([])
