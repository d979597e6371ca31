"""torchvision's DeepLabV3 with CAR and ContrastSeg, in a plain training loop.

Run it with ``python examples/torchvision_deeplabv3.py --steps 20``; it draws its own images.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.segmentation import deeplabv3_resnet50

from regseg_d2.regularizers import CAR, ContrastSeg, attach

NUM_CLASSES, VOID = 5, 255


def make_network() -> torch.nn.Module:
    """The network of torchvision, with random weights."""
    return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)


def draw_batch(step: int) -> tuple[Tensor, Tensor]:
    """Images (2, 3, 64, 64) of fields whose brightness is their class, and labels (2, 64, 64)."""
    generator = torch.Generator().manual_seed(step % 4)
    labels = torch.randint(0, NUM_CLASSES, (2, 2, 2), generator=generator)
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
    images = labels.unsqueeze(1) - 2 + 0.2 * torch.randn(2, 3, 64, 64, generator=generator)
    labels[:, :3] = VOID
    return images, labels


def main(steps: int) -> None:
    """Trains for some steps, and gives the weights back to a network without regularizers."""
    torch.manual_seed(0)
    # What the last convolution of the head reads is regularized; what it puts out are the logits.
    regularizers = [CAR(NUM_CLASSES), ContrastSeg(NUM_CLASSES)]
    model = attach(make_network(), regularizers, classifier="classifier.4")
    # The optimizer comes after attach: ContrastSeg has parameters of its own.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    model.train()
    for step in range(steps):
        images, labels = draw_batch(step)
        output, losses = model(images, labels=labels)
        losses["loss_cross_entropy"] = F.cross_entropy(output["out"], labels, ignore_index=VOID)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print(f"step {step}:", {name: round(loss.item(), 4) for name, loss in losses.items()})

    model.eval()  # from here on it is torchvision's network, bit for bit
    make_network().load_state_dict(model.plain_state_dict())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    main(parser.parse_args().steps)
