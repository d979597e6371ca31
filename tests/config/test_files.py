"""Reading, composing and printing configuration files."""

import re
from pathlib import Path

import pytest
import yaml

from regseg_d2.common.errors import ConfigError
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.files import (
    COMMAND_LINE,
    format_config,
    load_config,
    load_config_with_origins,
    print_config,
)
from regseg_d2.config.keys import flatten_config


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_defaults_without_a_file():
    assert load_config("") == get_regseg_cfg()
    assert not load_config("").is_frozen()


def test_bases_are_merged_in_order_then_own_keys_then_overrides(tmp_path):
    a = write(
        tmp_path, "_base_/a.yaml", "SOLVER: {MAX_ITER: 1, BASE_LR: 0.1, MOMENTUM: 0.1, IMS_PER_BATCH: 1}"
    )
    b = write(
        tmp_path, "_base_/b.yaml", "_BASE_: c.yaml\nSOLVER: {BASE_LR: 0.2, MOMENTUM: 0.2, IMS_PER_BATCH: 2}"
    )
    c = write(tmp_path, "_base_/c.yaml", "SOLVER: {BASE_LR: 0.3, GAMMA: 0.3}")
    leaf = write(
        tmp_path,
        "leaf.yaml",
        "_BASE_: [_base_/a.yaml, _base_/b.yaml]\nSOLVER: {MOMENTUM: 0.4, IMS_PER_BATCH: 4}",
    )
    cfg, origins = load_config_with_origins(leaf, ["SOLVER.IMS_PER_BATCH", "5"])
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, solver.BASE_LR, solver.MOMENTUM, solver.IMS_PER_BATCH, solver.GAMMA) == (
        (1, 0.2, 0.4, 5, 0.3)
    )
    assert {key: Path(origin).name for key, origin in origins.items()} == {
        "SOLVER.MAX_ITER": Path(a).name,
        "SOLVER.BASE_LR": Path(b).name,
        "SOLVER.MOMENTUM": Path(leaf).name,
        "SOLVER.IMS_PER_BATCH": COMMAND_LINE,
        "SOLVER.GAMMA": Path(c).name,
    }


def test_a_base_may_be_read_twice_but_not_in_a_circle(tmp_path):
    write(tmp_path, "base.yaml", "SEED: 3")
    write(tmp_path, "left.yaml", "_BASE_: base.yaml")
    write(tmp_path, "right.yaml", "_BASE_: base.yaml")
    assert load_config(write(tmp_path, "leaf.yaml", "_BASE_: [left.yaml, right.yaml]")).SEED == 3
    write(tmp_path, "one.yaml", "_BASE_: two.yaml")
    two = write(tmp_path, "two.yaml", "_BASE_: one.yaml")
    with pytest.raises(ConfigError, match=r"comes back to itself.*two.yaml.*one.yaml.*two.yaml"):
        load_config(two)


def test_a_run_goes_where_its_config_is_called(tmp_path):
    write(tmp_path, "tree/_base_/models/a.yaml", "SEED: 1")
    leaf = write(tmp_path, "tree/city/net.yaml", "_BASE_: ../_base_/models/a.yaml")
    assert load_config(leaf).OUTPUT_DIR == "output/city/net"
    child = write(tmp_path, "tree/town/net.yaml", "_BASE_: ../city/net.yaml\nOUTPUT_DIR: auto")
    assert load_config(child).OUTPUT_DIR == "output/town/net"
    cfg, origins = load_config_with_origins(child)
    assert "OUTPUT_DIR: output/town/net  # " in format_config(cfg, origins)
    # A file elsewhere goes where its base does; without a base of that kind to the default folder.
    assert load_config(write(tmp_path, "own.yaml", f"_BASE_: {leaf}")).OUTPUT_DIR == "output/city/net"
    own = write(tmp_path, "own.yaml", "_BASE_: tree/_base_/models/a.yaml")
    assert load_config(own).OUTPUT_DIR == get_regseg_cfg().OUTPUT_DIR
    # What somebody sets counts, also below.
    set_ = write(tmp_path, "tree/city/set.yaml", "OUTPUT_DIR: here")
    below = write(tmp_path, "tree/city/below.yaml", "_BASE_: set.yaml")
    assert load_config(set_).OUTPUT_DIR == load_config(below).OUTPUT_DIR == "here"
    assert load_config(set_, ["OUTPUT_DIR", "auto"]).OUTPUT_DIR == "output/city/set"


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "base.yaml", "SEED: 5")
    write(tmp_path, "sub/leaf.yaml", "_BASE_: ~/base.yaml")
    assert load_config("~/sub/leaf.yaml").SEED == 5


