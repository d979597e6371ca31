"""Groups of small runs, and their comparison."""

from regseg_d2.apps.compare.groups import compare_groups, group_runs

CLASSES = ("sky", "car")


def three_and_three(make_run, gain, **keys):
    """Baselines with mIoU 50, 52, 54 and CAR runs with ``gain`` more; the drop is 10 and 4."""
    runs = []
    for seed, miou in enumerate((50.0, 52.0, 54.0)):
        runs.append(make_run(f"b{seed}", seed, {"val": (miou + 10, miou - 10), "swapped": (miou, miou - 20)}))
        new = miou + gain
        car = {"val": (new + 10, new - 10), "swapped": (new + 6, new - 14)}
        runs.append(make_run(f"c{seed}", seed, car, regularizers=["CAR"], **keys))
    return runs


def compared(runs, baselines=None):
    groups, notes = group_runs(runs)
    return groups, compare_groups(groups, baselines), notes
