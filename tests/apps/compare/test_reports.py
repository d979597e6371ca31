"""Reports of a comparison: as text, Markdown, LaTeX, CSV and JSON, and what they say of a single run."""

import csv
import io
import itertools
import json
import re
import sys

import pytest
from markdown_it import MarkdownIt

from regseg_d2.apps.compare.csv_table import COLUMNS, csv_table
from regseg_d2.apps.compare.report import as_data, render, what_is_missing
from regseg_d2.commands.compare import main
from tests.apps.compare.small_runs import compared, three_and_three

HOSTILE = ("a|b_c*d*", "<b>[x](y)\n`$1$` \\& {~}")


def test_report_as_text_markdown_and_data(make_run):
    groups, comparisons, notes = compared(three_and_three(make_run, 5.0))
    text = render(groups, comparisons, notes)
    assert "52.00 ± 2.00" in text
    assert "57.00 ± 2.00" in text
    assert "+5.00" in text
    assert "drop to swapped" in text
    assert "MODEL.REGULARIZERS.NAMES" in text
    row = next(line for line in text.splitlines() if line.startswith("car "))
    assert row.split() == ["car", "42.00", "±", "2.00", "47.00", "±", "2.00", "+5.00"]
    assert "IoU (%) of each class" not in render(groups, comparisons, notes, per_class=False)
    markdown = render(groups, comparisons, notes, format="markdown")
    assert "| baseline |" in markdown
    data = as_data(groups, comparisons, notes)
    assert data["groups"][1]["datasets"]["val"]["mIoU"] == {"mean": 57.0, "std": 2.0, "seeds": 3}
    assert data["comparisons"][0]["differences"][0] == {
        "what": "val",
        "delta": 5.0,
        "noise": 2.0,
        "verdict": "gain",
    }


def rows_of(text, start):
    """Cells of the rows of a text table whose line begins so."""
    lines = text[text.index(start) :].split("\n\n")[1].splitlines()[2:]
    return [re.split(r" {2,}", line.strip()) for line in lines]


def test_one_run_shows_its_own_scores_and_what_to_give_beside_it(make_run):
    groups, comparisons, notes = compared([make_run("a", 0, {"val": (60.0, 41.0)})])
    text = render(groups, comparisons, notes)
    assert "One run: there is nothing to compare with. Give a run to compare with: one with reg" in text
    assert rows_of(text, "== mIoU") == [["baseline", "1", "0", "50.50"]]
    assert rows_of(text, "== IoU (%) of each class on val") == [["sky", "60.00"], ["car", "41.00"]]
    assert text.count("==") == 4  # no table of differences, none of settings
    assert as_data(groups, comparisons, notes)["missing"] == what_is_missing(groups, comparisons)
    only_means = render(groups, comparisons, notes, per_class=False)
    assert only_means.count("==") == 2


def test_one_run_with_a_regularizer_needs_a_baseline(make_run):
    runs = [make_run(f"c{seed}", seed, {"val": (60.0 + seed, 41.0)}, regularizers=["CAR"]) for seed in (0, 1)]
    groups, comparisons, notes = compared(runs)
    text = render(groups, comparisons, notes)
    assert "2 runs that differ in their seed alone: there is nothing to compare with." in text
    assert "a baseline, with the same config but MODEL.REGULARIZERS.NAMES []." in text
    assert "== Differences" not in text
    assert rows_of(text, "== IoU (%) of each class on val") == [
        ["sky", "60.50 ± 0.71"],
        ["car", "41.00 ± 0.00"],
    ]


