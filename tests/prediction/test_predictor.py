"""The predictor: whatever an image comes as, the labels are those of the evaluation, bit for bit."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import regseg_d2
from regseg_d2 import Predictor
from regseg_d2.common.errors import CheckpointError, ConfigError, DatasetError
from regseg_d2.config.files import load_config
from regseg_d2.drawing.overlay import blend
from regseg_d2.engine.trained_model import load_trained_model
from regseg_d2.evaluation.inference import build_predictor
from regseg_d2.prediction import Prediction

ROOT = Path(__file__).parents[2]
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def predictor(trained_run):
    return Predictor.from_run(trained_run.folder)


def turned(image, path):
    """Stored lying on its side, with the note that says so."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    image.rotate(90, expand=True).save(path, exif=exif)
    return path


def sixteen_bits(pixels, path):
    """A colour file of 16 bits a channel whose high bytes are the pixels."""
    cv2.imwrite(str(path), (pixels[:, :, ::-1].astype(np.uint16) << 8) | 77)
    return path


def test_labels_are_those_of_the_evaluation(trained_run, predictor):
    for image in trained_run.images:
        prediction = predictor(image)
        assert prediction.labels.dtype == np.uint8
        assert np.array_equal(prediction.labels, trained_run.labels(image))
    assert predictor.class_names == prediction.class_names == ("soil", "crop", "weed")
    assert prediction.classes.colors[2].tolist() == [200, 60, 160]


KINDS = {
    "text": lambda path, folder: str(path),
    "path": lambda path, folder: path,
    "pillow": lambda path, folder: Image.open(path),
    "pillow RGBA": lambda path, folder: Image.open(path).convert("RGBA"),
    "pillow turned by EXIF": lambda path, folder: Image.open(turned(Image.open(path), folder / "a.png")),
    "file turned by EXIF": lambda path, folder: turned(Image.open(path), folder / "b.png"),
    "file of 16 bits": lambda path, folder: sixteen_bits(np.array(Image.open(path)), folder / "c.png"),
    "array": lambda path, folder: np.array(Image.open(path)),
    "array that is a view": lambda path, folder: np.array(Image.open(path))[:, ::-1][:, ::-1],
    "tensor": lambda path, folder: torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1),
    "list": lambda path, folder: [path, np.array(Image.open(path))],
    "tuple": lambda path, folder: (Image.open(path),),
    "batch of arrays": lambda path, folder: np.stack([np.array(Image.open(path))] * 2),
    "batch of tensors": lambda path, folder: (
        torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).expand(2, -1, -1, -1)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_input(trained_run, predictor, tmp_path, kind):
    path = trained_run.images[1]
    given = KINDS[kind](path, tmp_path)
    got = predictor(given)
    several = isinstance(given, (list, tuple)) or getattr(given, "ndim", 0) == 4
    assert isinstance(got, list if several else Prediction)
    for prediction in got if several else [got]:
        assert np.array_equal(prediction.labels, trained_run.labels(path))
        assert np.array_equal(prediction.image, np.array(Image.open(path)))


def test_frames_of_opencv_are_bgr(trained_run, predictor):
    path = trained_run.images[0]
    frame = cv2.imread(str(path))
    for prediction in (predictor.frame(frame), predictor(frame, channels="BGR")):
        assert np.array_equal(prediction.labels, trained_run.labels(path))
        assert np.array_equal(prediction.image, frame[:, :, ::-1])
    # The order matters: taken for RGB, the frame has other labels.
    assert not np.array_equal(predictor(frame).labels, trained_run.labels(path))
    batch = torch.from_numpy(frame).permute(2, 0, 1)[None]
    assert np.array_equal(predictor(batch, channels="BGR")[0].labels, trained_run.labels(path))
    # What the camera writes into the same memory next does not change what was predicted.
    before = predictor.frame(frame)
    kept = before.image.copy()
    frame[:] = 0
    assert np.array_equal(before.image, kept)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK"])
def test_grey_palette_and_other_modes_are_read_as_files_are(trained_run, predictor, tmp_path, mode):
    source = Image.open(trained_run.images[0]).convert("RGB")
    image = source.convert("L").convert("LA") if mode == "LA" else source.convert(mode)
    rgb = np.array(image.convert("RGB"))
    expected = predictor(rgb).labels
    assert np.array_equal(predictor(image).labels, expected)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(file)
    assert np.array_equal(predictor(file).labels, expected)
    if mode == "L":
        grey = np.array(image)
        for array in (grey, grey[:, :, None], torch.from_numpy(grey)[None]):
            assert np.array_equal(predictor(array).labels, expected)


