"""Training steps beside mmsegmentation's: the same networks, weights and input, in turns."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.mmsegmentation import PAIRS, VERSION, import_mmsegmentation, network_config
from regseg_d2.apps.costs.measuring import announce, interleaved_medians
from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.config.files import load_config
from regseg_d2.engine.optim import build_optimizer
from regseg_d2.engine.step import TrainingStep, amp_dtype
from regseg_d2.engine.trained_model import load_trained_model

NAMES = ("fcn_r50", "deeplabv3_r50", "upernet_swin_t", "ocrnet_hr18")
NUM_CLASSES, BATCH_SIZE = 19, 2
SIZE, CURVE_SIZE = 256, 128
_BLOCK = 32
#: Relative difference of losses up to which two networks are the same.
LARGEST_DIFFERENCE = 1e-5

#: Keys of each way to run a network here; the first is the network as it comes.
_CHANNELS_LAST = {"MODEL.CHANNELS_LAST": True}
_BF16 = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bf16"}
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, channels-last": _CHANNELS_LAST,
    "bf16": _BF16,
    "bf16, channels-last": {**_CHANNELS_LAST, **_BF16},
}
THEIRS = "mmsegmentation"

#: Both sides draw one optimizer's settings from here; transformers learn little with SGD.
_SGD = {"OPTIMIZER": "SGD", "BASE_LR": 0.01, "WEIGHT_DECAY": 5e-4, "WEIGHT_DECAY_NORM": 5e-4}
_ADAMW = {"OPTIMIZER": "AdamW", "BASE_LR": 6e-5, "WEIGHT_DECAY": 0.01, "WEIGHT_DECAY_NORM": 0.01}

Batch = list[dict[str, Tensor]]
Step = Callable[[Batch], float]


@dataclass(frozen=True)
class Network:
    """A network of mmsegmentation with the weights that it starts with, and where the same one is made here.

    Attributes:
        name: key of ``PAIRS``.
        theirs: the network.
        config_file: the config here.
        checkpoint: the weights of ``theirs``.
    """

    name: str
    theirs: nn.Module
    config_file: Path
    checkpoint: Path

    def config(self, way: str) -> CfgNode:
        """The config of a key of :data:`WAYS`."""
        solver = {f"SOLVER.{key}": value for key, value in solver_settings(self.name).items()}
        keys = {**solver, **WAYS[way], "MODEL.WEIGHTS": str(self.checkpoint)}
        flat = [str(item) for pair in keys.items() for item in pair]
        return load_config(str(self.config_file), [*PAIRS[self.name].options(), *flat])


def solver_settings(name: str) -> dict[str, Any]:
    """Optimizer, learning rate and decay of a network, without the prefix ``SOLVER``."""
    return _ADAMW if name in ("upernet_swin_t", "segformer_b0") else _SGD


def make_network(name: str, models: Path, folder: Path) -> Network:
    """Builds mmsegmentation's network and writes its weights and the config here.

    Args:
        name: key of ``PAIRS``.
        models: the folder ``configs/_base_/models``.
        folder: where to write.
    """
    from mmengine.logging import MMLogger
    from mmseg.registry import MODELS

    config = network_config(name)
    torch.manual_seed(0)
    theirs = MODELS.build(config)
    MMLogger.get_current_instance().setLevel("WARNING")  # the next line would list all parameters
    # Without it convolutions have torch's start, with which gradients through 50 layers of batch norm are so
    # badly conditioned that those of bf16 are noise.
    theirs.init_weights()
    checkpoint = folder / f"{name}.pth"
    torch.save({"state_dict": theirs.state_dict()}, checkpoint)
    return Network(name, theirs, PAIRS[name].write_config(models, folder), checkpoint)


def make_batch(size: int, seed: int = 0) -> Batch:
    """Random RGB images whose colours tell the classes, in blocks.

    No pixel is void: mmsegmentation divides the loss by the number of all pixels, this package by that of
    the others.
    """
    colours = torch.randint(0, 256, (NUM_CLASSES, 3), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for _ in range(BATCH_SIZE):
        blocks = torch.randint(0, NUM_CLASSES, (size // _BLOCK,) * 2, generator=generator)
        labels = blocks.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)
        noise = 40 * torch.randn(3, size, size, generator=generator)
        image = (colours[labels].permute(2, 0, 1) + noise).clamp(0, 255).to(torch.uint8)
        batch.append({"image": image, "sem_seg": labels})
    return batch


def their_step(model: nn.Module, settings: dict[str, Any], size: int) -> Step:
    """A training step as mmsegmentation's runner takes it; returns the loss.

    Args:
        model: the network.
        settings: see :func:`solver_settings`.
        size: side of the images.
    """
    from mmengine.optim import OptimWrapper
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    model.train()
    model.data_preprocessor.size = (size, size)
    common = {"lr": settings["BASE_LR"], "weight_decay": settings["WEIGHT_DECAY"]}
    if settings["OPTIMIZER"] == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, **common)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **common)
    wrapper = OptimWrapper(optimizer)

    def step(batch: Batch) -> float:
        samples = [SegDataSample(gt_sem_seg=PixelData(data=sample["sem_seg"][None])) for sample in batch]
        # It takes BGR, and makes RGB of it.
        data = {"inputs": [sample["image"].flip(0) for sample in batch], "data_samples": samples}
        return float(model.train_step(data, wrapper)["loss"].detach())

    return step


def our_model(cfg: CfgNode) -> nn.Module:
    """The network of a config with the weights of its checkpoint, ready to train."""
    return load_trained_model(cfg).model.train()


def our_step(cfg: CfgNode, model: nn.Module) -> Step:
    """A training step as this package's trainer takes it; returns the loss."""
    training = TrainingStep(model, build_optimizer(cfg, model), autocast_dtype=amp_dtype(cfg))
    return lambda batch: training.run(iter([batch])).total_loss


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Switches dropout and drop path off for a while."""
    rates = [
        (module, name)
        for module in model.modules()
        for name in ("p", "drop_prob")
        if isinstance(getattr(module, name, None), float)
    ]
    before = [getattr(module, name) for module, name in rates]
    try:
        for module, name in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for (module, name), rate in zip(rates, before, strict=True):
            setattr(module, name, rate)


def loss_difference(network: Network) -> float:
    """How far the two networks' losses of one batch differ, relative; dropout is off."""
    batch = make_batch(CURVE_SIZE)
    model = our_model(network.config("float32"))
    with torch.no_grad(), without_dropout(model):
        ours = float(sum(model(batch).values()))
    settings = {**solver_settings(network.name), "BASE_LR": 0.0, "WEIGHT_DECAY": 0.0}
    before = {key: value.clone() for key, value in network.theirs.state_dict().items()}
    with without_dropout(network.theirs):
        theirs = their_step(network.theirs, settings, CURVE_SIZE)(batch)
    network.theirs.load_state_dict(before)
    return abs(ours - theirs) / theirs


