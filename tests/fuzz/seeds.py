"""Small valid files of every kind, and their mutations."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import pickle
import pickletools
import random
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save
from scipy.io import savemat

from regseg_d2.data.images import FORMATS
from tests.fuzz.mutations import mutated
from tests.weights import attacks

_OPCODES = tuple(opcode.code.encode("latin1") for opcode in pickletools.opcodes)
_NAMES = tuple(
    f"c{module}\n{name}\n".encode()
    for module, name in (
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
        ("argparse", "Namespace"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch", "FloatStorage"),
        ("torch", "Size"),
        ("builtins", "getattr"),
        ("builtins", "set"),
        ("mmengine", "X"),
        ("os", "system"),
    )
)
_YAML_WORDS = tuple(
    word.encode("utf-8", "surrogatepass")
    for word in (
        *(
            "&a ",
            "*a",
            "<<: *a",
            "<<: [*a, *a]",
            "!!",
            "!!int ",
            "!!set ",
            "!!pairs ",
            "!!binary ",
            "? ",
            ": ",
            "- ",
        ),
        *(
            "[",
            "]",
            "{",
            "}",
            "|",
            ">",
            "#",
            "'",
            '"',
            "\n",
            "  ",
            "\t",
            "\0",
            "---\n",
            "...\n",
            "%YAML 9\n",
            "0x",
        ),
        *(
            "1e999",
            ".nan",
            ".inf",
            "2001-99-99",
            "1:60",
            "~",
            "\ud800",
            '"\\ud800"',
            '"\\0"',
            "-" * 60,
            "1+1+",
        ),
        *("[" * 60, "{" * 60, "9" * 50, "_BASE_: x.yaml\n", "{{}}", "\x1b[2J", "\ufeff", "\u2028", "/", ".."),
    )
)
_JSON_WORDS = (
    *(
        b"null",
        b"true",
        b"[]",
        b"{}",
        b"NaN",
        b"Infinity",
        b"1e999",
        b"-1",
        b"[" * 60,
        b'{"a":' * 60,
        b"9" * 50,
    ),
    *(b'"\\ud800"', b'"\\u0000"', b'"\\u001b[2J"', b"65536", b"4294967296", b",", b":", b'"', b"0.5", b'"x"'),
)


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        seeds: ``{name of a file: its bytes}`` of valid ones.
        words: what the format is made of.
        layers: for files within files: takes the inner bytes out and puts changed ones in.
    """

    seeds: dict[str, bytes]
    words: tuple[bytes, ...] = ()
    layers: Callable[[str, bytes, Callable[[bytes], bytes]], bytes] | None = None

    def draw(self, draw: random.Random) -> tuple[str, bytes]:
        """Returns the name and the bytes of a changed file."""
        name = draw.choice(sorted(self.seeds))
        data = self.seeds[name]
        if self.layers is not None and draw.random() < 0.7:
            return name, self.layers(name, data, lambda inner: mutated(inner, draw, self.words))
        return name, mutated(data, draw, self.words)


def kinds() -> dict[str, Kind]:
    """Returns every kind by its name, the same files every time."""
    return {
        "checkpoints": Kind(_checkpoints(), (*_OPCODES, *_NAMES), _within_checkpoint),
        "pickles": Kind(_pickles(), (*_OPCODES, *_NAMES)),
        "configs": Kind(_configs(), _YAML_WORDS),
        "declarations": Kind(_declarations(), _YAML_WORDS),
        "coco": Kind(_annotations(), _JSON_WORDS),
        "counts": Kind(_counts(), _JSON_WORDS),
        "evaluations": Kind(_evaluations(), _JSON_WORDS),
        "archives": Kind(
            _archives(), (b"ustar\0", b"GNU.sparse.major=1\n", b"PK\1\2", b"PK\3\4"), _within_archive
        ),
        "images": Kind(_images(), (b"IHDR", b"IDAT", b"PLTE", b"eXIf", b"\xff\xd8", b"\xff\xe1", b"II*\0")),
        "matlab": Kind(_matlab()),
    }


# ----------------------------------------------------------------------------------------------- weights


