"""Every command, config and import on the pages is one that the programs take; nothing is trained here."""

import ast
import importlib
import re
import runpy
import shlex
import sys
import textwrap
from argparse import ArgumentParser
from importlib.util import find_spec

import pytest
import yaml
from detectron2.data import DatasetCatalog

from regseg_d2.apps.experiment.plan import as_words
from regseg_d2.apps.experiment.spec import read_experiment
from regseg_d2.commands import regseg
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.files import load_config
from regseg_d2.config.keys import flatten_config
from regseg_d2.data.datasets.declared import KEYS, read_declaration
from tests.pages import PAGES, ROOT, codes_of, commands

# Programs that are not of this repository.
OTHERS = {"cp", "git", "hf", "mkdir", "pip", "python3.11", "tensorboard"}
NUMBERS = {"H": "8", "W": "8", "N": "1", "RATE": "1.0", "STEPS": "1"}
# Files that a command of the same page writes, or that the page has words for.
WRITTEN = {"farm_model/config.yaml", "folded.yaml"}
# Configs with modules that are not there: a reader's own, and repositories that are no packages.
OF_OTHERS = {"net.yaml", "mask2former.yaml", "mask_former.yaml"}


class Understood(Exception):
    """A program has understood its words, and does nothing more."""


@pytest.fixture
def understand(monkeypatch, capsys):
    """What a program's own parser makes of the words of a command; None where it is asked for help."""

    def stop_behind(parse):
        def stopped(*args):
            raise Understood(parse(*args))

        return stopped

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(ArgumentParser, name, stop_behind(getattr(ArgumentParser, name)))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def understand(words):
        monkeypatch.setattr(sys, "argv", [NUMBERS.get(word, word) for word in words])
        try:
            if words[0] == "regseg":
                regseg.main()
            elif words[0] == "-m":
                sys.argv = sys.argv[1:]
                runpy.run_module(words[1], run_name="__main__")
            else:
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except Understood as understood:
            return understood.args[0]
        except SystemExit as end:
            if end.code:
                raise ValueError(capsys.readouterr().err.splitlines()[-1]) from None
        return None

    return understand


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """For each page a folder with the YAML files of all pages; of equal names it has its own."""
    named = {}
    for page in PAGES:
        for code in codes_of(page):
            name = re.match(r"# (\S+\.yaml)\n", code.text)
            if code.language == "yaml" and name:
                named.setdefault(code.page, {}).setdefault(name[1], code.text)
    found = {}
    for page in PAGES:
        folder = found[page.relative_to(ROOT).as_posix()] = tmp_path_factory.mktemp(page.stem)
        (folder / "configs").mkdir()
        for path in (ROOT / "configs").iterdir():
            (folder / "configs" / path.name).symlink_to(path)
        (folder / "experiments").symlink_to(ROOT / "experiments")
        own = named.get(page.relative_to(ROOT).as_posix(), {})
        for name, text in [item for files in (*named.values(), own) for item in files.items()]:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    return found


def check_command(command, understand, folder):
    """What a command names is there, and its program takes its words."""
    program, *words = command.words
    if program in ("sbatch", "torchrun"):  # both start the training with the words behind the script
        script = next(word for word in words if word.startswith("tools/"))
        assert (ROOT / script).is_file()
        words = ["tools/train_net.py", *words[words.index(script) + 1 :]]
    elif program == "make":
        assert {*words} <= {*re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)}
        return
    elif program == "pip":
        extras = [
            name for word in words for names in re.findall(r"\[(.+)\]", word) for name in names.split(",")
        ]
        assert all(f'        "{name}": ' in (ROOT / "setup.py").read_text() for name in extras)
        return
    elif program == "regseg":
        if command.quoted and len(words) == 1:  # a name in a sentence
            assert words[0] in (*regseg.COMMANDS, "--help", "COMMAND")
            return
        words = [program, *words]
    elif program != "python":
        assert program in OTHERS
        return
    if words[:2] == ["-m", "pytest"]:
        assert (ROOT / words[-1]).is_file()
    elif words[0] != "examples/mmsegmentation_fcn.py" or find_spec("mmseg"):
        check_words(words, understand, folder)


def check_words(words, understand, folder):
    for word in words:
        free = word in WRITTEN or word.startswith(("output/", "RUN/", "regseg:"))
        if word.endswith(".yaml") and not free and not (folder / word).is_file():
            raise FileNotFoundError(word)
    arguments = understand(words)
    if "tools/check_dataset.py" in words or "check" in words:
        check_datasets(arguments.names)
    elif "tools/experiment.py" in words:
        assert read_experiment(folder / arguments.file).arms
    elif hasattr(arguments, "opts"):
        file = getattr(arguments, "config_file", None) or ""
        if file not in OF_OTHERS:
            cfg = load_config(file if (folder / file).is_file() else "", arguments.opts)
            check_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])


