"""IMPORTS: modules of a user that a config names."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import (
    COMMAND_LINE,
    format_config,
    load_config,
    load_config_with_origins,
)
from regseg_d2.regularizers import REGULARIZER


@pytest.fixture(autouse=True)
def _python_stays(monkeypatch, tmp_path):
    """What the modules of a test leave in this process is taken back; installed ones stay."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules, methods = set(sys.modules), dict(REGULARIZER._obj_map)
    yield
    for name in set(sys.modules) - modules:
        paths = [getattr(sys.modules[name], "__file__", None), *getattr(sys.modules[name], "__path__", [])]
        if any(path and Path(path).is_relative_to(tmp_path) for path in paths):
            del sys.modules[name]
    for name in set(REGULARIZER._obj_map) - set(methods):
        del REGULARIZER._obj_map[name]


def write(folder, **files):
    """Writes files, ``a__b_py`` for ``a/b.py``; returns the path of the last one."""
    for name, text in files.items():
        path = Path(folder, *name.rsplit("_", 1)[0].split("__")).with_suffix("." + name.rsplit("_", 1)[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(path)


COUNTING = """
calls = []

def add_config(cfg):
    calls.append(cfg)
    cfg.MODEL.WIDTH = 3
"""


def test_a_module_beside_its_config_adds_keys(tmp_path):
    config = write(tmp_path, my_width_py=COUNTING, x_yaml="IMPORTS: [my_width]\nMODEL: {WIDTH: 5}")
    cfg, origins = load_config_with_origins(config, ["SEED", "4"])
    assert cfg.MODEL.WIDTH == 5
    assert [f"{tmp_path}/my_width"] == cfg.IMPORTS
    assert origins["IMPORTS"] == config
    assert len(sys.modules["my_width"].calls) == 1
    with pytest.raises(
        ConfigError, match=r"x.yaml: 'MODEL.WIDTH' is 'wide' \(str\); expected a whole number"
    ):
        load_config(write(tmp_path, x_yaml="IMPORTS: [my_width]\nMODEL: {WIDTH: wide}"))


def test_what_is_printed_is_the_same_config_from_anywhere(tmp_path, monkeypatch):
    config = write(tmp_path, here__my_width_py=COUNTING, here__x_yaml="IMPORTS: [my_width]\nSEED: 2")
    cfg, origins = load_config_with_origins(config)
    text = format_config(cfg, origins)
    assert "  WIDTH: 3\n" in text  # the default of the module: no origin behind it
    monkeypatch.chdir(tmp_path)
    assert load_config(write(tmp_path, there__config_yaml=text)) == cfg
    assert yaml.safe_load(format_config(cfg)) == yaml.safe_load(text)


def test_the_lists_of_bases_and_command_line_add_up(tmp_path, monkeypatch):
    write(
        tmp_path,
        base__one_py="def add_config(cfg): cfg.ONE = 1",
        base__base_yaml="IMPORTS: [one]\nONE: 10",
        code__pack__two_py="def add_two(cfg): cfg.TWO = cfg.ONE + 1\ndef add_config(cfg): 1 / 0",
        code__pack____init___py="",
        here__three_py=COUNTING,
    )
    base = "../base/base.yaml"
    leaf = write(tmp_path, leaf__leaf_yaml=f"_BASE_: [{base}, {base}]\nIMPORTS: ['../code/pack.two:add_two']")
    monkeypatch.chdir(tmp_path / "here")
    cfg, origins = load_config_with_origins(leaf, ["IMPORTS", "[three, three]", "TWO", "7"])
    assert (cfg.ONE, cfg.TWO, cfg.MODEL.WIDTH) == (10, 7, 3)
    assert [
        f"{tmp_path}/base/one",
        f"{tmp_path}/code/pack.two:add_two",
        f"{tmp_path}/here/three",
    ] == cfg.IMPORTS
    assert origins["IMPORTS"] == COMMAND_LINE
    assert len(sys.modules["three"].calls) == 1


def test_the_python_path_and_another_function(tmp_path, monkeypatch):
    cfg = load_config("", ["IMPORTS", "['detectron2.projects.point_rend:add_pointrend_config']"])
    assert cfg.IMPORTS == ["detectron2.projects.point_rend:add_pointrend_config"]
    assert "POINT_HEAD" in cfg.MODEL
    # A module beside the config comes before the Python path; a folder of that name is no module.
    write(tmp_path, path__lib_of_two_py="def add_config(cfg): cfg.FROM = 'path'", path__detectron2__x_yaml="")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    config = write(
        tmp_path, c__x_yaml="IMPORTS: [lib_of_two]", c__lib_of_two_py="def add_config(cfg): cfg.FROM = 'c'"
    )
    assert load_config(str(Path(config).with_name("x.yaml"))).FROM == "c"
    config = write(tmp_path, path__y_yaml="IMPORTS: [detectron2]")
    assert load_config(config).IMPORTS == ["detectron2"]


def test_a_regularizer_has_its_section(tmp_path):
    code = (
        "from regseg_d2.regularizers import REGULARIZER, Regularizer\n"
        "@REGULARIZER.register()\n"
        "class MyPull(Regularizer):\n"
        "    terms = {'pull': 0.5}\n"
        "    def __init__(self, num_classes, *, rate=0.25, **common):\n"
        "        super().__init__(num_classes, **common)\n"
    )
    text = "IMPORTS: [my_pull]\nMODEL: {REGULARIZERS: {NAMES: [MyPull], MyPull@aux: {RATE: 1}}}"
    cfg = load_config(write(tmp_path, my_pull_py=code, x_yaml=text))
    assert (cfg.MODEL.REGULARIZERS.MyPull.RATE, cfg.MODEL.REGULARIZERS.MyPull.WEIGHT) == (0.25, 0.5)
    assert cfg.MODEL.REGULARIZERS["MyPull@aux"].RATE == 1.0


CHANGING = """
from detectron2.config import CfgNode

def add_config(cfg):
    cfg.MODEL.MINE = CfgNode({"WIDTH": 3})
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.STEPS = cfg.SOLVER.STEPS
    cfg.SOLVER.NO_DECAY.append("gamma")
    cfg.MODEL.REGULARIZERS.CAR.CENTERS = "image"
    del cfg.TEST["PATIENCE"]

def add_more(cfg):
    cfg.MODEL.MINE.WIDTH = 4
    cfg.SOLVER.BASE_LR = 0.02
"""


def test_defaults_that_a_module_changes_are_one_warning(tmp_path, caplog):
    text = "IMPORTS: [changing, 'changing:add_more']\nMODEL: {REGULARIZERS: {CAR: {CENTERS: image}}}"
    config = write(tmp_path, changing_py=CHANGING, x_yaml=text)
    cfg = load_config(config, ["LOG_PERIOD", "3"])
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.MODEL.MINE.WIDTH) == ("ADAMW", 0.02, 4)
    (warning,) = caplog.records
    # Neither what the config sets, nor what is new, nor what stayed as it was.
    assert warning.levelname == "WARNING"
    assert set(warning.getMessage().splitlines()[1:-1]) == {
        f"  SOLVER.OPTIMIZER: 'SGD' -> 'ADAMW'  (IMPORTS {tmp_path}/changing)",
        f"  SOLVER.BASE_LR: 0.001 -> 0.02  (IMPORTS {tmp_path}/changing:add_more)",
        f"  SOLVER.NO_DECAY: [] -> ['gamma']  (IMPORTS {tmp_path}/changing)",
        f"  TEST.PATIENCE: 0 -> removed  (IMPORTS {tmp_path}/changing)",
    }
    # Once in a process, however often the config is loaded.
    load_config(config, ["LOG_PERIOD", "3"])
    assert len(caplog.records) == 1
    # Whoever sets the keys knows of them; so does the config of a run, in which all are set.
    caplog.clear()
    keys = ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.02", "SOLVER.NO_DECAY", "[]"]
    cfg = load_config(config, keys)
    assert cfg.SOLVER.OPTIMIZER == "SGD" and cfg.SOLVER.NO_DECAY == []
    assert re.findall(r"^  (\S+): ", caplog.text, re.MULTILINE) == ["TEST.PATIENCE"]


def test_a_config_that_was_printed_shows_what_a_module_changed_and_changes_nothing(tmp_path, caplog):
    code = "def add_config(cfg):\n    cfg.SOLVER.BASE_LR = 0.5\n    cfg.MINE = 1\n"
    config = write(tmp_path, quiet_py=code, x_yaml="IMPORTS: [quiet]")
    cfg, origins = load_config_with_origins(config)
    text = format_config(cfg, origins)
    assert f"  BASE_LR: 0.5  # IMPORTS {tmp_path}/quiet\n" in text
    assert "\nMINE: 1\n" in text
    assert load_config(write(tmp_path, there__config_yaml=text)) == cfg
    assert caplog.text == ""


def test_a_module_that_changes_no_default_is_no_warning(tmp_path, caplog):
    load_config(write(tmp_path, my_width_py=COUNTING, x_yaml="IMPORTS: [my_width]"))
    assert caplog.text == ""


BROKEN = {
    "no list": ("IMPORTS: a_module", r"x.yaml: 'IMPORTS' is 'a_module'; expected a list of modules, such as"),
    "no name": ("IMPORTS: [3]", r"x.yaml: 'IMPORTS' has the entry 3; expected a list of modules"),
    "no module": ("IMPORTS: [a-module.py]", r"'IMPORTS' has the entry 'a-module.py'; expected a list"),
    "missing": (
        "IMPORTS: [raisng]",
        r"x.yaml: IMPORTS names 'raisng': there is no such module beside the config file or on the Python "
        r"path.*\. Install it, put its folder on PYTHONPATH, or name the folder, as in \.\./code/raisng\.",
    ),
    "near beside": ("IMPORTS: [./raisng]", r"no such module in '.*' \(did you mean 'raising'"),
    "near in a package": (
        "IMPORTS: [detectron2.projects.point_rent]",
        r"no such module.*did you mean 'detectron2.projects.point_rend'",
    ),
    "raises": (
        "IMPORTS: [raising]",
        r"x.yaml: IMPORTS names '.*/raising': importing 'raising' failed:\nTraceback \(most recent call "
        r"last\):\n  File \".*/raising.py\", line 2, in <module>\n    x = 1 / 0\n.*ZeroDivisionError",
    ),
    "lacks a package": (
        "IMPORTS: [lacking]",
        r"importing 'lacking' failed:\nTraceback.*lacking.py\", line 1.*No module named 'no_such_library'",
    ),
    "syntax": (
        "IMPORTS: [broken]",
        r"importing 'broken' failed:\n  File \".*/broken.py\", line 1\n.*SyntaxErr",
    ),
    "leaves": ("IMPORTS: [leaving]", r"importing 'leaving' failed:\nTraceback.*SystemExit: 3"),
    "no function": (
        "IMPORTS: ['fine:add_my_confg']",
        r"IMPORTS names '.*/fine:add_my_confg': 'fine' has no function 'add_my_confg' \(did you mean "
        r"'add_my_config'",
    ),
    "function raises": (
        "IMPORTS: ['fine:add_failing']",
        r"x.yaml: IMPORTS names .*: fine.add_failing\(cfg\) failed:\nTraceback.*fine.py\", line 2, in add_.*"
        r"KeyError: 'NOTHING'",
    ),
    "namesake": (
        "IMPORTS: [json]",
        r"IMPORTS names '.*/json': 'json' is in '.*', and another 'json' is in use, that of '.*json.*'. Give "
        "yours another name",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_one_error_names_file_module_and_cause(tmp_path, case):
    text, message = BROKEN[case]
    config = write(
        tmp_path,
        raising_py="\nx = 1 / 0",
        lacking_py="import no_such_library",
        broken_py="def (",
        leaving_py="import sys; sys.exit(3)",
        fine_py="def add_failing(cfg):\n    cfg['NOTHING']\n\ndef add_my_config(cfg): pass",
        json_py="",
        x_yaml=text,
    )
    with pytest.raises(ConfigError, match=f"(?s){message}") as info:
        load_config(config)
    assert "importlib" not in str(info.value) and "imports.py" not in str(info.value)


def test_a_key_that_nobody_added_hints_at_imports():
    with pytest.raises(
        ConfigError, match=r"unknown key 'QQQ.WWW'\. Where a module of yours adds it, name the"
    ):
        load_config("", ["QQQ.WWW", "1"])
