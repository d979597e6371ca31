"""Unpacking archives: whole files only, started again, damage and full disks named."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from regseg_d2.data.preparation import archives
from regseg_d2.data.preparation.archives import unpack, unpack_archives
from regseg_d2.errors import DatasetError

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
