"""Labels made of COCO's instance and panoptic files."""

import json
import sys

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from regseg_d2.commands.convert_coco import main
from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.declared import read_declaration
from regseg_d2.dataset_tools.coco.conversion import CocoSplit, convert_coco

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 7, "name": "table", "isthing": 1}, {"id": 2, "name": "spoon", "color": [9, 8, 7]}]


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def box_mask(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def uncompressed(mask):
    """COCO's counts of zeros and ones in turn, down the columns, zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts}


def compressed(mask):
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": code["size"], "counts": code["counts"].decode()}


def instances(*annotations, **changes):
    return {
        "images": [{"id": 3, "file_name": "kitchen/a.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": i, "image_id": 3, **one} for i, one in enumerate(annotations)],
        "categories": CATEGORIES,
        **changes,
    }


def write_split(folder, content, name="train"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))
    for image in content.get("images") or []:
        path = folder / "images" / str(image["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    return CocoSplit(name, folder / f"{name}.json", folder / "images")


def convert(folder, content, **options):
    return convert_coco("kitchen", [write_split(folder, content)], folder / "labels", **options)


def label_of(folder, name="train/kitchen/a.png"):
    with Image.open(folder / "labels" / name) as image:
        return np.array(image)


@pytest.mark.parametrize("form", [lambda m: uncompressed(m), lambda m: compressed(m), None])
def test_the_smaller_instance_is_on_top(tmp_path, form):
    big, small = (2, 2, 25, 15), (10, 5, 14, 9)
    code = (lambda corners: box(*corners)) if form is None else (lambda corners: form(box_mask(*corners)))
    spoon = {"category_id": 2, "segmentation": code(small)}
    table = {"category_id": 7, "segmentation": code(big)}
    expected = box_mask(*big).astype(int) * 2
    expected[box_mask(*small) > 0] = 1
    for name, annotations in (("one", (spoon, table)), ("two", (table, spoon))):
        convert(tmp_path / name, instances(*annotations))
        np.testing.assert_array_equal(label_of(tmp_path / name), expected)


def test_later_of_two_of_one_size_and_crowds_below(tmp_path):
    mask = box_mask(0, 0, 10, 10)
    crowd = {"category_id": 7, "iscrowd": 1, "segmentation": uncompressed(box_mask(5, 5, 7, 7))}
    one = {"category_id": 7, "segmentation": compressed(mask)}
    two = {"category_id": 2, "segmentation": compressed(mask)}
    convert(tmp_path, instances(one, two, crowd))
    np.testing.assert_array_equal(label_of(tmp_path), mask)


def test_polygons_of_several_parts_are_near_those_of_pillow(tmp_path):
    parts = [[1.0, 1.0, 12.0, 2.0, 6.0, 14.0], [15, 3, 28, 3, 28, 17, 15, 17]]
    convert(tmp_path, instances({"category_id": 2, "segmentation": parts}))
    drawn = Image.new("1", (WIDTH, HEIGHT))
    for part in parts:
        ImageDraw.Draw(drawn).polygon(part, fill=1)
    different = (label_of(tmp_path) > 0) != np.array(drawn)
    assert different.sum() < 50  # the outlines, of about 70 pixels, are rounded another way


def test_classes_declaration_and_lists(tmp_path):
    text = convert(tmp_path, instances())
    (tmp_path / "kitchen.yaml").write_text(text)
    (spec,) = read_declaration(tmp_path / "kitchen.yaml")
    assert (spec.name, spec.classes, spec.ignore_value) == (
        "kitchen_train",
        ("background", "spoon", "table"),
        255,
    )
    assert spec.colors[:2] == ((0, 0, 0), (9, 8, 7))
    (record,) = spec.load()
    assert record["image_id"] == "images/kitchen/a"
    assert record["file_name"] == str(tmp_path / "images" / "kitchen" / "a.jpg")
    assert record["sem_seg_file_name"] == str(tmp_path / "labels" / "train" / "kitchen" / "a.png")


def test_uncovered_pixels(tmp_path):
    spoon = {"category_id": 2, "segmentation": compressed(box_mask(0, 0, 10, 10))}
    text = convert(tmp_path, instances(spoon), uncovered="ignore")
    assert [entry["name"] for entry in yaml.safe_load(text)["classes"]] == ["spoon", "table"]
    np.testing.assert_array_equal(label_of(tmp_path), np.where(box_mask(0, 0, 10, 10), 0, 255))
    # A category that is called background takes them.
    content = instances(spoon, categories=[*CATEGORIES, {"id": 9, "name": "background"}])
    text = convert(tmp_path / "two", content)
    assert [entry["name"] for entry in yaml.safe_load(text)["classes"]] == ["spoon", "table", "background"]
    np.testing.assert_array_equal(label_of(tmp_path / "two"), np.where(box_mask(0, 0, 10, 10), 0, 2))


def test_more_than_255_classes(tmp_path):
    categories = [{"id": i, "name": f"c{i}"} for i in range(300)]
    spoon = {"category_id": 299, "segmentation": compressed(box_mask(0, 0, 10, 10))}
    text = convert(tmp_path, instances(spoon, categories=categories), uncovered="ignore")
    assert yaml.safe_load(text)["ignore_value"] == 65535
    label = label_of(tmp_path)
    assert (label[0, 0], label[15, 15]) == (299, 65535)


def panoptic(folder, ids, segments, **changes):
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    path = folder / "train" / "kitchen" / "a.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colors).save(path)
    annotation = {"image_id": 3, "file_name": "kitchen/a.png", "segments_info": segments}
    return {**instances(), "annotations": [annotation], **changes}


def test_panoptic(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.choice([0, 5, 300, 70000], size=(HEIGHT, WIDTH))
    categories_of_ids = {5: 7, 300: 2, 70000: 7, 123: 2}
    segments = [{"id": i, "category_id": category} for i, category in categories_of_ids.items()]
    text = convert(tmp_path, panoptic(tmp_path, ids, segments))
    assert [entry["name"] for entry in yaml.safe_load(text)["classes"]] == ["spoon", "table"]
    expected = np.select([ids == 5, ids == 300, ids == 70000], [1, 0, 1], default=255)
    np.testing.assert_array_equal(label_of(tmp_path), expected)
    two = tmp_path / "two"
    convert(two, panoptic(two, ids, segments), uncovered="background")
    np.testing.assert_array_equal(label_of(two), np.where(expected == 255, 0, expected + 1))


SPOON = {"category_id": 2, "segmentation": box(1, 1, 5, 5)}
BROKEN = {
    "no mapping": ([1], "holds a list"),
    "no categories": (instances(categories=[]), "'categories' is empty"),
    "images missing": ({"annotations": [], "categories": CATEGORIES}, "'images' is None; expected a list"),
    "id is a text": (
        instances(categories=[{"id": "1", "name": "a"}]),
        r"'categories\[0\]' is .* with 'id', a whole number",
    ),
    "one name twice": (instances(categories=[{"id": i, "name": "a"} for i in (1, 2)]), "same name"),
    "no such image": (instances({**SPOON, "image_id": 4}), r"annotations\[0\] is of an image 4"),
    "no such category": (instances({**SPOON, "category_id": 3}), "category_id 3, which is not in categories"),
    "box alone": (instances({"category_id": 2, "bbox": [1, 1, 2, 2]}), "boxes alone"),
    "two corners": (instances({**SPOON, "segmentation": [[1, 1, 2, 2]]}), "three or more corners"),
    "odd polygon": (instances({**SPOON, "segmentation": [[1, 1, 2, 2, 3, 3, 4]]}), "three or more corners"),
    "not a number": (instances({**SPOON, "segmentation": [[1, 1, 2, 2, 3, float("nan")]]}), "far outside"),
    "far outside": (instances({**SPOON, "segmentation": box(1, 1, 1e9, 5)}), "far outside"),
    "counts of another size": (
        instances({**SPOON, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [600, 1]}}),
        "not one of 20 x 30 pixels",
    ),
    "code of another size": (
        instances({**SPOON, "segmentation": {"size": [9, 9], "counts": [81]}}),
        r"code of size \[20, 30\]",
    ),
    "no code": (
        instances({**SPOON, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "zzz"}}),
        "not one of 20 x 30 pixels",
    ),
    "code that is cut off": (
        instances({**SPOON, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "hb"}}),
        "not one of 20 x 30 pixels",
    ),
    "no ASCII": (
        instances({**SPOON, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "\u20ac"}}),
        "not one of 20 x 30 pixels",
    ),
    "name that leads out": (
        instances(images=[{"id": 3, "file_name": "../a.jpg", "height": 2, "width": 2}]),
        r"'images\[0\]\.file_name' is '\.\./a\.jpg'; expected a path below",
    ),
    "name of 5000 letters": (
        instances(images=[{"id": 3, "file_name": "a" * 5000, "height": 2, "width": 2}]),
        r"'images\[0\]\.file_name' is 'aaa",
    ),
    "category with an escape sequence": (
        instances(categories=[{"id": 2, "name": "a\x1b[2J"}]),
        r"categories has the name 'a\\x1b\[2J'; expected letters",
    ),
    "category that is no text": (
        instances(categories=[{"id": 2, "name": "\ud800"}]),
        r"has the name '\\ud800'; expected letters",
    ),
    "category without a name": (instances(categories=[{"id": 2, "name": " "}]), "has the name ' '"),
    "negative size": (
        instances(images=[{"id": 3, "file_name": "a.jpg", "height": 2, "width": -5}]),
        "is of 2 x -5 pixels",
    ),
    "16 GB of labels": (
        instances(images=[{"id": 3, "file_name": "a.jpg", "height": 65536, "width": 65536}]),
        "is of 65536 x 65536 pixels",
    ),
    "infinite polygon": (
        instances({**SPOON, "segmentation": [[1, 1, 2, 2, 3, float("inf")]]}),
        r"annotations\[0\] has a polygon far outside",
    ),
    "polygon of numbers without end": (
        instances({**SPOON, "segmentation": [[10**400] * 6]}),
        r"annotations\[0\] has a polygon far outside",
    ),
    "polygon of texts": (
        instances({**SPOON, "segmentation": ["1,2,3"]}),
        r"annotations\[0\] has the polygon '1,2,3'",
    ),
    "segmentation that is a number": (instances({**SPOON, "segmentation": 5}), "has the segmentation 5"),
    "a run of 2^40": (
        instances({**SPOON, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [2**40]}}),
        r"annotations\[0\] has a run-length code .*do not add up",
    ),
    "runs that wrap around": (
        instances({**SPOON, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [2**63, 2**63, 600]}}),
        r"annotations\[0\] has a run-length code .*whole numbers from 0 on",
    ),
    "runs that are no numbers": (
        instances({**SPOON, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [float("nan"), 600]}}),
        r"annotations\[0\] has a run-length code .*whole numbers from 0 on",
    ),
    "a code of 100,000 letters": (
        instances({**SPOON, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "o" * 100_000}}),
        r"annotations\[0\] has a run-length code",
    ),
    "image id that is a list": (instances({**SPOON, "image_id": [3]}), r"'annotations\[0\]' is .*'image_id'"),
    "annotation that is a text": (instances() | {"annotations": ["x"]}, r"'annotations\[0\]' is 'x'"),
    "category id that is a dict": (instances({**SPOON, "category_id": {}}), r"annotations\[0\] has the cat"),
    "no size": (
        instances(images=[{"id": 3, "file_name": "a.jpg", "height": 0, "width": 2}]),
        "is of 0 x 2 pixels",
    ),
    "one label for two": (
        instances(
            images=[
                {"id": i, "file_name": name, "height": 2, "width": 2}
                for i, name in enumerate(("a.jpg", "a.png"))
            ]
        ),
        "differ in the suffix only",
    ),
    "color": (instances(categories=[{"id": 1, "name": "a", "color": "red"}]), "color 'red'; expected"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_used(tmp_path, case):
    content, words = BROKEN[case]
    (tmp_path / "train.json").write_text(json.dumps(content))
    for name in ("kitchen/a.jpg", "a.jpg", "a.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    split = CocoSplit("train", tmp_path / "train.json", tmp_path / "images")
    with pytest.raises(DatasetError, match=rf"train\.json.*{words}"):
        convert_coco("kitchen", [split], tmp_path / "labels")
    assert not list(tmp_path.glob("labels/train/**/*.png"))


def test_panoptic_files_that_cannot_be_used(tmp_path):
    ids = np.full((HEIGHT, WIDTH), 5)
    cases = [
        (np.full((3, 3), 5), [{"id": 5, "category_id": 2}], "has 3 x 3 pixels; .* says 20 x 30"),
        (ids, [{"id": 6, "category_id": 2}], r"holds segments \[5\], which"),
        (ids, [{"id": 5, "category_id": 3}], r"segments_info\[0\] has the category_id 3"),
        (ids, None, "segments_info' is None; expected a list"),
    ]
    for i, (pixels, segments, words) in enumerate(cases):
        folder = tmp_path / str(i)
        with pytest.raises(DatasetError, match=words):
            convert(folder, panoptic(folder, pixels, segments))
    content = {**panoptic(tmp_path / "x", ids, []), "annotations": []}
    content["annotations"] = [{"image_id": 3, "file_name": "kitchen/a.png", "segments_info": []}] * 2
    with pytest.raises(DatasetError, match="has 2 annotations; expected one"):
        convert(tmp_path / "x", content)


def test_missing_and_damaged_files(tmp_path):
    split = write_split(tmp_path, instances())
    (tmp_path / "images" / "kitchen" / "a.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 1 images of .*train\.json.*kitchen/a\.jpg"):
        convert_coco("kitchen", [split], tmp_path / "labels")
    split.annotations.write_text('{"images": [')
    with pytest.raises(DatasetError, match=r"train\.json' is not valid JSON.*cut off"):
        convert_coco("kitchen", [split], tmp_path / "labels")
    split.annotations.unlink()
    with pytest.raises(DatasetError, match=r"train\.json' does not exist"):
        convert_coco("kitchen", [split], tmp_path / "labels")


def test_labels_of_another_file_are_not_taken_for_ones_own(tmp_path):
    convert(tmp_path, instances(SPOON))
    convert(tmp_path, instances(SPOON))
    with pytest.raises(DatasetError, match="made of something else"):
        convert(tmp_path, instances(SPOON), uncovered="ignore")
    with pytest.raises(DatasetError, match="made of something else"):
        convert(tmp_path, instances(SPOON, SPOON))
    other = tmp_path / "other"
    (other / "labels" / "train").mkdir(parents=True)
    (other / "labels" / "train" / "mine.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="made of something else"):
        convert(other, instances(SPOON))


def test_splits_of_other_categories(tmp_path):
    splits = [
        write_split(tmp_path, instances(SPOON), "train"),
        write_split(tmp_path, instances(categories=CATEGORIES[:1]), "val"),
    ]
    with pytest.raises(DatasetError, match=r"categories of .*val\.json are not those of .*train\.json"):
        convert_coco("kitchen", splits, tmp_path / "labels")


def test_command(tmp_path, capsys, monkeypatch):
    write_split(tmp_path, instances(SPOON), "train")
    write_split(tmp_path, instances(), "val")
    options = ["--name", "kitchen", "--output", str(tmp_path / "labels"), "--workers", "0"]
    for split in ("train", "val"):
        options += ["--split", split, str(tmp_path / f"{split}.json"), str(tmp_path / "images")]
    monkeypatch.setattr(sys, "argv", ["", *options, "--declaration", str(tmp_path / "kitchen.yaml")])
    main()
    assert capsys.readouterr().out.endswith((tmp_path / "kitchen.yaml").read_text())
    assert [len(spec.load()) for spec in read_declaration(tmp_path / "kitchen.yaml")] == [1, 1]
    (tmp_path / "val.json").unlink()
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "val.json' does not exist" in capsys.readouterr().err
