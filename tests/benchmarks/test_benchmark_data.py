"""The benchmark of training samples, on small files."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks import data as benchmark_data
from benchmarks.data import (
    CASES,
    IGNORE,
    decoding_alone,
    detectron2_mapper,
    make_files,
    our_mapper,
)


@pytest.mark.parametrize("case", CASES, ids=["png", "jpeg"])
def test_pipelines_make_samples_of_the_same_kind(case, tmp_path):
    case = replace(case, size=(64, 128), crop=(32, 64))
    records = make_files(case, tmp_path, 2)
    image, label = (np.array(Image.open(records[1][key])) for key in ("file_name", "sem_seg_file_name"))
    assert image.shape == (64, 128, 3) and 30 < image.std() < 70
    assert label.shape == (64, 128) and set(np.unique(label)) <= {*range(case.num_classes), IGNORE}
    decoded = decoding_alone(case, records)(1)
    np.testing.assert_array_equal(decoded[0], image)
    np.testing.assert_array_equal(decoded[1], label)
    for make in (our_mapper, detectron2_mapper):
        pipeline = make(case, records)
        for number in range(6):
            sample = pipeline(number)
            assert sample["image"].shape == (3, 32, 64) and sample["sem_seg"].shape == (32, 64)
            assert set(np.unique(sample["sem_seg"])) <= {*np.unique(label), *range(case.num_classes), IGNORE}


def test_the_table_has_every_pipeline(capsys, monkeypatch):
    monkeypatch.setattr(benchmark_data, "CASES", (replace(CASES[1], size=(64, 96), crop=(32, 32)),))
    monkeypatch.setattr(benchmark_data, "_import_mmsegmentation", lambda folder: False)
    benchmark_data.run(3, "")
    rows = capsys.readouterr().out.splitlines()
    names = ("regseg_d2", "decoding alone", "Detectron2, as Mask2Former")
    times = {
        name: float(row[len(name) :].split()[1]) for name in names for row in rows if row.startswith(name)
    }
    assert set(times) == set(names)
    assert all(time >= 0 for time in times.values())
