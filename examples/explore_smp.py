"""Two U-Nets of segmentation_models_pytorch, without and with CAR, and a page of what they have learnt.

Run it with ``python examples/explore_smp.py --steps 60 --output explored``, and open ``explored/page.html``.
It draws its own images.
"""

import argparse

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor

from regseg_d2.apps.explore.exploration import explore
from regseg_d2.apps.explore.networks import LabelledPicture, NetworkSource, look_through
from regseg_d2.apps.explore.study import Options
from regseg_d2.regularizers import CAR, attach

CLASSES = ["night", "dusk", "day", "noon"]


def draw(number: int) -> LabelledPicture:
    """A picture of four fields whose brightness is their class, in noise."""
    random = np.random.default_rng(number)
    label = np.kron(random.permutation(4).reshape(2, 2), np.ones((32, 32), dtype=np.int64))
    noise = random.normal(0, 40, (64, 64, 3))
    pixels = np.clip(50 + 50 * label[..., None] + noise, 0, 255).astype(np.uint8)
    return LabelledPicture(f"{number:03d}.png", pixels, label)


def to_input(pixels: np.ndarray) -> Tensor:
    """What the network reads of a picture."""
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).unsqueeze(0) / 128 - 1


def train(regularizers: list[CAR], steps: int) -> torch.nn.Module:
    """Trains a network, and returns it without its regularizers."""
    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, classes=len(CLASSES))
    model = attach(network, regularizers, classifier="segmentation_head.0")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for step in range(steps):
        pictures = [draw(1000 + 2 * step), draw(1001 + 2 * step)]
        labels = torch.from_numpy(np.stack([picture.label for picture in pictures]))
        logits, losses = model(torch.cat([to_input(picture.pixels) for picture in pictures]), labels=labels)
        losses["loss_cross_entropy"] = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return network


def main(steps: int, output: str) -> None:
    """Trains both networks, and shows them on other pictures."""
    pictures = [draw(number) for number in range(16)]
    sources = [
        NetworkSource(name, CLASSES, pictures, look_through(network, "segmentation_head.0:in", to_input))
        for name, network in (("U-Net", train([], steps)), ("U-Net with CAR", train([CAR(4)], steps)))
    ]
    explore(sources, output, Options(images=6, pixels_per_class=50), title="U-Net without and with CAR")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", default="explored")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.output)