RGB = np.zeros((8, 9, 3), np.uint8)
WRONG = [
    (RGB.astype(np.float32) / 255, r"array \(8, 9, 3\) of float32; expected uint8.*\(image \* 255\)"),
    (RGB.astype(np.uint16), r"of uint16; expected uint8.*take the high byte, image >> 8"),
    (torch.zeros(3, 8, 9), r"tensor \(3, 8, 9\) of torch.float32; expected uint8.*\.byte\(\)"),
    (RGB.transpose(2, 0, 1), r"array \(3, 8, 9\); expected \(H, W, 3\).*image.transpose\(1, 2, 0\)"),
    (torch.from_numpy(RGB), r"tensor \(8, 9, 3\); expected \(3, H, W\).*image.permute\(2, 0, 1\)"),
    (np.zeros((8, 9, 4), np.uint8), r"array \(8, 9, 4\); .*drop the alpha channel"),
    (np.zeros((8, 9, 5), np.uint8), r"array \(8, 9, 5\); expected \(H, W, 3\), or \(H, W\) for grey\."),
    (np.zeros(7, np.uint8), r"array \(7,\); expected \(H, W, 3\)"),
    (np.zeros((0, 9, 3), np.uint8), r"array \(0, 9, 3\), which has no pixel"),
    (torch.zeros(3, 0, 9, dtype=torch.uint8), r"tensor \(3, 0, 9\), which has no pixel"),
    (Image.new("I;16", (9, 8)), r'given as a Pillow image has mode "I;16"; expected 8 bits'),
    (7, "An image is a int; expected a path, a Pillow image, a NumPy array, a tensor, or a list"),
    (None, "An image is a NoneType; expected"),
    ("nowhere.png", "image file nowhere.png does not exist"),
    ([RGB, "nowhere.png"], r"images\[1\]: The image file nowhere.png does not exist"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_no_image_says_what_to_do(predictor, number):
    image, message = WRONG[number]
    with pytest.raises(DatasetError, match=message):
        predictor(image)


def test_wrong_channels(trained_run, predictor):
    with pytest.raises(ConfigError, match="is 'GBR'; expected 'RGB' or 'BGR'"):
        predictor(RGB, channels="GBR")
    for image in (trained_run.images[0], Image.open(trained_run.images[0])):
        with pytest.raises(DatasetError, match="channels is 'BGR', and the image is a .*whose channels are"):
            predictor(image, channels="BGR")


def test_damaged_pillow_image(trained_run, predictor, tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(trained_run.images[0].read_bytes()[:600])
    with pytest.raises(DatasetError, match=r"cut.png cannot be read"):
        predictor(Image.open(path))


def test_scores_and_confidence_are_kept_only_where_they_are_asked_for(trained_run, predictor):
    image = trained_run.images[2]
    plain = predictor(image)
    for name in ("scores", "confidence"):
        with pytest.raises(ConfigError, match=rf"ask for them, predictor\(image, {name}=True\)"):
            getattr(plain, name)
    # Labels and pixels are all that it holds.
    held = [value for value in vars(plain).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in held) == 40 * 56 * (1 + 3)

    full = predictor(image, scores=True, confidence=True)
    assert np.array_equal(full.labels, plain.labels)
    assert full.scores.shape == (3, 40, 56) and full.scores.dtype == np.float32
    assert np.abs(full.scores.sum(axis=0) - 1).max() < 1e-6
    assert np.array_equal(full.scores.argmax(axis=0), full.labels)
    assert np.abs(full.confidence - full.scores.max(axis=0)).max() < 1e-6
    cfg = load_config(
        str(trained_run.folder / "config.yaml"),
        ["MODEL.WEIGHTS", str(trained_run.folder / "model_final.pth")],
    )
    logits = build_predictor(cfg, load_trained_model(cfg).model).scores(
        [{"image": torch.from_numpy(full.image).permute(2, 0, 1)}]
    )[0]["sem_seg"]
    assert np.abs(full.scores - logits.softmax(dim=0).numpy()).max() < 1e-6


@pytest.mark.parametrize("protocol", ["slide", "scales", "min_size"])
def test_protocols_of_the_config_and_of_the_caller(trained_run, predictor, protocol):
    overrides = {
        "slide": {"TEST.MODE": "slide", "TEST.SLIDE.CROP_SIZE": [32, 32], "TEST.SLIDE.STRIDE": [16, 16]},
        "scales": {"TEST.AUG.ENABLED": True, "TEST.AUG.SCALES": [0.5, 1.0], "TEST.AUG.FLIP": True},
        "min_size": {"INPUT.MIN_SIZE_TEST": 64, "INPUT.FORMAT": "BGR"},
    }[protocol]
    other = Predictor.from_run(trained_run.folder, overrides=overrides)
    assert other.protocol != predictor.protocol
    image = trained_run.images[0]
    got = other(image, scores=True, confidence=True)
    cfg = other.cfg
    from regseg_d2.data.mapper import TestMapper

    sample = TestMapper(cfg)({"file_name": str(image), "sem_seg_file_name": "", "image_id": "a"})
    reference = build_predictor(cfg, load_trained_model(cfg).model)
    expected = reference.scores([sample])[0]["sem_seg"].argmax(dim=0).numpy()
    assert got.labels.shape == (40, 56)
    assert np.array_equal(got.labels, expected)
    assert np.abs(got.scores.sum(axis=0) - 1).max() < 1e-6
    assert np.abs(got.confidence - got.scores.max(axis=0)).max() < 1e-6


def test_a_stream_holds_one_image_at_a_time(trained_run, predictor):
    asked = []

    def images():
        for path in trained_run.images:
            asked.append(path)
            yield path

    for number, prediction in enumerate(predictor.stream(images())):
        assert len(asked) == number + 1
        assert np.array_equal(prediction.labels, trained_run.labels(asked[-1]))
    assert number == 2


def test_pictures_and_files(trained_run, predictor, tmp_path):
    image = trained_run.images[0]
    prediction = predictor(image)
    overlay = np.array(prediction.overlay(0.3))
    drawn = blend(prediction.image, prediction.labels, prediction.classes.colors, 0.3)
    assert np.array_equal(overlay[:40, :56], drawn) and overlay.shape[0] > 40
    assert np.array_equal(np.array(prediction.overlay(0.3, legend=False)), drawn)
    paths = prediction.save(tmp_path, opacity=0.3)
    assert paths == tuple(tmp_path / kind / "000.png" for kind in ("labels", "colors", "overlays"))
    labels, colors, written = (Image.open(path) for path in paths)
    assert np.array_equal(np.array(labels), prediction.labels)
    assert colors.mode == "P" and np.array_equal(np.array(colors), prediction.labels)
    assert np.array_equal(np.array(written), overlay)
    assert prediction.save(tmp_path, "day 1/a")[0] == tmp_path / "labels" / "day 1" / "a.png"

    with pytest.raises(ConfigError, match="opacity is 1.5; expected 0 to 1"):
        prediction.overlay(1.5)
    nameless = predictor(prediction.image)
    for name in ("", "../a", "/a"):
        with pytest.raises(ConfigError, match=f"name is '{name}'; expected what the files shall be called"):
            nameless.save(tmp_path, name)
    with pytest.raises(ConfigError, match="overwrite the input"):
        predictor(paths[0]).save(tmp_path)


def test_weights_with_and_without_a_config(trained_run, predictor, tmp_path):
    final = trained_run.folder / "model_final.pth"
    image = trained_run.images[0]
    for other in (
        Predictor.from_file(final),
        Predictor.from_file(str(final), trained_run.folder / "config.yaml"),
        Predictor.from_run(str(trained_run.folder), weights="model_final.pth", device="cpu"),
    ):
        assert np.array_equal(other(image).labels, trained_run.labels(image))
    alone = tmp_path / "alone.pth"
    alone.write_bytes(final.read_bytes())
    with pytest.raises(ConfigError, match=r"alone.pth' has no config.yaml beside it.*config_file=FILE"):
        Predictor.from_file(alone)
    assert np.array_equal(
        Predictor.from_file(alone, trained_run.folder / "config.yaml")(image).labels,
        trained_run.labels(image),
    )


def test_what_cannot_be_loaded(trained_run, tmp_path):
    with pytest.raises(ConfigError, match="has no config.yaml: expected the OUTPUT_DIR of a run"):
        Predictor.from_run(tmp_path)
    with pytest.raises(CheckpointError, match="model_bset.pth' does not exist. In its folder"):
        Predictor.from_run(trained_run.folder, weights="model_bset.pth")
    with pytest.raises(ConfigError, match="TEST.MODES"):
        Predictor.from_run(trained_run.folder, overrides={"TEST.MODES": "slide"})
    for device in ("cuda:97", "gpu"):
        with pytest.raises(ConfigError, match=f"device is '{device}', which cannot be used"):
            Predictor.from_run(trained_run.folder, device=device)


def test_regularizers_are_not_kept(predictor):
    names = {name.partition(".")[0] for name in predictor.model.state_dict()}
    assert names == {"backbone", "sem_seg_head"}


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, regseg_d2; assert 'torch' not in sys.modules and 'detectron2' not in sys.modules\n"
        "assert not hasattr(regseg_d2, 'Nothing'); print(*regseg_d2.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Prediction", "Predictor", "__version__"]
    assert regseg_d2.Predictor is Predictor and regseg_d2.Prediction is Prediction
