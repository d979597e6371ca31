"""Pascal Context in small, from both forms of its labels, the whole way to mIoU; faults of a copy."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_length
from scipy.io import savemat

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.dataset_tools.preparation import Conversion
from regseg_d2.dataset_tools.preparation.pascal_context import label_from_matlab, prepare_pascal_context
from tests.dataset_tools.preparation import miniature
from tests.dataset_tools.preparation.miniature import check_benchmark, draw_values, prepare, write_image

# Names in the order of the authors' 59_labels.txt, and the ids in the order of detail-api's evaluation.
_NAMES = """
aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person pottedplant sheep
sofa train tvmonitor bag bed bench book building cabinet ceiling cloth computer cup door fence floor flower
food grass ground keyboard light mountain mouse curtain platform sign plate road rock shelves sidewalk sky
snow bedclothes track tree truck wall water window wood
"""
NAMES = _NAMES.split()
_IDS = """
2 23 25 31 34 45 59 65 72 98 397 113 207 258 284 308 347 368 416 427 9 18 22 33 44 46 68 80 85 104
115 144 158 159 162 187 189 220 232 259 260 105 296 355 295 324 326 349 354 360 366 19 415 420 424
440 445 454 458
"""
IDS = [int(number) for number in _IDS.split()]
SPLITS = {"train": ["2008_000002", "2008_000003", "2010_000001"], "val": ["2008_000007", "2010_000009"]}
STEMS = [stem for stems in SPLITS.values() for stem in stems]


def labels_459(seed):
    """A label of all 59 ids, of none (0) and of three without a class."""
    return np.array([0, 1, 3, 459, *IDS], np.uint16)[draw_values(range(len(IDS) + 4), seed=seed)]


def expected(classes):
    """Class indices of every image, by the classes' names."""
    names = load_definition(f"pascal_context_{classes}").classes
    table = np.full(460, 255 if classes == 59 else 0)
    table[IDS] = [names.index(name) for name in NAMES]
    return {stem: table[labels_459(seed)] for seed, stem in enumerate(STEMS)}


@pytest.fixture
def folder(tmp_path):
    """VOC 2010 without labels: the images of both splits and one more."""
    folder = tmp_path / "data" / "VOCdevkit" / "VOC2010"
    for seed, stem in enumerate([*STEMS, "2009_000001"]):
        write_image(folder / "JPEGImages" / f"{stem}.jpg", kind="grey" if seed == 1 else "rgb", seed=seed)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, stems in SPLITS.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return folder


def add_matlab(folder):
    (folder / "trainval").mkdir()
    for seed, stem in enumerate(STEMS):
        savemat(folder / "trainval" / f"{stem}.mat", {"LabelMap": labels_459(seed)}, do_compression=True)


