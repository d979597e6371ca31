"""INPUT.AUGMENTATIONS: Detectron2's augmentations, ours and a user's, on image and label alike."""

import random
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import format_config, load_config
from regseg_d2.data.augmentation_list import PairAugmentations, build_augmentations
from regseg_d2.data.augmentations import AUGMENTATION, BlurTransform, CutPaste, GaussianNoise
from regseg_d2.data.loader import build_train_loader
from regseg_d2.data.mapper import TrainMapper
from tests.data.data_helpers import registered, toy_cfg, toy_spec, write_toy

PLAIN = {"INPUT__SCALE_RANGE": [1.0, 1.0], "INPUT__RANDOM_FLIP": "none", "INPUT__CROP__ENABLED": False}


@pytest.fixture
def toy(tmp_path):
    write_toy(tmp_path)
    with registered(toy_spec(tmp_path)):
        yield toy_spec(tmp_path).load()


def made(entries, seed=0, ignore_value=255):
    before, behind = build_augmentations(entries)
    return PairAugmentations([*before, *behind], seed=seed, part=0, ignore_value=ignore_value)


def picture(size=(40, 60), classes=4, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return image, rng.integers(0, classes, size).astype(dtype)


def mapped(record, number=0, seed=0, **keys):
    sample = TrainMapper(toy_cfg(**keys), seed=seed)(record, number)
    return sample["image"].permute(1, 2, 0).numpy(), sample["sem_seg"].numpy()


@pytest.mark.parametrize("axis", [0, 1])
def test_flips_turn_image_and_label(axis):
    entry = {"NAME": "RandomFlip", "prob": 1.0, "vertical": axis == 0, "horizontal": axis == 1}
    image, label = picture()
    flipped, turned = made([entry]).apply(image, label, 3)
    np.testing.assert_array_equal(flipped, np.flip(image, axis))
    np.testing.assert_array_equal(turned, np.flip(label, axis))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("ignore_value", [255, -1, 70000])
def test_what_a_rotation_fills_in_is_void(dtype, ignore_value):
    """Each pixel of the label comes from where the rotation says, or is void; no class is made up."""
    image, label = picture((31, 41), 4 if dtype == np.uint8 else 60000, dtype, seed=1)
    rotation = made([{"NAME": "RandomRotation", "angle": [30, 30]}], ignore_value=ignore_value)
    turned_image, turned = rotation.apply(image, label, 0)
    transform = T.RandomRotation([30, 30]).get_transform(image)
    height, width = turned.shape
    assert turned_image.shape == (height, width, 3) and height > 31 and width > 41
    # Independent of OpenCV's warp: the centre of each pixel, turned back by 30 degrees.
    angle = np.deg2rad(30)
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    old_x, old_y = x * np.cos(angle) - y * np.sin(angle) + 20, x * np.sin(angle) + y * np.cos(angle) + 15
    inside = (old_x > 1.5) & (old_x < 38.5) & (old_y > 1.5) & (old_y < 28.5)
    outside = (old_x < -2) | (old_x > 42) | (old_y < -2) | (old_y > 32)
    assert transform.bound_w == width and inside.sum() > 800 and outside.sum() > 400
    assert (turned[outside] == ignore_value).all() and (turned[inside] != ignore_value).all()
    # Rounding at the edge between two pixels may go either way: one of the four around it.
    around = [
        label[np.floor(old_y[inside] + dy).astype(int), np.floor(old_x[inside] + dx).astype(int)]
        for dy in (-0.5, 0, 0.5, 1, 1.5)
        for dx in (-0.5, 0, 0.5, 1, 1.5)
    ]
    assert (np.stack(around) == turned[inside]).any(0).all()


@pytest.mark.parametrize(
    "entry",
    [
        {"NAME": "RandomExtent", "scale_range": [1.5, 1.5], "shift_range": [0, 0]},
        {"NAME": "FixedSizeCrop", "crop_size": [60, 70], "seg_pad_value": 0},
        {"NAME": "RandomRotation", "angle": [45, 45], "expand": False},
    ],
)
def test_no_class_is_made_up(entry):
    image, label = picture()
    _, moved = made([entry]).apply(image, np.ones_like(label), 0)
    assert set(np.unique(moved)) == {1, 255}
    # What was void stays so, and nothing else becomes it where nothing moves.
    label[3] = 255
    _, same = made([{"NAME": "RandomBrightness", "intensity_min": 0.5, "intensity_max": 0.6}]).apply(
        image, label, 0
    )
    np.testing.assert_array_equal(same, label)


def test_only_seed_and_number_matter_and_the_global_state_stays():
    entries = [
        {"NAME": "RandomRotation", "angle": [-20, 20]},
        {"NAME": "GaussianBlur"},
        {"NAME": "RandomApply", "tfm_or_aug": {"NAME": "GaussianNoise", "prob": 1.0}, "prob": 0.7},
        {"NAME": "CutPaste", "classes": [1, 2], "min_pixels": 1},
        {"NAME": "RandomLighting", "scale": 30.0},
    ]
    image, label = picture()
    first = [made(entries).apply(image, label, number) for number in range(6)]
    for source in (np.random.seed, random.seed, torch.manual_seed):
        source(5)
    np_state, state, torch_state = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
    again = made(entries)
    for number in reversed(range(6)):
        for old, new in zip(first[number], again.apply(image, label, number), strict=True):
            np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(np.random.get_state()[1], np_state)
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert len({pixels.tobytes() for pixels, _ in first}) == 6
    assert made(entries, seed=1).apply(image, label, 0)[0].tobytes() != first[0][0].tobytes()


def test_what_else_is_drawn_stays(toy):
    """Scale, crop, jitter and flip are those of the config without the list."""
    keys = {"INPUT__COLOR_JITTER__BRIGHTNESS": 0.3, "INPUT__COLOR_JITTER__HUE": 0.1}
    nothing = {"NAME": "GaussianNoise", "prob": 0.0}
    for number in range(5):
        plain = mapped(toy[0], number, **keys)
        for entries in ([nothing, nothing], [nothing, "CROP", nothing], ["CROP"]):
            listed = mapped(toy[0], number, INPUT__AUGMENTATIONS=entries, **keys)
            for old, new in zip(plain, listed, strict=True):
                np.testing.assert_array_equal(old, new)


def test_order_around_the_crop(toy):
    """Before: the crop is of the turned image. Behind: it is padded and mirrored afterwards."""
    flip = {"NAME": "RandomFlip", "prob": 1.0, "horizontal": False, "vertical": True}
    image, label = mapped(toy[0], **PLAIN)
    for entries in ([flip], ["CROP", flip], [flip, "CROP"]):
        turned = mapped(toy[0], **PLAIN, INPUT__AUGMENTATIONS=entries)
        np.testing.assert_array_equal(turned[0], image[::-1])
        np.testing.assert_array_equal(turned[1], label[::-1])
    keys = {**PLAIN, "INPUT__CROP__ENABLED": True, "INPUT__CROP__SIZE": [25, 40]}
    cut = {"NAME": "RandomCrop", "crop_type": "absolute", "crop_size": [8, 9]}
    padded, void = mapped(toy[0], **keys, INPUT__AUGMENTATIONS=["CROP", cut])
    assert padded.shape == (25, 40, 3) and (void[8:] == 255).all() and (void[:, 9:] == 255).all()
    larger = {"NAME": "Resize", "shape": [26, 40]}
    with pytest.raises(ConfigError, match=r"behind CROP made \[26, 40\] pixels of a crop of \[25, 40\]"):
        mapped(toy[0], **keys, INPUT__AUGMENTATIONS=["CROP", larger])
    assert mapped(toy[0], **keys, INPUT__AUGMENTATIONS=[larger])[1].shape == (25, 40)


def test_vertical_flip_of_the_crop(toy):
    keys = {**PLAIN, "INPUT__CROP__ENABLED": True, "INPUT__CROP__SIZE": [25, 40]}
    image, label = mapped(toy[0], **keys)
    mirrored = 0
    for number in range(60):
        turned = mapped(toy[0], number, **{**keys, "INPUT__RANDOM_FLIP": "vertical"})
        flip = bool((turned[1][:5] == 255).all())
        mirrored += flip
        np.testing.assert_array_equal(turned[0], image[::-1] if flip else image)
        np.testing.assert_array_equal(turned[1], label[::-1] if flip else label)
    assert 15 < mirrored < 45
    with pytest.raises(
        ConfigError, match=r"INPUT.RANDOM_FLIP is 'both'; expected one of \('horizontal', 'ver"
    ):
        mapped(toy[0], INPUT__RANDOM_FLIP="both")


@pytest.mark.parametrize("sigma", [0.6, 1.5])
def test_blur_is_a_convolution_with_a_gaussian(sigma):
    image, _ = picture((24, 30))
    radius = 12
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(image.astype(np.float64), ((radius, radius), (radius, radius), (0, 0)), "reflect")
    rows = sum(weight * padded[i : i + 24] for i, weight in enumerate(kernel))
    expected = sum(weight * rows[:, i : i + 30] for i, weight in enumerate(kernel))
    np.testing.assert_allclose(BlurTransform(sigma).apply_image(image), expected, atol=1.5)


def test_noise_has_its_deviation_and_is_clipped():
    image = np.full((200, 200, 3), 128, dtype=np.uint8)
    np.random.seed(0)
    noisy = GaussianNoise([12.0, 12.0], prob=1.0).get_transform(image).apply_image(image).astype(float)
    assert abs(noisy.mean() - 128) < 0.2
    assert abs(noisy.std() - 12.0) < 0.2
    difference = noisy - 128
    assert abs(np.corrcoef(difference[..., 0].ravel(), difference[..., 1].ravel())[0, 1]) < 0.03
    white = np.full_like(image, 255)
    assert GaussianNoise([40.0, 40.0], prob=1.0).get_transform(white).apply_image(white).min() < 200
    assert GaussianNoise([40.0, 40.0], prob=1.0).get_transform(white).apply_image(white).max() == 255


def test_objects_are_copied_whole():
    """Two objects of class 3, each of one colour, on a ground of zeros; a speck is too small."""
    image = np.zeros((50, 60, 3), dtype=np.uint8)
    label = np.zeros((50, 60), dtype=np.uint8)
    cv2.circle(label, (12, 12), 6, 3, -1)
    label[30:40, 40:55] = 3
    label[30:35, 40:45] = 0  # an L
    image[label == 3] = 90
    image[:25][label[:25] == 3] = 200
    label[45, 2] = 3
    sizes = {200: int((image[..., 0] == 200).sum()), 90: int((image[..., 0] == 90).sum())}
    paste, seen = made([{"NAME": "CutPaste", "classes": [3, 9], "count": [1, 1], "prob": 1.0}]), set()
    for number in range(40):
        pasted, pasted_label = paste.apply(image, label, number)
        changed = (pasted != image).any(-1)
        colors = set(np.unique(pasted[changed]))
        assert len(colors) <= 1
        np.testing.assert_array_equal(pasted_label[changed], 3)
        for color in colors:
            seen.add(int(color))
            assert (pasted[..., 0] == color).sum() <= 2 * sizes[int(color)]
            if not (changed & (label == 3)).any() and changed.sum() == sizes[int(color)]:
                seen.add("whole")
        # Image and label agree everywhere but at the speck, which was never copied.
        agree = (pasted[..., 0] > 0) == (pasted_label == 3)
        assert (~agree).sum() <= 1
    assert seen == {200, 90, "whole"}
    ground = np.zeros_like(label)
    np.testing.assert_array_equal(paste.apply(image, ground, 0)[0], image)
    assert CutPaste([3], prob=0.0).get_transform(label).transforms == []


REFUSED = {
    "name": (
        [{"NAME": "RandomRotaton", "angle": 3}],
        r"INPUT.AUGMENTATIONS\[0\]: unknown augmentation 'RandomRotaton' \(did you mean 'RandomRotation'.* "
        r"known are \['AugmentationList'.*IMPORTS",
    ),
    "argument": (
        ["CROP", {"NAME": "RandomRotation", "angel": [-3, 3]}],
        r"INPUT.AUGMENTATIONS\[1\]: RandomRotation has no argument 'angel' \(did you mean 'angle'\?\); it",
    ),
    "missing": ([{"NAME": "RandomRotation"}], r"RandomRotation refuses \{\}: TypeError: .*'angle'"),
    "value": (
        [{"NAME": "GaussianBlur", "sigma": [2, 1]}],
        r"GaussianBlur refuses.*sigma is \[2, 1\]; expected",
    ),
    "both": ([{"NAME": "RandomFlip", "vertical": True}], r"RandomFlip refuses .*Cannot do both"),
    "no classes": (
        [{"NAME": "CutPaste", "classes": []}],
        r"CutPaste refuses .*classes is \[\]; expected indices",
    ),
    "form": (
        ["RandomFlip"],
        r"INPUT.AUGMENTATIONS\[0\] is 'RandomFlip'; expected a mapping such as \{NAME: Ra",
    ),
    "no name": ([{"angle": 3}], r"INPUT.AUGMENTATIONS\[0\] is \{'angle': 3\}; expected a mapping"),
    "two crops": (["CROP", "CROP"], r"INPUT.AUGMENTATIONS has CROP 2 times; expected once or never"),
    "inner": (
        [{"NAME": "RandomApply", "tfm_or_aug": {"NAME": "GaussianBlurr"}}],
        r"INPUT.AUGMENTATIONS\[0\].tfm_or_aug: unknown augmentation 'GaussianBlurr' \(did you mean 'Gaus",
    ),
    "module": (
        [{"NAME": "no_such_module:A"}],
        r"\[0\]: 'no_such_module:A': No module named.*IMPORTS names it",
    ),
    "class": (
        [{"NAME": "detectron2.data.transforms:RandomFlipp"}],
        r"has no augmentation 'RandomFlipp' \(did you mean 'RandomFlip'",
    ),
    "no augmentation": ([{"NAME": "math:sqrt"}], r"'math' has no augmentation 'sqrt'; expected a class that"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_error_with_near_names(case):
    entries, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        build_augmentations(entries)


def test_one_that_fails_or_gives_no_image_is_named(toy):
    entries = [{"NAME": "RandomCrop", "crop_type": "relative", "crop_size": [2.0, 2.0]}]
    with pytest.raises(
        ConfigError, match=r"(?s)RandomCrop failed on an image of 20 x 30 pixels.*AssertionError"
    ):
        mapped(toy[0], INPUT__AUGMENTATIONS=entries)


OWN = """
import numpy as np
from detectron2.data import transforms as T
from regseg_d2.data.augmentations import AUGMENTATION


class Invert(T.Augmentation):
    def __init__(self, levels=255):
        self.levels = levels

    def get_transform(self, image, sem_seg):
        return T.BlendTransform(src_image=float(self.levels), src_weight=1.0, dst_weight=-1.0)


@AUGMENTATION.register()
class ToFloat(T.Augmentation):
    def __call__(self, aug_input):
        aug_input.image = aug_input.image / 255.0
"""


def test_augmentations_of_a_user_in_loader_workers(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_augmentations.py").write_text(OWN)
    config = tmp_path / "x.yaml"
    keys = "IMPORTS: [my_augmentations]\nDATASETS: {TRAIN: [toy]}\nINPUT: {AUGMENTATIONS: [%s]}"
    config.write_text(keys % "CROP, {NAME: 'my_augmentations:Invert', levels: 250}, {NAME: GaussianNoise}")
    small = ["INPUT.CROP.SIZE", "[16, 24]", "SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu"]
    try:
        batches = []
        for workers in (0, 2):
            cfg = load_config(str(config), [*small, "DATALOADER.NUM_WORKERS", str(workers)])
            loader = iter(build_train_loader(cfg, seed=3))
            batches.append([next(loader) for _ in range(3)])
        for alone, with_workers in zip(*batches, strict=True):
            for one, other in zip(alone, with_workers, strict=True):
                assert torch.equal(one["image"], other["image"])
                assert torch.equal(one["sem_seg"], other["sem_seg"])
        config.write_text(keys % "{NAME: ToFloat}")
        cfg = load_config(str(config), small)
        with pytest.raises(
            ConfigError, match=r"ToFloat gave an image of float64 \(20, 30, 3\) and labels \(20, 30"
        ):
            next(iter(build_train_loader(cfg, seed=3)))
    finally:
        del AUGMENTATION._obj_map["ToFloat"], sys.modules["my_augmentations"]


def test_the_list_in_files_and_on_the_command_line(tmp_path):
    entries = (
        "[{NAME: RandomFlip, vertical: true, horizontal: false}, CROP, {NAME: GaussianBlur, sigma: [1, 2]}]"
    )
    cfg = load_config("", ["INPUT.AUGMENTATIONS", entries])
    assert cfg.INPUT.AUGMENTATIONS[0] == {"NAME": "RandomFlip", "vertical": True, "horizontal": False}
    (tmp_path / "saved.yaml").write_text(format_config(cfg))
    assert load_config(str(tmp_path / "saved.yaml")) == cfg
    before, behind = build_augmentations(cfg.INPUT.AUGMENTATIONS)
    assert [type(each).__name__ for each in (*before, *behind)] == ["RandomFlip", "GaussianBlur"]
    with pytest.raises(ConfigError, match=r"'INPUT.AUGMENTATIONS' is 'RandomFlip' \(str\); expected a list"):
        load_config("", ["INPUT.AUGMENTATIONS", "RandomFlip"])
