"""Folders of synthetic records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CLASSES = {"road": 0.5, "sky": 0.25, "tree": 0.15, "car": 0.06, "sign": 0.03, "bike": 0.01}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(file: Path, data) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data, indent=1))
    return file


def record(condition="all", arm="baseline", control=None, seed=0, miou=60.0, iou=None, **changes):
    """A whole record; ``changes`` replace fields."""
    iou = iou or {name: round(miou + 20 * share, 5) for name, share in CLASSES.items()}
    data = {
        "version": 1,
        "experiment": "trial",
        "condition": condition,
        "arm": arm,
        "control": control,
        "seed": seed,
        "commit": COMMIT,
        "config_digest": f"digest of {arm}"[:16],
        "overrides": {},
        "iterations": 900,
        "metrics": {"val": {"mIoU": miou, "pACC": 80 + miou / 10, "IoU": iou}},
        "curve": [{"iteration": i, "val": miou * (1 - 0.5 ** (i / 200))} for i in (300, 600, 900)],
        "losses": [{"iteration": 900, "loss_sem_seg": 0.3}],
        "measures": {"val": {"intra_inter_ratio": 0.8 - miou / 200, "calibration_error": 0.05}},
        "diagnostics": {},
        "skipped_steps": 0,
        "run": {"seconds": 100.0 + seed},
    }
    return {**data, **changes}


def write_experiment(
    folder: Path,
    effects,
    seeds=range(10),
    *,
    conditions=("all",),
    spread=1.06,
    check=None,
    controls=None,
    metric="mIoU",
    generator=0,
) -> Path:
    """Writes an experiment whose arms differ from the baseline by a planted effect.

    Args:
        folder: where.
        effects: ``{arm: points}``; the baseline is there too.
        seeds: of every arm.
        conditions: their names.
        spread: standard deviation of an arm's differences to the baseline.
        check: the schedule check.
        controls: ``{arm: control}`` where it is not the baseline.
        metric: the primary one.
        generator: seed of the noise.
    """
    controls = {"baseline": None, **dict.fromkeys(effects, "baseline"), **(controls or {})}
    rng = np.random.default_rng(generator)
    write(
        folder / "experiment.json",
        {
            "name": "trial",
            "primary": {"condition": conditions[0], "dataset": "val", "metric": metric},
            "arms": {
                arm: {"control": control, "overrides": {} if control is None else {"MODEL.X": arm}}
                for arm, control in controls.items()
            },
            "conditions": {name: {"overrides": {}} for name in conditions},
            "schedule_check": check,
        },
    )
    write(folder / "classes.json", {"train": CLASSES})
    for number, condition in enumerate(conditions):
        for arm, effect in {"baseline": 0.0, **effects}.items():
            for seed in seeds:
                miou = 60 - 8 * number + effect + rng.normal(0, spread / 2**0.5)
                write_record(folder, record(condition, arm, controls[arm], seed, round(float(miou), 5)))
    return folder


def write_record(folder: Path, data) -> Path:
    return write(folder / data["condition"] / data["arm"] / f"seed{data['seed']}.json", data)
