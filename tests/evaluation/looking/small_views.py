"""Views of small random images."""

import numpy as np
import torch

from regseg_d2.evaluation.looking.views import View


def make_view(
    size, cells, cell_size, *, name="a/b.png", num_classes=5, channels=4, seed=0, scale=2.0, absent=()
):
    """A view with void, right and wrong pixels; the classes ``absent`` are not in the label."""
    rng = np.random.default_rng([seed, *name.encode()])
    present = [k for k in range(-1, num_classes) if k not in absent]
    label = rng.choice(present, size=size)
    scores = scale * rng.normal(size=(num_classes, *size))
    # Half of the pixels lean to their class.
    y, x = np.nonzero((label >= 0) & (rng.random(size) < 0.5))
    scores[label[y, x], y, x] += 2 * scale
    return View(
        name=name,
        pixels=rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        label=torch.from_numpy(label.astype(np.int64)),
        scores=torch.from_numpy(scores.astype(np.float32)),
        feature=torch.from_numpy(rng.normal(size=(channels, *cells)).astype(np.float32)) + 0.3,
        cell_size=cell_size,
    )
