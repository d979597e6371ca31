"""docs/model_zoo.md says what its data and the configs say."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from regseg_d2.apps.model_zoo import (
    Row,
    Table,
    Zoo,
    count_inference_parameters,
    count_parameters,
    read_zoo,
    render,
)
from regseg_d2.common.errors import ConfigError
from regseg_d2.segmentor.export import inference_model
from tests.helpers import small_cfg

ROOT = Path(__file__).parents[2]
CONFIGS, DATA, PAGE = ROOT / "configs", ROOT / "docs" / "model_zoo.yaml", ROOT / "docs" / "model_zoo.md"
FOLDERS = ("ade20k", "cityscapes", "cityscapes_test", "coco_stuff_10k", "pascal_context")
HOW = "run tools/make_model_zoo.py"
# Link to the config, network, regularizers, millions of parameters.
ROW = re.compile(
    r"^\| \[[^]]+\]\([./]*configs/(?P<config>[^)]+)\.yaml\) *\|[^|]*\|[^|]*\| *(?P<millions>[\d.]+) *\|", re.M
)


def read_parameters(page):
    """The numbers of parameters that a page shows, by config, rounded as it shows them."""
    return {match["config"]: round(float(match["millions"]) * 1e6) for match in ROW.finditer(page)}


def test_every_config_of_the_tables_is_in_the_page_once_a_table():
    zoo = read_zoo(DATA)
    there = {f"{folder}/{path.stem}" for folder in FOLDERS for path in (CONFIGS / folder).glob("*.yaml")}
    assert len(there) > 100
    assert there == {name for name in zoo.configs if name.split("/")[0] in FOLDERS}
    for table in zoo.tables:
        assert len({row.config for row in table.rows}) == len(table.rows)


# Tables and figures with results; PNE's first table is of settings.
RESULTS = {
    "CAR": [f"Table {number}" for number in range(1, 9)],
    "RegionContrast": [f"Table {number}" for number in range(1, 8)],
    "RCH": ["Table 1", "Table 2", "Table 3", "Figure 4", "Figure 8"],
    "PNE": [f"Table {number}" for number in range(2, 9)],
    "MDRL": [f"Table {number}" for number in range(1, 7)],
}


def named(text):
    """Tables and figures that a text names, those of "Tables 5 to 7" one by one."""
    found = set()
    for kind, first, word, last in re.findall(r"(Table|Figure)s? (\d+)(?: (to|and) (\d+))?", text):
        between = range(int(first), int(last or first) + 1) if word == "to" else (first, last or first)
        found |= {f"{kind} {number}" for number in between}
    return found


@pytest.mark.parametrize("paper", RESULTS)
def test_every_table_of_a_paper_has_configs_or_a_reason(paper):
    zoo = read_zoo(DATA)
    folder = CONFIGS / "ablations" / {"RegionContrast": "region_contrast"}.get(paper, paper.lower())
    ablations = [path.read_text(encoding="utf-8").splitlines()[:2] for path in folder.glob("*.yaml")]
    assert ablations
    titles = [table.title for table in zoo.tables if table.title.startswith(f"{paper}, ")]
    left_out = [text.split(":")[0] for text in zoo.left_out if text.startswith(f"{paper}, ")]
    texts = [*titles, *left_out, *(line for lines in ablations for line in lines)]
    assert set(RESULTS[paper]) <= set().union(*map(named, texts))


def test_the_page_is_what_the_data_gives():
    page, zoo = PAGE.read_text(encoding="utf-8"), read_zoo(DATA)
    parameters = read_parameters(page)
    assert sorted(parameters) == sorted(zoo.configs), HOW
    assert render(zoo, CONFIGS, parameters) == page, HOW


def assert_shown(names):
    counts = count_parameters([CONFIGS / f"{name}.yaml" for name in names])
    parameters = read_parameters(PAGE.read_text(encoding="utf-8"))
    for name in names:
        exact = counts[str(CONFIGS / f"{name}.yaml")]
        assert f"{parameters[name] / 1e6:.2f}" == f"{exact / 1e6:.2f}", f"{name}: {HOW}"


def test_some_numbers_of_parameters_of_the_page():
    assert_shown(
        ["pascal_context/fcn_resnet50", "pascal_context/fcn_resnet50_car", "cityscapes/segformer_mit_b0_rch"]
    )


@pytest.mark.slow
def test_all_numbers_of_parameters_of_the_page():
    assert_shown(read_zoo(DATA).configs)


def test_our_figures_are_those_of_the_results():
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    ours = [row.ours for table in read_zoo(DATA).tables for row in table.rows if row.ours]
    assert ours
    assert all(figure in results for figure in ours)


def test_parameters_are_those_of_the_exported_network():
    cfg = small_cfg("FCN-linear", ["CAR", "PNE"])
    exported = inference_model(build_model(cfg))
    assert isinstance(exported, nn.Module)
    expected = sum(p.numel() for p in exported.parameters())
    assert expected < sum(p.numel() for p in build_model(cfg).parameters())
    assert count_inference_parameters(cfg) == expected
    assert torch.empty(()).device.type == "cpu"


def test_a_page_by_hand():
    rows = (
        Row("pascal_context/fcn_resnet50", "FCN", paper="47.72", quoted=True),
        Row("pascal_context/fcn_resnet50_car", "FCN", paper="48.40", ours="40.1"),
    )
    zoo = Zoo((Table("A title", rows, note="A note."), Table("Another", rows[:1])), ("A row.",))
    counts = {rows[0].config: 1234567, rows[1].config: 999}
    page = render(zoo, CONFIGS, counts)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| [" in line]
    link = "[fcn_resnet50](../configs/pascal_context/fcn_resnet50.yaml)"
    assert lines[0] == [link, "FCN", "-", "1.23", "47.72 (quoted)", "-"]
    assert lines[1][1:] == ["FCN", "CAR", "0.00", "48.40", "40.1"]
    assert lines[2] == lines[0]
    assert "## A title\n\nA note.\n\n|" in page
    assert page.endswith("## Rows that are not here\n\n- A row.\n")
    assert read_parameters(page) == {rows[0].config: 1230000, rows[1].config: 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tables: [", "not valid YAML"),
        ("{tables: [], left_out: [], more: 1}", "more is an unknown key"),
        ("left_out: []", "tables is missing"),
        (
            "{tables: [{title: T, rows: [{config: x, net: y}]}], left_out: []}",
            r"tables\[0\].rows\[0\].net is an unknown key",
        ),
        (
            "{tables: [{title: T, rows: [{config: x, network: y, paper: 47.7}]}], left_out: []}",
            r"rows\[0\].paper is 47.7; expected a text such as '78.10'",
        ),
        (
            "{tables: [{title: T, rows: [{config: x, network: y, ours: 'about 70'}]}], left_out: []}",
            r"rows\[0\].ours is 'about 70'",
        ),
    ],
)
def test_wrong_data(tmp_path, text, message):
    path = tmp_path / "zoo.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)zoo.yaml.*{message}"):
        read_zoo(path)


def run_tool(monkeypatch, data, page):
    tool = str(ROOT / "tools" / "make_model_zoo.py")
    monkeypatch.setattr(sys, "argv", [tool, "--data", str(data), "--page", str(page)])
    runpy.run_path(tool, run_name="__main__")


def test_tool_writes_a_page(tmp_path, monkeypatch, capsys):
    data, page = tmp_path / "zoo.yaml", tmp_path / "zoo.md"
    data.write_text(
        "tables: [{title: T, rows: [{config: camvid/deeplabv3_efficientnet_lite0, network: N}]}]\n"
        "left_out: []\n"
    )
    run_tool(monkeypatch, data, page)
    assert capsys.readouterr().out.endswith("zoo.md: 1 configs in 1 tables\n")
    assert "| [deeplabv3_efficientnet_lite0](" in page.read_text(encoding="utf-8")


def test_tool_ends_with_an_error_for_wrong_data(tmp_path, monkeypatch, capsys):
    data, page = tmp_path / "zoo.yaml", tmp_path / "zoo.md"
    data.write_text("tables: 3\nleft_out: []\n")
    with pytest.raises(SystemExit) as end:
        run_tool(monkeypatch, data, page)
    assert end.value.code == 2
    assert "zoo.yaml: tables is 3" in capsys.readouterr().err
    assert not page.exists()
