"""The label reader against arrays that were written, and against slow loops."""

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.labels import LabelReader, label_reader_for, read_label
from tests.data.data_helpers import registered, toy_spec, write_toy
from tests.data.png_files import png_file

RNG = np.random.default_rng(0)


def _save(array_or_image, path, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


def test_grey_and_palette_files_give_the_same_indices(tmp_path):
    values = RNG.integers(0, 21, (7, 9), dtype=np.uint8)
    palette = Image.fromarray(values)
    # A palette in the manner of VOC, in which the grey value of a colour is not its index.
    palette.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tolist())
    assert palette.mode == "P"
    for path in (_save(values, tmp_path / "grey.png"), _save(palette, tmp_path / "palette.png")):
        label = read_label(path)
        assert label.dtype == np.int32
        np.testing.assert_array_equal(label, values)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palette_files_of_few_bits_keep_their_indices(tmp_path, bits):
    values = RNG.integers(0, 2**bits, (5, 11), dtype=np.uint8)
    image = Image.fromarray(values)
    image.putpalette(RNG.integers(0, 256, 3 * 2**bits, dtype=np.uint8).tolist())
    path = _save(image, tmp_path / "few.png", bits=bits)
    np.testing.assert_array_equal(read_label(path), values)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_files_of_few_bits_are_not_stretched(tmp_path, bits):
    """Pillow shows a 2-bit 3 as 255; in the file it is 3."""
    values = RNG.integers(0, 2**bits, (6, 8), dtype=np.uint8)
    path = tmp_path / "few.png"
    path.write_bytes(_grey_png(values, bits))
    assert np.array(Image.open(path)).max() == 255
    np.testing.assert_array_equal(read_label(path), values)


