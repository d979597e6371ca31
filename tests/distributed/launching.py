"""Runs a function in several gloo processes and collects what each returns."""

import os
import pickle

import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm


def run_processes(function, num_processes, folder, *args):
    """Calls ``function(*args)`` in each process; returns the results in the order of ranks."""
    launch(_save_result, num_processes, dist_url="auto", args=(function, str(folder), *args))
    results = []
    for rank in range(num_processes):
        with open(f"{folder}/{rank}.pkl", "rb") as file:
            results.append(pickle.load(file))
    return results


def _save_result(function, folder, *args):
    import torch

    torch.set_num_threads(1)
    result = function(*args)
    with open(f"{folder}/{comm.get_rank()}.pkl", "wb") as file:
        pickle.dump(result, file)
    if dist.is_initialized():
        # All at once: gloo aborts a process whose partner is gone while it still talks to it.
        comm.synchronize()
        dist.destroy_process_group()
        # Nor may one of its threads hold a tensor while Python is taken down.
        os._exit(0)
