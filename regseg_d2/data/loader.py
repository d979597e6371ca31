"""Data loaders: records, mapper and sampler put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from regseg_d2.data.mapper import TestMapper, TrainMapper
from regseg_d2.data.sampler import ResumableTrainingSampler
from regseg_d2.errors import ConfigError, DatasetError, UserError
from regseg_d2.suggestions import did_you_mean


def load_records(dataset_name: str) -> list[dict]:
    """Loads the records of one registered data set.

    Args:
        dataset_name: name in the catalog.

    Returns:
        The records, each with its ``dataset_name`` and ``image_id``.

    Raises:
        ConfigError: no data set has this name; the nearest names are listed.
        DatasetError: the data set cannot be loaded or holds nothing.
    """
    if dataset_name not in DatasetCatalog:
        raise ConfigError(
            f'No data set is named "{dataset_name}"{did_you_mean(dataset_name, DatasetCatalog.list())}. '
            "DATASETS.TRAIN and DATASETS.TEST take registered names; docs/datasets.md lists those that are "
            "built in and says how to register one."
        )
    records = DatasetCatalog.get(dataset_name)
    if not records:
        raise DatasetError(f'The data set "{dataset_name}" is empty; its loader returned no record.')
    if "sem_seg_file_name" not in records[0]:
        raise DatasetError(
            f'The records of the data set "{dataset_name}" have no sem_seg_file_name, so it is not one for '
            "semantic segmentation with label files."
        )
    return [
        {**record, "dataset_name": dataset_name, "image_id": str(record.get("image_id", record["file_name"]))}
        for record in records
    ]


def load_training_records(dataset_names: Sequence[str]) -> list[dict]:
    """Loads several data sets one after the other and compares their classes.

    Args:
        dataset_names: names in the catalog.

    Returns:
        The records of all of them.

    Raises:
        ConfigError: there is no name, or a name is unknown.
        DatasetError: the class lists differ, or a data set cannot be loaded.
    """
    if not dataset_names:
        raise ConfigError("DATASETS.TRAIN names no data set; expected at least one.")
    records = [record for name in dataset_names for record in load_records(name)]
    check_equal_classes(dataset_names)
    return records


def check_equal_classes(dataset_names: Sequence[str]) -> None:
    """Compares the class lists of registered data sets.

    Args:
        dataset_names: names in the catalog.

    Raises:
        DatasetError: two lists differ; the first difference is named.
    """
    if not dataset_names:
        return
    first_name, *others = dataset_names
    first = list(MetadataCatalog.get(first_name).get("stuff_classes", []))
    for name in others:
        classes = list(MetadataCatalog.get(name).get("stuff_classes", []))
        if classes != first:
            place = next(
                (i for i, (a, b) in enumerate(zip(first, classes, strict=False)) if a != b),
                min(len(first), len(classes)),
            )
            raise DatasetError(
                f'The class lists of "{first_name}" ({len(first)} classes) and "{name}" ({len(classes)} '
                f"classes) differ, first at index {place}: {first[place : place + 1]} and "
                f"{classes[place : place + 1]}. Data sets of one run need the same classes in the same order."
            )


def forward_batch_size(cfg: CfgNode, world_size: int) -> int:
    """Images in one forward pass of one process.

    Args:
        cfg: with ``SOLVER.IMS_PER_BATCH`` and ``SOLVER.ACCUM_STEPS``.
        world_size: number of processes.

    Returns:
        ``IMS_PER_BATCH / (ACCUM_STEPS * world_size)``.

    Raises:
        ConfigError: that is not a whole number.
    """
    total, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUM_STEPS
    if steps < 1:
        raise ConfigError(f"SOLVER.ACCUM_STEPS is {steps}; expected 1 or more.")
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
    """

    def __init__(self, records: list[dict], mapper: Callable[..., dict]) -> None:
        # One buffer of bytes instead of many objects: forked workers then share its memory.
        self.records = DatasetFromList(records, copy=False, serialize=True)
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> dict | UserError:
        number, index = key if isinstance(key, tuple) else (None, key)
        try:
            if number is None:
                return self.mapper(self.records[index])
            return self.mapper(self.records[index], number)
        except UserError as error:
            return error


class SampleLoader:
    """A torch ``DataLoader`` that raises the errors of its samples in the main process.

    Args:
        loader: yields lists of samples or errors.
    """

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


def build_train_loader(cfg: CfgNode, *, seed: int, start_iter: int = 0) -> SampleLoader:
    """Builds the endless loader of training batches of this process.

    One optimizer step takes ``SOLVER.ACCUM_STEPS`` batches in a row. What a step sees depends on
    ``seed`` and the step only: the set of its images is the same for every number of processes and
    workers and for every ``start_iter``.

    Args:
        cfg: the run's config.
        seed: seed of the run, the same in all processes.
        start_iter: optimizer step to start at.

    Returns:
        An iterable of lists of samples (see :class:`~regseg_d2.data.mapper.TrainMapper`).

    Raises:
        ConfigError: a key has an unusable value, or a data set's name is unknown.
        DatasetError: a data set cannot be loaded; while iterating: a file cannot be used.
    """
    world_size = comm.get_world_size()
    per_process = forward_batch_size(cfg, world_size)
    records = load_training_records(cfg.DATASETS.TRAIN)
    sampler = ResumableTrainingSampler(
        len(records),
        seed=seed,
        rank=comm.get_rank(),
        world_size=world_size,
        batch_size_per_process=per_process,
        start=start_iter * cfg.SOLVER.IMS_PER_BATCH,
    )
    workers = cfg.DATALOADER.NUM_WORKERS
    return SampleLoader(
        DataLoader(
            _MappedSamples(records, TrainMapper(cfg, seed=seed)),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            # Its own generator: torch would draw the workers' seeds from the global one.
            generator=torch.Generator().manual_seed(seed),
        )
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> SampleLoader:
    """Builds the loader of a data set's images, in order, one at a time.

    Args:
        cfg: the run's config.
        dataset_name: name in the catalog.

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
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=trivial_batch_collator,
            worker_init_fn=_start_worker,
            generator=torch.Generator().manual_seed(0),
        )
    )