def _grey_png(values: np.ndarray, bits: int) -> bytes:
    """A greyscale PNG of 2 or 4 bits, which Pillow reads but does not write."""
    import struct
    import zlib

    rows = b""
    for row in values:
        digits = "".join(format(value, f"0{bits}b") for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return png_file((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def test_bilevel_files_are_zero_and_one(tmp_path):
    values = RNG.integers(0, 2, (6, 10)).astype(bool)
    path = _save(Image.fromarray(values), tmp_path / "bilevel.png")
    assert Image.open(path).mode == "1"
    np.testing.assert_array_equal(read_label(path, num_classes=2), values.astype(int))


def test_sixteen_bit_values_above_255(tmp_path):
    values = RNG.integers(0, 60000, (5, 6)).astype(np.uint16)
    path = _save(values, tmp_path / "sixteen.png")
    assert Image.open(path).mode == "I;16"
    np.testing.assert_array_equal(read_label(path), values)
    label_map = {int(value): i for i, value in enumerate(np.unique(values))}
    expected = np.vectorize(label_map.get)(values)
    np.testing.assert_array_equal(read_label(path, label_map=label_map), expected)


@pytest.mark.parametrize("extreme", [70000, -5])
def test_32_bit_values_that_no_table_holds(tmp_path, extreme):
    values = np.array([[0, extreme], [26000, 0]], dtype=np.int32)
    path = _save(values, tmp_path / "wide.tif")
    assert Image.open(path).mode == "I"
    label = read_label(path, label_map={0: 255, extreme: 1, 26000: 0}, num_classes=2)
    np.testing.assert_array_equal(label, [[255, 1], [0, 255]])
    with pytest.raises(DatasetError, match=rf"wide\.tif.*{extreme} \(1 pixels\)"):
        read_label(path, label_map={0: 255, 26000: 0})


def test_big_endian_16_bit_tiff(tmp_path):
    values = np.array([[0, 300], [7, 40000]], dtype=">u2")
    path = tmp_path / "big.tif"
    # Pillow writes this mode from bytes only.
    Image.frombytes("I;16B", (2, 2), values.tobytes()).save(path)
    np.testing.assert_array_equal(read_label(path), values.astype(int))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_lookup_equals_a_slow_loop_over_a_dict(tmp_path_factory, data):
    keys = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=30, unique=True))
    targets = data.draw(st.lists(st.sampled_from([0, 1, 2, 255]), min_size=len(keys), max_size=len(keys)))
    label_map = dict(zip(keys, targets, strict=True))
    pixels = data.draw(st.lists(st.sampled_from(keys), min_size=6, max_size=6))
    path = tmp_path_factory.mktemp("lookup") / "label.png"
    _save(np.array(pixels, dtype=np.uint8).reshape(2, 3), path)
    slow = [[label_map[pixels[3 * y + x]] for x in range(3)] for y in range(2)]
    np.testing.assert_array_equal(read_label(path, label_map=label_map, num_classes=3), slow)


def test_map_is_applied_once(tmp_path):
    values = np.array([[0, 1, 2]], dtype=np.uint8)
    path = _save(values, tmp_path / "swap.png")
    np.testing.assert_array_equal(read_label(path, label_map={0: 1, 1: 2, 2: 0}, num_classes=3), [[1, 2, 0]])


def test_reading_twice_gives_the_same(tmp_path):
    reader = LabelReader(label_map={0: 1, 1: 0}, num_classes=2)
    path = _save(np.array([[0, 1]], dtype=np.uint8), tmp_path / "a.png")
    np.testing.assert_array_equal(reader(path), reader(path))


def test_another_ignore_value(tmp_path):
    path = _save(np.array([[0, 1, 250]], dtype=np.uint8), tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(path, ignore_value=250, num_classes=2), [[0, 1, 250]])
    np.testing.assert_array_equal(
        read_label(path, label_map={0: 0, 1: 1, 250: -1}, ignore_value=-1), [[0, 1, -1]]
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_table(tmp_path, mode):
    table = {(255, 0, 0): 4, (0, 255, 0): 7, (0, 0, 1): 0}
    values = RNG.choice(list(table.values()), (6, 5))
    colors = {value: color for color, value in table.items()}
    image = Image.fromarray(np.array([[colors[int(v)] for v in row] for row in values], dtype=np.uint8))
    image = image.quantize(3) if mode == "P" else image.convert(mode)
    path = _save(image, tmp_path / "color.png")
    np.testing.assert_array_equal(read_label(path, color_table=table), values)
    # The table gives file values; the map comes after it, as for any other file.
    mapped = read_label(path, color_table=table, label_map={4: 0, 7: 1, 0: 255}, num_classes=2)
    np.testing.assert_array_equal(mapped, np.vectorize({4: 0, 7: 1, 0: 255}.get)(values))


def test_colours_outside_the_table_are_counted(tmp_path):
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, :2] = [9, 8, 7]
    path = _save(pixels, tmp_path / "c.png")
    with pytest.raises(DatasetError, match=r"c\.png.*\(9, 8, 7\) \(2 pixels\)"):
        read_label(path, color_table={(0, 0, 0): 0})


def test_transparent_labels_are_refused(tmp_path):
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    path = _save(pixels, tmp_path / "c.png")
    with pytest.raises(DatasetError, match="transparent"):
        read_label(path, color_table={(0, 0, 0): 0})


@pytest.mark.parametrize(
    "mode, words",
    [("RGB", "color_table"), ("RGBA", "color_table"), ("LA", '"LA"'), ("F", '"F"'), ("CMYK", '"CMYK"')],
)
def test_unsuitable_modes_are_refused(tmp_path, mode, words):
    path = tmp_path / "label.tif"
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(DatasetError, match=r"label\.tif") as caught:
        read_label(path)
    assert words in str(caught.value)


def test_jpeg_labels_are_refused(tmp_path):
    path = _save(np.zeros((8, 8), dtype=np.uint8), tmp_path / "label.jpg")
    with pytest.raises(DatasetError, match="JPEG"):
        read_label(path)


def test_unmapped_value_names_file_value_count_and_cure(tmp_path):
    path = _save(np.array([[0, 3, 3], [9, 1, 3]], dtype=np.uint8), tmp_path / "bad.png")
    with pytest.raises(DatasetError) as caught:
        read_label(path, label_map={0: 0, 1: 1}, num_classes=2)
    message = str(caught.value)
    assert "bad.png" in message and "3 (3 pixels), 9 (1 pixels)" in message
    assert "label_map: 0, 1" in message and "{3: 255, 9: 255}" in message


def test_value_beyond_the_classes(tmp_path):
    path = _save(np.array([[0, 2, 255]], dtype=np.uint8), tmp_path / "bad.png")
    with pytest.raises(DatasetError, match=r"2 \(1 pixels\); expected 0 to 1 and 255"):
        read_label(path, num_classes=2)
    np.testing.assert_array_equal(read_label(path, num_classes=3), [[0, 2, 255]])


@pytest.mark.parametrize("options", [{"label_map": {0: 0, 1: 1}}, {"num_classes": 2, "ignore_value": 250}])
def test_binary_masks_get_the_exact_line(tmp_path, options):
    path = _save(np.array([[0, 255]], dtype=np.uint8), tmp_path / "mask.png")
    with pytest.raises(DatasetError, match="label_map={0: 0, 255: 1}"):
        read_label(path, **options)
    np.testing.assert_array_equal(read_label(path, label_map={0: 0, 255: 1}, num_classes=2), [[0, 1]])


@pytest.mark.parametrize("kept", [0, 20, 60])
def test_cut_off_files_name_themselves(tmp_path, kept):
    whole = _save(RNG.integers(0, 9, (40, 40), dtype=np.uint8), tmp_path / "whole.png")
    path = tmp_path / "cut.png"
    path.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(DatasetError, match=r"label file .*cut\.png cannot be read"):
        read_label(path)


def test_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.png does not exist"):
        read_label(tmp_path / "none.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("sixteen", [False, True])
def test_orientation_turns_labels(tmp_path, orientation, sixteen):
    values = RNG.integers(0, 300 if sixteen else 9, (4, 6)).astype(np.uint16 if sixteen else np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(values, tmp_path / "turned.png", exif=exif)
    turned = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.T,
        6: values.T[:, ::-1],
        7: values.T[::-1, ::-1],
        8: values.T[::-1],
    }[orientation]
    np.testing.assert_array_equal(read_label(path), turned)


@pytest.mark.parametrize("target", [3, -2])
def test_map_to_a_class_that_does_not_exist(target):
    with pytest.raises(DatasetError, match=rf"value 5 to class {target}"):
        LabelReader(label_map={5: target}, num_classes=3)


@pytest.mark.parametrize("table", [{}, {(0, 0): 1}, {(0, 0, 256): 1}])
def test_malformed_colour_table(table):
    with pytest.raises(DatasetError, match="color_table"):
        LabelReader(color_table=table)


def test_reader_from_metadata(tmp_path):
    write_toy(tmp_path)
    with registered(toy_spec(tmp_path, label_map={0: 2, 1: 255, 2: 0, 255: 255})):
        reader = label_reader_for("toy")
        raw = np.array(Image.open(tmp_path / "labels" / "000.png"))
        expected = np.vectorize({0: 2, 1: 255, 2: 0, 255: 255}.get)(raw)
        np.testing.assert_array_equal(reader(tmp_path / "labels" / "000.png"), expected)
        assert reader.num_classes == 3


def test_metadata_without_classes():
    name = "a_data_set_without_classes"
    MetadataCatalog.get(name)
    try:
        with pytest.raises(DatasetError, match="stuff_classes"):
            label_reader_for(name)
    finally:
        MetadataCatalog.remove(name)
