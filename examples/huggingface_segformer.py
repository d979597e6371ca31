"""SegFormer of Hugging Face's transformers with RCH and CAR.

Run it with ``python examples/huggingface_segformer.py --steps 20``. The network has random weights and the
images are drawn: nothing is downloaded. With ``from_pretrained`` in place of the config the rest is the same.
"""

import argparse

import torch
from torch import Tensor
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from regseg_d2.regularizers import CAR, RCH, attach

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
    """Trains for some steps, and predicts."""
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=NUM_CLASSES, depths=[1, 1, 1, 1], decoder_hidden_size=64, semantic_loss_ignore_index=VOID
    )
    network = SegformerForSemanticSegmentation(config)
    # The classifier reads what a dropout leaves; the feature before the dropout is the better one.
    model = attach(
        network,
        [CAR(NUM_CLASSES), RCH(NUM_CLASSES)],
        classifier="decode_head.classifier",
        features="decode_head.dropout:in",
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    model.train()
    for step in range(steps):
        images, labels = draw_batch(step)
        # The network takes labels itself, and returns its own loss.
        output, losses = model(pixel_values=images, labels=labels)
        losses["loss_segformer"] = output.loss
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print(f"step {step}:", {name: round(loss.item(), 4) for name, loss in losses.items()})

    model.eval()
    predicted = model(pixel_values=draw_batch(0)[0]).logits.argmax(1)
    print("predicted classes:", predicted.unique().tolist())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    main(parser.parse_args().steps)
