"""Files of weights from strangers: whatever they hold, they are read or refused, and nothing else happens."""

import argparse
import io
import pickle
import random
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from regseg_d2.common.errors import CheckpointError
from regseg_d2.weights.pickle_values import Unread
from regseg_d2.weights.reading import load_file, read_weights
from tests.fuzz.mutations import mutated
from tests.fuzz.worker import LimitedReader
from tests.weights import attacks
from tests.weights.attacks import read_checkpoint

ARRAYS = {
    "scalar": np.array(3.0),
    "empty": np.zeros((2, 0, 3), np.float32),
    "bool": np.array([True, False]),
    "big_endian": np.arange(5, dtype=">i4"),
    "half": np.arange(3, dtype=np.float16),
    "complex": np.arange(3) * 1j,
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "permuted": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": np.arange(20, dtype=np.uint8)[::3],
}


@pytest.fixture(scope="module")
def limited():
    """One process for all files: it is still there after each of them."""
    with LimitedReader(read_checkpoint) as reader:
        yield reader


# ------------------------------------------------------------------------------------- objects of a file


@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_an_array_of_objects_with_forged_flags_and_200_mutations(tmp_path, limited, ending):
    """Without the checks this reads addresses from the file, which is a segmentation fault at best."""
    whole = attacks.forged_object_array()
    outcomes = []
    for number in range(201):
        path = tmp_path / f"{number}.{ending}"
        path.write_bytes(mutated(whole, random.Random(number)) if number else whole)
        outcomes.append(limited.read(path))
    wrong = [(number, outcome) for number, outcome in enumerate(outcomes) if not outcome.is_right]
    assert not wrong
    assert outcomes[0].kind == "refused"
    assert "Unsupported dtype 'O8': only numbers and booleans" in outcomes[0].detail
    assert sum(outcome.kind == "refused" for outcome in outcomes) > 150


