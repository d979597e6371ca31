"""What the collector gathers, against loops over pixels."""

import dataclasses
import math
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from regseg_d2.common.errors import ConfigError, DatasetError, OptionError, UserError
from regseg_d2.evaluation.looking.findings import Collector, Findings
from regseg_d2.evaluation.looking.sampling import pixel_keys, region_keys
from regseg_d2.evaluation.measures import Calibration, ClassCenters
from tests.evaluation.looking.small_views import make_view

K, C = 5, 4
# Strides with and without a remainder, padding, and a class, 3, that is in no label.
SHAPES = {
    "a.png": ((12, 15), (4, 5), (3.0, 3.0)),
    "b.png": ((9, 14), (4, 6), (2.5, 2.5)),
    "c.png": ((8, 8), (16, 16), (0.5, 0.5)),
    "d.png": ((14, 11), (3, 3), (5.0, 4.5)),
}


def make_views():
    return [
        make_view(*shape, name=name, num_classes=K, channels=C, absent=(3,)) for name, shape in SHAPES.items()
    ]


def collect(views, **options):
    collector = Collector(K, **options)
    for view in views:
        collector.add(view)
    return collector.findings()


@pytest.fixture(scope="module")
def views():
    return make_views()


@pytest.fixture(scope="module")
def findings(views):
    return collect(views, seed=7, pixels_per_class=6, regions_per_class=2)


def pixels_of(view):
    """Row, column, class, predicted class, scores and probabilities of each valid pixel."""
    label, scores = view.label.numpy(), view.scores.numpy().astype(np.float64)
    for y in range(label.shape[0]):
        for x in range(label.shape[1]):
            if label[y, x] >= 0:
                s = scores[:, y, x]
                yield y, x, int(label[y, x]), int(s.argmax()), s, np.exp(s) / np.exp(s).sum()


def cells_of(view):
    """Class and feature of each valid cell."""
    label, feature = view.label.numpy(), view.feature.numpy().astype(np.float64)
    for i in range(feature.shape[1]):
        for j in range(feature.shape[2]):
            y, x = int((i + 0.5) * view.cell_size[0]), int((j + 0.5) * view.cell_size[1])
            if y < label.shape[0] and x < label.shape[1] and label[y, x] >= 0:
                yield int(label[y, x]), feature[:, i, j]


def feature_at(view, y, x):
    return view.feature.numpy()[:, int((y + 0.5) / view.cell_size[0]), int((x + 0.5) / view.cell_size[1])]


def test_counts_of_pixels(views, findings):
    confusion = np.zeros((len(views), K, K), dtype=int)
    for n, view in enumerate(views):
        for _, _, y, p, _, _ in pixels_of(view):
            confusion[n, y, p] += 1
    assert np.array_equal(findings.confusion, confusion.sum(axis=0))
    assert findings.image_names.tolist() == list(SHAPES)
    for n in range(len(views)):
        for k in range(K):
            assert findings.image_pixels[n, k] == confusion[n, k].sum()
            assert findings.intersections[n, k] == confusion[n, k, k]
            assert (
                findings.unions[n, k] == confusion[n, k].sum() + confusion[n, :, k].sum() - confusion[n, k, k]
            )
            iou = findings.image_iou[n, k]
            if confusion[n, k].sum():
                assert iou == pytest.approx(
                    100 * findings.intersections[n, k] / findings.unions[n, k], rel=1e-12
                )
            else:
                assert math.isnan(iou)
    for a in range(K):
        for b in range(K):
            ranked = sorted((-c, n) for n, c in enumerate(confusion[:, a, b].tolist()) if c)
            padded = ([n for _, n in ranked] + [-1] * 5)[:5]
            assert findings.pair_images[a, b].tolist() == padded
            assert findings.pair_counts[a, b].tolist() == ([-c for c, _ in ranked] + [0] * 5)[:5]
    right, pixels = findings.confusion.diagonal(), findings.confusion.sum(axis=1)
    assert findings.metrics.pacc == pytest.approx(100 * right.sum() / pixels.sum(), rel=1e-12)
    assert findings.metrics.acc[0] == pytest.approx(100 * right[0] / pixels[0], rel=1e-12)