def benchmark_pair(network: Network, rounds: int) -> str:
    """Measures a training step of mmsegmentation's network and of ours in each way.

    Args:
        network: what to measure.
        rounds: timed rounds.

    Returns:
        A table of seconds and ratios to mmsegmentation's.
    """
    batch = make_batch(SIZE)
    steps = {THEIRS: their_step(network.theirs, solver_settings(network.name), SIZE)}
    for way in WAYS:
        cfg = network.config(way)
        steps[way] = our_step(cfg, our_model(cfg))
    seconds = interleaved_medians(
        {name: lambda step=step: step(batch) for name, step in steps.items()},  # type: ignore[misc]
        rounds,
        "cpu",
        network.name,
    )
    rows = [[name, f"{value:.3f}", f"{value / seconds[THEIRS]:.3f}"] for name, value in seconds.items()]
    return tabulate(rows, [network.name, "s a step", f"x {THEIRS}"], disable_numparse=True)


def benchmark_curves(network: Network, steps: int) -> str:
    """Trains a network here in each way, from the same weights, with two batches in turn, without dropout.

    (Its random numbers fall in the order of the memory, so channels-last would drop other features.)

    Args:
        network: what to train.
        steps: how long.

    Returns:
        A table of losses, means of ten steps each, and how far they differ at most from the first way's.
    """
    batches = [make_batch(CURVE_SIZE, seed) for seed in range(2)]
    curves, ends = {}, range(10, steps + 1, 10)
    for way in WAYS:
        cfg = network.config(way)
        model = our_model(cfg)
        step = our_step(cfg, model)
        with without_dropout(model):
            losses = [step(batches[number % 2]) for number in range(steps)]
        curves[way] = [statistics.fmean(losses[end - 10 : end]) for end in ends]
    first, *_ = curves.values()
    rows = []
    for way, curve in curves.items():
        difference = max(abs(loss - other) / other for loss, other in zip(curve, first, strict=True))
        rows.append([way, *(f"{loss:.4f}" for loss in curve), f"{100 * difference:.2f} %"])
    headers = [f"{network.name}, loss of 10 steps", *(f"to {end}" for end in ends), "largest difference"]
    return tabulate(rows, headers, disable_numparse=True)


def run(folder: str, models: Path, names: list[str], rounds: int, curve_steps: int) -> None:
    """Prints the tables of each network; everything runs on one thread of the CPU.

    Args:
        folder: where ``pip install --target`` put mmsegmentation, or "" if it is in this environment.
        models: the folder ``configs/_base_/models``.
        names: keys of ``PAIRS``.
        rounds: timed rounds.
        curve_steps: length of the loss curves; 0 for none.

    Raises:
        UserError: mmsegmentation is not there.
        ConfigError: a network is unknown, or a curve has no whole tens of steps.
        RuntimeError: a network differs from mmsegmentation's.
    """
    unknown = [name for name in names if name not in PAIRS]
    if unknown:
        raise ConfigError(f"--networks has {unknown}; expected some of {', '.join(PAIRS)}")
    if curve_steps < 0 or curve_steps % 10:
        raise ConfigError(f"--curve is {curve_steps}; expected a multiple of 10")
    if folder:
        # Behind this environment's packages, so that both sides have the same torch.
        sys.path.append(folder)
    try:
        import_mmsegmentation()
    except ImportError as error:
        raise UserError(
            f"mmsegmentation {VERSION} cannot be imported ({error}). Install it apart, and name the folder "
            f"with --mmsegmentation: pip install --no-deps --target FOLDER mmsegmentation=={VERSION} "
            "mmengine mmcv-lite addict yapf platformdirs ftfy regex prettytable wcwidth scipy"
        ) from error
    announce(rounds, "cpu")
    print(f"{BATCH_SIZE} x {SIZE}^2 pixels, {NUM_CLASSES} classes; forward, backward and update")
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            network = make_network(name, models, Path(temporary))
            difference = loss_difference(network)
            print(f"\n{name}: losses of one batch differ by {difference:.1e}, relative")
            if difference > LARGEST_DIFFERENCE:
                raise RuntimeError(f"{name} is not the same network on both sides: a bug of this package")
            print(benchmark_pair(network, rounds), flush=True)
            if curve_steps:
                print("\n" + benchmark_curves(network, curve_steps), flush=True)
