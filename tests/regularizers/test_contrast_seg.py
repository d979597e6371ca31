"""ContrastSeg against slow loops, its memory over several steps, and its options."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.regularizers import ContrastSeg, RegularizerInput
from tests.helpers import observed
from tests.references.contrast_seg import batch_loss, memory_loss, region_means, unit

K, C, IGNORE = 4, 6, 255
TAP, LOGITS = "head:in", "head:out"
# Every pixel is an anchor, and every one is stored.
EVERY_PIXEL = {"max_anchors": 10**6}
FEW = {"max_anchors": 10**6, "max_views": 3}
SIZE = (3, 4)


def make_contrast(projection=False, **options):
    options = EVERY_PIXEL | {"weights": {"contrast": 1.0}, "embedding_channels": C} | options
    contrast = ContrastSeg(K, C, feature_tap=TAP, logits_tap=LOGITS, **options)
    if not projection:
        contrast.projection = nn.Identity()
    return contrast.double()


def remember(size, pixels_per_class=10, dtype="float32"):
    """Options of a memory."""
    return {"memory": True, "memory_size": size, "pixels_per_class": pixels_per_class, "memory_dtype": dtype}


def semi_hard(fraction, num_positives, num_negatives):
    """Options of the sampling."""
    return {
        "sampling": "semi_hard",
        "hard_fraction": fraction,
        "num_positives": num_positives,
        "num_negatives": num_negatives,
    }


def make_inputs(seed=0, labels=None, num_images=2, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(num_images, C, *size, dtype=torch.float64, generator=generator)
    logits = torch.randn(num_images, K, *size, dtype=torch.float64, generator=generator)
    if labels is None:
        # Class 3 has one pixel, in the second image; some are void.
        labels = torch.randint(0, 3, (num_images, *size), generator=generator)
        labels[0, 0, 0] = IGNORE
        labels[1, 1, :2] = torch.tensor([3, IGNORE])
    feature.requires_grad_(True)
    return feature, labels, RegularizerInput({TAP: feature, LOGITS: logits}, labels, K)


def as_lists(feature, labels):
    pixels = [list(image.flatten(1).T) for image in feature]
    ids = [[None if y == IGNORE else y for y in image.flatten().tolist()] for image in labels]
    return pixels, ids


def stored_by_class(queue):
    rows = queue.rows.double().clone()
    return [
        [row for row, there in zip(*part, strict=True) if there]
        for part in zip(rows, queue.filled, strict=True)
    ]


def assert_equal_with_gradients(loss, expected, feature):
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    (ours,) = torch.autograd.grad(loss, feature)
    (theirs,) = torch.autograd.grad(expected, feature)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
    assert theirs.abs().sum() > 0


@pytest.mark.parametrize("kind", ["segmentation_aware", "random"])
@pytest.mark.parametrize(("temperature", "base"), [(0.1, 0.07), (0.5, 0.5)])
@pytest.mark.parametrize("fraction", [None, 0.3])
def test_batch_follows_the_equation(kind, temperature, base, fraction):
    feature, labels, inputs = make_inputs()
    sampling = {} if fraction is None else {"sampling": "semi_hard", "hard_fraction": fraction}
    contrast = make_contrast(temperature=temperature, base_temperature=base, anchors=kind, **sampling)
    pixels, ids = as_lists(feature, labels)
    expected = batch_loss(sum(pixels, []), sum(ids, []), temperature, base, fraction)
    assert_equal_with_gradients(contrast(inputs)["loss_contrast_seg_contrast"], expected, feature)


@pytest.mark.parametrize("fraction", [None, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_follows_the_equation_over_several_steps(fraction, dtype):
    sampling = {} if fraction is None else {"sampling": "semi_hard", "hard_fraction": fraction}
    contrast = make_contrast(**remember(5, 100, dtype), **sampling, temperature=0.2)
    queues = [contrast.region_queue, contrast.pixel_queue]
    for queue in queues:
        queue.to(torch.float16 if dtype == "float16" else torch.float64)
    for step in range(4):
        feature, labels, inputs = make_inputs(step)
        stored = [stored_by_class(queue) for queue in queues]
        assert any(stored[0]) == (step > 0)
        loss = contrast(inputs)["loss_contrast_seg_contrast"]
        pixels, ids = as_lists(feature, labels)
        expected = memory_loss(sum(pixels, []), sum(ids, []), stored, 0.2, 0.07, fraction)
        if step == 0:
            assert loss.item() == 0.0
            continue
        assert_equal_with_gradients(loss, expected, feature)


def test_gradcheck():
    feature, labels, _ = make_inputs()
    logits = torch.zeros(2, K, *SIZE, dtype=torch.float64)
    for memory in ({}, remember(5)):
        contrast = make_contrast(**memory)
        contrast(make_inputs(9)[2])
        contrast.eval()

        def loss(x, contrast=contrast):
            return contrast(RegularizerInput({TAP: x, LOGITS: logits}, labels, K))[
                "loss_contrast_seg_contrast"
            ]

        assert loss(feature).item() > 0
        assert torch.autograd.gradcheck(loss, (feature,), atol=1e-6)


def test_region_queue_holds_the_unit_means_of_all_classes_in_order():
    """Class 0 too; the pointer goes on by the number of rows, and round the end (published code: neither)."""
    contrast = make_contrast(**remember(3, 2))
    history = [[] for _ in range(K)]
    for step in range(5):
        feature, labels, inputs = make_inputs(step)
        contrast(inputs)
        for pixels, ids in zip(*as_lists(feature.detach(), labels), strict=True):
            for k, mean in enumerate(region_means(pixels, ids, K)):
                if mean is not None:
                    history[k].append(mean)
        assert contrast.region_queue.written.tolist() == [len(h) for h in history]
        for k in range(K):
            for slot in range(3):
                there = [mean for index, mean in enumerate(history[k]) if index % 3 == slot]
                expected = there[-1] if there else torch.zeros(C, dtype=torch.float64)
                torch.testing.assert_close(contrast.region_queue.rows[k, slot], expected)
    assert len(history[0]) == 10
    assert len(history[3]) == 5


def test_pixel_queue_holds_pixels_of_their_class():
    """The published code stores pixels of other classes, never any of class 0, and its pointer goes wrong."""
    contrast = make_contrast(**remember(7, 2))
    pixels_of = [[] for _ in range(K)]
    written = [0] * K
    for step in range(6):
        feature, labels, inputs = make_inputs(step)
        before = contrast.pixel_queue.rows.clone()
        contrast(inputs)
        new = [[] for _ in range(K)]
        for pixels, ids in zip(*as_lists(feature.detach(), labels), strict=True):
            for k in range(K):
                members = [unit(x) for x, y in zip(pixels, ids, strict=True) if y == k]
                pixels_of[k] += members
                new[k] += [members] * min(2, len(members))
        for k in range(K):
            slots = [(written[k] + i) % 7 for i in range(len(new[k]))]
            for slot, members in zip(slots, new[k], strict=True):
                row = contrast.pixel_queue.rows[k, slot]
                assert min((row - x).abs().max() for x in members) < 1e-12
            kept = sorted(set(range(7)) - set(slots))
            assert torch.equal(contrast.pixel_queue.rows[k, kept], before[k, kept])
            written[k] += len(new[k])
        assert contrast.pixel_queue.written.tolist() == written
    assert min(written[:3]) > 7
    assert written[3] == 6


def test_what_is_stored_depends_on_the_step_and_the_seed():
    rows = []
    for seed in (0, 0, 1):
        contrast = make_contrast(**remember(4, 1), seed=seed)
        for _ in range(4):
            contrast(make_inputs(0)[2])
        rows.append(contrast.pixel_queue.rows.clone())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0][:3, 0], rows[0][:3, 2])


def test_images_draw_the_same_on_another_process_split(monkeypatch):
    """Anchors and stored pixels of images 2 and 3 are those that a second process would draw."""
    _, labels, inputs = make_inputs(num_images=4, size=(8, 8))
    whole = make_contrast(**FEW, **remember(4))
    drawn = whole._draw(inputs).compacted()
    part = make_contrast(**FEW, **remember(4))
    monkeypatch.setattr("regseg_d2.state.random_stream.rank", lambda: 1)
    taps = {name: tap[2:] for name, tap in inputs.taps.items()}
    drawn_part = part._draw(RegularizerInput(taps, labels[2:], K)).compacted()
    last = drawn.pixels >= 2 * 64
    assert torch.equal(drawn.pixels[last], drawn_part.pixels + 2 * 64)
    assert last.any()
    assert not last.all()


def test_anchors_are_half_misclassified():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, 4:] = 1
    feature = torch.randn(1, C, 8, 8)
    logits = torch.zeros(1, K, 8, 8, dtype=torch.float64)
    # Wrong in columns 0 and 1: 8 pixels of each class.
    logits[:, 2, :, :2] = 1.0
    logits[:, 0, :4, 2:] = 1.0
    logits[:, 1, 4:, 2:] = 1.0
    inputs = RegularizerInput({TAP: feature, LOGITS: logits}, labels, K)
    for kind, share in (("segmentation_aware", 0.5), ("random", None)):
        contrast = make_contrast(max_anchors=24, max_views=100, anchors=kind)
        anchors = contrast._draw(inputs).compacted()
        assert torch.bincount(anchors.classes).tolist() == [12, 12]
        wrong = (anchors.pixels % 8 < 2).double().mean().item()
        assert wrong == share if share else 0 < wrong < 0.5


@pytest.mark.parametrize("labels", ["void", "one_class", "one_pixel", "no_pair"])
@pytest.mark.parametrize("memory", [{}, remember(4)])
@pytest.mark.parametrize("sampling", [{}, semi_hard(0.1, 2, 2)])
def test_degenerate_labels_are_finite_and_attached(labels, memory, sampling):
    target = torch.full((2, *SIZE), IGNORE)
    if labels == "one_class":
        target.fill_(0)
    elif labels == "one_pixel":
        target[1, 0, 0] = 0
    elif labels == "no_pair":
        target[0, 0] = torch.arange(4)
    feature, _, inputs = make_inputs(labels=target)
    contrast = make_contrast(**memory, **sampling)
    for _ in range(2):
        loss = contrast(inputs)["loss_contrast_seg_contrast"]
        (gradient,) = torch.autograd.grad(loss, feature)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
    # Stored pixels are the anchors' positives, and in "no_pair" there are negatives too.
    assert (loss.item() > 0) == (labels == "no_pair" and bool(memory))


@pytest.mark.parametrize("memory", [{}, remember(4, dtype="float16")])
def test_own_parameters_get_gradients_and_one_pixel_is_enough(memory):
    contrast = make_contrast(projection=True, **memory, embedding_channels=5)
    feature, labels, inputs = make_inputs()
    contrast(inputs)
    contrast(inputs)["loss_contrast_seg_contrast"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in contrast.projection.out.parameters())
    single = make_inputs(num_images=1, size=(1, 1), labels=torch.zeros(1, 1, 1, dtype=torch.long))[2]
    loss = contrast(single)["loss_contrast_seg_contrast"]
    loss.backward()
    assert torch.isfinite(loss)


def test_a_zero_embedding_is_finite():
    feature, labels, inputs = make_inputs()
    with torch.no_grad():
        feature[:, :, 1] = 0.0
    contrast = make_contrast(**remember(4))
    contrast(inputs)
    loss = contrast(inputs)["loss_contrast_seg_contrast"]
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, feature)[0]).all()
    assert torch.isfinite(contrast.pixel_queue.rows).all()


def test_memory_is_in_the_state_dict_and_counted():
    contrast = ContrastSeg(K, C, embedding_channels=8, **remember(5, dtype="float16"))
    assert contrast.memory_bytes == 2 * K * 5 * 8 * 2
    assert {"region_queue.rows", "pixel_queue.written", "random.step"} < set(contrast.state_dict())
    assert make_contrast().memory_bytes == 0


def test_nothing_is_stored_without_gradient():
    contrast = make_contrast(**remember(4), projection=True)
    before = {key: value.clone() for key, value in contrast.state_dict().items()}
    with torch.no_grad():
        contrast(make_inputs()[2])
    assert all(torch.equal(before[key], value) for key, value in contrast.state_dict().items())


def test_diagnostics_by_hand():
    # Unit vectors: class 0 at 0 and 90 degrees, class 1 at 0 degrees; one more pixel is void.
    feature = torch.tensor([[[[2.0, 0.0, 3.0, 1.0]], [[0.0, 1.0, 0.0, 1.0]]]], requires_grad=True)
    labels = torch.tensor([[[0, 0, 1, IGNORE]]])
    # The first pixel is predicted wrong.
    logits = torch.tensor([[[[0.0, 1.0, 0.0, 0.0]], [[1.0, 0.0, 1.0, 1.0]]]])
    inputs = RegularizerInput({TAP: feature, LOGITS: logits}, labels, 2)
    contrast = observed(ContrastSeg(2, 2, feature_tap=TAP, logits_tap=LOGITS))
    contrast.projection = nn.Identity()
    with EventStorage() as storage:
        contrast(inputs)
        latest = {key: value for key, (value, _) in storage.latest().items()}
    # Class 1 has one anchor, without a positive. Cosines of the two others: 0; with class 1: 1 and 0.
    assert latest["contrast_seg/anchors"] == 2
    assert latest["contrast_seg/classes"] == 1
    assert latest["contrast_seg/hard"] == pytest.approx(0.5)
    assert latest["contrast_seg/positive_similarity"] == pytest.approx(0.0)
    assert latest["contrast_seg/negative_similarity"] == pytest.approx(0.5)
    assert "contrast_seg/region_fill" not in latest


def test_diagnostics_of_a_memory():
    contrast = observed(make_contrast(**remember(4, 1)))
    with EventStorage() as storage:
        contrast(make_inputs()[2])
        contrast(make_inputs()[2])
        latest = {key: value for key, (value, _) in storage.latest().items()}
    written = contrast.region_queue.written.clamp(max=4).sum().item()
    assert latest["contrast_seg/region_fill"] == pytest.approx(written / (4 * K))
    assert latest["contrast_seg/pixel_fill"] == pytest.approx(written / (4 * K))
    assert 0 < written < 4 * K
    assert latest["contrast_seg/positive_similarity"] > latest["contrast_seg/negative_similarity"]


def test_channels_last_features_make_no_difference():
    feature, labels, inputs = make_inputs()
    other = feature.detach().to(memory_format=torch.channels_last).requires_grad_(True)
    results = []
    for x in (feature, other):
        contrast = make_contrast(**remember(4))
        taps = {TAP: x, LOGITS: inputs.taps[LOGITS]}
        contrast(RegularizerInput(taps, labels, K))
        loss = contrast(RegularizerInput(taps, labels, K))["loss_contrast_seg_contrast"]
        results.append((loss, torch.autograd.grad(loss, x)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_unit_length():
    """Scaling an embedding changes nothing."""
    feature, labels, inputs = make_inputs()
    scaled = RegularizerInput({TAP: 7 * feature, LOGITS: inputs.taps[LOGITS]}, labels, K)
    for memory in ({}, remember(4)):
        losses = []
        for chosen in (inputs, scaled):
            contrast = make_contrast(**memory)
            contrast(chosen)
            losses.append(contrast(chosen)["loss_contrast_seg_contrast"])
        torch.testing.assert_close(*losses)
        assert losses[0] > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0.01}, "temperature is 0.01"),
        ({"base_temperature": 0.0}, "base_temperature is 0.0"),
        ({"embedding_channels": 0}, "embedding_channels is 0"),
        ({"max_anchors": 0}, "max_anchors is 0"),
        ({"max_views": 0}, "max_views is 0"),
        ({"min_pixels": 0}, "min_pixels is 0"),
        ({"anchors": "hard"}, "anchors is 'hard'"),
        (remember(0), "memory_size is 0"),
        (remember(1, dtype="int8"), "memory_dtype is 'int8'"),
        (remember(1, 0), "pixels_per_class is 0"),
        ({"sampling": "hardest"}, "sampling is 'hardest'"),
        ({"hard_fraction": 1.5}, "hard_fraction is 1.5"),
        ({"num_positives": 0}, "num_positives is 0"),
        ({"num_negatives": 0}, "num_negatives is 0"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ConfigError, match=f"ContrastSeg: {named}; expected"):
        make_contrast(**options)


def all_items(mask):
    """What ``compact`` does on a GPU: nothing is waited for."""
    items = mask.logical_not().to(torch.uint8).argsort(stable=True)
    return items, mask[items]


@pytest.mark.parametrize("memory", [{}, remember(4, 2)])
@pytest.mark.parametrize("sampling", [{}, semi_hard(0.5, 2, 3)])
@pytest.mark.parametrize("void", [False, True])
def test_shapes_that_do_not_depend_on_data_give_the_same(monkeypatch, memory, sampling, void):
    results = []
    for static in (False, True):
        if static:
            for module in ("ops.contrast_seg", "ops.stored_contrast", "regularizers.contrast_seg"):
                monkeypatch.setattr(f"regseg_d2.{module}.compact", all_items)
        contrast = make_contrast(max_anchors=12, max_views=3, **memory, **sampling)
        seen = {}
        contrast.observer = lambda seen=seen: seen.__setitem__
        contrast(make_inputs(1)[2])
        feature, _, inputs = make_inputs(labels=torch.full((2, *SIZE), IGNORE) if void else None)
        loss = contrast(inputs)["loss_contrast_seg_contrast"]
        assert len(seen) > 4
        results.append((loss, torch.autograd.grad(loss, feature)[0], *map(seen.get, sorted(seen))))
    torch.testing.assert_close(results[0], results[1])
    assert (results[0][0].item() == 0) == void
