"""Names in figures and in names of files: legible in any script, read as TeX by nobody."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.ft2font import FT2Font

FONT = "DejaVu Sans"  # comes with Matplotlib
NAMELESS = "(no name)"
_JOINERS = "\u200c\u200d"  # Persian and Indic scripts are written with them
_LEFT_TO_RIGHT = "\u200e"
_LONGEST_STEM = 80


def readable(text: object) -> str:
    """Returns a name as one line without what cannot be seen.

    Line breaks and control characters become spaces; marks that turn the direction of writing and selectors
    of variants vanish; halves of characters are the replacement character; nothing is :data:`NAMELESS`.
    """
    kept = []
    for letter in unicodedata.normalize("NFC", str(text)):
        category = unicodedata.category(letter)
        if category in ("Cc", "Zl", "Zp"):
            kept.append(" ")
        elif category == "Cs":
            kept.append("\ufffd")
        elif (category != "Cf" or letter in _JOINERS) and not "\ufe00" <= letter <= "\ufe0f":
            kept.append(letter)
    return " ".join("".join(kept).split()) or NAMELESS


def width_of(text: str) -> int:
    """Returns how many columns of a terminal a text takes: two a letter of East Asia, none an accent."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def cut(text: object, width: int) -> str:
    """Returns a :func:`readable` name of at most so many columns; an ellipsis ends one that was longer."""
    text = readable(text)
    if width_of(text) <= width:
        return text
    room = width - 1
    for place, letter in enumerate(text):
        room -= width_of(letter)
        if room < 0:
            return text[:place].rstrip() + "…"
    return text


def inline(text: object, width: int) -> str:
    """Returns a :func:`cut` name to be put among others and numbers, which stay where they are.

    Names that are written from the right to the left have marks around them that keep the order of the rest.
    """
    text = cut(text, width)
    if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text):
        return f"{_LEFT_TO_RIGHT}{text}{_LEFT_TO_RIGHT}"
    return text


def wrapped(text: object, width: int) -> str:
    """Breaks a long name into lines, after a separator where one is near.

    The middle of a very long one is left out: names of one grid of settings differ at their ends.
    """
    text = readable(text)
    if width_of(text) != len(text):
        width = max(1, width // 2)
    if len(text) > 2.5 * width:
        text = f"{text[:width]}…{text[-int(1.2 * width) :]}"
    lines = [""]
    for part in re.split(r"(?<=[-_+ ])", text):
        for piece in (part[i : i + width] for i in range(0, len(part), width)):
            if len(lines[-1]) + len(piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def balanced(text: object, width: int) -> str:
    """Breaks a name as :func:`wrapped` does, into lines as equally long as their number allows."""
    lines = wrapped(text, width)
    longest = max(len(part) for part in re.split(r"[-_+ ]", readable(text)))
    for narrower in range(width - 1, longest, -1):
        other = wrapped(text, narrower)
        if other.count("\n") > lines.count("\n") or "…" in other:
            break
        lines = other
    return lines


def letters_in(inches: float, points: float) -> int:
    """Returns how many letters of a font size fit into a width, at DejaVu Sans's mean width of a letter."""
    return max(4, int(inches * 72 / (0.62 * points)))


def safe_name(text: object) -> str:
    """Returns a name of a file, without its ending, that LaTeX and shells take as it is.

    Letters of ASCII, digits and hyphens are left. Where more than separators and accents got lost, a digest
    of the text stands at the end, so that names in other scripts stay different.
    """
    text = str(text)
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    stem = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")
    if stem and len(stem) <= _LONGEST_STEM and not re.search(r"[^A-Za-z0-9\s_./+-]", plain):
        return stem
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{stem[: _LONGEST_STEM - 9].rstrip('-')}-{digest}".lstrip("-")


def safe_names(texts: Iterable[object]) -> list[str]:
    """Returns a :func:`safe_name` of each text, no two of them alike, upper and lower case aside."""
    names: list[str] = []
    taken: set[str] = set()
    for text in texts:
        stem = name = safe_name(text)
        number = 2
        while name.lower() in taken:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
        taken.add(name.lower())
    return names


def families_for(texts: Iterable[str]) -> tuple[list[str], str]:
    """Finds fonts of this machine for the letters that DejaVu Sans does not have.

    Returns:
        Families to be tried after DejaVu Sans, and the letters that no font has.
    """
    letters = {letter for text in texts for letter in text if not letter.isspace()}
    own = get_font(findfont(FontProperties(family=FONT)))
    missing = frozenset(letter for letter in letters if not own.get_char_index(ord(letter)))
    families, without = _fonts_with(missing)
    return list(families), without


@lru_cache
def _fonts_with(missing: frozenset[str]) -> tuple[tuple[str, ...], str]:
    """Goes through the fonts of this machine, those without serifs first, until every letter has one."""
    regular = {
        (("sans" not in font.name.lower(), font.name, font.fname), font.name): font
        for font in fontManager.ttflist
        if font.style == "normal" and font.weight in (400, "normal", "regular") and "Resort" not in font.name
    }
    left, families = set(missing), []
    for (_, family), font in sorted(regular.items()):
        if not left:
            break
        face = FT2Font(font.fname)
        found = {letter for letter in left if face.get_char_index(ord(letter))}
        if found and family not in families:
            families.append(family)
            left -= found
    return tuple(families), "".join(sorted(left))
