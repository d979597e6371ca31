"""Training: the loop, the step, optimizers, hooks, checkpoints, and how processes are started."""
