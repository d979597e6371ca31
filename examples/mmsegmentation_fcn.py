"""FCN of mmsegmentation with CAR and PNE.

Run it with ``python examples/mmsegmentation_fcn.py --steps 20`` where mmsegmentation 1.x is installed;
it draws its own images.
"""

import argparse

import torch
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import Tensor

from regseg_d2.regularizers import CAR, PNE, attach

NUM_CLASSES, VOID = 5, 255
BATCH_NORM = {"type": "BN"}
STRIDES = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}
BACKBONE = {"type": "ResNetV1c", "depth": 18, "norm_cfg": BATCH_NORM, **STRIDES}
SIZES = {"in_channels": 512, "in_index": 3, "channels": 64, "num_classes": NUM_CLASSES}
HEAD = {"type": "FCNHead", "norm_cfg": BATCH_NORM, **SIZES}


def draw_batch(step: int) -> tuple[Tensor, Tensor]:
    """Images (2, 3, 64, 64) of fields whose brightness is their class, and labels (2, 64, 64)."""
    generator = torch.Generator().manual_seed(step % 4)
    labels = torch.randint(0, NUM_CLASSES, (2, 2, 2), generator=generator)
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
    images = labels.unsqueeze(1) - 2 + 0.2 * torch.randn(2, 3, 64, 64, generator=generator)
    labels[:, :3] = VOID
    return images, labels


def main(steps: int) -> None:
    """Trains for some steps."""
    torch.manual_seed(0)
    register_all_modules()
    network = MODELS.build({"type": "EncoderDecoder", "backbone": BACKBONE, "decode_head": HEAD})
    # All heads of mmsegmentation call their classifier conv_seg, and the dropout before it dropout.
    classifier, features = "decode_head.conv_seg", "decode_head.dropout:in"
    regularizers = [CAR(NUM_CLASSES), PNE(NUM_CLASSES)]
    model = attach(network, regularizers, classifier=classifier, features=features)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    model.train()
    for step in range(steps):
        images, labels = draw_batch(step)
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label.unsqueeze(0))) for label in labels]
        own_losses, losses = model(images, samples, mode="loss", labels=labels)
        losses["decode.loss_ce"] = own_losses["decode.loss_ce"]
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print(f"step {step}:", {name: round(loss.item(), 4) for name, loss in losses.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    main(parser.parse_args().steps)