def test_python_tags_are_refused_and_not_run(tmp_path):
    marker = tmp_path / "the code ran"
    path = write(tmp_path, "evil.yaml", f"SEED: !!python/object/apply:os.system ['touch \"{marker}\"']")
    with pytest.raises(ConfigError, match=r"evil.yaml.*python/object/apply:os.system.*line 1") as info:
        load_config(path)
    assert not marker.exists()
    assert "Only plain YAML" in str(info.value)
    leaf = write(tmp_path, "leaf.yaml", "_BASE_: evil.yaml")
    with pytest.raises(ConfigError, match="evil.yaml"):
        load_config(leaf)
    assert not marker.exists()


BROKEN = {
    "unknown key": ("SOLVER: {BASE_LRR: 1.0}", r"x.yaml: unknown key 'SOLVER.BASE_LRR'.*'SOLVER.BASE_LR'"),
    "unknown section": ("SOLVR: {BASE_LR: 1.0}", r"unknown key 'SOLVR.BASE_LR'.*'SOLVER.BASE_LR'"),
    "wrong section": ("MODEL: {MAX_ITER: 3}", r"unknown key 'MODEL.MAX_ITER'.*SOLVER.MAX_ITER"),
    "key below a value": ("SEED: {A: 1}", r"unknown key 'SEED.A'"),
    "wrong type": (
        "SOLVER: {MAX_ITER: many}",
        r"x.yaml: 'SOLVER.MAX_ITER' is 'many' \(str\); expected a whole",
    ),
    "float for int": (
        "SOLVER: {MAX_ITER: 1.5}",
        r"'SOLVER.MAX_ITER' is 1.5 \(float\); expected a whole number",
    ),
    "int for bool": ("DETERMINISTIC: 1", r"'DETERMINISTIC' is 1 \(int\); expected True or False"),
    "nothing for a value": ("SEED:", r"'SEED' is None"),
    "text for list": ("DATASETS: {TRAIN: camvid_train}", r"expected a list.*\[camvid_train\]"),
    "number for text": ("OUTPUT_DIR: 3", r"'OUTPUT_DIR' is 3 \(int\); expected a text"),
    "value for section": ("SOLVER: 3", r"'SOLVER' is a section.*SOLVER\."),
    "twice": ("SEED: 1\nSEED: 2", r"x.yaml: the key 'SEED' is written twice \(line 2"),
    "broken yaml": ("SEED: [1", r"x.yaml: not valid YAML.*line"),
    "list": ("- SEED", r"expected 'KEY: value' lines, found a list"),
    "base": ("_BASE_: {a: 1}", r"_BASE_ is \{'a': 1\}; expected a file name"),
    "missing base": ("_BASE_: y.yaml", r"y.yaml' does not exist.*x.yaml"),
    "version": ("VERSION: 1", r"VERSION is 1; only version 2"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_errors_name_file_key_value_and_cure(tmp_path, case):
    text, message = BROKEN[case]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_config(write(tmp_path, "x.yaml", text))


def test_missing_file_lists_near_names(tmp_path):
    write(tmp_path, "fcn_r50.yaml", "")
    with pytest.raises(ConfigError, match=r"fcn_r5.yaml' does not exist. In .* there are: fcn_r50.yaml"):
        load_config(str(tmp_path / "fcn_r5.yaml"))
    with pytest.raises(ConfigError, match="nor does its folder"):
        load_config(str(tmp_path / "no" / "x.yaml"))
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(str(tmp_path))
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        load_config(str(tmp_path / "image.yaml"))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.BASE_LR", "1e-3", 0.001),
        ("SOLVER.BASE_LR", "1", 1.0),
        ("DATASETS.TEST", "[a, b]", ("a", "b")),
        ("DATASETS.TEST", "('a',)", ("a",)),
        ("MODEL.REGULARIZERS.NAMES", "['CAR']", ["CAR"]),
        ("MODEL.REGULARIZERS.NAMES", "[]", []),
        ("OUTPUT_DIR", "2024", "2024"),
        ("OUTPUT_DIR", "'quoted'", "quoted"),
        ("DETERMINISTIC", "True", True),
        ("DETERMINISTIC", "true", True),
        ("SOLVER.WEIGHT_DECAY_BIAS", "0.5", 0.5),
        ("SOLVER.WEIGHT_DECAY_BIAS", "None", None),
        ("MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE", "res4", "res4"),
    ],
)
def test_overrides(key, text, value):
    found = flatten_config(load_config("", [key, text]))[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SEED"], "come in pairs"),
        (["SEED=3"], "not 'KEY=VALUE'"),
        (["SEDE", "3"], "command line: unknown key 'SEDE'.*'SEED'"),
        (["SEED", "x"], r"command line: 'SEED' is 'x' \(str\); expected a whole number"),
        (["SOLVER", "3"], "is a section"),
    ],
)
def test_override_errors(opts, message):
    with pytest.raises(ConfigError, match=message):
        load_config("", opts)


