"""Every config of a paper has the values that the paper prints, or a deviation with its reason."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from regseg_d2.config.files import load_config
from tests.paper_table import asked, check, matches, paper_of, read_papers

CONFIGS = Path(__file__).parent.parent / "configs"
#: Folders of configs that are no paper's.
OWN = {"_base_", "camvid", "camvid_half", "cooccurrence", "hf", "quick"}
NAMES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for folder in CONFIGS.iterdir()
    if folder.name not in OWN
    for path in folder.rglob("*.yaml")
)
PAPERS = read_papers()


@functools.cache
def _loaded(name):
    return load_config(str(CONFIGS / f"{name}.yaml"))


def problems(name, papers=PAPERS, changes=()):
    """What is wrong with a config once ``(key, value)`` pairs were set in it."""
    cfg = _loaded(name).clone() if changes else _loaded(name)
    for key, value in changes:
        node, _, last = key.rpartition(".")
        section = functools.reduce(lambda node, part: node[part], node.split("."), cfg)
        assert last in section
        section[last] = value
    return check(name, cfg, paper_of(name, papers))


def test_there_are_as_many_configs_of_papers_as_the_tables_have():
    assert len(NAMES) == 235


@pytest.mark.parametrize("name", NAMES)
def test_config_has_the_values_of_its_paper(name):
    assert problems(name) == []


# Each of these passed all other tests.
CHANGES = {
    "the rate of PNE times ten": ("cityscapes/deeplabv3_resnet101_pne", "SOLVER.BASE_LR", 0.1),
    "the weight decay of CAR's published code": (
        "pascal_context/fcn_resnet50_car",
        "SOLVER.WEIGHT_DECAY",
        0.0001,
    ),
    "the other threshold on a row with a section sign": (
        "coco_stuff_10k/fcn_resnet50_car",
        "MODEL.REGULARIZERS.CAR.EPS_C2C",
        0.5,
    ),
    "MDRL's momentum of 0.99": ("cityscapes/fcn_resnet50_mdrl", "MODEL.REGULARIZERS.MDRL.MOMENTUM", 0.99),
    "one scale in a comparison": ("cityscapes/ocrnet_hrnet_w48_pne", "TEST.AUG.ENABLED", False),
    "a scale less in a comparison": (
        "ade20k/ocrnet_hrnet_w48",
        "TEST.AUG.SCALES",
        [0.75, 1.0, 1.25, 1.5, 1.75],
    ),
    "an epoch more": ("ade20k/pspnet_resnet101_mdrl", "SOLVER.MAX_ITER", 165469),
    "no hard example mining": (
        "cityscapes/fcn_hrnet_w48_rch",
        "MODEL.SEM_SEG_HEAD.LOSS_TYPE",
        "cross_entropy",
    ),
    "another stride": ("pascal_context/ccnet_resnet101", "MODEL.RESNETS.OUTPUT_STRIDE", 16),
    "A off": ("ablations/car/table1_r2_a", "MODEL.SEM_SEG_HEAD.PROJECTION_KERNEL_SIZE", 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_value_is_found(change):
    name, key, value = CHANGES[change]
    (problem,) = problems(name, changes=[(key, value)])
    assert name in problem
    assert repr(value) in problem


ONE_OF_EACH = {
    paper.name: next(name for name in reversed(NAMES) if matches(name, paper.patterns)) for paper in PAPERS
}


@pytest.mark.parametrize("name", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_every_key_that_is_asked_for_is_compared(name):
    cfg, paper = _loaded(name), paper_of(name, PAPERS)
    entries = tuple(
        replace(entry, values={key: "something else" for key in entry.values})
        for entry in paper.entries
        if entry.form != "deviations"
    )
    found = check(name, cfg, replace(paper, entries=entries))
    keys = asked(cfg, paper)
    assert len(keys) >= 25
    assert [key for key in keys if not any(f"{name}: {key} is " in problem for problem in found)] == []


def test_a_config_that_the_table_leaves_out_is_found():
    with pytest.raises(AssertionError, match=r"ade20k/new_network is of \[\], expected one paper"):
        paper_of("ade20k/new_network", PAPERS)
    name = "cityscapes/fcn_resnet50_mdrl"
    without = [replace(paper, entries=paper.entries[:1]) for paper in PAPERS]
    found = problems(name, papers=without)
    assert f"{name}: the table says nothing of SOLVER.BASE_LR, which is 0.01" in found
    assert f"{name}: the table says nothing of MDRL.MOMENTUM, which is 0.999" in found


def test_a_deviation_is_from_what_is_printed():
    paper = next(paper for paper in PAPERS if paper.name == "RCH")
    entries = tuple(e for e in paper.entries if e.form == "deviations" or "SOLVER.OPTIMIZER" not in e.values)
    found = check(
        "cityscapes/fcn_hrnet_w48_rch",
        _loaded("cityscapes/fcn_hrnet_w48_rch"),
        replace(paper, entries=entries),
    )
    assert "cityscapes/fcn_hrnet_w48_rch: SOLVER.OPTIMIZER deviates from 'Adam', and None is printed" in found


def test_every_line_of_the_table_is_about_a_config_and_says_why():
    used, said = set(), set()
    for paper in PAPERS:
        names = [name for name in NAMES if matches(name, paper.patterns)]
        for entry in paper.entries:
            said |= {(entry.where, pattern) for pattern in entry.patterns}
            used |= {
                (entry.where, pattern)
                for pattern in entry.patterns
                if any(matches(name, (pattern.removeprefix("!"),)) for name in names)
            }
            assert bool(entry.why) == (entry.form in ("open", "deviations")), entry
            if entry.form == "deviations":
                assert all(value["paper"] != value["ours"] for value in entry.values.values())
    assert said - used == set()
