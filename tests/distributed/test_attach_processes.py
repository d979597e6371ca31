"""Regularizers on a plain network in two processes: the whole batch, a group, sharded parameters."""

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from regseg_d2.common.errors import UserError
from regseg_d2.regularizers import CAR, MDRL, PNE, RCH, ContrastSeg, RegionContrast, attach
from tests.distributed.launching import run_processes

K, WIDTH, STEPS = 4, 8, 3


def make(process_group=None):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
    network = nn.Sequential(convolution, nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, K, 1))
    small = {"embedding_channels": 6, "norm": lambda channels: None}
    regularizers = [
        CAR(K, centers="ema"),
        PNE(K, **small, scope="batch", no_negatives="anchors"),
        RCH(K, **small),
        MDRL(K, num_distributions=3),
        RegionContrast(K, bank_size=5),
        ContrastSeg(K, **small, memory=True, memory_size=5),
    ]
    return attach(network, regularizers, classifier="3", process_group=process_group).double()


def make_batch(rank, step):
    generator = torch.Generator().manual_seed(10 * step + rank)
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, K - rank, (2, 6, 6), generator=generator)
    labels[:, : 1 + rank] = 255
    return images, labels.repeat_interleave(2, 1).repeat_interleave(2, 2)


def whole(gradient):
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


def run(network, ranks):
    """Losses, whole gradients and the regularizers' state of some steps."""
    steps = []
    for step in range(STEPS):
        parts = [make_batch(rank, step) for rank in ranks]
        images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        network.zero_grad()  # before the forward: fully_shard has other parameters behind it
        output, losses = network(images, labels=labels)
        (sum(losses.values()) + output.square().mean()).backward()
        gradients = [whole(parameter.grad) for parameter in network.parameters()]
        steps.append(({key: loss.item() for key, loss in losses.items()}, gradients))
    return steps, {k: v.clone() for k, v in getattr(network, "module", network).named_buffers()}


def cases():
    ranks = [comm.get_rank()]
    mesh = dist.init_device_mesh("cpu", (2,))
    alone = [dist.new_group([rank]) for rank in range(2)][ranks[0]]
    one = make()
    fully_shard(one, mesh=mesh)
    parts = make()
    for module in (parts.model[0], parts.model[2], parts.model, parts):
        fully_shard(module, mesh=mesh)
    compiled = make()
    compiled.compile(backend="aot_eager")
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    half_network, half = make().float(), make().float()
    fully_shard(half_network.model, mesh=mesh, mp_policy=policy)
    fully_shard(half_network, mesh=mesh)
    fully_shard(half, mesh=mesh, mp_policy=policy)
    with pytest.raises(UserError) as raised:
        run(half, ranks)
    return {
        "error of half regularizers": str(raised.value),
        "network in bfloat16": run(half_network, ranks),
        "DistributedDataParallel": run(DistributedDataParallel(make()), ranks),
        "DistributedDataParallel, compiled": run(DistributedDataParallel(compiled), ranks),
        "group of both": run(DistributedDataParallel(make(dist.group.WORLD)), ranks),
        "fully_shard": run(one, ranks),
        "fully_shard of parts": run(parts, ranks),
        "group of one": run(make(alone), ranks),
    }


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_processes(cases, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    "case",
    [
        "DistributedDataParallel",
        "DistributedDataParallel, compiled",
        "group of both",
        "fully_shard",
        "fully_shard of parts",
    ],
)
def test_two_processes_equal_one(case, two_processes):
    expected, state = run(make(), [0, 1])
    results = [result[case] for result in two_processes]
    for step, (losses, gradients) in enumerate(expected):
        for key, value in losses.items():
            mean = sum(steps[step][0][key] for steps, _ in results) / 2
            assert mean == pytest.approx(value, rel=1e-9, abs=1e-12), key
        for steps, _ in results:
            for gradient, other in zip(steps[step][1], gradients, strict=True):
                assert (gradient - other).norm() <= 1e-5 * other.norm() + 1e-12
    for name, value in state.items():
        assert torch.equal(results[0][1][name], results[1][1][name]), name
        torch.testing.assert_close(results[0][1][name], value)


def test_a_group_of_one_process_is_that_process_alone(two_processes):
    for rank, result in enumerate(two_processes):
        (steps, state), (expected, expected_state) = result["group of one"], run(make(), [rank])
        for (losses, gradients), (other_losses, other_gradients) in zip(steps, expected, strict=True):
            assert losses == other_losses
            assert all(map(torch.equal, gradients, other_gradients))
        assert all(torch.equal(value, state[name]) for name, value in expected_state.items())


def test_a_policy_of_half_precision_is_for_the_network(two_processes):
    expected, _ = run(make(), [0, 1])
    results = [result["network in bfloat16"][0] for result in two_processes]
    for step, (losses, _) in enumerate(expected):
        for key, value in losses.items():
            mean = sum(steps[step][0][key] for steps in results) / 2
            assert mean == pytest.approx(value, rel=0.02, abs=1e-3), key
    for result in two_processes:
        error = result["error of half regularizers"]
        assert "pne: its parameter" in error
        assert "is torch.bfloat16 in the forward; expected torch.float32" in error
        assert "fully_shard(regularized.model, mp_policy=…), then fully_shard(regularized)" in error
