"""Videos: which frames are predicted, what is painted, and what is written."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from regseg_d2.apps.predict import predict_files
from regseg_d2.apps.videos import PaintOptions, is_video
from regseg_d2.common.errors import ConfigError
from regseg_d2.drawing.overlay import LegendEntry, with_legend
from regseg_d2.prediction import Predictor
from tests.apps.test_predict import photo, trained  # noqa: F401  a fixture

SIZE = (48, 64)


def write_video(path, count=12, rate=10.0, size=SIZE):
    """A video whose frames are each of one grey, which survives compression."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, size[::-1])
    for i in range(count):
        writer.write(np.full((*size, 3), 20 * i + 5, np.uint8))
    writer.release()
    return path


def frames_of(path):
    video = cv2.VideoCapture(str(path))
    frames = []
    while (frame := video.read()[1]) is not None:
        frames.append(frame[:, :, ::-1].astype(int))
    return frames, video.get(cv2.CAP_PROP_FPS)


def predict(config, video, folder, **options):
    said = []
    done = predict_files(
        config, [], source=str(video), output=str(folder), options=PaintOptions(**options), say=said.append
    )
    return done, said


def test_every_frame_is_painted_with_a_legend_below(trained, tmp_path):  # noqa: F811
    config, _ = trained
    video = write_video(tmp_path / "drive.avi")
    done, said = predict(config, video, tmp_path / "out", opacity=0.7)
    file = tmp_path / "out" / "videos" / "drive.mp4"
    assert done and said == [f"Wrote 12 frames of {video} to {file}"]
    frames, rate = frames_of(file)
    assert len(frames) == 12 and rate == 10
    predictor = Predictor.from_file(*_files(config))
    entries = [
        LegendEntry(name, tuple(color))
        for name, color in zip(predictor.class_names, predictor.classes.colors.tolist(), strict=True)
    ]
    given, _ = frames_of(video)
    for frame, source in zip(frames, given, strict=True):
        overlay = predictor(source.astype(np.uint8)).overlay(0.7, legend=False)
        expected = with_legend(np.asarray(overlay), entries)
        # Sides are even, for the codec.
        assert frame.shape == (*(side + side % 2 for side in expected.shape[:2]), 3)
        inner = frame[: len(expected), : expected.shape[1]]
        assert np.abs(inner - expected).mean() < 6  # MPEG-4
    assert not list(file.parent.glob(".*"))


def _files(config):
    from regseg_d2.config.files import load_config

    return load_config(config).MODEL.WEIGHTS, config


@pytest.mark.parametrize(
    ("options", "chosen"), [({"every": 5}, [0, 5, 10]), ({"max_frames": 4}, [0, 1, 2, 3])]
)
def test_frames_are_left_out_and_the_length_stays(trained, tmp_path, options, chosen):  # noqa: F811
    config, _ = trained
    video = write_video(tmp_path / "drive.avi")
    done, _ = predict(config, video, tmp_path / "out", opacity=0.0, **options)
    frames, rate = frames_of(tmp_path / "out" / "videos" / "drive.mp4")
    assert done and rate == pytest.approx(10 / options.get("every", 1))
    greys = [frame[: SIZE[0], : SIZE[1]].mean() for frame in frames]
    assert greys == pytest.approx([20 * i + 5 for i in chosen], abs=6)


class Unknown:
    """A video whose properties are not known."""

    def __init__(self, source):
        self._video = cv2.VideoCapture(source)

    def __getattr__(self, name):
        return getattr(self._video, name)

    def get(self, name):
        return 0.0


def test_a_video_that_does_not_tell_its_length_is_whole_where_it_ends(trained, tmp_path, monkeypatch):  # noqa: F811
    """Live streams and some containers announce no number of frames."""
    config, _ = trained
    video = write_video(tmp_path / "drive.avi", count=3)
    monkeypatch.setattr("regseg_d2.apps.videos.cv2", SimpleNamespace(**vars(cv2) | {"VideoCapture": Unknown}))
    done, said = predict(config, video, tmp_path / "out", max_frames=10)
    assert done and said[0].startswith("Wrote 3 frames")


