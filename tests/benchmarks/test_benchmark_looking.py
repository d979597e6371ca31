"""The benchmark of looking at a network, on few small images."""

import numpy as np
import torch

from benchmarks.looking import LookingCase, make_views, run, seconds_per_image

SMALL = LookingCase(num_classes=20, size=(96, 130), channels=8, images=3)


def test_images_are_those_that_are_described():
    views = list(make_views(LookingCase(images=2)))
    assert [view.name for view in views] == ["000000.png", "000001.png"]
    for view in views:
        assert view.scores.shape == (150, 512, 683) and view.feature.shape == (512, 64, 86)
        valid = view.label >= 0
        assert 0.8 < valid.double().mean() < 0.98
        assert 5 < len(torch.unique(view.label)) <= 13
        assert 0.65 < (view.predicted == view.label)[valid].double().mean() < 0.85
    again = next(make_views(LookingCase(images=1)))
    assert torch.equal(again.scores, views[0].scores) and not torch.equal(views[0].scores, views[1].scores)


def test_every_image_is_looked_at(capsys):
    assert np.array(seconds_per_image(SMALL)).shape == (3,)
    run(SMALL)
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [int(row[0]) for row in table] == [3, 12]
    assert all(float(value) >= 0 for row in table for value in row)
