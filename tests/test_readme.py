"""Python of the README and of the page for users of other packages, run as it stands."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
import transformers

from tests.helpers import small_batch

ROOT = Path(__file__).parent.parent


def python_of_the_readme():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_first_lines_of_python_regularize_a_network():
    first, _ = python_of_the_readme()
    names = {
        "network": torchvision.models.segmentation.fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=19
        ),
        "images": torch.rand(2, 3, 64, 64),
        "labels": torch.randint(19, (2, 64, 64)),
    }
    exec(compile(first, "README.md", "exec"), names)
    assert names["output"]["out"].shape == (2, 19, 64, 64)
    assert names["losses"]["loss_contrast_seg_contrast"] > 0


def test_python_example_builds_a_model_with_cars_losses():
    _, code = python_of_the_readme()
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    torch.manual_seed(0)
    losses = names["model"](small_batch(2, size=(512, 512)))
    assert set(losses) == {"loss_sem_seg", "loss_car_intra_c2p", "loss_car_inter_c2c", "loss_car_inter_c2p"}


@pytest.mark.parametrize("number", [0, 1])
def test_python_of_the_page_for_users_of_others_regularizes_their_networks(number, monkeypatch):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "from_others.md").read_text(), flags=re.DOTALL
    )
    assert len(blocks) == 2
    small = transformers.SegformerConfig(num_labels=19)
    network = transformers.SegformerForSemanticSegmentation(small)  # the hub is out of reach
    monkeypatch.setattr(
        transformers.SegformerForSemanticSegmentation, "from_pretrained", lambda *a, **k: network
    )
    code = blocks[number].replace('smp.Unet("resnet34", ', 'smp.Unet("resnet34", encoder_weights=None, ')
    names = {}
    exec(compile(code, "from_others.md", "exec"), names)
    images, labels = torch.rand(2, 3, 64, 64), torch.randint(19, (2, 64, 64))
    logits, losses = names["model"].train()(images, labels=labels)
    assert set(losses) == {"loss_contrast_seg_contrast"}
    assert losses["loss_contrast_seg_contrast"] > 0
    if number == 1:
        assert logits.loss > 0
