"""A network of transformers from the command line, and resumed: to the bit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from regseg_d2.config.files import load_config
from regseg_d2.data.images import read_image
from regseg_d2.engine.trainer import Trainer
from regseg_d2.weights.reading import load_file
from tests.engine.runs import ROOT, finish, same_end, start, train
from tests.engine.toys import train_or_die

pytestmark = pytest.mark.slow

CONFIG = ROOT / "configs" / "hf" / "cooccurrence_mask2former.yaml"
KEYS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.HUGGINGFACE.CONFIG.train_num_points": 64,
    "MODEL.HUGGINGFACE.CONFIG.decoder_layers": 2,
    "MODEL.REGULARIZERS.NAMES": ["CAR", "ContrastSeg"],
    "INPUT.CROP.SIZE": [64, 64],
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "DATASETS.TEST": [],
}


def options(folder, **keys):
    merged = {**KEYS, "OUTPUT_DIR": str(folder), **keys}
    return [item for key, value in merged.items() for item in (key, value)]


def test_mask2former_killed_and_resumed_is_the_same_run_bit_for_bit(tmp_path):
    def run(folder, *, kill_at=None, resume=False):
        trainer = Trainer(load_config(str(CONFIG), options(folder)))
        trainer.resume_or_load(resume=resume)
        return train_or_die(trainer, kill_at)

    run(tmp_path / "straight")
    run(tmp_path / "killed", kill_at=4)
    torch.rand(17)  # the state of the global generators must not matter
    assert run(tmp_path / "killed", resume=True).start_iter == 3
    assert same_end(tmp_path / "straight", tmp_path / "killed")


def test_from_the_command_line(tmp_path):
    run = tmp_path / "run"
    arguments = [str(item) for item in options(run)]
    finish(train(CONFIG, *arguments))
    final = run / "model_final.pth"
    weights = load_file(str(final))["model"]
    assert {key.partition(".")[0] for key in weights} == {"network", "regularizers"}
    # A resume of what is done trains no further.
    finish(train(CONFIG, "--resume", *arguments))
    again = load_file(str(final))["model"]
    assert all(torch.equal(value, again[key]) for key, value in weights.items())
    evaluated = [*arguments, "MODEL.WEIGHTS", str(final), "DATASETS.TEST", "['cooccurrence_val']"]
    finish(train(CONFIG, "--eval-only", *evaluated))
    scores = json.loads((run / "evaluation" / "cooccurrence_val.json").read_text())
    assert 0 <= scores["metrics"]["mIoU"] <= 100

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (61, 77, 3), np.uint8)).save(pictures / "a.png")
    demo = ("tools/demo.py", "--config-file", CONFIG, "--input", pictures, "--output", tmp_path / "out")
    finish(start(*demo, *arguments, "MODEL.WEIGHTS", final))
    (written,) = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".png", ".jpg")][:1]
    assert read_image(str(written)).size