def test_sums_of_features(views, findings):
    cells = [cell for view in views for cell in cells_of(view)]
    for k in range(K):
        own = np.array([x for label, x in cells if label == k]).reshape(-1, C)
        assert findings.center_counts[k] == len(own)
        np.testing.assert_allclose(findings.center_sums[k], own.sum(axis=0), rtol=1e-12)
        np.testing.assert_allclose(findings.center_squares[k], sum(x @ x for x in own), rtol=1e-12)
        units = [x / math.sqrt(x @ x) for x in own]
        np.testing.assert_allclose(findings.unit_sums[k], np.sum(units, axis=0), rtol=1e-12, atol=1e-12)
        if len(own):
            np.testing.assert_allclose(findings.centers[k], own.mean(axis=0), rtol=1e-12)
    assert np.isnan(findings.centers[3]).all()


def test_scores_and_calibration(views, findings):
    bins, edges = 15, findings.score_edges
    calibration = np.zeros((3, bins))
    scores = {}
    for view in views:
        for _, _, y, p, s, probability in pixels_of(view):
            b = int(probability.max() * bins)
            calibration[:, b] += 1, probability.max(), y == p
            for kind, k in [(0, y)] if y == p else [(1, p), (2, y)]:
                scores.setdefault((kind, k), []).append(s[k])
    for kind in range(3):
        for k in range(K):
            expected = np.histogram(scores.get((kind, k), []), edges)[0]
            assert np.array_equal(findings.score_counts[kind, k], expected)
    assert np.array_equal(findings.calibration_pixels, calibration[0])
    np.testing.assert_allclose(findings.calibration_confidence, calibration[1], rtol=1e-6)
    assert np.array_equal(findings.calibration_right, calibration[2])
    error = sum(abs(right - sure) for _, sure, right in calibration.T) / calibration[0].sum()
    assert findings.calibration_error == pytest.approx(100 * error, rel=1e-6)


def test_numbers_that_other_parts_of_the_package_count(views, findings):
    """The measures count the same features and probabilities in their own way."""
    centers, calibration = ClassCenters(K, C, torch.device("cpu")), Calibration()
    for view in views:
        centers.add(view.feature, view.cell_labels)
        calibration.add(view.scores.softmax(dim=0), view.label)
    np.testing.assert_allclose(findings.center_sums, centers.sums, rtol=1e-12)
    assert findings.calibration_error == pytest.approx(calibration.error(), rel=1e-5)


def sampled_pixels(views, seed, most):
    """Of each class the pixels with the lowest keys of all images, in the order of their keys."""
    found = []
    for k in range(K):
        own = [
            (int(pixel_keys(seed, view.name, view.size)[y, x]), n, y, x, p, s.max())
            for n, view in enumerate(views)
            for y, x, label, p, _, s in pixels_of(view)
            if label == k
        ]
        found += [(k, *pixel[1:]) for pixel in sorted(own)[:most]]
    return found


def test_sampled_pixels(views, findings):
    expected = sampled_pixels(views, 7, 6)
    assert len(expected) == 6 * 4
    columns = zip(*expected, strict=True)
    label, image, y, x, predicted, confidence = (np.array(column) for column in columns)
    for name, values in (("label", label), ("image", image), ("y", y), ("x", x), ("predicted", predicted)):
        assert np.array_equal(getattr(findings, f"pixel_{name}"), values), name
    np.testing.assert_allclose(findings.pixel_confidence, confidence, rtol=1e-6)
    features = [feature_at(views[n], *place) for n, *place in zip(image, y, x, strict=True)]
    assert np.array_equal(findings.pixel_features, features)


def test_sampled_regions(views, findings):
    expected = []
    for k in range(K):
        own = []
        for n, view in enumerate(views):
            members = [feature_at(view, y, x) for y, x, label, *_ in pixels_of(view) if label == k]
            if members:
                own.append((int(region_keys(7, view.name, K)[k]), n, np.mean(members, axis=0, dtype=float)))
        expected += [(k, n, mean) for _, n, mean in sorted(own, key=lambda region: region[0])[:2]]
    assert findings.region_label.tolist() == [k for k, _, _ in expected]
    assert findings.region_image.tolist() == [n for _, n, _ in expected]
    np.testing.assert_allclose(
        findings.region_features, [mean for *_, mean in expected], rtol=1e-5, atol=1e-7
    )


def test_the_order_of_the_images_does_not_matter(views, findings):
    backwards = collect(views[::-1], seed=7, pixels_per_class=6, regions_per_class=2)
    assert backwards.same_pixels(findings)
    for name in ("confusion", "score_counts", "score_edges", "calibration_pixels", "boundary_unions"):
        assert np.array_equal(getattr(backwards, name), getattr(findings, name)), name
    for name in ("pixel_features", "pixel_confidence", "region_features", "region_label"):
        assert np.array_equal(getattr(backwards, name), getattr(findings, name)), name
    np.testing.assert_allclose(backwards.center_sums, findings.center_sums, rtol=1e-12)


