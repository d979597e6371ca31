"""The README's Python runs as it stands, and its commands name files that are there."""

import re
from pathlib import Path

import torch

from tests.helpers import small_batch

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "datasets" / "README.md",
]


def test_python_example_builds_a_model_with_cars_losses():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
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