def _content() -> dict:
    base = torch.arange(12.0)
    state = OrderedDict({"conv.weight": base.reshape(3, 4), "conv.bias": base[2:5], "n": torch.tensor(3)})
    state._metadata = OrderedDict({"": {"version": 1}, "conv": {"version": 2}})
    return {
        "model": state,
        "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]},
        "iteration": 3,
    }


def _checkpoints() -> dict[str, bytes]:
    files = {}
    for name, new in (("zip.pth", True), ("legacy.pth", False)):
        file = io.BytesIO()
        torch.save(_content(), file, _use_new_zipfile_serialization=new)
        files[name] = file.getvalue()
    files["x.safetensors"] = save({"a": torch.arange(4.0), "b": torch.zeros(2, 3, dtype=torch.int16)})
    return files


def _within_checkpoint(name: str, data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Changes the pickle in a zip file, whose checksums are right again afterwards."""
    if name != "zip.pth":
        return change(data)
    return _within_zip(data, change, lambda entry: entry.endswith("data.pkl"))


def _pickles() -> dict[str, bytes]:
    arrays = {"w": np.arange(6.0).reshape(2, 3), "b": np.array([True]), "i": np.arange(3, dtype=">i2")}
    content = {
        "model": arrays,
        "__author__": "X",
        "s": np.float32(1),
        "l": [1, (2.5, None)],
        "n": {"k": b"x"},
    }
    files = {f"protocol_{protocol}.pkl": pickle.dumps(content, protocol=protocol) for protocol in range(6)}
    return {**files, "forged.pkl": attacks.forged_object_array(), "tuples.pkl": attacks.nested_tuple_key(5)}


# -------------------------------------------------------------------------------------------------- texts


def _configs() -> dict[str, bytes]:
    content = {
        "MODEL": {"REGULARIZERS": {"NAMES": ["CAR"], "CAR": {"WEIGHT": 1.0}}, "PIXEL_MEAN": [1.0, 2.0, 3.0]},
        "DATASETS": {"TRAIN": ["a"], "TEST": ["b"], "DECLARED": ["x.yaml"]},
        "SOLVER": {"STEPS": [1, 2], "BASE_LR": "1e-3", "MAX_ITER": 10},
        "INPUT": {"CROP": {"SIZE": [16, 16]}},
        "OUTPUT_DIR": "x",
        "SEED": 3,
    }
    del content["MODEL"]["REGULARIZERS"]["CAR"]
    return {"c.yaml": yaml.safe_dump(content).encode(), "flow.yaml": json.dumps(content).encode()}


def _declarations() -> dict[str, bytes]:
    content = {
        "name": "farm",
        "root": "data",
        "classes": ["soil", {"name": "crop", "color": [60, 160, 60]}, "weed"],
        "label_map": {0: "ignore", 1: "soil", 2: 1, 3: 2},
        "images": "images",
        "labels": "labels",
        "splits": {"train": {"images": "a", "labels": "b"}, "val": {"list": "val.txt"}, "test": 0.5},
    }
    aliased = (
        b"name: farm\nroot: &r data\nclasses: [&c soil, crop]\n"
        b"splits:\n  a: &s {images: a, labels: b}\n  b: {<<: *s}\n"
    )
    return {"d.yaml": yaml.safe_dump(content).encode(), "aliased.yaml": aliased}


_CODE = coco_mask.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))["counts"].decode()


def _annotations() -> dict[str, bytes]:
    content = {
        "images": [{"id": 3, "file_name": "a.jpg", "height": 20, "width": 30}],
        "categories": [{"id": 7, "name": "table"}, {"id": 2, "name": "spoon", "color": [9, 8, 7]}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 7, "segmentation": [[2, 2, 9, 2, 9, 9, 2, 9]]},
            {"id": 2, "image_id": 3, "category_id": 2, "iscrowd": 1,
             "segmentation": {"size": [20, 30], "counts": [0, 5, 595]}},
            {"id": 3, "image_id": 3, "category_id": 2, "segmentation": {"size": [20, 30], "counts": _CODE}},
        ],
    }  # fmt: skip
    return {"instances.json": json.dumps({**content, "annotations": content["annotations"][:2]}).encode(),
            "compressed.json": json.dumps(content).encode()}  # fmt: skip


def _counts() -> dict[str, bytes]:
    lists = dict.fromkeys(("pixels", "images_with_class", "pixels_of_images_with_class"), [3, 4, 5])
    return {"counts.json": json.dumps({**lists, "num_images": 3, "ignored_pixels": 0}).encode()}


def _evaluations() -> dict[str, bytes]:
    classes = [{"name": name, "IoU": 50.0, "pixels": 10} for name in ("a", "b")]
    content = {
        "metrics": {"mIoU": 50.0},
        "classes": classes,
        "num_images": 2,
        "model": {"completed_steps": 3},
    }
    return {"val.json": json.dumps(content).encode()}


# ----------------------------------------------------------------------------------------------- archives


def _archives() -> dict[str, bytes]:
    files = {"set/a.txt": b"words " * 20, "set/images/b.jpg": bytes(range(90)), "set/" + "long" * 40: b"x"}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    tars = {}
    for name, kind in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind, pax_headers={"comment": "x"}) as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        tars[name] = file.getvalue()
    return {
        "a.zip": zipped.getvalue(),
        "gnu.tar": tars["gnu"],
        "pax.tar": tars["pax"],
        "pax.tar.gz": gzip.compress(tars["pax"], mtime=0),
        "gnu.tar.xz": lzma.compress(tars["gnu"]),
    }


def _within_archive(name: str, data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Changes the tar in a compressed file, and the headers of a tar with right checksums."""
    if name.endswith(".gz"):
        return gzip.compress(_with_checksums(change(gzip.decompress(data))), mtime=0)
    if name.endswith(".xz"):
        return lzma.compress(_with_checksums(change(lzma.decompress(data))))
    return _with_checksums(change(data)) if name.endswith(".tar") else change(data)


def _with_checksums(data: bytes) -> bytes:
    changed = bytearray(data)
    for start in range(0, len(changed) - 511, 512):
        if changed[start + 257 : start + 262] == b"ustar":
            changed[start + 148 : start + 156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
    return bytes(changed)


def _within_zip(data: bytes, change: Callable[[bytes], bytes], chosen: Callable[[str], bool]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(file, "w") as archive:
        for entry in whole.infolist():
            content = whole.read(entry)
            archive.writestr(entry, change(content) if chosen(entry.filename) else content)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------- images


def _images() -> dict[str, bytes]:
    values = np.random.default_rng(0).integers(0, 3, (9, 7), dtype=np.uint8)
    grey = Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {}

    def add(name: str, image: Image.Image, kind: str, **options: object) -> None:
        file = io.BytesIO()
        image.save(file, format=kind, **options)
        files[name] = file.getvalue()

    for kind in FORMATS:
        add(f"rgb.{kind}", grey.convert("RGB"), kind)
        add(f"grey.{kind}", grey, kind)
    palette = grey.convert("P")
    for kind in ("PNG", "GIF", "TIFF", "BMP"):
        add(f"palette.{kind}", palette, kind)
    for name, compression in (("lzw", "tiff_lzw"), ("deflate", "tiff_adobe_deflate"), ("g4", "group4")):
        add(f"{name}.TIFF", grey.convert("1") if name == "g4" else grey, "TIFF", compression=compression)
    add("turned.PNG", grey, "PNG", exif=exif)
    add("turned.JPEG", grey, "JPEG", exif=exif)
    add("progressive.JPEG", grey.convert("RGB"), "JPEG", progressive=True)
    add("cmyk.JPEG", grey.convert("CMYK"), "JPEG")
    add("deep.PNG", Image.fromarray(values.astype(np.uint16) * 300), "PNG")
    add("bits.PNG", grey.convert("1"), "PNG")
    add("alpha.WEBP", grey.convert("RGBA"), "WEBP", lossless=True)
    add("moving.GIF", palette, "GIF", save_all=True, append_images=[palette.rotate(180)])
    return files


def _matlab() -> dict[str, bytes]:
    files = {}
    cell = np.array(["a", np.arange(2.0)], dtype=object)
    content = {"S": np.arange(12, dtype=np.uint8).reshape(3, 4), "G": {"x": np.eye(2), "c": cell}}
    for name, compress in (("plain.mat", False), ("packed.mat", True)):
        file = io.BytesIO()
        savemat(file, content, do_compression=compress)
        files[name] = file.getvalue()
    return files