def test_networks_with_other_strides_and_channels_look_at_the_same_pixels(views, findings):
    others = []
    for view in views:
        other = make_view(view.size, (1, 1), tuple(map(float, view.size)), name=view.name, channels=9, seed=1)
        others.append(replace(other, label=view.label))
    found = collect(others, seed=7, pixels_per_class=6, regions_per_class=2)
    assert found.same_pixels(findings)
    assert found.pixel_features.shape == (24, 9)
    assert np.array_equal(found.region_image, findings.region_image)
    assert np.array_equal(found.region_label, findings.region_label)
    assert not collect(views, seed=8, pixels_per_class=6).same_pixels(findings)
    assert not collect(views, seed=7, pixels_per_class=5).same_pixels(findings)


def test_log_probabilities_are_scores_too(views, findings):
    shown = [replace(view, scores=view.scores.log_softmax(dim=0)) for view in views]
    found = collect(shown, seed=7, pixels_per_class=6)
    assert np.array_equal(found.confusion, findings.confusion)
    np.testing.assert_allclose(found.calibration_confidence, findings.calibration_confidence, rtol=1e-5)
    # A probability that float32 takes for 0 is the lowest one that it knows.
    view = views[0]
    scores = torch.full_like(view.scores, -math.inf)
    scores[0] = 0.0
    sure = collect([replace(view, scores=scores)])
    assert sure.calibration_confidence[-1] == sure.calibration_pixels.sum()
    lowest = np.flatnonzero(sure.score_counts[2, 1])
    assert len(lowest) == 1
    assert sure.score_edges[lowest] <= math.log(2.0**-126) < sure.score_edges[lowest + 1]


def test_many_images():
    views = [make_view((3, 4), (2, 2), (2.0, 2.0), name=str(n), channels=C) for n in range(150)]
    found = collect(views)
    for n, view in enumerate(views):
        label, predicted = view.label.numpy(), view.predicted.numpy()
        assert found.image_pixels[n].tolist() == [(label == k).sum() for k in range(K)]
        right = [((label == k) & (predicted == k)).sum() for k in range(K)]
        assert found.intersections[n].tolist() == right
    assert found.image_names.tolist() == [str(n) for n in range(150)]
    assert np.array_equal(found.confusion.diagonal(), found.intersections.sum(axis=0))


def test_images_without_a_valid_pixel(views, findings):
    void = make_view((6, 7), (2, 3), (3.0, 3.0), name="void.png", channels=C)
    void = replace(void, label=torch.full_like(void.label, -1))
    alone = collect([void])
    assert not alone.confusion.any() and len(alone.pixel_label) == len(alone.region_label) == 0
    assert alone.pixel_features.shape == alone.region_features.shape == (0, C)
    assert np.isnan(alone.image_iou).all() and np.isnan(alone.boundary_iou).all()
    assert math.isnan(alone.calibration_error)
    among = collect([void, *views], seed=7, pixels_per_class=6)
    assert np.array_equal(among.confusion, findings.confusion)
    assert np.array_equal(among.pixel_image, findings.pixel_image + 1)


def test_boundary_iou(views, findings):
    ratio = 100 * findings.boundary_intersections / np.maximum(findings.boundary_unions, 1)
    present = [0, 1, 2, 4]
    np.testing.assert_allclose(findings.boundary_iou[present], ratio[present], rtol=1e-12)
    assert math.isnan(findings.boundary_iou[3])  # it is predicted, and in no label
    assert findings.boundary_unions[3] > 0
    perfect = [replace(view, scores=one_hot(view.label)) for view in views]
    assert collect(perfect).boundary_iou[present].tolist() == [100.0] * 4


def one_hot(label):
    scores = torch.zeros(K, *label.shape)
    return scores.scatter_(0, label.clamp(min=0).unsqueeze(0), 5.0)


def test_files_are_equal_byte_for_byte(tmp_path, findings):
    first, second = tmp_path / "a.npz", tmp_path / "new" / "b.npz"
    findings.save(first)
    time.sleep(2.1)  # the resolution of times in zip files
    collect(make_views(), seed=7, pixels_per_class=6, regions_per_class=2).save(second)
    assert first.read_bytes() == second.read_bytes()
    loaded = Findings.load(first)
    for each in dataclasses.fields(Findings):
        one, other = getattr(findings, each.name), getattr(loaded, each.name)
        assert one.dtype == other.dtype and np.array_equal(one, other), each.name


