"""Conversion of many files: whole or not at all, started again, and errors that name the file."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regseg_d2.common.errors import DatasetError
from regseg_d2.dataset_tools.preparation import (
    Conversion,
    check_files,
    check_number,
    check_sum,
    conversion,
    convert_files,
)


def value_of(conversion):
    if conversion.payload == "broken":
        raise DatasetError(f"{conversion.source} is broken")
    if conversion.payload == "killed":
        os._exit(9)
    return np.full((2, 3), conversion.payload, np.uint16)


def conversions(folder, *payloads):
    return [
        Conversion(Path(f"{i}.json"), folder / "labels" / f"{i}.png", payload)
        for i, payload in enumerate(payloads)
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_written_once(tmp_path, workers):
    jobs = conversions(tmp_path, 7, 300)
    assert convert_files(jobs[:1], value_of, title="labels", workers=workers) == 1
    before = jobs[0].output.stat().st_mtime_ns
    assert convert_files(jobs, value_of, title="labels", workers=workers) == 1
    assert jobs[0].output.stat().st_mtime_ns == before
    assert [np.array(Image.open(job.output)).max() for job in jobs] == [7, 300]
    assert convert_files(jobs, value_of, title="labels", workers=workers) == 0


def test_an_error_names_its_file_and_what_is_done_stays(tmp_path):
    jobs = conversions(tmp_path, 7, "broken", 9)
    with pytest.raises(DatasetError, match="1.json is broken"):
        convert_files(jobs, value_of, title="labels", workers=0)
    assert jobs[0].output.is_file()
    assert not jobs[1].output.exists()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_killed_worker_is_reported(tmp_path):
    with pytest.raises(DatasetError, match="ended by the system.*fewer than 1 processes"):
        convert_files(conversions(tmp_path, "killed"), value_of, title="labels", workers=1)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion.Image.Image, "save", full)
    with pytest.raises(DatasetError, match="disk is full: .*0.png could not be written"):
        convert_files(conversions(tmp_path, 7), value_of, title="labels", workers=0)
    assert list((tmp_path / "labels").iterdir()) == []


def test_checks_name_what_is_missing(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    check_files(tmp_path, ["a.png"], "images", "Copy them.")
    with pytest.raises(DatasetError, match=r"1 of 2 images are not below .*: b.png. Copy them\."):
        check_files(tmp_path, ["a.png", "b.png"], "images", "Copy them.")
    check_number(3, None, "images", tmp_path, "")
    with pytest.raises(DatasetError, match=r"has 3 images; expected 4\. Copy them\."):
        check_number(3, 4, "images", tmp_path, "Copy them.")
    check_sum(tmp_path / "a.png", f"md5:{hashlib.md5(b'a').hexdigest()}", "")
    with pytest.raises(DatasetError, match="has the sha256 .* expected 00: it is damaged"):
        check_sum(tmp_path / "a.png", "sha256:00", "Again.")
    with pytest.raises(DatasetError, match="c.png does not exist"):
        check_sum(tmp_path / "c.png", "md5:00", "Again.")
