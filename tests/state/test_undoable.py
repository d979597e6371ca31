"""A memory bank takes back what a step wrote, byte for byte, and remembers no more than that."""

import pytest
import torch

from regseg_d2.state.memory_bank import MemoryBank
from regseg_d2.state.undoable import UndoableState

K, C = 3, 4


def push(bank, number, seed):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, K, (number,), generator=generator)
    valid = torch.rand(number, generator=generator) < 0.8
    bank.push(torch.randn(number, C, generator=generator), classes, valid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("capacity", [1, 3, 50])
@pytest.mark.parametrize("pushes", [0, 1, 4])
def test_what_a_step_wrote_is_undone(capacity, pushes, dtype):
    bank = MemoryBank(K, capacity, C, dtype)
    push(bank, 7, seed=0)
    bank.begin_step()
    push(bank, 7, seed=1)  # a step that is final
    bank.begin_step()
    before = bank.rows.clone()
    for number in range(pushes):
        push(bank, 5, seed=2 + number)
    changed = not torch.equal(bank.rows, before)
    assert changed == (pushes > 0)
    bank.undo_step()
    assert torch.equal(bank.rows, before)
    bank.undo_step()  # nothing is left to undo
    assert torch.equal(bank.rows, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_are_not_finite_do_not_come_in(dtype):
    bank = MemoryBank(K, 2, C, dtype)
    bank.begin_step()
    rows = torch.ones(5, C)
    rows[0, 0], rows[1, 3], rows[2], rows[3, 1] = torch.nan, torch.inf, -torch.inf, 1e5
    bank.push(rows, torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.bool))
    # 1e5 is infinite in float16.
    written = {torch.float32: [rows[3], rows[4]], torch.float16: [rows[4], torch.zeros(C)]}[dtype]
    assert torch.equal(bank.rows[0].float(), torch.stack(written))
    bank.undo_step()
    assert torch.equal(bank.rows.float(), torch.zeros(K, 2, C))


def test_nothing_valid_and_nothing_to_undo():
    bank = MemoryBank(K, 2, C)
    push(bank, 6, seed=0)
    before = bank.rows.clone()
    bank.begin_step()
    bank.push(torch.ones(2, C), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool))
    bank.undo_step()
    assert torch.equal(bank.rows, before)


def test_without_a_step_nothing_is_remembered():
    bank = MemoryBank(K, 2, C)
    push(bank, 6, seed=0)
    before = bank.rows.clone()
    bank.undo_step()
    assert torch.equal(bank.rows, before)
    assert bank._overwritten is None
    bank.begin_step()
    push(bank, 6, seed=1)
    bank.begin_step()
    assert bank._overwritten == []


def test_only_the_rows_are_left_out_of_the_copy_and_nothing_is_in_the_state_dict():
    bank = MemoryBank(K, 2, C)
    bank.begin_step()
    assert isinstance(bank, UndoableState)
    assert [id(buffer) for buffer in bank.undoable_buffers()] == [id(bank.rows)]
    assert set(bank.state_dict()) == {"rows", "written"}