def encoded(mask):
    code = run_length.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def add_json(folder, change=lambda content: None):
    phases = {stem: split for split, stems in SPLITS.items() for stem in stems}
    content = {"info": {}, "images": [], "annos_segmentation": [], "annos_occlusion": []}
    for seed, stem in enumerate(STEMS):
        label, identity = labels_459(seed), int(stem.replace("_", ""))
        height, width = label.shape
        image = {"file_name": f"{stem}.jpg", "image_id": identity, "phase": phases[stem]}
        content["images"].append({**image, "height": height, "width": width})
        for number, value in enumerate([1, *IDS]):
            mask = label == value
            if number == 1:  # the next segment covers a part of this one
                mask = mask | (label == IDS[1])
            segment = {"image_id": identity, "category_id": value, "segmentation": encoded(mask)}
            content["annos_segmentation"].append({"id": len(content["annos_segmentation"]), **segment})
    content["images"].append(
        {"file_name": "2009_000001.jpg", "image_id": 9, "phase": "test", "height": 32, "width": 48}
    )
    change(content)
    (folder / "trainval_merged.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("source", "classes"), [("mat", 59), ("json", 59), ("json", 60)])
def test_whole_way(folder, tmp_path, monkeypatch, capsys, source, classes):
    {"mat": add_matlab, "json": add_json}[source](folder)
    assert prepare("pascal_context", tmp_path / "data") == 0
    assert "5 labels written, 0 were there" in capsys.readouterr().out
    assert (
        folder / "ImageSets" / "SegmentationContext" / "val.txt"
    ).read_text() == "2008_000007\n2010_000009\n"
    check_benchmark(
        tmp_path / "data",
        tmp_path / "out",
        monkeypatch,
        train=f"pascal_context_{classes}_train",
        test=f"pascal_context_{classes}_val",
        labels=expected(classes),
        definition=load_definition(f"pascal_context_{classes}"),
    )
    assert prepare("pascal_context", tmp_path / "data") == 0
    assert "0 labels written, 5 were there" in capsys.readouterr().out


def test_description_counts_background(folder, tmp_path):
    add_matlab(folder)
    prepare_pascal_context(tmp_path / "data", partial=True, output=tmp_path / "splits.json")
    description = json.loads((tmp_path / "splits.json").read_text())
    truth = np.stack([expected(60)[stem] for stem in SPLITS["train"]])
    assert description["splits"]["train"]["pixels"] == {
        name: int((truth == i).sum()) for i, name in enumerate(description["classes"])
    }
    assert description["splits"]["train"]["ignored_pixels"] == 0


def test_labels_of_another_origin_are_refused(folder, tmp_path):
    add_matlab(folder)
    target = folder / "SegmentationClassContext" / f"{STEMS[0]}.png"
    miniature.write_label(target, np.zeros((32, 48), np.uint8))
    with pytest.raises(
        DatasetError, match=f"{STEMS[0]}.png is there and is another label.* Move that folder"
    ):
        prepare_pascal_context(tmp_path / "data", partial=True)
    target.write_bytes(b"PNG")
    with pytest.raises(DatasetError, match=f"{STEMS[0]}.png cannot be read"):
        prepare_pascal_context(tmp_path / "data", partial=True)


def test_numbers_of_images_are_the_published_ones(folder, tmp_path):
    add_matlab(folder)
    with pytest.raises(DatasetError, match="has 3 images in the split train .* expected 4998.*--partial"):
        prepare_pascal_context(tmp_path / "data")
    assert not (folder / "SegmentationClassContext").exists()
    add_json(folder)
    with pytest.raises(DatasetError, match="trainval_merged.json has the sha1 .* expected 169325d9"):
        prepare_pascal_context(tmp_path / "data")


def test_missing_files(folder, tmp_path):
    with pytest.raises(
        DatasetError, match="Neither .*trainval_merged.json nor the folder .*trainval of MATLAB"
    ):
        prepare_pascal_context(tmp_path / "data", partial=True)
    with pytest.raises(DatasetError, match="trainval_merged.json does not exist"):
        prepare_pascal_context(tmp_path / "data", partial=True, source="json")
    add_matlab(folder)
    (folder / "JPEGImages" / f"{STEMS[4]}.jpg").unlink()
    with pytest.raises(
        DatasetError, match=f"1 of 2 images of the split val are not below .*: {STEMS[4]}.jpg"
    ):
        prepare_pascal_context(tmp_path / "data", partial=True)
    with (folder / "ImageSets" / "Main" / "train.txt").open("a") as file:
        file.write("2010_123456\n")
    with pytest.raises(DatasetError, match="1 of 4 MATLAB files of the split train .*: 2010_123456.mat"):
        prepare_pascal_context(tmp_path / "data", partial=True)


def damaged_size(content):
    content["annos_segmentation"][3]["segmentation"]["size"] = [48, 32]


def damaged_code(content):
    content["annos_segmentation"][3]["segmentation"]["counts"] = "55"


def damaged_label(content):
    content["annos_segmentation"][3]["category_id"] = -1


def no_code(content):
    content["annos_segmentation"][3]["segmentation"] = None


@pytest.mark.parametrize("change", [damaged_size, damaged_code, damaged_label, no_code])
def test_damaged_segments(folder, tmp_path, change):
    add_json(folder, change)
    with pytest.raises(
        DatasetError, match=f"json: a segment of the image {STEMS[0]} with .*Download it again"
    ):
        prepare_pascal_context(tmp_path / "data", partial=True)


def test_uncompressed_code_is_read(folder, tmp_path):
    def uncompress(content):
        segment = content["annos_segmentation"][3]
        flat = (labels_459(0) == segment["category_id"]).ravel(order="F")
        changes = np.flatnonzero(np.diff(np.r_[0, flat, 2]))
        segment["segmentation"]["counts"] = np.diff(np.r_[0, changes]).tolist()

    add_json(folder, uncompress)
    prepare_pascal_context(tmp_path / "data", partial=True)
    made = np.array(Image.open(folder / "SegmentationClassContext" / f"{STEMS[0]}.png"))
    np.testing.assert_array_equal(made, expected(60)[STEMS[0]])


def test_damaged_json(folder, tmp_path):
    add_json(folder)
    path = folder / "trainval_merged.json"
    whole = path.read_bytes()
    for content in (
        whole[: len(whole) // 2],
        b"[1]",
        b"{}",
        b"\xff\xfe",
        whole.replace(b'"phase"', b'"stage"'),
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="trainval_merged.json is cut off, damaged or another file"):
            prepare_pascal_context(tmp_path / "data", partial=True)


HEADER_OF_7_3 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "cannot be read .*cut off"),
        (lambda whole: whole[:100], "cannot be read"),
        (lambda whole: b"", "cannot be read"),
        (lambda whole: HEADER_OF_7_3, "cannot be read .*not of level 5; save it with -v7"),
    ],
)
def test_damaged_matlab_files(folder, tmp_path, content, message):
    add_matlab(folder)
    path = folder / "trainval" / f"{STEMS[1]}.mat"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(DatasetError, match=f"{STEMS[1]}.mat {message}"):
        prepare_pascal_context(tmp_path / "data", partial=True)
    assert (folder / "SegmentationClassContext" / f"{STEMS[0]}.png").is_file()
    assert not (folder / "SegmentationClassContext" / f"{STEMS[1]}.png").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"S": np.zeros((3, 4))}, "has no variable LabelMap"),
        (
            {"LabelMap": np.full((3, 4), 460)},
            "LabelMap in .* holds 460; expected whole numbers from 0 to 459",
        ),
        ({"LabelMap": np.full((3, 4), -1)}, "holds -1; expected"),
        ({"LabelMap": np.full((3, 4), 0.5)}, "holds 0.5; expected"),
        ({"LabelMap": np.full((3, 4), np.nan)}, "holds nan; expected"),
        ({"LabelMap": np.zeros((0, 4))}, "holds no pixel; expected"),
        ({"LabelMap": np.zeros((3, 4, 2))}, r"is float64 of shape \(3, 4, 2\); expected a matrix"),
        ({"LabelMap": "text"}, "expected a matrix"),
        ({"LabelMap": {"field": 1}}, "expected a matrix"),
    ],
)
def test_other_matlab_files(folder, tmp_path, variables, message):
    add_matlab(folder)
    savemat(folder / "trainval" / f"{STEMS[1]}.mat", variables)
    with pytest.raises(DatasetError, match=message):
        prepare_pascal_context(tmp_path / "data", partial=True)


def test_every_damage_of_a_matlab_file_is_an_error_or_a_label(folder):
    add_matlab(folder)
    path = folder / "trainval" / f"{STEMS[0]}.mat"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    conversion = Conversion(path, folder / "label.png")
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(damaged))] if rng.random() < 0.2 else damaged)
        try:
            assert label_from_matlab(conversion).dtype == np.uint8
        except DatasetError:
            refused += 1
    assert refused > 100
