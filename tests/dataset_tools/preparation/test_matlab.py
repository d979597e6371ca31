"""MATLAB files: what SciPy reads of valid ones, and an error for every other one."""

import io

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

from regseg_d2.common.errors import DatasetError
from regseg_d2.dataset_tools.preparation.matlab import read_matlab
from tests.fuzz.readers import read_matlab_label
from tests.fuzz.worker import LimitedReader

KINDS = ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


def written(content, **options):
    file = io.BytesIO()
    savemat(file, content, **options)
    return file.getvalue()


@pytest.mark.parametrize("packed", [True, False])
def test_numbers_cells_and_structs(tmp_path, packed):
    path = tmp_path / "a.mat"
    rng = np.random.default_rng(0)
    matrices = {f"m_{kind}": rng.integers(0, 100, (3, 5)).astype(kind) for kind in KINDS}
    matrices |= {"empty": np.zeros((0, 4)), "one": np.array([[7]], np.uint8), "deep": rng.random((2, 3, 4))}
    matrices["logical"] = rng.random((2, 2)) > 0.5
    cell = np.array([np.eye(2), "text", csc_matrix(np.eye(2))], dtype=object)
    fields = {"Segmentation": matrices["m_u1"], "Boundaries": cell, "CategoriesPresent": np.array([3.0])}
    path.write_bytes(
        written({**matrices, "GTcls": fields, "names": cell, "text": "x"}, do_compression=packed)
    )
    expected = loadmat(path)
    found = read_matlab(path, [*matrices, "GTcls", "names"])
    for name in matrices:
        np.testing.assert_array_equal(found[name], expected[name])
        assert found[name].dtype == expected[name].dtype
    np.testing.assert_array_equal(found["GTcls"]["Segmentation"], matrices["m_u1"])
    assert found["GTcls"].keys() == fields.keys() and len(found["names"]) == 3
    np.testing.assert_array_equal(found["names"][0], np.eye(2))
    assert found["names"][1] is None and found["names"][2] is None


def test_a_type_that_there_is_not(tmp_path):
    """SciPy looks it up behind the end of its table: a segmentation fault."""
    data = written({"S": np.arange(12, dtype=np.uint8).reshape(3, 4), "G": 1.0})
    start = data.index(b"\2\0\0\0\x0c\0\0\0\0\4\x08")
    (tmp_path / "a.mat").write_bytes(data[: start + 1] + b"\x68" + data[start + 2 :])
    with LimitedReader(read_matlab_label) as reader:
        outcome = reader.read(tmp_path / "a.mat")
    assert outcome.kind == "refused" and "a.mat" in outcome.detail, outcome


def test_lengths_and_levels_that_are_not_there(tmp_path):
    path = tmp_path / "a.mat"
    whole = written({"S": np.arange(400, dtype=np.float64).reshape(20, 20)})
    for change, message in (
        (lambda d: d.replace(b"\x14\0\0\0\x14\0\0\0", b"\xff\xff\xff\x7f\x14\0\0\0"), "has 400 numbers"),
        (lambda d: d[:-8], "longer than what is there"),
        (lambda d: d[:128] + b"\x0f\0\0\0\x10\0\0\0" + b"x" * 16, "incorrect header check"),
        (lambda d: d[:124] + b"\0\2IM" + d[128:], "not of level 5"),
        (lambda d: d[:50], "no header"),
    ):
        path.write_bytes(change(whole))
        with pytest.raises(DatasetError, match=f"a.mat cannot be read .*{message}"):
            read_matlab(path, ["S"])
    nested = np.eye(2)
    for _ in range(40):
        nested = {"x": nested}
    path.write_bytes(written({"S": nested}))
    with pytest.raises(DatasetError, match="nested more than 20 levels"):
        read_matlab(path, ["S"])


def test_a_bomb(tmp_path):
    data = written({"S": np.zeros((9000, 9000))}, do_compression=True)
    assert len(data) < 1 << 20
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(DatasetError, match="unpacks to more than"):
        read_matlab(tmp_path / "a.mat", ["S"])