def check_datasets(names):
    """They are built in, or those of the pages' farm.yaml, or a placeholder."""
    assert {*names} <= {*DatasetCatalog.list(), "farm_train", "farm_val", "NAME"}


def check_experiment(path):
    """Each of its trainings has keys that are there."""
    experiment = read_experiment(path)
    for condition in experiment.conditions:
        for arm in experiment.conditions[condition].arms:
            load_config(str(experiment.base), as_words(experiment.overrides(condition, arm)))


def check_all(items, check):
    """Fails with the place of all that is wrong."""
    wrong = []
    for item in items:
        try:
            check(item)
        except Exception as error:
            wrong.append(f"{item.page}:{item.line}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_command_is_one_that_its_program_takes(understand, folders, monkeypatch):
    found = commands()

    def check(command):
        folder = folders.get(command.page, folders["README.md"])
        monkeypatch.chdir(folder)
        check_command(command, understand, folder)

    check_all(found, check)
    assert len(found) > 200


def test_every_yaml_block_is_one_that_its_reader_takes(folders, monkeypatch):
    found = [code for page in PAGES for code in codes_of(page) if code.language == "yaml"]
    kinds = []

    def check(code):
        folder, content = folders[code.page], yaml.safe_load(code.text)
        monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
        name = re.match(r"# (\S+\.yaml)\n", code.text)
        path = folder / (name[1] if name else "block.yaml")
        path.write_text(code.text)
        kinds.append(kind_of(content))
        if path.name in OF_OTHERS:
            assert any(find_spec(module.split(":")[0].split(".")[0]) is None for module in content["IMPORTS"])
        elif kinds[-1] == "declaration":
            specs = read_declaration(path)
            assert len(specs) == 2 or code.page not in ("README.md", "docs/own_data.md")
        elif kinds[-1] == "experiment":
            check_experiment(path)
        elif kinds[-1] == "config":
            declared = load_config(str(path)).DATASETS.DECLARED
            written = content.get("DATASETS", {}).get("DECLARED", declared)
            assert list(declared) == [str(folder / name) for name in written]

    check_all(found, check)
    assert kinds.count("config") >= 15 and kinds.count("declaration") >= 7 and kinds.count("experiment") >= 2


def kind_of(content):
    if content.keys() <= {*get_regseg_cfg(), "_BASE_"}:
        return "config"
    if content.keys() >= {"base", "arms"}:
        return "experiment"
    assert content.keys() <= set(KEYS)
    return "declaration" if "name" in content else "lines of a declaration"


def test_every_python_block_compiles_and_imports_what_is_there():
    found = [code for page in PAGES for code in codes_of(page) if code.language in ("python", "py")]
    names = []

    def check(code):
        for node in ast.walk(ast.parse(textwrap.dedent(code.text))):
            if isinstance(node, ast.Import):
                names.extend(importlib.import_module(alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                names.extend(getattr(module, alias.name) for alias in node.names)

    check_all(found, check)
    assert len(found) >= 25 and len(names) > 40


def test_files_and_links_on_the_pages_exist():
    found = 0
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
            found += 1
        for path in re.findall(r"(?<!_base_/)\b((?:tools|configs|datasets)/[\w./-]+\.(?:py|yaml))", text):
            if "example" not in path:
                assert (ROOT / path).exists(), f"{page.name}: {path}"
                found += 1
    assert found > 10


def test_values_in_the_sentences_are_of_the_type_of_their_keys():
    pair = re.compile(r"((?:MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER)\.[\w.]+|SEED)(:?) (.+)", re.DOTALL)
    quoted = [code for page in PAGES for code in codes_of(page) if code.language is None]
    found = [code for code in quoted if pair.fullmatch(code.text)]

    def check(code):
        key, colon, value = pair.fullmatch(code.text).groups()
        words = [key, value] if colon else shlex.split(code.text)
        load_config("", [NUMBERS.get(word, word) for word in words])

    check_all(found, check)
    assert len(found) > 60


def known_keys():
    """All keys and sections of the config."""
    keys = set()
    for key in flatten_config(get_regseg_cfg()):
        parts = key.split(".")
        keys |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    # A user's own, and sections that begin empty.
    return keys | {"MODEL.REGULARIZERS.CenterLoss", "MODEL.TIMM.OPTIONS", "MODEL.HUGGINGFACE.CONFIG"}


def test_keys_on_the_pages_exist():
    keys, found = known_keys(), 0
    for page in PAGES:
        text = page.read_text()
        for key in re.findall(r"`((?:MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER)\.[A-Za-z0-9_.]+)", text):
            assert key.rstrip(".") in keys, f"{page.name}: {key}"
            found += 1
    assert found > 300
