"""What the pages tell a reader to type: their blocks of code, and the commands in blocks and sentences."""

import ast
import functools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "datasets" / "README.md",
]
# What --help prints, and what stands above an example.
DOCSTRINGS = sorted(
    path
    for folder in ("tools", "regseg_d2/commands", "datasets", "examples")
    for path in (ROOT / folder).glob("*.py")
)
# A command of this repository: the program and a word more.
COMMAND = (
    r"(?:regseg |torchrun |make |python -m (?:regseg_d2|tests)"
    r"|(?:[A-Z_\d]+=\S+ )?(?:python )?(?:tools|datasets|examples)/\w+\.py )"
)
# A shell that finds no program: it reads a block as a reader's does, and prints what it would call.
SHELL = r"""PATH=/nowhere
source() { :; }
command_not_found_handle() { printf '%s\0' $BASH_LINENO "$@" $'\n'; }
"""


@dataclass(frozen=True)
class Code:
    """A block of code, or code in a sentence, which has no language."""

    page: str
    line: int
    language: str | None
    text: str


@dataclass(frozen=True)
class Command:
    """The words of a command as the shell hands them over."""

    page: str
    line: int
    quoted: bool
    words: tuple[str, ...]


@functools.cache
def codes_of(page: Path) -> list[Code]:
    """The blocks of a page, and the codes in its sentences and tables."""
    name, found = page.relative_to(ROOT).as_posix(), []
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        if token.type in ("fence", "code_block"):
            first = line + (token.type == "fence")
            found.append(Code(name, first, token.info.strip(), token.content))
        for child in token.children or ():
            if child.type == "code_inline":
                found.append(Code(name, line, None, child.content))
    return found


def codes_of_docstring(path: Path) -> list[Code]:
    """The examples in the docstring of a program, a line each, and the codes in its sentences."""
    name, text = path.relative_to(ROOT).as_posix(), ast.get_docstring(ast.parse(path.read_text())) or ""
    lines = re.findall(rf"^ +({COMMAND}.*)", text.replace(".py\n", ".py \n"), flags=re.MULTILINE)
    quoted = re.findall(r"``(.+?)``", text, flags=re.DOTALL)
    return [Code(name, 1, "bash", line) for line in lines] + [Code(name, 1, None, code) for code in quoted]


def commands() -> list[Command]:
    """All commands of the pages and docstrings."""
    codes = [code for page in PAGES for code in codes_of(page)]
    codes += [code for path in DOCSTRINGS for code in codes_of_docstring(path)]
    found = []
    for code in codes:
        quoted = code.language is None and re.match(COMMAND, code.text) and "<" not in code.text
        if code.language == "bash" or quoted:
            for line, words in read_shell(code):
                found.append(Command(code.page, code.line + line, code.language is None, words))
    return found


def read_shell(code: Code) -> list[tuple[int, tuple[str, ...]]]:
    """The commands that a shell would call, each with the line of its end, from 0; it goes through loops."""
    text = re.sub(r"^((?:\w+=\S+ )?)(?=(?:tools|datasets|examples)/)", r"\1python ", code.text)
    text = re.sub(r"(?<=\s)[\w./]*bin/(?=python|pip)", "", text)
    # A synopsis: of "[--device cpu|cuda] [KEY VALUE ...]" the option with the first choice.
    text = re.sub(r" \[(KEY VALUE|RUN|NAME) \.\.\.\]| \.\.\.", "", text)
    text = re.sub(r"\[(--[^]]*)\]", lambda option: re.sub(r"\|[\w|]+", "", option[1]), text)
    done = subprocess.run(["bash", "-c", SHELL + text], cwd="/", capture_output=True, text=True, check=False)
    assert not done.stderr, f"{code.page}:{code.line}: {done.stderr}"
    called = [part.split("\0")[:-1] for part in done.stdout.split("\n\0")[:-1]]
    return [(int(number) - 1 - SHELL.count("\n"), tuple(words)) for number, *words in called]
