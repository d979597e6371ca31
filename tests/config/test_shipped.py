"""``regseg:NAME``: configs of the package by name."""

from pathlib import Path

import pytest

from regseg_d2.apps.experiment.spec import read_experiment
from regseg_d2.common.errors import ConfigError
from regseg_d2.config import shipped
from regseg_d2.config.files import load_config

ROOT = Path(__file__).parents[2]
NAME = "camvid/deeplabv3_efficientnet_lite0_car.yaml"


def test_a_name_is_the_file_from_any_folder(tmp_path, monkeypatch):
    expected = load_config(str(ROOT / "configs" / NAME))
    monkeypatch.chdir(tmp_path)
    assert load_config(f"regseg:{NAME}") == expected
    assert f"output/{NAME.removesuffix('.yaml')}" == expected.OUTPUT_DIR


def test_bases_and_experiments_take_names(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"_BASE_: ['regseg:{NAME}']\nSEED: 7\n")
    expected = load_config(str(ROOT / "configs" / NAME), ["SEED", "7"])
    assert load_config(str(mine)) == expected
    file = tmp_path / "experiment.yaml"
    file.write_text(
        f"base: regseg:{NAME}\nseeds: 0-1\nprimary: {{dataset: camvid_val}}\narms:\n  baseline: {{}}\n"
    )
    assert read_experiment(file).base == ROOT / "configs" / NAME


def test_a_wheel_has_them_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "regseg_d2")
    assert shipped.shipped_configs() == tmp_path / "configs"
    (tmp_path / "regseg_d2" / "configs").mkdir(parents=True)
    assert shipped.config_path("regseg:a/b.yaml") == tmp_path / "regseg_d2" / "configs" / "a" / "b.yaml"


@pytest.mark.parametrize("name", [f"configs/{NAME}", NAME])
def test_a_path_that_is_not_there_names_the_shipped_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=f"does not exist. The package has one of that name: 'regseg:{NAME}'"
    ):
        load_config(name)


def test_a_wrong_name_lists_near_ones():
    with pytest.raises(ConfigError, match="deeplabv3_efficientnet_lite.yaml' does not exist.*lite0"):
        load_config("regseg:camvid/deeplabv3_efficientnet_lite.yaml")
