"""What a run has in a checkpoint besides its model, and how it is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from regseg_d2.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from regseg_d2.engine.trainer import Trainer


def run_state(trainer: Trainer, hooks: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all that a resumed run needs besides the model.

    Args:
        trainer: the run.
        hooks: states of its hooks.
    """
    return {
        "completed_steps": trainer.completed_steps,
        "seed": trainer.seed,
        "optimizer": trainer.optimizer.state_dict(),
        "training_step": trainer.training_step.state_dict(),
        "bad_files": trainer.bad_files.state_dict(),
        "hooks": hooks,
    }


def load_run_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Takes over what :func:`run_state` gave, but for the states of the hooks.

    Raises:
        CheckpointError: the optimizer or its groups are other ones.
        ConfigError: SEED is another one than the run's, or the run is past MAX_ITER.
    """
    steps = int(state["completed_steps"])
    if steps > trainer.max_iter:
        raise ConfigError(
            f"The checkpoint is from step {steps}, and SOLVER.MAX_ITER is {trainer.max_iter}: raise it, or "
            "start a new run in another OUTPUT_DIR."
        )
    _take_over_seed(trainer, int(state["seed"]))
    try:
        trainer.optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"The checkpoint's optimizer does not fit ({error}): resume with the SOLVER settings of the run "
            "that wrote it."
        ) from error
    trainer.training_step.load_state_dict(state["training_step"])
    trainer.bad_files.load_state_dict(state.get("bad_files", {}))
    trainer.completed_steps = trainer.iter = trainer.start_iter = steps


def _take_over_seed(trainer: Trainer, saved: int) -> None:
    if trainer.seed_is_given and trainer.seed != saved:
        raise ConfigError(
            f"SEED is {trainer.seed} and the run to resume has {saved}: a run keeps its seed. Set SEED "
            f"{saved}, or start a new run in another OUTPUT_DIR."
        )
    trainer.cfg.defrost()
    trainer.cfg.SEED = saved
    trainer.cfg.freeze()
