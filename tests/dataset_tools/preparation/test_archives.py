"""Unpacking archives: whole files only, started again, damage and full disks named."""

import gzip
import hashlib
import io
import re
import tarfile
import zipfile

import pytest

from regseg_d2.common.errors import DatasetError
from regseg_d2.dataset_tools.preparation import archives
from regseg_d2.dataset_tools.preparation.archives import unpack, unpack_archives
from tests.fuzz.readers import unpack_beside
from tests.fuzz.worker import LimitedReader

FILES = {"set/images/a.jpg": b"a" * 5000, "set/images/b.jpg": b"", "set/c.txt": b"words"}


def make(path, files=FILES):
    """A zip, tar or tar.gz, as its name says, with a folder of its own before the files."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("set/images/", "")
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
            folder = tarfile.TarInfo("set")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_unpacked_once_and_gone_on_with(tmp_path, name):
    archive, target = make(tmp_path / name), tmp_path / "out"
    assert unpack(archive, target) == 3
    assert contents(target) == FILES
    before = (target / "set/images/a.jpg").stat().st_mtime_ns
    # What a power cut left too short is made again, what is whole is not.
    (target / "set/c.txt").write_bytes(b"wo")
    assert unpack(archive, target) == 1
    assert contents(target) == FILES
    assert (target / "set/images/a.jpg").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_an_archive_that_is_cut_off(tmp_path, name, share):
    noise = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(200))
    archive = make(tmp_path / name, {f"{i}.bin": noise for i in range(4)})
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(DatasetError, match=rf"{name} .*Download it again"):
        unpack(archive, tmp_path / "out")
    # Nothing half written, and nothing wrong.
    assert all(content == noise for content in contents(tmp_path / "out").values())


def test_a_damaged_member_is_not_kept(tmp_path):
    archive = make(tmp_path / "a.zip", {"a.bin": hashlib.sha256(b"").digest() * 9})
    content = bytearray(archive.read_bytes())
    content[45] ^= 255
    archive.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match="cut off or damaged"):
        unpack(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../b"])
@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_paths_that_lead_out_are_refused(tmp_path, name, kind):
    with pytest.raises(DatasetError, match="leads out of its folder"):
        unpack(make(tmp_path / kind, {name: b"x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.txt").exists()


def test_links_in_an_archive_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    assert unpack(tmp_path / "a.tar", tmp_path / "out") == 0


def test_a_full_disk(tmp_path, monkeypatch):
    class Full:
        def write(self, block):
            raise OSError(28, "No space left on device")

    whole = archives._Reported
    monkeypatch.setattr(archives, "_Reported", lambda file, target: whole(Full(), target))
    with pytest.raises(DatasetError, match=r"disk is full: .*a\.bin could not be written"):
        unpack(make(tmp_path / "a.tar", {"a.bin": b"abc"}), tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_archives_of_a_download(tmp_path):
    make(tmp_path / "a.zip")
    sums = {"a.zip": f"md5:{hashlib.md5((tmp_path / 'a.zip').read_bytes()).hexdigest()}"}
    places = {"a.zip": tmp_path / "out", "b.zip": tmp_path / "out"}
    assert unpack_archives(places, None, sums) == []
    (line,) = unpack_archives(places, tmp_path, sums)
    assert "unpacked 3 files" in line and contents(tmp_path / "out") == FILES
    with pytest.raises(DatasetError, match="expected 00: it is damaged. Download it again; if its authors"):
        unpack_archives(places, tmp_path, {"a.zip": "md5:00"})
    with pytest.raises(DatasetError, match="None of a.zip, b.zip is in"):
        unpack_archives(places, tmp_path / "out", sums)


# ------------------------------------------------------------------------------------ archives that mean harm


def tar_header(name, kind, content, size=None):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(content) if size is None else size
    return member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def pax(**records):
    """A PAX header with records, each of which is as long as it says."""
    content = b""
    for key, value in records.items():
        record = b" " + key.replace("_", ".").encode() + b"=" + value + b"\n"
        length = len(record) + 1
        while len(str(length)) + len(record) != length:
            length = len(str(length)) + len(record)
        content += str(length).encode() + record
    return tar_header("pax", tarfile.XHDTYPE, content)


def encrypted_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", b"secret")
    data = bytearray(file.getvalue())
    data[6] |= 1  # of the file's own header
    data[data.index(b"PK\1\2") + 8] |= 1  # of its entry in the list
    return bytes(data)


def zip_bomb():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(200 << 20))
    return file.getvalue()


def compressed(*blocks):
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
        for block in blocks:
            packed.write(block)
    return file.getvalue()


FILE, END = tar_header("a.txt", tarfile.REGTYPE, b"x" * 600), bytes(1024)
SPARSE = {
    "GNU_sparse_major": b"1",
    "GNU_sparse_minor": b"0",
    "GNU_sparse_name": b"a",
    "GNU_sparse_realsize": b"9",
}
HARMFUL = {
    "encrypted.zip": (encrypted_zip, "is encrypted"),
    "bomb.zip": (zip_bomb, "would unpack to more than"),
    "bomb.tgz": (
        lambda: compressed(tar_header("a", tarfile.REGTYPE, b"", 8 << 30), bytes(300 << 20)),
        "would unpack to more than",
    ),
    "skipped_bomb.tgz": (
        lambda: compressed(FILE, tar_header("a", tarfile.DIRTYPE, b"", 8 << 30), bytes(300 << 20)),
        "would unpack to more than",
    ),
    "pax_bomb.tgz": (
        lambda: compressed(tar_header("pax", tarfile.XHDTYPE, b"", 4 << 30), bytes(300 << 20)),
        "a header of 4294967296 bytes",
    ),
    "long_name_bomb.tgz": (
        lambda: compressed(tar_header("name", tarfile.GNUTYPE_LONGNAME, b"", 4 << 30), bytes(300 << 20)),
        "a header of 4294967296 bytes",
    ),
    "pax_of_pax.tar": (lambda: pax(comment=b"x") * 3000 + FILE + END, "is cut off or damaged"),
    "pax_zero.tar": (
        lambda: tar_header("pax", tarfile.XHDTYPE, b"0 a=b\n") + FILE + END,
        "is cut off or damaged",
    ),
    "pax_size.tar": (lambda: pax(size=b"x") + FILE + END, "is cut off or damaged"),
    "pax_negative.tar": (lambda: pax(size=b"-1") + FILE + END, "would unpack to more|is cut off or damaged"),
    "pax_nul.tar": (lambda: pax(path=b"a\0b") + FILE + END, r"holds 'a\\x00b', which cannot be the name"),
    "escape.tar": (
        lambda: pax(path=b"a\x1b[2J") + FILE + END,
        r"holds 'a\\x1b\[2J', which cannot be the name",
    ),
    "not_utf8.tar": (lambda: pax(path=b"a\xff") + FILE + END, r"holds 'a\\udcff', which cannot be the name"),
    "long_name.tar": (lambda: pax(path=b"a" * 5000) + FILE + END, "holds 'aaa.*, which cannot be the name"),
    "sparse_1_0.tar": (
        lambda: pax(**SPARSE) + tar_header("a", b"0", b"9" * 30 + b"\n1\n") + END,
        "a sparse file",
    ),
    "sparse_0_1.tar": (lambda: pax(GNU_sparse_map=b"1,x,3") + FILE + END, "a sparse file"),
    "sparse_0_0.tar": (
        lambda: pax(GNU_sparse_size=b"9", GNU_sparse_offset=b"x", GNU_sparse_numbytes=b"2") + FILE + END,
        "a sparse file",
    ),
    "sparse_gnu.tar": (lambda: tar_header("a", tarfile.GNUTYPE_SPARSE, b"x") + FILE + END, "a sparse file"),
    "broken_in_between.tar": (
        lambda: FILE + b"?" * 512 + FILE + END,
        "is cut off or damaged: invalid header",
    ),
    "dictionary.tar.xz": (
        lambda: b"\xfd7zXZ\0\0\4\xe6\xd6\xb4F\2\0!\1\x28\0\0\0\xc7\x4d\x0d\x4d" + bytes(100),
        "is cut off or damaged",
    ),
}


@pytest.fixture(scope="module")
def limited():
    with LimitedReader(unpack_beside) as reader:
        yield reader


@pytest.mark.parametrize("name", HARMFUL)
def test_archives_that_mean_harm_end_with_one_error(tmp_path, limited, name):
    make_it, message = HARMFUL[name]
    (tmp_path / name).write_bytes(make_it())
    outcome = limited.read(tmp_path / name)
    assert outcome.kind == "refused" and re.search(message, outcome.detail), outcome
    written = contents(tmp_path / "unpacked")
    assert set(written) <= {"a.txt"} and sum(map(len, written.values())) <= 600


def test_a_member_for_every_row_of_a_tar(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 2)
    for name in ("a.zip", "a.tar"):
        with pytest.raises(DatasetError, match="more than .* bytes or 2 files"):
            unpack(make(tmp_path / name), tmp_path / "out")


def test_a_name_that_is_a_folder_and_a_file(tmp_path):
    for number, names in enumerate((("a", "a/b"), ("a/b", "a"))):
        archive = make(tmp_path / f"{number}.zip", dict.fromkeys(names, b"x"))
        with pytest.raises(DatasetError, match=rf"{number}.zip has the file .* is a (file|folder) already"):
            unpack(archive, tmp_path / str(number))


@pytest.mark.parametrize("name", [".", "./", "./."])
def test_a_file_that_is_the_folder_itself(tmp_path, name):
    """It would take the folder's place."""
    archive = tmp_path / "a.tar"
    archive.write_bytes(pax(path=name.encode()) + FILE + END)
    with pytest.raises(DatasetError, match="which cannot be the name of a file"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
