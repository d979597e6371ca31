"""Compares configs with what the papers print: ``paper_values/common.yaml`` says how that is written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

FOLDER = Path(__file__).parent / "paper_values"
_FORMS = ("values", "rows", "open", "deviations")


@dataclass(frozen=True)
class Entry:
    """Values of some configs.

    Attributes:
        where: place in the paper.
        patterns: of the names of configs.
        form: "values", "open" or "deviations".
        values: by key; of deviations ``{"paper": ..., "ours": ...}``.
        why: the reason of open values and deviations.
    """

    where: str
    patterns: tuple[str, ...]
    form: str
    values: Mapping[str, Any]
    why: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper: its configs, what they are asked, and its entries."""

    name: str
    patterns: tuple[str, ...]
    asked: Mapping[str, list[str]]
    entries: tuple[Entry, ...]


@dataclass
class Answers:
    """What the table says of one config: values by key, and the contradictions met on the way."""

    values: dict[str, tuple[Any, Entry]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a config's name fits a pattern and none of those behind a "!"."""
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return any(fnmatchcase(name, p) for p in wanted) and not any(fnmatchcase(name, p) for p in unwanted)


def read_papers(folder: Path = FOLDER) -> list[Paper]:
    """All papers; what is common to them is part of each."""
    common = _read(folder / "common.yaml")
    papers = []
    for path in sorted(folder.glob("*.yaml")):
        if path.stem != "common":
            own = _read(path)
            asked = {**common["asked"], **own.get("asked", {})}
            asked["all"] = [*common["asked"]["all"], *own.get("asked", {}).get("all", [])]
            entries = (*_entries(common["entries"]), *_entries(own["entries"]))
            papers.append(Paper(own["paper"], tuple(own["configs"]), asked, entries))
    return papers


def paper_of(name: str, papers: list[Paper]) -> Paper:
    """The paper that a config belongs to."""
    found = [paper for paper in papers if matches(name, paper.patterns)]
    assert len(found) == 1, f"{name} is of {[paper.name for paper in found]}, expected one paper"
    return found[0]


def check(name: str, cfg: CfgNode, paper: Paper) -> list[str]:
    """What is wrong with a config: values that are not the table's, and keys that the table leaves out."""
    answers = _answers(name, cfg, paper)
    problems = answers.problems
    for key in asked(cfg, paper):
        if key not in answers.values:
            problems.append(f"{name}: the table says nothing of {key}, which is {_value(cfg, key)!r}")
    for key, (expected, entry) in answers.values.items():
        actual = _value(cfg, key)
        if not _equal(actual, expected):
            problems.append(f"{name}: {key} is {actual!r}; {entry.where}: {expected!r}")
    return problems


def traits(cfg: CfgNode) -> list[str]:
    """What a config is asked for."""
    found = ["all", *cfg.MODEL.REGULARIZERS.NAMES, cfg.SOLVER.OPTIMIZER, cfg.MODEL.BACKBONE.NAME]
    found += [cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE, cfg.TEST.MODE]
    found += ["auxiliary head"] * bool(cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE)
    found += ["several scales"] * cfg.TEST.AUG.ENABLED
    return found


def asked(cfg: CfgNode, paper: Paper) -> list[str]:
    """Keys that the table has to answer of a config."""
    return [key for trait in traits(cfg) for key in paper.asked.get(trait, [])]


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _entries(listed: list[dict[str, Any]]) -> Iterator[Entry]:
    for content in listed:
        (form,) = [form for form in _FORMS if form in content]
        patterns = tuple(content.get("configs", ["*"]))
        if form == "rows":
            for pattern, values in content["rows"].items():
                yield Entry(content["where"], (pattern,), "values", values)
        else:
            yield Entry(content["where"], patterns, form, content[form], content.get("why", ""))


def _answers(name: str, cfg: CfgNode, paper: Paper) -> Answers:
    answers = Answers()
    for entry in paper.entries:
        if not matches(name, entry.patterns):
            continue
        for key, value in entry.values.items():
            if entry.form == "deviations":
                printed = answers.values.get(key, (None, entry))[0]
                if printed != value["paper"]:
                    problem = f"{key} deviates from {value['paper']!r}, and {printed!r} is printed"
                    answers.problems.append(f"{name}: {problem}")
                value = value["ours"]
            if isinstance(value, dict) and "epochs" in value:
                value = value["epochs"] * value["images"] // cfg.SOLVER.IMS_PER_BATCH
            answers.values[key] = value, entry
    # What is said of a regularizer or of a kind of backbone is of no matter to a config without it.
    for key in [key for key in answers.values if not _concerns(key, cfg, paper)]:
        del answers.values[key]
    return answers


def _concerns(key: str, cfg: CfgNode, paper: Paper) -> bool:
    traits_of_key = [trait for trait, keys in paper.asked.items() if key in keys]
    return not traits_of_key or any(trait in traits(cfg) for trait in traits_of_key)


def _value(cfg: CfgNode, key: str) -> Any:
    first, _, rest = key.partition(".")
    if first in cfg.MODEL.REGULARIZERS:
        key = f"MODEL.REGULARIZERS.{key}"
    elif first == "HEAD":
        key = f"MODEL.SEM_SEG_HEAD.{rest}"
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def _equal(actual: Any, expected: Any) -> bool:
    if isinstance(actual, (list, tuple)) and isinstance(expected, (list, tuple)):
        return list(actual) == list(expected)
    if isinstance(actual, str) and isinstance(expected, str):
        return fnmatchcase(actual, expected)
    return actual == expected and isinstance(actual, bool) == isinstance(expected, bool)