@pytest.mark.parametrize("flags", [0, 1, 16, 63, 255])
def test_an_array_of_objects_in_a_file_of_torch(tmp_path, flags):
    torch.save({"model": {"x": torch.zeros(2)}}, tmp_path / "whole.pth")
    forged = attacks.forged_object_array(flags=flags)
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "x.pth", "w") as changed,
    ):
        for entry in whole.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            changed.writestr(entry, forged if is_pickle else whole.read(entry))
    with pytest.raises(CheckpointError, match="Unsupported dtype 'O8'"):
        load_file(str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    "array",
    [
        np.array([None]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        np.zeros(1, np.void(b"1234").dtype),
    ],
    ids=["objects", "records", "void"],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    path = tmp_path / "x.pkl"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps({"x": array}, protocol=protocol))
        with pytest.raises(CheckpointError, match="Refused to load .*Unsupported dtype"):
            load_file(str(path))


def test_objects_of_training_programs_are_not_made(tmp_path):
    """Whatever an object of mmengine is given, nothing of it is there afterwards."""
    path = tmp_path / "x.pkl"
    hub = b"cmmengine.logging\nMessageHub\n)\x81}X\1\0\0\0aK\1sb"
    path.write_bytes(b"\x80\2}(X\3\0\0\0hub" + hub + b"X\1\0\0\0wK\1u.")
    content = load_file(str(path))
    assert isinstance(content["hub"], Unread) and vars(content["hub"]) == {
        "name": "mmengine.logging.MessageHub"
    }
    with pytest.raises(CheckpointError, match="no weights where they were expected: hub, w are no tensors"):
        read_weights(str(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\2cnumpy\nndarray\n(K\2\x85tR.", "Unsupported call of numpy.ndarray"),
        (b"\x80\2ccollections\nOrderedDict\n)Rcos\nsystem\nb.", "Unsupported global: os.system"),
        (b"(S'ls'\nios\nsystem\n.", "Unsupported operation INST"),
        (b"\x80\2K\1)R.", "Unsupported call of int"),
        (b"\x80\2}K\1b.", "Unsupported state of dict"),
        (b"\x80\2\x82\1.", "Unsupported operation EXT1"),
        (b"\x80\2K\1Q.", "Unsupported persistent id"),
        (b"\x80\5\x97.", "Unsupported operation NEXT_BUFFER"),
        (b"\x80\4\x8c\x02os\x8c\6system\x93.", "Unsupported global: os.system"),
        (b"\x80\4\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", "Unsupported global: numpy.ndarray.dumps"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_no_data_is_refused(tmp_path, data, message):
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(CheckpointError, match=f"Refused to load .*x.pkl.*{message}.*--trust-pickle"):
        load_file(str(tmp_path / "x.pkl"))


# ------------------------------------------------------------------------------------- files without end


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (attacks.self_containing(), "a list or dict in it holds itself"),
        (attacks.nested_tuple_key(), "Unsupported key: tuple"),
        (attacks.repeated_lists(), "more than 10000000 values"),
        (attacks.huge_array(), "an array of shape 1099511627776 and dtype float64 has 16 bytes"),
        (b"\x80\2" + b"]" * 5000 + b"a" * 4999 + b".", "nested more than 100 levels deep"),
        (b"\x80\2X\xff\xff\xff\x7fabc.", "it ends early"),
        (b"\x80\4\x8e" + b"\xff" * 7 + b"\x7fabc.", "is damaged"),
        (b"\x80\2\x8b\0\x10\0\0" + b"\x7f" * 4096 + b".", "a number of thousands of digits"),
        (b"L" + b"9" * 100_000 + b"L\n.", "is damaged"),
        (b"\x80\2X\3\0\0\0\xed\xa0\x80.", "is damaged"),
        (b"\x80\2}X\0\x20\0\0" + b"k" * 8192 + b"K\1s.", "Unsupported key: str"),
        (b"\x80\2}\x8a\x0c" + b"\1" * 12 + b"K\1s.", "Unsupported key: int"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_small_files_that_would_never_end(tmp_path, limited, data, message):
    for ending in ("pkl", "pth"):
        path = tmp_path / f"x.{ending}"
        path.write_bytes(data)
        outcome = limited.read(path)
        assert outcome.kind == "refused" and message in outcome.detail, outcome


LIST = b"](" + b"K\1" * 20_000 + b"e"
DICT = b"}(" + b"".join(b"X\5\0\0\0%05dK\1" % i for i in range(20_000)) + b"u"
USES = {
    "set": (LIST, b"c__builtin__\nset\nh\0\x85R0"),
    "bytearray": (b"B\x20\xa1\7\0" + bytes(500_000), b"c__builtin__\nbytearray\nh\0\x85R0"),
    "ordered dict": (DICT, b"ccollections\nOrderedDict\nh\0\x85R0"),
    "counter": (DICT, b"ccollections\nCounter\nh\0\x85R0"),
    "attributes": (DICT, b"cargparse\nNamespace\n)\x81h\0b0"),
    "versions": (DICT, b"ccollections\nOrderedDict\n)Rh\0b0"),
    "bytes": (b"X\x20\xa1\7\0" + b"x" * 500_000, b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R0"),
}


@pytest.mark.parametrize("case", USES)
def test_a_value_that_is_copied_again_and_again(tmp_path, limited, case):
    """20,000 times 20,000 parts, or 10 GB, of a file of less than 2 MB."""
    path = tmp_path / "x.pkl"
    path.write_bytes(attacks.used_again_and_again(*USES[case]))
    outcome = limited.read(path)
    assert outcome.kind == "refused" and "declares more data than it holds" in outcome.detail, outcome


def test_a_checkpoint_that_contains_itself(tmp_path, limited):
    content = {"model": {"x": torch.zeros(1)}}
    content["model"]["model"] = content["model"]
    for name, new in (("zip.pth", True), ("legacy.pth", False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=new)
        outcome = limited.read(tmp_path / name)
        assert outcome.kind == "refused" and "holds itself" in outcome.detail, outcome


def _saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (3,), (1,)), (1, (2,), (1,)), (0, (2, 2), (2, 1)), (3, (0,), (1,)), (0, (1 << 20, 1 << 20), (0, 0))],
)
def test_a_tensor_that_is_larger_than_its_storage(tmp_path, limited, new, offset, size, stride):
    class Forged(torch.Tensor):
        def __reduce_ex__(self, protocol):
            arguments = (torch.zeros(2).storage(), offset, size, stride, False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    path = tmp_path / "x.pth"
    path.write_bytes(_saved({"x": Forged()}, _use_new_zipfile_serialization=new))
    outcome = limited.read(path)
    assert outcome.kind == "refused", outcome
    assert "larger than its storage" in outcome.detail or "repeats few values" in outcome.detail


def test_a_storage_that_is_longer_than_the_file(tmp_path, limited):
    data = _saved({"x": torch.zeros(201)}, _use_new_zipfile_serialization=False)
    forged = data.replace(b"K\xc9", b"J" + (1 << 30).to_bytes(4, "little"), 1)
    assert forged != data
    (tmp_path / "x.pth").write_bytes(forged)
    outcome = limited.read(tmp_path / "x.pth")
    assert outcome.kind == "refused" and "declares more data than it holds" in outcome.detail, outcome


def test_a_wrong_checksum_is_damage(tmp_path):
    data = bytearray(_saved({"x": torch.full((100,), 1.5)}))
    data[data.index(torch.full((2,), 1.5).numpy().tobytes())] ^= 1
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="x.pth' is damaged.*CRC"):
        load_file(str(tmp_path / "x.pth"))


def test_keys_that_are_no_names(tmp_path):
    torch.save({"model": {3: torch.zeros(1), "x": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="x.pth' has keys that are no names of weights: 3"):
        read_weights(str(tmp_path / "x.pth"))
    assert list(load_file(str(tmp_path / "x.pth"))["model"]) == [3, "x"]


# ---------------------------------------------------------------------------------- files that people have


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "zoo.pkl"
    path.write_bytes(
        pickle.dumps({"model": ARRAYS, "__author__": "X", "n": np.float32(2)}, protocol=protocol)
    )
    content = load_file(str(path))
    assert content["__author__"] == "X" and content["n"] == 2 and content["n"].dtype == np.float32
    assert content["model"].keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        found = content["model"][name]
        assert found.dtype == expected.dtype.newbyteorder("=") and found.shape == expected.shape
        assert np.array_equal(found, expected)
        assert torch.from_numpy(found).shape == found.shape
        found[...] = 0  # memory of its own


def test_arrays_that_python_2_wrote(tmp_path):
    """What Python 2.7 with NumPy 1.16 writes: texts are bytes, and so are the contents of arrays."""
    values = np.array([1.5, -2.0, 3e-7], np.float32)
    raw = values.tobytes()
    data = (
        b"\x80\2}q\1U\6conv_wq\2cnumpy.core.multiarray\n_reconstruct\nq\3cnumpy\nndarray\nq\4K\0\x85q\5U\1bq\6"
        b"\x87q\7Rq\x08(K\1K\3\x85q\tcnumpy\ndtype\nq\nU\2f4q\x0bK\0K\1\x87q\x0cRq\r(K\3U\1<q\x0eNNNJ\xff\xff\xff"
        b"\xffJ\xff\xff\xff\xffK\0tq\x0fb\x89U" + bytes([len(raw)]) + raw + b"q\x10tq\x11bs."
    )
    (tmp_path / "caffe.pkl").write_bytes(data)
    assert np.array_equal(load_file(str(tmp_path / "caffe.pkl"))["conv_w"], values)


def same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value)
        same(getattr(found, "_metadata", None), getattr(expected, "_metadata", None))
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_both_formats_of_torch_give_what_torch_gives(tmp_path, new):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.rand(2, 2, 5, 5)).sum().backward()
    optimizer.step()
    base = torch.arange(24.0)
    dtypes = (
        "float64",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
        "complex64",
    )
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [base, base[3:9:2], base.reshape(4, 6).T, base[:1].expand(5), base[:0], torch.tensor(7)],
        "dtypes": {name: base.to(getattr(torch, name)) for name in dtypes},
        "kinds": (torch.float32, torch.Size([2, 3])),
        "random": {"numpy": ("MT19937", (1, 2**31), 3), "torch": torch.get_rng_state(), "big": 2**127},
        "counts": {3: 1.5, "x": None, b"y": True},
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    path = tmp_path / "run.pth"
    torch.save(content, path, _use_new_zipfile_serialization=new)
    expected = {**torch.load(path, weights_only=False), "kinds": (torch.float32, (2, 3))}
    expected["parameter"] = expected["parameter"].data
    found = load_file(str(path))
    same(found, expected)
    # Tensors that shared memory still do.
    found["views"][0][3] = -1
    assert found["views"][1][0] == -1


def test_arguments_and_other_objects_beside_the_weights(tmp_path):
    content = {"model": {"x": torch.zeros(1)}, "args": argparse.Namespace(lr=0.1, names=["a"])}
    for new in (True, False):
        torch.save(content, tmp_path / "run.pth", _use_new_zipfile_serialization=new)
        assert load_file(str(tmp_path / "run.pth"))["args"] == content["args"]
