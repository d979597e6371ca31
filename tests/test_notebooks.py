"""The notebooks of examples/notebooks run as they stand, from the first cell to the last."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
# What a notebook has to print, beside pictures in number.
EXPECTED = {
    "regularizer_in_pytorch": (["baseline", "ContrastSeg"], 3),
    "run_to_figures": (["model_final.pth", "mean confidence", "scores.png"], 3),
}
pytestmark = pytest.mark.slow


def test_all_are_tested():
    assert {path.stem for path in NOTEBOOKS} == set(EXPECTED)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type != "code" else cell.update(outputs=[])
    # An error in a cell is one here.
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1100, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = "".join(output.text for output in outputs if output.output_type == "stream")
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    words, number = EXPECTED[path.stem]
    assert all(word in texts for word in words), texts
    assert pictures == number
