"""The U-Net of segmentation_models_pytorch with CAR and PNE, each at a place of its own.

Run it with ``python examples/smp_unet.py --steps 20``; it draws its own images.
"""

import argparse

import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from regseg_d2.regularizers import CAR, PNE, attach

NUM_CLASSES, VOID = 5, 255


def draw_batch(step: int) -> tuple[Tensor, Tensor]:
    """Images (2, 3, 64, 64) of fields whose brightness is their class, and labels (2, 64, 64)."""
    generator = torch.Generator().manual_seed(step % 4)
    labels = torch.randint(0, NUM_CLASSES, (2, 2, 2), generator=generator)
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
    images = labels.unsqueeze(1) - 2 + 0.2 * torch.randn(2, 3, 64, 64, generator=generator)
    labels[:, :3] = VOID
    return images, labels


def main(steps: int) -> None:
    """Trains for some steps, and says where the regularizers listened."""
    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, classes=NUM_CLASSES)
    # PNE reads the input and the output of the classifier. CAR is given another place: the third block of the
    # decoder. `print(network)` shows the paths; a wrong one is an error that lists near ones.
    car = CAR(NUM_CLASSES, feature_tap="decoder.blocks.2:out")
    model = attach(network, [car, PNE(NUM_CLASSES)], classifier="segmentation_head.0")
    criterion = smp.losses.DiceLoss("multiclass", ignore_index=VOID)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    model.train()
    for step in range(steps):
        images, labels = draw_batch(step)
        logits, losses = model(images, labels=labels)
        losses["loss_dice"] = criterion(logits, labels)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print(f"step {step}:", {name: round(loss.item(), 4) for name, loss in losses.items()})

    for name, regularizer in model.regularizers.items():
        print(f"{name} listens at {regularizer.feature_tap}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    main(parser.parse_args().steps)