def test_yaml_texts_that_are_numbers(tmp_path):
    assert load_config(write(tmp_path, "x.yaml", "SOLVER: {BASE_LR: 1e-3}")).SOLVER.BASE_LR == 0.001


def test_printed_config_loads_again_and_shows_origins(tmp_path, capsys):
    path = write(tmp_path, "x.yaml", "SOLVER: {MAX_ITER: 7, BASE_LR: 0.001}\nINPUT: {RANDOM_FLIP: none}")
    cfg, origins = load_config_with_origins(path, ["DATASETS.TEST", "[a, 'b: c']", "SOLVER.BASE_LR", "0.02"])
    cfg.SEED = 4
    print_config(cfg, origins)
    text = capsys.readouterr().out
    assert format_config(load_config(write(tmp_path, "y.yaml", text))) == format_config(cfg)
    commented = {
        line.split("#")[0].strip(): line.split("#")[1].strip() for line in text.splitlines() if "#" in line
    }
    assert commented == {
        "MAX_ITER: 7": path,
        "BASE_LR: 0.02": COMMAND_LINE,
        "RANDOM_FLIP: none": path,
        "TEST: [a, 'b: c']": COMMAND_LINE,
        "SEED: 4": "set in code",
    }
    assert "#" not in format_config(cfg)


def test_defaults_survive_printing_and_loading(tmp_path):
    text = format_config(get_regseg_cfg(), {})
    assert yaml.safe_load(text)["SOLVER"]["BASE_LR"] == get_regseg_cfg().SOLVER.BASE_LR
    assert format_config(load_config(write(tmp_path, "x.yaml", text)), {}) == text


def test_every_key_of_this_package_is_documented():
    from detectron2.config import get_cfg
    from detectron2.projects.deeplab import add_deeplab_config

    stock = get_cfg()
    add_deeplab_config(stock)
    ours = set(flatten_config(get_regseg_cfg())) - set(flatten_config(stock))
    assert len(ours) > 50
    docs = Path(__file__).parents[2] / "docs"
    text = "".join((docs / name).read_text(encoding="utf-8") for name in ("configuration.md", "methods.md"))
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)`", text))
    assert sorted(ours - documented) == []
    keys = set(flatten_config(get_regseg_cfg()))
    sections = {key.rsplit(".", n)[0] for key in keys for n in range(1, key.count(".") + 1)}
    misspelt = {key for key in documented if "." in key} - keys - sections
    assert sorted(misspelt) == []
