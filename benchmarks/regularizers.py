"""What regularizers cost: their losses alone, and in a training step."""

from __future__ import annotations

from benchmarks.losses import LOSS_CASES, benchmark_losses
from benchmarks.steps import CASES, benchmark_steps
from regseg_d2.apps.costs.measuring import announce


def run(rounds: int, device: str, only_losses: bool = False) -> None:
    """Prints all tables.

    Args:
        rounds: timed rounds of the smaller case; the larger takes a third of them, at least 3.
        device: ``"cpu"`` (on one thread) or ``"cuda"``.
        only_losses: leave the training steps out.
    """
    announce(rounds, device)
    for loss_case in LOSS_CASES:
        print("\n" + benchmark_losses(loss_case, rounds, device), flush=True)
    if not only_losses:
        for case in CASES:
            case_rounds = rounds if case.size == 256 else max(3, rounds // 3)
            print("\n" + benchmark_steps(case, case_rounds, device), flush=True)
