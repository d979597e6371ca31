"""What the banks take is said when training begins."""

import logging

import pytest
import torch
from torch import nn

from regseg_d2.engine.memory_budget import log_memory_budget
from regseg_d2.regularizers import CAR, Regularizer
from regseg_d2.state.memory_bank import MemoryBank
from tests.engine.toys import ToyTrainer, toy_cfg


class Banked(Regularizer):
    terms = {"nothing": 1.0}

    def __init__(self, *banks):
        super().__init__(2)
        self.banks = nn.ModuleList(banks)

    def losses(self, inputs):
        raise NotImplementedError


def model_with(**regularizers):
    model = nn.Module()
    model.regularizers = nn.ModuleDict(regularizers)
    return model


def meta_bank(*sizes, dtype=torch.float32):
    """A bank whose rows take no memory here."""
    with torch.device("meta"):
        return MemoryBank(*sizes, dtype)


def test_bytes_are_those_of_all_banks():
    assert Banked().memory_bytes == 0
    assert Banked(MemoryBank(2, 3, 4)).memory_bytes == 2 * 3 * 4 * 4
    halves = MemoryBank(5, 6, 7, torch.float16)
    assert Banked(MemoryBank(2, 3, 4), halves).memory_bytes == 2 * 3 * 4 * 4 + 5 * 6 * 7 * 2
    car = CAR(2)
    assert car.memory_bytes == 0


@pytest.mark.parametrize(
    ("dtype", "lines"),
    [(torch.float32, ["3104.3 MB", "3.1 GB"]), (torch.float16, ["1552.1 MB", "1.6 GB"])],
)
def test_a_full_bank_of_ade20k_is_said_with_the_cure(dtype, lines, caplog):
    caplog.set_level(logging.INFO)
    bank = meta_bank(150, 20210, 256, dtype=dtype)
    log_memory_budget(model_with(**{"RegionContrast@aux": Banked(bank), "CAR": nn.Identity()}))
    (said, warned) = caplog.records
    assert (said.levelname, warned.levelname) == ("INFO", "WARNING")
    assert lines[0] in said.getMessage()
    assert "RegionContrast@aux" in said.getMessage()
    assert lines[1] in warned.getMessage()
    assert "smaller MODEL.REGULARIZERS.RegionContrast@aux.BANK_SIZE" in warned.getMessage()
    assert "BANK_DTYPE float16" in warned.getMessage()


def test_the_keys_are_those_of_the_method(caplog):
    banked = Banked(meta_bank(150, 20210, 256))
    banked.bank_keys = ("QUEUE_LENGTH", "QUEUE_DTYPE")
    log_memory_budget(model_with(Queued=banked))
    assert "MODEL.REGULARIZERS.Queued.QUEUE_LENGTH, or QUEUE_DTYPE float16" in caplog.text


def test_a_small_bank_is_one_line_and_none_is_none(caplog):
    caplog.set_level(logging.INFO)
    log_memory_budget(model_with(A=Banked(MemoryBank(19, 1000, 4)), B=Banked()))
    assert [r.getMessage() for r in caplog.records] == [
        "A keeps a memory bank of 0.3 MB on each process, and in each checkpoint."
    ]
    caplog.clear()
    log_memory_budget(nn.Linear(2, 2))
    assert caplog.text == ""


def test_training_begins_with_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)

    class BankedTrainer(ToyTrainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            model.regularizers["bank"] = Banked(MemoryBank(2, 3, 4))
            return model

    trainer = BankedTrainer(toy_cfg(tmp_path, MODEL__REGULARIZERS__NAMES=["toy"], SOLVER__MAX_ITER=1))
    trainer.train()
    messages = [record.getMessage() for record in caplog.records]
    start = next(i for i, message in enumerate(messages) if message.startswith("Training from step 0"))
    assert messages[start + 1].startswith("bank keeps a memory bank of 0.0 MB")