@pytest.mark.parametrize("announced, whole", [(13, True), (22, True), (23, False), (700, False)])
def test_a_number_of_frames_is_an_estimate(trained, tmp_path, monkeypatch, announced, whole):  # noqa: F811
    """12 frames, 10 a second: a second may be missing of what the container announces."""

    class Announcing(Unknown):
        def get(self, name):
            return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: announced}.get(name, 0.0)

    config, _ = trained
    video = write_video(tmp_path / "drive.avi")
    changed = SimpleNamespace(**vars(cv2) | {"VideoCapture": Announcing})
    monkeypatch.setattr("regseg_d2.apps.videos.cv2", changed)
    done, (said,) = predict(config, video, tmp_path / "out")
    assert done == whole
    assert said.startswith("Wrote 12 frames" if whole else "Left out:")
    assert whole or f"announces {announced} frames and ends after 12: it is cut off or damaged" in said


def test_only_chosen_classes_are_painted(trained, tmp_path):  # noqa: F811
    config, _ = trained
    predictor = Predictor.from_file(*_files(config))
    prediction = predictor(photo(tmp_path / "a.png"))
    present = [predictor.class_names[i] for i in np.unique(prediction.labels)]
    name = present[0]
    picture = np.asarray(prediction.overlay(1.0, legend=False, classes=[name]))
    own = prediction.labels == predictor.class_names.index(name)
    assert own.any() and not own.all()
    assert (picture[~own] == prediction.image[~own]).all()
    assert (picture[own] == predictor.classes.colors[predictor.class_names.index(name)]).all()
    with pytest.raises(ConfigError, match=r"no class 'cwo'.*did you mean 'cow'"):
        prediction.overlay(classes=["cwo"])


def test_images_and_videos_together(trained, tmp_path):  # noqa: F811
    config, _ = trained
    video = write_video(tmp_path / "drive.avi", count=2)
    photo(tmp_path / "photos" / "a.png")
    out = tmp_path / "out"
    sources = [str(tmp_path / "photos"), str(video)]
    assert predict_files(config, [], source=sources, output=str(out), say=lambda line: None)
    assert (out / "labels" / "a.png").is_file() and (out / "videos" / "drive.mp4").is_file()
    twice = [str(tmp_path / "photos"), str(tmp_path / "photos" / "a.png")]
    with pytest.raises(ConfigError, match="Two inputs would be written to"):
        predict_files(config, [], source=twice, output=str(out))


def test_a_damaged_video_is_left_out_and_nothing_half_is_there(trained, tmp_path):  # noqa: F811
    config, _ = trained
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    done, said = predict(config, tmp_path / "broken.mp4", tmp_path / "out")
    assert not done and "broken.mp4' cannot be opened" in said[0]
    done, said = predict(config, "7", tmp_path / "out")  # no camera of that number
    assert not done and "camera 7 cannot be opened" in said[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == "videos"]


def test_what_is_there_is_not_replaced(trained, tmp_path):  # noqa: F811
    config, _ = trained
    video = write_video(tmp_path / "drive.avi", count=2)
    predict(config, video, tmp_path / "out")
    before = (tmp_path / "out" / "videos" / "drive.mp4").read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        predict(config, video, tmp_path / "out")
    assert (tmp_path / "out" / "videos" / "drive.mp4").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "--every is 0"), ({"max_frames": -1}, "--max-frames is -1")],
)
def test_wrong_numbers(options, message):
    with pytest.raises(ConfigError, match=message):
        PaintOptions(**options)


def test_what_is_a_video():
    assert is_video("0") and is_video("a/b.MP4") and is_video("x.webm")
    assert not is_video("photo.jpg") and not is_video("folder")


def test_one_model_is_named(trained, tmp_path):  # noqa: F811
    config, _ = trained
    with pytest.raises(ConfigError, match="Name the model: --model"):
        predict_files("", [], source="a.png")
    with pytest.raises(ConfigError, match="not both"):
        predict_files(config, [], source="a.png", model=str(tmp_path))