def test_what_is_missing_with_several_groups(make_run):
    base = make_run("b", 0, {"val": (60.0, 40.0)})
    other = make_run("o", 0, {"val": (62.0, 40.0)}, SOLVER__BASE_LR=0.5)
    groups, comparisons, notes = compared([base, other])
    assert what_is_missing(groups, comparisons)[0].startswith("All runs are baselines")
    text = render(groups, comparisons, notes)
    assert rows_of(text, "== IoU (%) of each class on val") == [
        ["sky", "60.00", "62.00"],
        ["car", "40.00", "40.00"],
    ]
    methods = [make_run(name, 0, {"val": (1.0, 2.0)}, regularizers=[name]) for name in ("CAR", "PNE")]
    groups, comparisons, _ = compared(methods)
    assert what_is_missing(groups, comparisons)[0].startswith("There is no baseline: add a run")
    elsewhere = make_run("e", 0, {"other": (60.0, 40.0)}, regularizers=["CAR"])
    groups, comparisons, notes = compared([base, elsewhere])
    assert what_is_missing(groups, comparisons)[0].startswith("No group was evaluated on a data set of its")
    assert "because the baseline was not evaluated on other" in render(groups, comparisons, notes)
    groups, comparisons, _ = compared([base, methods[0]])
    assert what_is_missing(groups, comparisons) == []


def test_csv_holds_every_number(make_run):
    runs = three_and_three(make_run, 5.0)
    groups, comparisons, _ = compared(runs)
    rows = list(csv.DictReader(io.StringIO(csv_table(groups, comparisons), newline="")))
    assert list(rows[0]) == list(COLUMNS)
    keyed = {(r["group"], r["dataset"], r["score"], r["class"]): r for r in rows}
    assert len(keyed) == len(rows) == 2 * (2 * (1 + 2) + 1)
    drop = keyed["CAR", "swapped", "drop", ""]
    assert [drop[name] for name in COLUMNS] == (
        ["CAR", "3", "0 1 2", "swapped", "drop", "", "4", "0", "baseline", "-6", "0", "smaller drop", ""]
    )
    car = keyed["CAR", "val", "IoU", "car"]
    assert (car["mean"], car["std"], car["baseline"], car["difference"]) == ("47", "2", "baseline", "5")
    assert car["verdict"] == ""
    base = keyed["baseline", "val", "mIoU", ""]
    assert (base["mean"], base["std"], base["baseline"], base["difference"]) == ("52", "2", "", "")
    few = csv_table(groups, comparisons, per_class=False)
    assert {row["score"] for row in csv.DictReader(io.StringIO(few))} == {"mIoU", "drop"}


def test_csv_of_what_is_not_defined_and_of_hostile_names(make_run):
    names = (HOSTILE[1], 'x,"\ud800"')
    runs = [make_run("a", 0, {"val": (100 / 3, None)}, regularizers=["CAR"], classes=names)]
    groups, comparisons, _ = compared(runs)
    rows = list(csv.DictReader(io.StringIO(csv_table(groups, comparisons), newline="")))
    assert [row["class"] for row in rows] == ["", HOSTILE[1], 'x,"\ufffd"']
    assert [row["mean"] for row in rows] == ["33.3333", "33.3333", ""]
    assert {row["std"] + row["baseline"] + row["difference"] for row in rows} == {""}
    assert rows[0]["objections"] == "there is no baseline (MODEL.REGULARIZERS.NAMES []) among the runs"


def test_markdown_shows_hostile_names_as_they_are(make_run):
    runs = [make_run("b", 0, {"v_a_l|": (60.0, 41.0)}, classes=HOSTILE)]
    runs.append(make_run("c", 1, {"v_a_l|": (61.0, 41.5)}, classes=HOSTILE, regularizers=["CAR"]))
    groups, comparisons, notes = compared(runs)
    text = render(groups, comparisons, [*notes, "*this*"], format="markdown")
    headings, tables, paragraphs = read_markdown(text)
    assert headings[2] == "IoU (%) of each class on v_a_l|"
    assert tables[0][0] == ["", "runs", "seeds", "v_a_l|"]
    assert tables[2] == [
        ["class", "baseline", "CAR", "difference"],
        [HOSTILE[0], "60.00", "61.00", "+1.00"],
        [" ".join(HOSTILE[1].split()), "41.00", "41.50", "+0.50"],
    ]
    assert tables[3][1] == ["MODEL.REGULARIZERS.NAMES", "[]", "['CAR']"]
    assert paragraphs == ["Note: *this*"]


