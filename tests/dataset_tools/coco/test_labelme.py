"""Labels made of LabelMe's files."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from regseg_d2.commands.convert_coco import main
from regseg_d2.data.datasets.declared import read_declaration

HEIGHT, WIDTH = 20, 30


def shape(label, kind, points, **more):
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}, **more}


def write(folder, name, shapes, **changes):
    (folder / "json").mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / f"{name}.jpg")
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"..\\images\\{name}.jpg",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        **changes,
    }
    (folder / "json" / f"{name}.json").write_text(json.dumps(content))


def convert(folder, monkeypatch, capsys, *more):
    words = ["--name", "yard", "--output", folder / "labels", "--workers", "0", *more]
    words += ["--split", "train", folder / "json", folder / "images", "--declaration", folder / "yard.yaml"]
    monkeypatch.setattr("sys.argv", ["regseg convert-coco", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return end.code, capsys.readouterr().err
    return 0, capsys.readouterr().out


def mask_of(rows, columns):
    inner = np.zeros((rows, columns), np.uint8)
    inner[1:, :] = 255
    file = io.BytesIO()
    Image.fromarray(inner).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_every_kind_of_area_becomes_its_pixels(tmp_path, monkeypatch, capsys):
    write(
        tmp_path,
        "a",
        [
            shape("grass", "rectangle", [[18, 12], [2, 2]]),  # from any corner
            shape("stone", "polygon", [[20, 2], [28, 2], [28, 8], [20, 8]]),
            shape("pond", "circle", [[24, 14], [24, 18]]),
            shape("bush", "mask", [[3, 14], [7, 17]], mask=mask_of(4, 5)),
        ],
    )
    write(tmp_path, "b", [])
    status, printed = convert(tmp_path, monkeypatch, capsys)
    assert status == 0
    (spec,) = read_declaration(tmp_path / "yard.yaml")
    assert spec.classes == ("background", "bush", "grass", "pond", "stone")
    label = np.asarray(Image.open(tmp_path / "labels" / "train" / "a.png"))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:12, 2:18] = 2
    expected[2:8, 20:28] = 4
    expected[15:18, 3:8] = 1
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    distance = np.hypot(x - 24, y - 14)
    sure = np.abs(distance - 4) > 0.8  # polygons of 72 corners, drawn on pixels
    expected[distance < 4] = 3
    assert (label == expected)[sure].all()
    assert not np.asarray(Image.open(tmp_path / "labels" / "train" / "b.png")).any()
    assert [record["image_id"] for record in spec.load()] == ["images/a", "images/b"]


@pytest.mark.parametrize(
    ("shapes", "changes", "message"),
    [
        ([shape("a", "line", [[1, 1], [5, 5]])], {}, r"a.json: shapes\[0\] \('a'\) is a line of 2 points"),
        (
            [shape("a", "polygon", [[1, 1], [5, 5]])],
            {},
            "a polygon of 2 points; expected a polygon of at least three",
        ),
        ([shape("a", "mask", [[1, 1], [5, 5]], mask="no base64")], {}, "its mask is no PNG in base64"),
        (
            [shape("a", "mask", [[1, 1], [5, 5]], mask="nonsense")],
            {},
            r"mask file .*shapes\[0\] cannot be read",
        ),
        ([shape("a", "mask", [[28, 1], [32, 4]], mask=mask_of(4, 5))], {}, "leaves the image of 20 x 30"),
        ([shape("a", "polygon", [[1, "x"], [5, 5], [6, 6]])], {}, "a.json.*shapes"),
        ([], {"imageHeight": None}, "imageHeight"),
    ],
)
def test_what_is_no_area_or_no_labelme_is_an_error(tmp_path, monkeypatch, capsys, shapes, changes, message):
    write(tmp_path, "a", shapes, **changes)
    status, printed = convert(tmp_path, monkeypatch, capsys)
    assert status == 2
    assert re.search(message, printed), printed
    assert not (tmp_path / "labels").exists()


def test_a_folder_without_files_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "json").mkdir()
    status, printed = convert(tmp_path, monkeypatch, capsys)
    assert status == 2 and "There is no .json file below" in printed
