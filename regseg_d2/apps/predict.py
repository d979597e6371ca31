"""Predictions for images and videos, as files."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import track

from regseg_d2.apps.videos import PaintOptions, is_video, predict_video
from regseg_d2.common.errors import ConfigError, DatasetError, check_key
from regseg_d2.config.files import load_config, override_pairs
from regseg_d2.prediction import Predictor
from regseg_d2.prediction.bundle import BUNDLE_FILE
from regseg_d2.prediction.result import FOLDERS, files_of, refuse_to_overwrite

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")


@dataclass(frozen=True)
class InputImage:
    """An image to predict.

    ``name`` is the path of what is written for it, below the output's folders, without ".png".
    """

    path: Path
    name: str


# ---------------------------------------------------------------------------------------------- input


def find_images(source: str, output: Path) -> list[InputImage]:
    """Finds the images that a file, a folder or a pattern names.

    Args:
        source: an image; a folder, which is searched with its sub-folders; or a pattern such as
            ``"photos/**/*.jpg"``.
        output: where predictions go; what a folder or pattern finds in its three folders is no input.

    Returns:
        The images, sorted. Their names keep the sub-folders, and their suffixes where two differ in it
        only.

    Raises:
        ConfigError: nothing has this name, or no image is there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _named([path], path.parent)
    if path.is_dir():
        files, base = [file for file in path.rglob("*") if _is_image(file)], path
    elif glob.has_magic(source):
        matches = glob.glob(str(path), recursive=True)
        files = [Path(match) for match in matches if Path(match).is_file() and _is_image(Path(match))]
        base = _fixed_part(path)
    else:
        raise ConfigError(
            f"--input is {source}, which does not exist; expected an image, a folder or a pattern."
        )
    written = [(output / folder).resolve() for folder in FOLDERS]
    files = sorted(file for file in files if not any(file.resolve().is_relative_to(root) for root in written))
    if not files:
        raise ConfigError(
            f"--input {source} names no image; files that end in {', '.join(IMAGE_SUFFIXES)} are looked for."
        )
    return _named(files, base)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _fixed_part(pattern: Path) -> Path:
    """The folder before the first part of a pattern that has a wildcard."""
    fixed = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _named(files: Sequence[Path], base: Path) -> list[InputImage]:
    names = [file.relative_to(base) for file in files]
    stems = [name.with_suffix("") for name in names]
    # All keep their suffix or none: then no two can become equal.
    names = stems if len(set(stems)) == len(stems) else names
    return [InputImage(file, name.as_posix()) for file, name in zip(files, names, strict=True)]


# ----------------------------------------------------------------------------------------------- work


def predict_files(
    config_file: str,
    opts: Sequence[str],
    *,
    source: str | Sequence[str],
    model: str = "",
    output: str = "",
    options: PaintOptions = PaintOptions(),  # noqa: B008  frozen
    say: Callable[[str], None] = print,
) -> bool:
    """Predicts all images and videos of some sources; what cannot be read is named and left out.

    Args:
        config_file: config of the trained model; "" where ``model`` says which.
        opts: changes to it, with MODEL.WEIGHTS where the config does not name the weights.
        source: one or several: videos, numbers of cameras, or as for :func:`find_images`.
        model: folder of a run or of a bundle, in place of a config.
        output: folder to write to; "" is ``demo`` in OUTPUT_DIR.
        options: opacity and classes of the overlays; which frames of a video.
        say: takes lines for people.

    Returns:
        Whether every image and video was predicted.

    Raises:
        UserError: an argument, the config or the weights cannot be used, or a file cannot be written.
    """
    check_key("--opacity", options.opacity, 0 <= options.opacity <= 1, "0 to 1")
    load, folder = load_model(config_file, opts, model)
    folder = Path(output) if output else folder
    sources = [source] if isinstance(source, str) else list(source)
    videos = [source for source in sources if is_video(source) and not Path(source).is_dir()]
    images = [image for other in sources if other not in videos for image in find_images(other, folder)]
    paths = [path for image in images for path in files_of(folder, image.name)]
    paths += [_video_file(folder, video) for video in videos]
    twice = next((path for path, count in Counter(paths).items() if count > 1), None)
    if twice:
        raise ConfigError(f"Two inputs would be written to {twice}: predict them into different folders.")
    refuse_to_overwrite(paths, [*(image.path for image in images), *map(Path, videos)])
    there = next((path for path in map(partial(_video_file, folder), videos) if path.exists()), None)
    if there:
        raise ConfigError(f"{there} is there already. Delete it, or name another folder with --output.")
    predictor = load()
    for name in options.classes:
        predictor.classes.index(name)
    failed = done = 0
    for video in videos:
        file = _video_file(folder, video)
        try:
            count = predict_video(predictor, video, file, options)
        except DatasetError as error:
            say(f"Left out: {error}")
            failed += 1
            continue
        say(f"Wrote {count} frames of {video} to {file}")
    for image in track(images, "predicting", transient=True):
        try:
            prediction = predictor(image.path)
        except DatasetError as error:
            say(f"Left out: {error}")
            continue
        prediction.save(folder, image.name, opacity=options.opacity, classes=options.classes)
        done += 1
    if images:
        say(f"Wrote the predictions of {done} of {len(images)} images to {folder}")
    return not failed and done == len(images)


def load_model(config_file: str, opts: Sequence[str], model: str) -> tuple[Callable[[], Predictor], Path]:
    """Returns what loads a predictor, and the folder of its predictions where nobody names one.

    Arguments and errors are those of :func:`predict_files`; the model is loaded when it is called for.
    """
    if bool(model) == bool(config_file):
        raise ConfigError(
            "Name the model: --model with the folder of a run or a bundle, or --config-file with "
            "MODEL.WEIGHTS behind it; not both."
        )
    if not model:
        cfg = load_config(config_file, list(opts))
        return lambda: Predictor.from_config(cfg), Path(cfg.OUTPUT_DIR) / "demo"
    overrides = dict(override_pairs(opts))
    from_folder = Predictor.from_bundle if (Path(model) / BUNDLE_FILE).is_file() else Predictor.from_run
    return lambda: from_folder(model, overrides=overrides), Path(model) / "demo"


def _video_file(folder: Path, source: str) -> Path:
    name = f"camera{source}" if source.isdecimal() else Path(source).stem
    return folder / "videos" / f"{name}.mp4"