def read_markdown(text):
    """Texts of headings, cells of tables and texts of paragraphs, as a reader of Markdown sees them."""
    headings, tables, paragraphs = [], [], []
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    for before, token in itertools.pairwise(tokens):
        if before.type == "table_open":
            tables.append([])
        elif before.type == "tr_open":
            tables[-1].append([])
        if token.type == "inline":
            assert {child.type for child in token.children} <= {"text", "text_special"}, token.content
            shown = "".join(child.content for child in token.children)
            places = {"heading_open": headings, "paragraph_open": paragraphs}
            (tables[-1][-1] if before.type in ("th_open", "td_open") else places[before.type]).append(shown)
    return headings, tables, paragraphs


def test_latex_is_booktabs_with_hostile_names_escaped(make_run):
    runs = [make_run("b", 0, {"v_a_l%": (60.0, 41.0)}, classes=HOSTILE)]
    runs.append(make_run("c", 0, {"v_a_l%": (61.0, None)}, classes=HOSTILE, regularizers=["CAR"]))
    runs.append(make_run("d", 1, {"v_a_l%": (59.5, None)}, classes=HOSTILE, regularizers=["CAR"]))
    groups, comparisons, notes = compared(runs)
    text = render(groups, comparisons, ["100 % sure\n\\input{x}"], format="latex")
    tables = text.split("\n\n")
    assert tables[2].splitlines() == [
        "% IoU (%) of each class on v_a_l%",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"class & baseline & CAR & difference \\",
        r"\midrule",
        r"a\textbar{}b\_c{*}d{*} & 60.00 & 60.25 $\pm$ 1.06 & $+$0.25 \\",
        r"\textless{}b\textgreater{}{[}x{]}(y) \textasciigrave{}\$1\$\textasciigrave{} \textbackslash{}\& "
        r"\{\textasciitilde{}\} & 41.00 & -- & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert r" & runs & seeds & v\_a\_l\% \\" in tables[0]
    assert [table.splitlines()[1] for table in tables[:2]] == [
        r"\begin{tabular}{lrrr}",
        r"\begin{tabular}{lrrrrr}",
    ]
    assert tables[-1] == "% Note: 100 % sure \\input{x}\n"
    assert len(tables) == 5
    for table in tables[:-1]:
        body = table.split("\n", 1)[1]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if "&" in line}) == 1
        assert body.count("{") == body.count("}")


def test_command_line(make_run, tmp_path, compare_runs, capsys):
    three_and_three(make_run, 5.0)
    folders = [tmp_path / f"{kind}{seed}" for kind in "bc" for seed in range(3)]
    assert "gain" in compare_runs(*folders)
    data = json.loads(compare_runs(*folders[3:], "--baseline", *folders[:3], "--format", "json"))
    assert data["comparisons"][0]["group"] == "CAR"
    assert data["comparisons"][0]["differences"][0]["verdict"] == "gain"
    assert compare_runs(*folders, "--format", "latex", "--no-classes").count(r"\begin{tabular}") == 3
    rows = list(csv.DictReader(io.StringIO(compare_runs(*folders, "--format", "csv"))))
    assert {row["verdict"] for row in rows if row["score"] == "mIoU"} == {"", "gain"}
    with pytest.raises(SystemExit) as info:
        compare_runs(tmp_path / "nothing")
    assert info.value.code == 2
    assert capsys.readouterr().err.startswith("Error: ")


def test_what_is_missing_is_no_row_of_the_csv(make_run, tmp_path, capsys, monkeypatch):
    make_run("a", 0, {"val": (1.0, 1.0)})
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", str(tmp_path / "a"), "--format", "csv"])
    main()
    printed = capsys.readouterr()
    assert [row["mean"] for row in csv.DictReader(io.StringIO(printed.out))] == ["1", "1", "1"]
    assert printed.err.startswith("One run: there is nothing to compare with.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "val"], "--dataset is that of --pictures FILE.png, which is missing"),
        (["--pictures", "x.jpg"], "--pictures is 'x.jpg'; expected the name of a .png file"),
        (["--pictures", "x.png"], "no model_final.pth to predict with: let the run finish"),
    ],
)
def test_pictures_that_cannot_be_drawn(make_run, tmp_path, compare_runs, capsys, arguments, message):
    make_run("a", 0, {"val": (1.0, 1.0)})
    with pytest.raises(SystemExit) as info:
        compare_runs(tmp_path / "a", *arguments)
    assert info.value.code == 2
    assert message in capsys.readouterr().err
