"""Protocols on small networks, beside slow references that know only the network's own forward."""

import logging

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.evaluation.inference import InferenceProtocol, Predictor, build_predictor
from regseg_d2.modeling.heads.context_head import ContextHead
from tests.helpers import HEADS, small_cfg


def make_model(head="FCN", **overrides):
    torch.manual_seed(0)
    model = build_model(small_cfg(head, **overrides)).eval()
    for name, parameter in model.named_parameters():
        if "predictor" in name:  # else all logits are near zero
            torch.nn.init.normal_(parameter, std=1.0)
    return model


def make_image(height, width, seed=0):
    """Smooth enough that a prediction has regions."""
    coarse = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return (128 + 60 * smooth).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def logits_of(model, image, **size):
    """The network's own full-size logits, as NumPy."""
    return model([{"image": image, **size}])[0]["sem_seg"].numpy()


def slow_slide(model, image, window, stride):
    """Adds up window by window, counts by hand, in float64."""
    _, height, width = image.shape
    window = (min(window[0], height), min(window[1], width))
    total, count = 0.0, np.zeros((height, width))
    rows = sorted({min(y, height - window[0]) for y in range(0, height, stride[0])})
    columns = sorted({min(x, width - window[1]) for x in range(0, width, stride[1])})
    for y in rows:
        for x in columns:
            part = logits_of(model, image[:, y : y + window[0], x : x + window[1]])
            padded = np.zeros((part.shape[0], height, width))
            padded[:, y : y + window[0], x : x + window[1]] = part
            total = total + padded
            count[y : y + window[0], x : x + window[1]] += 1
    assert count.min() >= 1
    return total / count


def resize(logits, size):
    return F.interpolate(torch.from_numpy(logits)[None], size=size, mode="bilinear")[0].numpy()


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=0))
    return exponentials / exponentials.sum(axis=0)


@pytest.mark.parametrize("head", HEADS)
def test_whole_images_have_the_labels_of_the_networks_own_logits(head):
    # Otherwise Detectron2's DeepLab heads pool over windows of the crop, which must divide the image.
    model = make_model(head, INPUT__CROP__ENABLED=False)
    predictor = Predictor(model, InferenceProtocol())
    for size, output in [((64, 64), {}), ((37, 51), {}), ((37, 51), {"height": 70, "width": 30})]:
        image = make_image(*size)
        logits = torch.from_numpy(logits_of(model, image, **output))
        found = predictor([{"image": image, **output}])[0]
        assert torch.equal(found["sem_seg_labels"].long(), logits.argmax(dim=0))
        assert found["num_classes"] == 5
        assert torch.equal(predictor.scores([{"image": image, **output}])[0]["sem_seg"], logits)


def test_channels_last_networks_too():
    model = make_model(CHANNELS_LAST=True)
    image = make_image(90, 77)
    logits = torch.from_numpy(logits_of(model, image))
    assert torch.equal(Predictor(model, InferenceProtocol()).scores([{"image": image}])[0]["sem_seg"], logits)


def test_images_of_a_batch_do_not_see_each_other():
    predictor = Predictor(make_model(), InferenceProtocol())
    samples = [{"image": make_image(40, 60)}, {"image": make_image(64, 33, seed=1)}]
    together = predictor(samples)
    for sample, found in zip(samples, together, strict=True):
        assert torch.equal(found["sem_seg_labels"], predictor([sample])[0]["sem_seg_labels"])


