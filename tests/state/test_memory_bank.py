"""Ring buffers against lists of the last rows of each class."""

import pytest
import torch
from detectron2.utils import comm

from regseg_d2.state.memory_bank import MemoryBank
from tests.distributed.launching import run_processes

K, C = 4, 3


def make_bank(capacity=5, dtype=torch.float32):
    return MemoryBank(K, capacity, C, dtype)


def make_rows(number, first=1.0):
    """Rows that tell which one they are: ``first``, ``first + 1``, ... in every channel."""
    return (first + torch.arange(number, dtype=torch.float32)).unsqueeze(1).expand(-1, C).clone()


class Rings:
    """What a bank should hold, written slot by slot."""

    def __init__(self, capacity, num_classes=K, channels=C):
        self.capacity = capacity
        self.slots = torch.zeros(num_classes, capacity, channels)
        self.written = [0] * num_classes

    def push(self, rows, classes, valid):
        for row, k, is_valid in zip(rows, classes.tolist(), valid.tolist(), strict=True):
            if is_valid:
                self.slots[k, self.written[k] % self.capacity] = row
                self.written[k] += 1

    def assert_same(self, bank):
        assert torch.equal(bank.rows.float(), self.slots.to(bank.rows.dtype).float())
        assert bank.written.tolist() == self.written
        filled = [[slot < written for slot in range(self.capacity)] for written in self.written]
        assert bank.filled.tolist() == filled


def test_a_new_bank_is_empty_and_counts_its_bytes():
    bank = make_bank(7)
    assert not bank.filled.any()
    assert bank.filled.shape == (K, 7)
    assert bank.rows.abs().sum() == 0
    assert bank.num_bytes == K * 7 * C * 4
    assert make_bank(7, torch.float16).num_bytes == K * 7 * C * 2


def test_rows_go_to_the_slots_of_their_class_in_order():
    bank = make_bank(3)
    bank.push(make_rows(5), torch.tensor([2, 0, 2, 3, 2]), torch.ones(5, dtype=torch.bool))
    assert bank.rows[:, :, 0].tolist() == [[2, 0, 0], [0, 0, 0], [1, 3, 5], [4, 0, 0]]
    assert bank.written.tolist() == [1, 0, 3, 1]
    assert bank.filled.tolist() == [
        [True, False, False],
        [False, False, False],
        [True, True, True],
        [True, False, False],
    ]


def test_the_oldest_rows_are_overwritten_where_the_ring_closes():
    bank = make_bank(3)
    everything = torch.ones(2, dtype=torch.bool)
    for first in (1.0, 3.0, 5.0):
        bank.push(make_rows(2, first), torch.tensor([1, 1]), everything)
    # 1 2 3 | 4 5 6 went round twice.
    assert bank.rows[1, :, 0].tolist() == [4, 5, 6]
    bank.push(make_rows(1, 7.0), torch.tensor([1]), everything[:1])
    assert bank.rows[1, :, 0].tolist() == [7, 5, 6]
    assert bank.filled[1].all()
    assert bank.written[1].item() == 7


