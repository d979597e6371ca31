"""Predictions of videos and cameras, as videos."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from regseg_d2.common.errors import DatasetError, WriteError, check_key
from regseg_d2.common.files import atomic_writer
from regseg_d2.drawing.overlay import LegendEntry, with_legend
from regseg_d2.prediction import Predictor

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
# Of a source that does not tell.
_USUAL_RATE = 25.0
_FASTEST_RATE = 1000.0
# Containers announce an estimate, the duration times the rate. So much of it may be missing.
_MISSING_SECONDS, _MISSING_SHARE = 1.0, 0.02


@dataclass(frozen=True)
class PaintOptions:
    """What is painted, and which frames of a video.

    Attributes:
        opacity: of the classes, 0 to 1.
        classes: names of those that are painted; none: all.
        every: predict every so many-th frame; the others are left out, and the video plays as long as before.
        max_frames: predict so many frames at most; 0: all.
    """

    opacity: float = 0.5
    classes: tuple[str, ...] = ()
    every: int = 1
    max_frames: int = 0

    def __post_init__(self) -> None:
        check_key("--every", self.every, self.every >= 1, "1 or more")
        check_key("--max-frames", self.max_frames, self.max_frames >= 0, "0 (all) or more")


def is_video(source: str) -> bool:
    """Whether a source is the number of a camera, or the file of a video."""
    return source.isdecimal() or Path(source).suffix.lower() in VIDEO_SUFFIXES


def predict_video(predictor: Predictor, source: str, file: Path, options: PaintOptions) -> int:
    """Paints the classes over each frame, with a legend below, and writes the frames as a video.

    A camera runs until ``max_frames``, or until Ctrl-C; what was filmed until then is kept.

    Args:
        predictor: the model.
        source: a video file, or the number of a camera.
        file: the ``.mp4`` to write; it is there whole or not at all.
        options: what is done with the frames.

    Returns:
        The number of frames that were written.

    Raises:
        DatasetError: the source cannot be opened, has no frames, or ends long before its last frame.
        WriteError: the video cannot be written.
    """
    camera = source.isdecimal()
    video = cv2.VideoCapture(int(source) if camera else source)
    try:
        if not video.isOpened():
            what = f"camera {source}" if camera else f"video '{source}'"
            raise DatasetError(f"The {what} cannot be opened; expected one that OpenCV reads.")
        rate = video.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < _FASTEST_RATE else _USUAL_RATE
        announced = max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0) if not camera else 0
        limits = [limit for limit in (-(-announced // options.every), options.max_frames) if limit]
        number = min(limits, default=0)
        frames = _frames(video, options)
        legend = _legend(predictor, options.classes)
        with _writer(file, rate / options.every) as write:
            written = 0
            try:
                shown = track(frames, f"predicting {source}", total=number or None, transient=True)
                for frame in shown:
                    overlay = predictor.frame(frame).overlay(
                        options.opacity, legend=False, classes=options.classes
                    )
                    write(with_legend(np.asarray(overlay), legend))
                    written += 1
            except KeyboardInterrupt:
                if not (camera and written):
                    raise
            if not written:
                raise DatasetError(f"'{source}' has no frame that can be read.")
    finally:
        video.release()
    missing = (number - written) * options.every
    if announced and missing > max(_MISSING_SECONDS * rate, _MISSING_SHARE * announced):
        raise DatasetError(
            f"'{source}' announces {announced} frames and ends after {written * options.every}: it is cut "
            f"off or damaged. What there was is in {file}."
        )
    return written


def _frames(video: cv2.VideoCapture, options: PaintOptions) -> Iterator[np.ndarray]:
    """Every so many-th frame, BGR; those between are not decoded to pixels."""
    given = 0
    for position in itertools.count():
        if options.max_frames and given == options.max_frames:
            return
        if not video.grab():
            return
        if position % options.every == 0:
            there, frame = video.retrieve()
            if not there:
                return
            given += 1
            yield frame


def _legend(predictor: Predictor, classes: Sequence[str]) -> list[LegendEntry]:
    """All classes that may be painted: what stands below a video is the same in every frame."""
    colors = predictor.classes.colors.tolist()
    return [
        LegendEntry(name, (red, green, blue))
        for name, (red, green, blue) in zip(predictor.class_names, colors, strict=True)
        if not classes or name in classes
    ]


@contextmanager
def _writer(file: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that appends a frame (H, W, 3), RGB; all have the size of the first."""
    opened: list[cv2.VideoWriter] = []
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / file.name  # OpenCV writes to a name, and tells the format by it

        def write(pixels: np.ndarray) -> None:
            # Codecs want even sides.
            pixels = np.pad(pixels, [(0, side % 2) for side in pixels.shape[:2]] + [(0, 0)], mode="edge")
            if not opened:
                size = pixels.shape[1], pixels.shape[0]
                opened.append(cv2.VideoWriter(str(draft), cv2.VideoWriter.fourcc(*"mp4v"), rate, size))
                if not opened[0].isOpened():
                    raise WriteError(f"{file} cannot be written: OpenCV has no encoder for MPEG-4 here.")
            opened[0].write(np.ascontiguousarray(pixels[:, :, ::-1]))

        try:
            yield write
        finally:
            for writer in opened:
                writer.release()
        if not draft.is_file() or not draft.stat().st_size:
            raise WriteError(f"{file} could not be written: is the disk of {folder} full?")
        with draft.open("rb") as source, atomic_writer(file, "wb") as target:
            shutil.copyfileobj(source, target)
