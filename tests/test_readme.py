"""The README's Python runs as it stands, and its commands name files that are there."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torchvision
import transformers

from regseg_d2.commands.regseg import COMMANDS
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.keys import flatten_config
from tests.helpers import small_batch

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "datasets" / "README.md",
]


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


def test_files_and_links_in_the_documents_exist():
    found = 0
    for document in DOCUMENTS:
        text = document.read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
            found += 1
        for path in re.findall(r"\b((?:tools|configs|datasets)/[\w./-]+\.(?:py|yaml))", text):
            if "example" not in path:
                assert (ROOT / path).exists(), f"{document.name}: {path}"
                found += 1
    assert found > 10


def known_keys():
    """All keys and sections of the config."""
    keys = set()
    for key in flatten_config(get_regseg_cfg()):
        parts = key.split(".")
        keys |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    # A user's own, and sections that begin empty.
    return keys | {"MODEL.REGULARIZERS.CenterLoss", "MODEL.TIMM.OPTIONS", "MODEL.HUGGINGFACE.CONFIG"}


def test_keys_in_the_documents_exist():
    keys, found = known_keys(), 0
    for document in DOCUMENTS:
        text = document.read_text()
        for key in re.findall(r"`((?:MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER)\.[A-Za-z0-9_.]+)", text):
            assert key.rstrip(".") in keys, f"{document.name}: {key}"
            found += 1
    assert found > 300


def test_commands_in_the_documents_are_commands():
    found = 0
    for document in DOCUMENTS:
        for command in re.findall(r"^regseg .*$", document.read_text(), flags=re.MULTILINE):
            assert shlex.split(command.partition("#")[0])[1] in [*COMMANDS, "--help"], command
            found += 1
    assert found >= 2


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
