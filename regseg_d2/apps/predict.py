"""Predictions for images of any folder, as files."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.config.files import load_config
from regseg_d2.prediction import Predictor
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
    source: str,
    output: str = "",
    opacity: float = 0.5,
    say: Callable[[str], None] = print,
) -> bool:
    """Predicts all images of a source; one that cannot be read is named and left out.

    Args:
        config_file: config of the trained model.
        opts: changes to it, with MODEL.WEIGHTS where the config does not name the weights.
        source: as for :func:`find_images`.
        output: folder to write to; "" is ``demo`` in OUTPUT_DIR.
        opacity: of the classes in the overlays, 0 to 1.
        say: takes lines for people.

    Returns:
        Whether every image was predicted.

    Raises:
        UserError: an argument, the config or the weights cannot be used, or a file cannot be written.
    """
    if not 0 <= opacity <= 1:
        raise ConfigError(f"--opacity is {opacity}; expected 0 to 1.")
    cfg = load_config(config_file, list(opts))
    folder = Path(output or os.path.join(cfg.OUTPUT_DIR, "demo"))
    images = find_images(source, folder)
    paths = [path for image in images for path in files_of(folder, image.name)]
    refuse_to_overwrite(paths, [image.path for image in images])
    predictor = Predictor.from_config(cfg)
    failed = 0
    for image in track(images, "predicting", transient=True):
        try:
            prediction = predictor(image.path)
        except DatasetError as error:
            say(f"Left out: {error}")
            failed += 1
            continue
        prediction.save(folder, image.name, opacity=opacity)
    say(f"Wrote the predictions of {len(images) - failed} of {len(images)} images to {folder}")
    return not failed