def test_names_of_any_script_survive(tmp_path, views):
    names = ["写真/بيت.png", "b\udcff$_%.png", "</script>", " "]
    shown = [replace(view, name=name) for view, name in zip(views, names, strict=True)]
    collect(shown).save(tmp_path / "f.npz")
    assert Findings.load(tmp_path / "f.npz").image_names.tolist() == names


def test_files_that_hold_no_findings(tmp_path, findings):
    path = tmp_path / "f.npz"
    findings.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    contents = [b"", b"PK", b"none", whole[:-30], whole[: len(whole) // 2], whole[100:]]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError, match="f.npz holds no findings.*write it again"):
            Findings.load(path)
    for _ in range(100):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(changed)
        try:
            assert Findings.load(path).image_names.shape
        except UserError as error:
            assert "f.npz holds no findings" in str(error)
    with pytest.raises(FileNotFoundError):
        Findings.load(tmp_path / "none.npz")


def test_arrays_that_do_not_fit_each_other(tmp_path, findings):
    arrays = {each.name: getattr(findings, each.name) for each in dataclasses.fields(Findings)}
    wrong = [
        ({"confusion": findings.confusion[:4]}, r"confusion is of shape \(4, 5\)"),
        ({"pixel_x": findings.pixel_x[1:]}, r"pixel_x is of shape \(23,\); expected \(24,\)"),
        ({"pair_images": findings.pair_images[..., :3]}, "pair_images is of shape"),
        ({"score_edges": findings.score_edges[1:]}, "score_edges is of shape"),
        ({"unions": findings.unions.astype(float)}, "unions is float64"),
        ({"image_names": np.array([b"a"] * 4)}, "image_names is"),
        ({"score_counts": np.array(3)}, "score_counts is int64"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            replace(findings, **change)
        np.savez(tmp_path / "w.npz", **(arrays | change))
        with pytest.raises(UserError, match=message):
            Findings.load(tmp_path / "w.npz")
    objects = arrays | {"unions": np.array([[print]])}
    np.savez(tmp_path / "w.npz", **objects)
    with pytest.raises(UserError, match="w.npz holds no findings"):
        Findings.load(tmp_path / "w.npz")
    del arrays["unions"]
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(UserError, match="unions"):
        Findings.load(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "w.npz", "a") as file:
        file.writestr("unions.npy", b"no array")
    with pytest.raises(UserError, match="w.npz holds no findings"):
        Findings.load(tmp_path / "w.npz")


def test_images_that_are_refused(views):
    collector = Collector(K)
    with pytest.raises(DatasetError, match="no image to look at"):
        collector.findings()
    collector.add(views[0])
    with pytest.raises(DatasetError, match="^Image 'a.png' was looked at before"):
        collector.add(views[0])
    view = views[1]
    with pytest.raises(ConfigError, match="^Image 'b.png': the network has 6 classes; expected 5"):
        collector.add(replace(view, scores=torch.zeros(6, *view.size)))
    with pytest.raises(ConfigError, match="^Image 'b.png': the feature has 3 channels; expected 4"):
        collector.add(replace(view, feature=view.feature[:3]))
    for bad in (math.nan, math.inf):
        scores, feature = view.scores.clone(), view.feature.clone()
        scores[2, 3, 4], feature[1, 2, 3] = bad, bad
        with pytest.raises(ConfigError, match="probabilities are not finite"):
            collector.add(replace(view, scores=scores))
        with pytest.raises(ConfigError, match="feature are not finite"):
            collector.add(replace(view, feature=feature))
    # What was refused has left nothing behind.
    collector.add(view)
    found, expected = collector.findings(), collect(views[:2])
    assert np.array_equal(found.confusion, expected.confusion)
    assert np.array_equal(found.center_sums, expected.center_sums)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0; expected 1 or more"),
        ({"pixels_per_class": 0}, "pixels_per_class is 0"),
        ({"score_bins": 6}, "score_bins is 6; expected a multiple of 4"),
        ({"boundary_ratio": 0.0}, "boundary_ratio is 0.0; expected above 0"),
    ],
)
def test_arguments_that_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Collector(**{"num_classes": 3, **options})