def test_of_more_rows_than_capacity_in_one_push_the_last_stay():
    bank = make_bank(3)
    bank.push(make_rows(1, 100.0), torch.tensor([0]), torch.tensor([True]))
    # 1 ... 8 of class 0, with one of class 1 between.
    rows = torch.cat([make_rows(4), make_rows(1, 50.0), make_rows(4, 5.0)])
    classes = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 0])
    bank.push(rows, classes, torch.ones(9, dtype=torch.bool))
    # 100 had slot 0; 1 ... 8 then have slots 1 2 0 1 2 0 1 2.
    assert bank.rows[0, :, 0].tolist() == [6, 7, 8]
    assert bank.rows[1, :, 0].tolist() == [50, 0, 0]
    assert bank.written.tolist() == [9, 1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("capacity", [1, 2, 5, 40])
def test_many_random_pushes_follow_the_rings(capacity, dtype):
    generator = torch.Generator().manual_seed(capacity)
    bank, rings = make_bank(capacity, dtype), Rings(capacity)
    for step in range(30):
        number = int(torch.randint(0, 12, (), generator=generator))
        rows = torch.randn(number, C, generator=generator)
        # Class 3 is never pushed; in every fourth step nothing is valid.
        classes = torch.randint(0, K - 1, (number,), generator=generator)
        valid = (torch.rand(number, generator=generator) < 0.7) & (step % 4 != 3)
        bank.push(rows, classes, valid)
        rings.push(rows, classes, valid)
        rings.assert_same(bank)
    assert bank.rows.dtype == dtype
    assert min(bank.written[:3].tolist()) > 10
    assert not bank.filled[3].any()


def test_half_precision_rounds_and_keeps_its_type():
    bank = make_bank(2, torch.float16)
    row = torch.tensor([[0.1, 1 / 3, -0.7]], dtype=torch.float64)
    bank.push(row, torch.tensor([1]), torch.tensor([True]))
    assert bank.rows.dtype == torch.float16
    assert torch.equal(bank.rows[1, 0], row[0].half())
    assert not torch.equal(bank.rows[1, 0].double(), row[0])


@pytest.mark.parametrize("already", [0, 2])
def test_invalid_rows_are_not_written_whatever_they_hold(already):
    bank, rings = make_bank(3), Rings(3)
    good = (make_rows(already), torch.zeros(already, dtype=torch.long), torch.ones(already, dtype=torch.bool))
    bank.push(*good)
    rings.push(*good)
    rows = torch.tensor([[float("nan")] * C, [float("inf")] * C, [5.0] * C, [float("nan")] * C])
    bank.push(rows, torch.tensor([0, 1, 2, -1]), torch.zeros(4, dtype=torch.bool))
    rings.assert_same(bank)
    valid = torch.tensor([False, False, True, False])
    bank.push(rows, torch.tensor([0, 1, 2, -1]), valid)
    rings.push(rows, torch.tensor([0, 1, 2, -1]), valid)
    rings.assert_same(bank)


@pytest.mark.parametrize("wrong", [-1, K, 255])
def test_a_valid_row_of_no_class_is_an_invalid_row(wrong):
    bank = make_bank(3)
    bank.push(make_rows(3), torch.tensor([1, wrong, 1]), torch.ones(3, dtype=torch.bool))
    assert bank.rows[1, :, 0].tolist() == [1, 3, 0]
    assert bank.written.tolist() == [0, 2, 0, 0]
    assert bank.rows.sum() == 4 * C


def test_an_empty_push_changes_nothing():
    bank = make_bank(3)
    bank.push(make_rows(2), torch.tensor([1, 1]), torch.ones(2, dtype=torch.bool))
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    bank.push(torch.zeros(0, C), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))
    assert all(torch.equal(before[name], value) for name, value in bank.state_dict().items())


def test_rows_are_kept_without_their_graph():
    bank = make_bank(3)
    rows = make_rows(2).requires_grad_(True)
    bank.push(rows * 2, torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool))
    assert not bank.rows.requires_grad
    rows.data.zero_()
    assert bank.rows[0, 0].tolist() == [2.0] * C


def test_a_checkpoint_goes_on_where_it_was():
    valid = torch.ones(4, dtype=torch.bool)
    bank, resumed = make_bank(3), make_bank(3)
    bank.push(make_rows(4), torch.tensor([0, 0, 1, 0]), valid)
    assert set(bank.state_dict()) == {"rows", "written"}
    resumed.load_state_dict(bank.state_dict(), strict=True)
    for each in (bank, resumed):
        each.push(make_rows(4, 10.0), torch.tensor([0, 1, 1, 1]), valid)
    assert torch.equal(bank.rows, resumed.rows)
    assert torch.equal(bank.written, resumed.written)
    assert bank.rows[0, :, 0].tolist() == [10, 2, 4]


def test_a_bank_of_another_size_does_not_load():
    with pytest.raises(RuntimeError, match="rows"):
        make_bank(3).load_state_dict(make_bank(4).state_dict())


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_one_is_an_error(capacity):
    with pytest.raises(ValueError, match=f"{capacity}; expected 1 or more"):
        make_bank(capacity)


def draw_step(step, rank):
    """Six rows of one process; in step 2 the second process has no valid row, in step 3 nobody has."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    rows = torch.randn(6, C, generator=generator)
    classes = torch.randint(0, K, (6,), generator=generator)
    valid = torch.rand(6, generator=generator) < (0.9 if rank == 0 else 0.4)
    if step == 3 or (step == 2 and rank == 1):
        valid = torch.zeros_like(valid)
        rows = rows * float("nan")
    return rows, classes, valid


NUM_STEPS = 8
PROCESS_CASES = {"small": (2, torch.float32), "half": (4, torch.float16), "roomy": (50, torch.float32)}


def push_in_process():
    results = {}
    for case, (capacity, dtype) in PROCESS_CASES.items():
        bank = make_bank(capacity, dtype)
        for step in range(NUM_STEPS):
            bank.push(*draw_step(step, comm.get_rank()))
        results[case] = bank.state_dict()
    return results


def test_two_processes_hold_the_same_bytes_in_the_order_of_ranks(tmp_path):
    first, second = run_processes(push_in_process, 2, tmp_path)
    for case, (capacity, dtype) in PROCESS_CASES.items():
        rings = Rings(capacity)
        for step in range(NUM_STEPS):
            rings.push(
                *(torch.cat(parts) for parts in zip(draw_step(step, 0), draw_step(step, 1), strict=True))
            )
        bank = make_bank(capacity, dtype)
        bank.load_state_dict(first[case])
        rings.assert_same(bank)
        for name, value in first[case].items():
            same = (
                value.contiguous().view(torch.uint8).equal(second[case][name].contiguous().view(torch.uint8))
            )
            assert same, (case, name)
