"""Shared by all tests: one thread, so that timings of two workers do not collide; a seed; what is global."""

import logging

import pytest
import torch
from detectron2.utils.logger import setup_logger

import regseg_d2.data  # noqa: F401  its data sets are there before the first test
from tests.data.declarations import declared


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process ends long after the others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loggers_stay():
    """Takes back what a run in this process does to the loggers, which later tests would see."""
    loggers = [logging.getLogger(name) for name in ("fvcore", "detectron2", "regseg_d2")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers
    setup_logger.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def _catalogs_stay_after_a_file():
    """Data sets that a fixture of a file registered go with the file: others have some of the same names."""
    with declared():
        yield


@pytest.fixture(autouse=True)
def _catalogs_stay():
    """Data sets that a test registered go with it."""
    with declared():
        yield
