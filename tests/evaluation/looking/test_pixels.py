"""Pixels that are sampled with their features: by one process, by several, and from a network."""

import numpy as np
import pytest
import torch
from torch import nn

from regseg_d2.evaluation.inference.network import cell_size
from regseg_d2.evaluation.looking.pixels import (
    FRAME,
    FeaturePredictor,
    PixelSampler,
    UnreadableFeature,
    draw_thumbnails,
)
from regseg_d2.evaluation.looking.sampling import pixel_keys
from tests.distributed.launching import run_processes
from tests.helpers import small_cfg

COLORS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [9, 9, 9]], dtype=np.uint8)
VOID = 255
SIZES = [(20, 30), (17, 9), (6, 40), (25, 25), (11, 13)]


def make_image(number):
    """A sample, its label with void, and what a network puts out at a stride of 4."""
    rng = np.random.default_rng(number)
    height, width = SIZES[number]
    label = rng.choice([0, 1, VOID] if number else [0, 1, 2, VOID], size=(height, width))  # 3 is nowhere
    sample = {
        "image": torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8)),
        "file_name": f"/data/{number}.png",
        "image_id": f"val/{number}",
        "label": label,
    }
    cells = (-(-height // 4), -(-width // 4))
    output = {
        "sem_seg_labels": torch.from_numpy(rng.integers(0, 4, (height, width)).astype(np.uint8)),
        "feature": torch.from_numpy(rng.normal(size=(5, *cells)).astype(np.float32)),
        "cell_size": (4.0, 4.0),
    }
    return sample, output


def sampler(**options):
    return PixelSampler(
        lambda sample: sample["label"], COLORS, **{"pixels_per_class": 7, "seed": 3} | options
    )


def sampled(numbers, **options):
    of_process = sampler(**options)
    for number in numbers:
        sample, output = make_image(number)
        of_process.process([sample], [output])
    return of_process.evaluate()


def half_of_the_images():
    from detectron2.utils import comm

    return sampled([0, 1, 2] if comm.get_rank() == 0 else [3, 4])


def one_process_has_no_image_and_the_other_none_with_a_class():
    from detectron2.utils import comm

    empty = sampler()
    if comm.get_rank() == 1:
        sample, output = make_image(0)
        empty.process([{**sample, "label": np.full(SIZES[0], VOID)}], [output])
    return empty.evaluate()


def one_process_cannot_read_its_feature():
    from detectron2.utils import comm

    broken = sampler()
    if comm.get_rank() == 1:
        broken.process([make_image(0)[0]], [{"problem": "it ran twice"}])
    try:
        return broken.evaluate()
    except UnreadableFeature as error:
        return str(error)


def reference(most):
    """The pixels of the lowest keys of each class, one by one."""
    found = []
    for k in range(4):
        pixels = []
        for number, (height, width) in enumerate(SIZES):
            sample, output = make_image(number)
            keys = pixel_keys(3, f"val/{number}", (height, width))
            for y in range(height):
                for x in range(width):
                    if sample["label"][y, x] == k:
                        feature = output["feature"][:, y // 4, x // 4].tolist()
                        predicted = int(output["sem_seg_labels"][y, x])
                        pixels.append((int(keys[y, x]), f"val/{number}", y, x, k, predicted, feature))
        found += sorted(pixels)[:most]
    return [pixel[1:] for pixel in found]


def listed(pixels):
    columns = (pixels.image, pixels.y, pixels.x, pixels.label, pixels.predicted, pixels.features)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("order", [range(5), [3, 0, 4, 2, 1]])
def test_the_pixels_of_the_lowest_keys_with_the_features_of_their_cells(order):
    pixels = sampled(order)
    assert listed(pixels) == reference(7)
    assert np.bincount(pixels.label, minlength=4).tolist() == [7, 7, 7, 0]
    assert len(set(pixels.image[pixels.label < 2])) > 2


def test_so_many_pixels_in_all_as_many_of_each_class():
    pixels = sampled(range(5), most=13)
    expected = reference(7)
    assert listed(pixels) == [pixel for k in range(3) for pixel in expected[7 * k : 7 * k + 4]]


def test_a_class_with_few_pixels_gives_all():
    pixels = sampled([0], pixels_per_class=1000)
    labels = make_image(0)[0]["label"]
    assert np.bincount(pixels.label, minlength=4).tolist() == [int((labels == k).sum()) for k in range(4)]


@pytest.mark.slow
def test_two_processes_sample_what_one_does(tmp_path):
    first, second = run_processes(half_of_the_images, 2, tmp_path)
    alone = sampled(range(5))
    assert second is None
    assert listed(first) == listed(alone)
    assert np.array_equal(first.thumbnails, alone.thumbnails)


@pytest.mark.slow
def test_processes_without_pixels_or_with_a_problem_agree(tmp_path):
    assert run_processes(one_process_has_no_image_and_the_other_none_with_a_class, 2, tmp_path) == [None] * 2
    assert run_processes(one_process_cannot_read_its_feature, 2, tmp_path) == ["it ran twice"] * 2


def test_nothing_to_sample_and_reset():
    assert sampler().evaluate() is None
    used = sampler()
    used.process(*([each] for each in make_image(0)))
    used.reset()
    assert used.evaluate() is None


# ----------------------------------------------------------------------------------------- thumbnails


def framed(picture, color):
    inner = picture[FRAME:-FRAME, FRAME:-FRAME]
    return np.pad(inner - np.array(color), ((FRAME, FRAME), (FRAME, FRAME), (0, 0))) + np.array(color)


def test_thumbnails_of_a_small_image_go_on_beyond_its_border():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    centers = np.array([[20, 25], [0, 49], [39, 0]])
    drawn = draw_thumbnails(image, centers, COLORS[:3])
    padded = np.pad(image, ((16, 16), (16, 16), (0, 0)), mode="edge").astype(int)
    for thumbnail, (row, column), color in zip(drawn, centers, COLORS[:3], strict=True):
        around = padded[row : row + 32, column : column + 32]
        assert np.array_equal(around[16, 16], image[row, column])
        assert np.array_equal(thumbnail, framed(around, color.astype(int)))


def test_thumbnails_of_a_large_image_show_a_quarter_of_it():
    image = np.random.default_rng(0).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    thumbnail = draw_thumbnails(image, np.array([[100, 300]]), COLORS[:1])[0].astype(int)
    means = image.astype(float).reshape(128, 2, 256, 2, 3).mean(axis=(1, 3))
    around = means[50 - 16 : 50 + 16, 150 - 16 : 150 + 16]
    assert np.abs(thumbnail - around)[FRAME:-FRAME, FRAME:-FRAME].max() <= 0.5
    assert (thumbnail[:, 0] == COLORS[0]).all() and (thumbnail[-1] == COLORS[0]).all()


def test_thumbnails_are_of_the_image_in_rgb_at_its_own_size():
    """The label is twice as large as the image, whose channels are in another order."""
    sample, output = make_image(0)
    label = np.full((40, 60), VOID)
    label[31, 11] = 1
    large = {
        "sem_seg_labels": torch.zeros(40, 60, dtype=torch.uint8),
        "feature": output["feature"],
        "cell_size": (8.0, 8.0),
    }
    one = sampler(image_format="BGR")
    one.process([{**sample, "label": label}], [large])
    pixels = one.evaluate()
    image = sample["image"].flip(0).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels.thumbnails[0, 16, 16], image[15, 5])
    assert pixels.features[0].tolist() == output["feature"][:, 3, 1].tolist()
    assert (pixels.thumbnails[0, 0] == COLORS[1]).all()


# ------------------------------------------------------------------------------------------- networks


def test_prediction_and_feature_are_of_one_forward_pass_of_the_padded_image():
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    model = build_model(small_cfg("FCN")).eval()
    calls = []
    model.backbone.register_forward_hook(lambda module, args, result: calls.append(args[0].shape))
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    taken = []
    handle = model.sem_seg_head.predictor.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    (output,) = FeaturePredictor(model, "sem_seg_head.predictor:in")(
        [{"image": image, "height": 50, "width": 70}]
    )
    handle.remove()
    assert [tuple(shape) for shape in calls] == [(1, 3, 64, 80)]  # a stride of 16
    assert torch.equal(output["feature"], taken[0][0])
    height, width = output["feature"].shape[1:]
    assert output["cell_size"] == (64 / height, 80 / width)
    with torch.no_grad():
        scores = model([{"image": image, "height": 50, "width": 70}])[0]["sem_seg"]
    assert torch.equal(output["sem_seg_labels"].long(), scores.argmax(dim=0))


def test_cells_of_a_padded_image_in_pixels_of_its_label():
    class Padded(nn.Module):
        def padded_size(self, height, width):
            return height + 10, width + 20

    model = nn.Module()
    assert cell_size(model, (50, 70), (5, 7), (50, 70)) == (10, 10)
    model.backbone = nn.Module()
    model.backbone.size_divisibility = 32
    assert cell_size(model, (50, 70), (2, 3), (50, 70)) == (32, 32)
    assert cell_size(model, (50, 70), (2, 3), (100, 35)) == (64, 16)
    assert cell_size(Padded(), (50, 70), (6, 9), (50, 70)) == (10, 10)


def test_a_module_that_runs_twice_is_a_problem_of_all_processes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 4, 1)

        def forward(self, inputs):
            image = inputs[0]["image"][None].float()
            return [{"sem_seg": (self.head(image) + self.head(image))[0]}]

    (output,) = FeaturePredictor(Twice().eval(), "head:in")([{"image": make_image(0)[0]["image"]}])
    assert "its module ran twice or more in one forward pass" in output["problem"]
    one = sampler()
    one.process([make_image(0)[0]], [output])
    with pytest.raises(UnreadableFeature, match="'head:in': its module ran twice"):
        one.evaluate()
