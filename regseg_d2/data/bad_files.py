"""Files that go missing or are cut off while a run lasts: stop, or put other samples in their place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch.utils.data import Dataset

from regseg_d2.common.errors import DatasetError, UserError, check_key

logger = logging.getLogger(__name__)

# First word of the seeds of replacements, other than those of data/sampler.py.
REPLACEMENT_STREAM = 50
# Entry of a sample that stands for others: {image file: what is wrong}. The ledger takes it out.
BAD_FILES_KEY = "bad_files"


def skips_bad_files(cfg: CfgNode) -> bool:
    """Whether ``DATALOADER.BAD_FILES`` says to skip.

    Raises:
        ConfigError: it, or ``DATALOADER.MAX_BAD_FILES``, has a value that means nothing.
    """
    reaction, most = cfg.DATALOADER.BAD_FILES, cfg.DATALOADER.MAX_BAD_FILES
    check_key("DATALOADER.BAD_FILES", reaction, reaction in ("stop", "skip"), "'stop' or 'skip'")
    check_key("DATALOADER.MAX_BAD_FILES", most, most >= 0, "0 or more")
    return reaction == "skip"


class ReplacingSamples(Dataset):
    """Training samples, in which others stand for those whose files cannot be used.

    Which record takes the place of sample ``n`` follows from (seed, ``n``) alone, so it is the same for
    every number of workers and processes. Augmentation stays that of sample ``n``.

    Args:
        samples: gives for ``(sample number, record index)`` a sample, or a ``DatasetError`` as a value;
            ``samples.records`` are the records.
        seed: seed of the run.
        max_bad_files: unusable records in a row after which there is no point in going on.
    """

    def __init__(self, samples: Any, *, seed: int, max_bad_files: int) -> None:
        self.samples = samples
        self.seed = seed
        self.max_bad_files = max_bad_files

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | UserError:
        """Returns sample ``key``, or another one with what was wrong under ``bad_files``."""
        number, index = key
        found: dict[str, str] = {}
        for candidate in self._candidates(number, index):
            sample = self.samples[(number, candidate)]
            if not isinstance(sample, UserError):
                return {**sample, BAD_FILES_KEY: found} if found else sample
            if not isinstance(sample, DatasetError):
                return sample
            found[str(self.samples.records[candidate]["file_name"])] = str(sample)
            if len(found) > self.max_bad_files:
                break
        return DatasetError(_too_many_message(found, self.max_bad_files))

    def _candidates(self, number: int, index: int) -> Iterator[int]:
        yield index
        rng = np.random.default_rng((REPLACEMENT_STREAM, self.seed, number))
        # Every record can come up, and a small data set of bad files comes to an end.
        yield from (int(i) for i in rng.permutation(len(self)) if i != index)


class BadFileLedger:
    """The files that a run has skipped, the same on all processes, in its checkpoints.

    Attributes:
        files: what is wrong with each, by the name of its image.
        max_bad_files: how many there may be.
    """

    def __init__(self, max_bad_files: int) -> None:
        self.max_bad_files = max_bad_files
        self.files: dict[str, str] = {}
        self._new: dict[str, str] = {}

    def watch(self, batches: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
        """Yields batches on, and takes note of what their samples stand for."""
        for batch in batches:
            for sample in batch:
                for name, reason in sample.pop(BAD_FILES_KEY, {}).items():
                    if name not in self.files:
                        self._new[name] = reason
            yield batch

    @property
    def num_new(self) -> int:
        """How many of this process the others have not heard of."""
        return len(self._new)

    def share(self) -> None:
        """Tells all processes about the new ones; to be called by all of them.

        Raises:
            DatasetError: there are too many by now.
        """
        new = {name: reason for part in comm.all_gather(self._new) for name, reason in part.items()}
        self._new = {}
        for name in sorted(new.keys() - self.files.keys()):
            self.files[name] = new[name]
            logger.warning(
                "SKIPPED A BAD FILE, number %d of at most %d (DATALOADER.MAX_BAD_FILES). %s Another sample "
                "takes its place whenever its turn comes.",
                len(self.files),
                self.max_bad_files,
                new[name],
            )
        if len(self.files) > self.max_bad_files:
            raise DatasetError(_too_many_message(self.files, self.max_bad_files))

    def state_dict(self) -> dict[str, str]:
        """Returns the files."""
        return dict(self.files)

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self.files = dict(state)


def _too_many_message(files: Mapping[str, str], allowed: int) -> str:
    reasons = "\n".join(f"- {reason}" for reason in files.values())
    return (
        f"{len(files)} samples of the training data cannot be used, and DATALOADER.MAX_BAD_FILES is "
        f"{allowed}:\n{reasons}\nRepair or remove them, or allow more; --resume continues from the last "
        "checkpoint."
    )