def test_a_window_as_large_as_the_image_is_the_whole_image():
    model = make_model("ASPP")
    for window in ((64, 64), (37, 51), (40, 600)):
        image = make_image(37, 51)
        whole = Predictor(model, InferenceProtocol()).scores([{"image": image}])[0]["sem_seg"]
        protocol = InferenceProtocol(mode="slide", crop_size=window, stride=(20, 20))
        slid = Predictor(model, protocol).scores([{"image": image}])[0]["sem_seg"]
        torch.testing.assert_close(slid, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_windows_are_those_of_a_slow_reference(seed):
    rng = np.random.default_rng(seed)
    model = make_model()
    height, width = rng.integers(20, 90, 2).tolist()
    window = tuple(rng.integers(16, 60, 2).tolist())
    stride = tuple(int(rng.integers(8, side + 1)) for side in window)
    image = make_image(height, width, seed)
    output = {"height": 50, "width": 60} if seed % 2 else {}
    expected = slow_slide(model, image, window, stride)
    if output:
        expected = resize(expected, (50, 60))
    for tile_batch in (1, 3):
        protocol = InferenceProtocol(mode="slide", crop_size=window, stride=stride, tile_batch=tile_batch)
        predictor = Predictor(model, protocol)
        scores = predictor.scores([{"image": image, **output}])[0]["sem_seg"]
        np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-5)
        labels = predictor([{"image": image, **output}])[0]["sem_seg_labels"]
        assert torch.equal(labels.long(), scores.argmax(dim=0))


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("flip", [False, True])
def test_scales_and_flips_are_those_of_a_slow_reference(mode, flip):
    model = make_model()
    image = make_image(45, 70)
    scales = (0.5, 1.0, 1.75)
    views = []
    for scale in scales:
        size = (int(45 * scale + 0.5), int(70 * scale + 0.5))
        pixels = cv2.resize(image.permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
        for mirrored in (False, True) if flip else (False,):
            view = np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
            view = torch.from_numpy(view).permute(2, 0, 1)
            logits = (
                logits_of(model, view) if mode == "whole" else slow_slide(model, view, (40, 48), (30, 30))
            )
            probabilities = softmax(resize(logits.astype(np.float64), (50, 80)))
            views.append(probabilities[:, :, ::-1] if mirrored else probabilities)
    protocol = InferenceProtocol(mode=mode, crop_size=(40, 48), stride=(30, 30), scales=scales, flip=flip)
    predictor = Predictor(model, protocol)
    sample = {"image": image, "height": 50, "width": 80}
    scores = predictor.scores([sample])[0]["sem_seg"]
    np.testing.assert_allclose(scores.numpy(), np.mean(views, axis=0), rtol=0, atol=1e-5)
    assert torch.equal(predictor([sample])[0]["sem_seg_labels"].long(), scores.argmax(dim=0))


def test_labels_of_a_mirrored_image_are_the_mirrored_labels():
    model = make_model()
    image = make_image(45, 71)
    for scales in ((1.0,), (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)):
        predictor = Predictor(model, InferenceProtocol(scales=scales, flip=True))
        scores, mirrored = (
            predictor.scores([{"image": view}])[0]["sem_seg"] for view in (image, image.flip(-1))
        )
        # Resizing an image is equal under mirroring up to one grey level.
        tolerance = 0.0 if scales == (1.0,) else 0.02
        torch.testing.assert_close(mirrored, scores.flip(-1), rtol=0, atol=tolerance)
        alone = Predictor(model, InferenceProtocol(scales=scales)).scores([{"image": image}])[0]["sem_seg"]
        assert (alone.softmax(0) - scores).abs().max() > 0.05  # the mirror image says something else


def test_other_meta_architectures_go_the_long_way_and_the_log_says_so_once(caplog):
    caplog.set_level(logging.WARNING)
    plain = make_model(META_ARCHITECTURE="SemanticSegmentor", NORM="BN")
    ours = make_model()
    image = make_image(45, 71)
    sample = {"image": image, "height": 60, "width": 50}
    for protocol in (
        InferenceProtocol(),
        InferenceProtocol(mode="slide", crop_size=(32, 32), stride=(20, 20), scales=(0.5, 1.0), flip=True),
    ):
        caplog.clear()
        predictor = Predictor(plain, protocol)
        found = [predictor([sample])[0]["sem_seg_labels"] for _ in range(2)]
        assert caplog.text.count("gives its logits at full size only") == 1
        expected = Predictor(ours, protocol)([sample])[0]["sem_seg_labels"]
        assert torch.equal(found[0], expected)
        assert caplog.text.count("full size only") == 1
    with pytest.raises(
        ConfigError, match="SemanticSegmentor with ContextHead gives no logits at feature size"
    ):
        Predictor(plain, InferenceProtocol(padding="none"))


def test_a_head_with_a_forward_of_its_own_is_not_guessed_at():
    class Sharper(ContextHead):
        def forward(self, features, targets=None):
            logits, losses = super().forward(features, targets)
            return 2 * logits - 1, losses

    model = make_model()
    model.sem_seg_head.__class__ = Sharper
    image = make_image(45, 71)
    expected = torch.from_numpy(logits_of(model, image))
    assert torch.equal(
        Predictor(model, InferenceProtocol()).scores([{"image": image}])[0]["sem_seg"], expected
    )


def test_without_padding_logits_are_stretched_over_the_image():
    model = make_model()
    image = make_image(45, 71)
    normalized = (image - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        logits, _ = model.sem_seg_head.layers(model.backbone(normalized[None]))
    expected = F.interpolate(logits, size=(45, 71), mode="bilinear", align_corners=False)[0]
    predictor = Predictor(model, InferenceProtocol(padding="none"))
    assert torch.equal(predictor.scores([{"image": image}])[0]["sem_seg"], expected)
    padded = Predictor(model, InferenceProtocol()).scores([{"image": image}])[0]["sem_seg"]
    assert (padded - expected).abs().max() > 0.01


def test_the_model_is_left_in_its_mode():
    model = make_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Predictor(model, InferenceProtocol())([{"image": make_image(40, 40)}])
    assert model.training
    assert model.backbone.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_logits_can_leave_the_gpu():
    model = make_model().cuda()
    sample = {"image": make_image(60, 70)}
    found = Predictor(model, InferenceProtocol(logits_device="cpu"))([sample])[0]["sem_seg_labels"]
    expected = Predictor(model, InferenceProtocol())([sample])[0]["sem_seg_labels"]
    assert (found.device.type, expected.device.type) == ("cpu", "cuda")
    assert (found == expected.cpu()).float().mean() > 0.999


def test_protocol_of_a_config():
    cfg = small_cfg(TEST__MODE="slide", TEST__SLIDE__CROP_SIZE=[40, 60], TEST__SLIDE__STRIDE=[20, 30])
    assert build_predictor(cfg, make_model()).protocol.summary() == (
        "windows of 40 x 60 every 20 x 30, logits averaged, one scale, no flip"
    )
    cfg = small_cfg(TEST__AUG__ENABLED=True, TEST__AUG__SCALES=[1, 2], TEST__PADDING="none")
    protocol = InferenceProtocol.from_config(cfg)
    assert protocol.summary() == (
        "whole image, scales 1, 2, mirrored too, probabilities averaged, input not padded"
    )
    assert protocol.describe() == {
        "mode": "whole",
        "scales": [1.0, 2.0],
        "flip": True,
        "padding": "none",
        "min_size": 0,
    }
    # Without TEST.AUG.ENABLED, Detectron2's FLIP, which is on by default, does nothing.
    assert InferenceProtocol.from_config(small_cfg()) == InferenceProtocol()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "tile"}, 'TEST.MODE is "tile"; expected one of whole, slide'),
        ({"padding": ""}, 'TEST.PADDING is ""; expected one of stride, none'),
        ({"logits_device": "gpu"}, 'TEST.LOGITS_DEVICE is "gpu"; expected one of "", cpu, cuda'),
        ({"crop_size": (0, 5)}, r"TEST.SLIDE.CROP_SIZE is \[0, 5\]; expected height and width"),
        ({"stride": (5,)}, r"TEST.SLIDE.STRIDE is \[5\]; expected height and width"),
        ({"stride": (5, 513)}, r"STRIDE is \[5, 513\].*pixels between windows would have no prediction"),
        ({"tile_batch": 0}, "TEST.SLIDE.TILE_BATCH is 0; expected 1 or more"),
        ({"scales": (1.0, 0.0)}, r"TEST.AUG.SCALES is \[1.0, 0.0\]; expected at least one factor above 0"),
        ({"scales": ()}, r"TEST.AUG.SCALES is \[\]"),
    ],
)
def test_values_that_cannot_be_used(values, message):
    with pytest.raises(ConfigError, match=message):
        InferenceProtocol(**values)


def test_probabilities_sum_to_one_whatever_the_network_gives():
    model = make_model()
    sample = {"image": make_image(33, 47)}
    protocols = InferenceProtocol(), InferenceProtocol(scales=(0.5, 1.0), flip=True)
    logits, averages = (Predictor(model, each).scores([sample])[0]["sem_seg"] for each in protocols)
    found = [Predictor(model, each).probabilities([sample])[0]["sem_seg"].numpy() for each in protocols]
    np.testing.assert_allclose(found[0], softmax(logits.numpy()), atol=1e-6)
    np.testing.assert_array_equal(found[1], averages.numpy())
    shares = ClassifiesMasks(model)
    scores = shares([sample])[0]["sem_seg"].detach().double().numpy()
    assert not np.allclose(scores.sum(axis=0), 1)
    found = Predictor(shares, InferenceProtocol()).probabilities([sample])[0]["sem_seg"].numpy()
    np.testing.assert_allclose(found, scores / scores.sum(axis=0), rtol=1e-5)


class ClassifiesMasks(torch.nn.Module):
    """Gives scores that do not sum to 1, as networks do that classify masks."""

    gives_probabilities = True

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, samples):
        return [{"sem_seg": output["sem_seg"].sigmoid()} for output in self.model(samples)]
