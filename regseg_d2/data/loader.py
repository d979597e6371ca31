"""Data loaders: records, mapper and sampler put together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from regseg_d2.common.errors import ConfigError, UserError, check_key
from regseg_d2.data.bad_files import ReplacingSamples, skips_bad_files
from regseg_d2.data.class_sampling import build_sample_order
from regseg_d2.data.mapper import TestMapper, TrainMapper
from regseg_d2.data.records import load_records
from regseg_d2.data.sampler import ResumableTrainingSampler
from regseg_d2.data.shared_memory import collate_for_transport
from regseg_d2.data.subsets import load_train_subset
from regseg_d2.data.transforms import WantedClass
from regseg_d2.data.workers import keep_freed_memory, obey_the_parent_alone


def forward_batch_size(cfg: CfgNode, world_size: int) -> int:
    """Images in one forward pass of one process: ``IMS_PER_BATCH / (ACCUM_STEPS * world_size)``.

    Raises:
        ConfigError: that is not a whole number.
    """
    total, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUM_STEPS
    check_key("SOLVER.ACCUM_STEPS", steps, steps >= 1, "1 or more")
    parts = steps * world_size
    if total < 1 or total % parts:
        below, above = total // parts * parts, (total // parts + 1) * parts
        nearest = f"{below} or {above}" if below > 0 else f"{above}"
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {total}, which {world_size} process(es) x SOLVER.ACCUM_STEPS {steps} = "
            f"{parts} cannot share equally; the nearest that can be shared: {nearest}."
        )
    return total // parts


class _MappedSamples(Dataset):
    """Records behind a mapper. A user's error is returned, for :class:`SampleLoader` to raise.

    Raised here, torch would bury its message under the traceback of a worker process.

    ``wanted_class`` tells which class a sample number is for, if any; the mapper gets both, in training.
    """

    def __init__(
        self,
        records: list[dict],
        mapper: Callable[..., dict],
        wanted_class: Callable[[int], WantedClass | None] | None = None,
    ) -> None:
        # One buffer of bytes instead of many objects: forked workers then share its memory.
        self.records = DatasetFromList(records, copy=False, serialize=True)
        self.mapper = mapper
        self.wanted_class = wanted_class

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> dict | UserError:
        number, index = key if isinstance(key, tuple) else (None, key)
        try:
            if number is None:
                return self.mapper(self.records[index])
            wanted = self.wanted_class(number) if self.wanted_class is not None else None
            return self.mapper(self.records[index], number, wanted)
        except UserError as error:
            return error


class SampleLoader:
    """A torch ``DataLoader`` of samples or errors that raises these in the main process."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.dataset = loader.dataset

    def __len__(self) -> int:
        """Returns the number of batches; a training loader is endless and has none."""
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        """Yields lists of samples.

        Raises:
            DatasetError: a sample's file cannot be used.
        """
        for batch in self.loader:
            for sample in batch:
                if isinstance(sample, UserError):
                    raise sample
            yield batch


def _start_worker(worker: int) -> None:
    """One thread a worker: the workers are the parallelism, and OpenCV's pool does not survive a fork."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    obey_the_parent_alone()


def _worker_options(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of torch's loader that training and evaluation share."""
    workers, prefetch = cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.PREFETCH
    check_key("DATALOADER.NUM_WORKERS", workers, workers >= 0, "0 or more")
    check_key("DATALOADER.PREFETCH", prefetch, prefetch >= 1, "1 or more")
    # Workers begin as the system does it, also in a process begun by a spawn (--num-gpus). On Linux that is a
    # fork: a worker has everything imported and shares the records; a spawned one imports torch anew.
    method = multiprocessing.get_all_start_methods()[0]
    return {
        "num_workers": workers,
        "collate_fn": collate_for_transport,
        "worker_init_fn": _start_worker,
        "multiprocessing_context": multiprocessing.get_context(method) if workers > 0 else None,
        "prefetch_factor": prefetch if workers > 0 else None,
        # Pinned memory goes to a GPU faster; without one it is only a copy more.
        "pin_memory": cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available(),
    }


def build_train_loader(cfg: CfgNode, *, seed: int, start_iter: int = 0) -> SampleLoader:
    """Builds the endless loader of training batches of this process, from optimizer step ``start_iter`` on.

    One optimizer step takes ``SOLVER.ACCUM_STEPS`` batches in a row. What a step sees depends on
    ``seed`` and the step only: the set of its images is the same for every number of processes and
    workers and for every ``start_iter``.

    Returns:
        An iterable of lists of samples (see :class:`~regseg_d2.data.mapper.TrainMapper`).

    Raises:
        ConfigError: a key has an unusable value, or a data set's name is unknown.
        DatasetError: a data set cannot be loaded; while iterating: a file cannot be used.
    """
    world_size = comm.get_world_size()
    per_process = forward_batch_size(cfg, world_size)
    records = load_train_subset(cfg, seed)
    order = build_sample_order(cfg, len(records), seed=seed)
    sampler = ResumableTrainingSampler(
        len(records),
        seed=seed,
        order=order,
        rank=comm.get_rank(),
        world_size=world_size,
        batch_size_per_process=per_process,
        start=start_iter * cfg.SOLVER.IMS_PER_BATCH,
    )
    samples: Dataset = _MappedSamples(records, TrainMapper(cfg, seed=seed), order.wanted_class)
    if skips_bad_files(cfg):
        samples = ReplacingSamples(samples, seed=seed, max_bad_files=cfg.DATALOADER.MAX_BAD_FILES)
    return SampleLoader(
        DataLoader(
            samples,
            batch_sampler=sampler,
            persistent_workers=cfg.DATALOADER.NUM_WORKERS > 0,
            # Its own generator: torch would draw the workers' seeds from the global one.
            generator=torch.Generator().manual_seed(seed),
            **_worker_options(cfg),
        )
    )


def epochs_per_step(cfg: CfgNode, loader: Iterable[Any]) -> float:
    """Passes over the training images that a step is; 0 where the loader does not tell how many there are."""
    dataset = getattr(loader, "dataset", None)
    images = len(dataset) if isinstance(dataset, Sized) else 0
    return cfg.SOLVER.IMS_PER_BATCH / images if images else 0.0


def build_test_loader(cfg: CfgNode, dataset_name: str) -> SampleLoader:
    """Builds the loader of a data set's images, in order, one at a time.

    Returns:
        A sized iterable of lists of one sample (see :class:`~regseg_d2.data.mapper.TestMapper`); with
        several processes each has its own stretch of the data set.

    Raises:
        ConfigError: the name is unknown.
        DatasetError: the data set cannot be loaded; while iterating: a file cannot be used.
    """
    records = load_records(dataset_name)
    return SampleLoader(
        DataLoader(
            _MappedSamples(records, TestMapper(cfg)),
            batch_size=1,
            sampler=InferenceSampler(len(records)),
            # Not persistent: the workers end with the evaluation, and with them what they hold.
            generator=torch.Generator().manual_seed(0),
            **_worker_options(cfg),
        )
    )
