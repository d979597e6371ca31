"""A LightningModule with RegionContrast and MDRL on torchvision's DeepLabV3 with MobileNetV3.

Run it with ``python examples/lightning_module.py --steps 20``; it draws its own images. Checkpoints hold the
memories of the regularizers, too, so that a training goes on as it was.
"""

import argparse

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from regseg_d2.regularizers import MDRL, RegionContrast, attach

NUM_CLASSES, VOID = 5, 255


def draw_scene(number: int) -> tuple[Tensor, Tensor]:
    """An image (3, 64, 64) of fields whose brightness is their class, and labels (64, 64)."""
    generator = torch.Generator().manual_seed(number % 8)
    labels = torch.randint(0, NUM_CLASSES, (2, 2), generator=generator)
    labels = labels.repeat_interleave(32, 0).repeat_interleave(32, 1)
    image = labels - 2 + 0.2 * torch.randn(3, 64, 64, generator=generator)
    labels[:3] = VOID
    return image, labels


class RegularizedDeepLabV3(lightning.LightningModule):
    """Cross entropy and the losses of two regularizers."""

    def __init__(self) -> None:
        super().__init__()
        network = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)
        regularizers = [RegionContrast(NUM_CLASSES), MDRL(NUM_CLASSES)]
        self.model = attach(network, regularizers, classifier="classifier.4")

    def training_step(self, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        """Logs all losses, and returns their sum."""
        images, labels = batch
        output, losses = self.model(images, labels=labels)
        losses["loss_cross_entropy"] = F.cross_entropy(output["out"], labels, ignore_index=VOID)
        self.log_dict(losses)
        print(f"step {step}:", {name: round(loss.item(), 4) for name, loss in losses.items()})
        return sum(losses.values())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Trains the network, and what regularizers have of parameters."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    loader = DataLoader([draw_scene(number) for number in range(2 * steps)], batch_size=2)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(RegularizedDeepLabV3(), loader)
