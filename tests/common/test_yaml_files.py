"""YAML and JSON of strangers: files of a few lines that would never end, and values that nothing takes."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.json_files import read_json
from regseg_d2.common.yaml_files import parse_yaml, read_yaml
from regseg_d2.config.files import load_config
from regseg_d2.data.datasets.declared import read_declaration
from regseg_d2.engine.main import warn_about_changes
from tests.fuzz.worker import LimitedReader

MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], k{i}: 1}}\n" for i in range(1, 9)
)
ALIASES = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 99))
TEXTS = {
    "merge keys": (MERGES, r"more than 1000000 values, with aliases .* \(line 7"),
    "aliases": (ALIASES, r"more than 1000000 values, with aliases .* \(line 7"),
    "levels of aliases": (CHAIN, r"nested too deep, more than 50 levels \(line 50"),
    "holds itself": ("SEED: &a {b: [*a]}\n", r"holds itself through an alias .* \(line 1, column 15"),
    "merges itself": ("SEED: &a {<<: *a}\n", r"holds itself through an alias .* \(line 1"),
    "levels": ("SEED: " + "[" * 100_000, r"nested too deep, more than 50 levels \(line 1"),
    "levels of keys": ("? " * 100_000, r"nested too deep, more than 50 levels \(line 1"),
    "bytes": ("# " + "x" * (1 << 20), r"has 1048578 bytes; expected up to 1048576"),
    "hex": (f"SEED: 0x{'f' * 100_000}\n", r"a number of 100002 digits \(line 1, column 7"),
    "decimal": (f"SEED: {'9' * 100_000}\n", r"a number of 100000 digits"),
    "base 60": (f"SEED: 1{':59' * 30_000}\n", r"a number of 90001 digits"),
    "float": (f"SEED: 1.{'9' * 100_000}\n", r"a number of 100002 digits"),
    "NUL": ("SEED: a\0b\n", r"not valid YAML, .* \(character 8\)"),
    "written NUL": ('SEED: "a\\0b"\n', r"'a\\x00b' is no text: it holds a NUL .* \(line 1, column 7"),
    "half a character": ('SEED: "\\ud800"\n', r"'\\ud800' is no text: .* half a character \(line 1"),
    "half a key": ('"\\ud800": 1\n', r"'\\ud800' is no text"),
    "pairs": ("SEED: !!pairs [a: 1]\n", r"values of the kind !!pairs are not read \(line 1"),
    "ordered": ("SEED: !!omap [a: 1]\n", r"values of the kind !!omap"),
    "set": ("SEED: !!set {a}\n", r"values of the kind !!set"),
    "binary": ("SEED: !!binary aGk=\n", r"values of the kind !!binary"),
}


@pytest.fixture(scope="module")
def limited():
    with LimitedReader(read_yaml) as reader:
        yield reader


@pytest.mark.parametrize("case", TEXTS)
def test_texts_end_with_an_error_that_names_file_and_place(tmp_path, limited, case):
    text, message = TEXTS[case]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    outcome = limited.read(path)
    assert outcome.kind == "refused", outcome
    with pytest.raises(ConfigError, match=rf"(?s)x\.yaml.*{message}"):
        read_yaml(path)


def test_what_is_no_text_file(tmp_path, limited):
    (tmp_path / "utf16.yaml").write_text("A: 1\n", encoding="utf-16")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    os.mkfifo(tmp_path / "fifo.yaml")
    names = {
        "utf16": "not a text file in UTF-8",
        "folder": "no file",
        "loop": "symbolic links",
        "fifo": "no file",
    }
    for name, message in names.items():
        outcome = limited.read(tmp_path / f"{name}.yaml")
        assert outcome.kind == "refused" and message in outcome.detail, outcome


def test_what_people_write_is_read_as_ever():
    text = "a: &a {x: 1, y: [1.5, yes, 2001-01-01, ~]}\nb: {<<: *a, x: 2}\nc: [*a, *a]\n0x1F: .inf\n"
    assert parse_yaml(text, "x") == yaml.safe_load(text)
    assert parse_yaml("- 1", "x") == [1] and parse_yaml("", "x") is None
    assert parse_yaml(f"[{2**64 - 1}, -{2**64 - 1}]", "x") == [2**64 - 1, 1 - 2**64]


def test_a_label_map_of_all_values_of_16_bits(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("m:\n" + "".join(f"  {i}: 1\n" for i in range(8192)))
    assert len(read_yaml(path)["m"]) == 8192


# ------------------------------------------------------------------------------------------- config files


def test_bases_that_fan_out(tmp_path):
    """11 levels of 10 bases would be 10 ** 11 readings."""
    for level in range(11):
        bases = f"_BASE_: [{', '.join(f'{level + 1}_{i}.yaml' for i in range(10))}]\n" if level < 10 else ""
        for i in range(10):
            (tmp_path / f"{level}_{i}.yaml").write_text(f"{bases}SEED: {i}\n")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"10_0\.yaml: the _BASE_ chain has more than 10 levels"):
        load_config(str(tmp_path / "0_0.yaml"))
    assert time.monotonic() - start < 2


def test_bases_that_are_read_again_and_again(tmp_path):
    (tmp_path / "b.yaml").write_text("_BASE_: [c.yaml, c.yaml]\n")
    (tmp_path / "c.yaml").write_text("SEED: 1\n")
    (tmp_path / "a.yaml").write_text(f"_BASE_: [{', '.join(['b.yaml'] * 30)}]\nSEED: 3\n")
    assert load_config(str(tmp_path / "a.yaml")).SEED == 3
    (tmp_path / "a.yaml").write_text(f"_BASE_: [{', '.join(['b.yaml'] * 40)}]\nSEED: 3\n")
    with pytest.raises(ConfigError, match=r"[bc]\.yaml: the _BASE_ chain .* more than 100 files"):
        load_config(str(tmp_path / "a.yaml"))


def test_each_base_is_read_once(tmp_path, monkeypatch):
    for name, bases in (("a", "[b.yaml, c.yaml]"), ("b", "d.yaml"), ("c", "d.yaml")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {bases}\n")
    (tmp_path / "d.yaml").write_text("SEED: 7\n")
    read = []
    monkeypatch.setattr(
        "regseg_d2.config.bases.read_yaml", lambda path: read.append(path.name) or read_yaml(path)
    )
    assert load_config(str(tmp_path / "a.yaml")).SEED == 7
    assert sorted(read) == ["a.yaml", "b.yaml", "c.yaml", "d.yaml"]


HUGE = {
    "hex": "0x" + "f" * 100_000,
    "sum": "1" + "+1" * 50_000,
    "minus": "-" * 100_000 + "1",
    "brackets": "[" * 100_000,
    "short minus": "-" * 9_000 + "1",
    "short hex": "0x" + "f" * 9_000,
    "short sum": "1" + "+1" * 4_000,
    "braces": "{{}}",
}


@pytest.mark.parametrize("case", HUGE)
@pytest.mark.parametrize("key", ["SEED", "SOLVER.STEPS", "SOLVER.BASE_LR"])
def test_values_without_end(tmp_path, case, key):
    """Both where Python's reader of literals is asked, and where YAML's is."""
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"command line: '{key}' is ") as caught:
        load_config("", [key, HUGE[case]])
    assert len(str(caught.value)) < 1000
    (tmp_path / "x.yaml").write_text(
        f"{key.replace('.', ': {')}: {json.dumps(HUGE[case])}{'}' * key.count('.')}\n"
    )
    with pytest.raises(ConfigError, match=rf"x\.yaml: '{key}' is ") as caught:
        load_config(str(tmp_path / "x.yaml"))
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - start < 2


def test_words_of_the_command_line_that_are_no_text():
    for text in ("a\0b", "\udcff", "x\ud800"):
        with pytest.raises(ConfigError, match="command line: .* is no text"):
            load_config("", ["OUTPUT_DIR", text])


@pytest.mark.parametrize("text", ["_BASE_: {name}\n", "{name}: 1\n", "? {name}\n: 1\n", "SEED: {name}\n"])
def test_names_of_5000_letters(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text.format(name="x" * 5000))
    with pytest.raises(ConfigError, match=r"x\.yaml: |File name too long") as caught:
        load_config(str(tmp_path / "x.yaml"))
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("key", ["name", "root", "images", "list"])
def test_names_of_5000_letters_in_a_declaration(tmp_path, key):
    content = {"name": "farm", "root": ".", "classes": ["a"], "images": "i", "labels": "l", "list": "x"}
    content[key] = "y" * 5000
    content["splits"] = {"train": {"list": content.pop("list")}}
    (tmp_path / "x.yaml").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"x\.yaml: '.*{key}'? is 'yyyyy") as caught:
        read_declaration(tmp_path / "x.yaml")
    assert len(str(caught.value)) < 1500
    with pytest.raises(ConfigError, match="yyyyy") as caught:
        read_declaration("y" * 5000)
    assert len(str(caught.value)) < 1500


def test_paths_that_cannot_be_looked_for(tmp_path):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "a.yaml").write_text("_BASE_: loop.yaml\n")
    for path in ("loop.yaml", "a.yaml"):
        with pytest.raises(
            ConfigError, match=r"loop\.yaml' does not exist: it is a link to nothing, or to itself"
        ):
            load_config(str(tmp_path / path))
    for name, message in (("x" * 5000, "File name too long"), ("a\0b", "its name is no text")):
        with pytest.raises(ConfigError, match=message):
            load_config(str(tmp_path / name))


def test_a_run_whose_config_is_broken_is_not_resumed(tmp_path):
    cfg = load_config("", ["OUTPUT_DIR", str(tmp_path)])
    for text in (MERGES, "a: [", "- 1"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.yaml: "):
            warn_about_changes(cfg)


# ------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe1", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON: it is nested too deep"),
        (b'{"a":' * 100_000, "is not valid JSON: it is nested too deep"),
        (b"9" * 5000, "is not valid JSON"),
        (b"", "is not valid JSON"),
    ],
)
def test_json_that_cannot_be_used(tmp_path, data, message):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ConfigError, match=rf"x\.json' {message}"):
        read_json(tmp_path / "x.json")


def test_json_that_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.json", Path("x" * 5000)):
        with pytest.raises(ConfigError, match="does not exist, or is no file|File name too long"):
            read_json(path)
