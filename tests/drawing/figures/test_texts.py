"""Names in figures and files."""

import re

import matplotlib
import pytest
from matplotlib.font_manager import FontEntry, FontProperties, findfont, get_font

from regseg_d2.drawing.figures import texts
from regseg_d2.drawing.figures.texts import (
    NAMELESS,
    balanced,
    cut,
    families_for,
    inline,
    letters_in,
    readable,
    safe_name,
    safe_names,
    width_of,
    wrapped,
)

HOSTILE = [
    "",
    " \n\t",
    "_hidden",
    "$\\frac{1}{0}$",
    "100% & #1 ~ ^",
    "</text><script>alert(1)</script>",
    "\"'`",
    "line\nbreak",
    "nul\0 esc\x1b[31m",
    "\u202egnirts",
    "\ud800half",
    "道路",
    "سماء",
    "🚗",
    "👩\u200d🚒",
    "e\u0301",
    "x" * 5000,
    "[option]*",
    "../../etc/passwd",
    "CON",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_readable_names_are_one_line_that_can_be_seen(text):
    shown = readable(text)
    assert shown and shown == readable(shown)
    assert not re.search(r"[\0-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    shown.encode("utf-8")


def test_readable_keeps_what_is_seen():
    assert readable("a_b $x$ 50%") == "a_b $x$ 50%"
    assert readable("line\nbreak\t!") == "line break !"
    assert readable("\u202eabc\ud800") == "abc\ufffd"
    assert readable("e\u0301") == "\u00e9"
    assert readable("\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645").count("\u200c") == 1
    assert readable("\0") == NAMELESS


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("width", [4, 9])
def test_cut_names_fit(text, width):
    short = cut(text, width)
    assert width_of(short) <= width
    assert short == readable(text) or short.endswith("…")


def test_names_written_from_the_right_leave_the_others_where_they_are():
    assert inline("road", 9) == "road"
    assert inline("سماء", 9) == "\u200eسماء\u200e" and inline("שמיים ab", 4) == "\u200eשמי…\u200e"


def test_widths_count_east_asian_letters_twice():
    assert width_of("road") == 4 and width_of("道路") == 4 and width_of("e\u0301") == 1
    assert cut("道路標識", 6) == "道路…"
    assert cut("pavement", 8) == "pavement" and cut("pavements", 8) == "pavemen…"


@pytest.mark.parametrize("text", HOSTILE)
def test_wrapped_names_keep_their_letters_and_width(text):
    lines = wrapped(text, 10).split("\n")
    assert all(len(line) <= 10 for line in lines)
    joined = "".join(lines).replace(" ", "")
    whole = readable(text).replace(" ", "")
    if "…" not in joined:
        assert joined == whole
    else:
        start, end = joined.split("…")
        assert whole.startswith(start) and whole.endswith(end)


def test_lines_of_a_title_are_about_equally_long():
    assert balanced("efficientnet_lite0_car", 21) == "efficientnet_\nlite0_car"
    assert balanced("road", 9) == "road" and balanced("x" * 100, 10) == wrapped("x" * 100, 10)


def test_names_break_after_separators():
    assert wrapped("deeplabv3_efficientnet_car", 13) == "deeplabv3_\nefficientnet_\ncar"
    assert letters_in(1.0, 7) == 16 and letters_in(0.01, 7) == 4


@pytest.mark.parametrize("text", HOSTILE)
def test_names_of_files_are_safe(text):
    name = safe_name(text)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,79}", name)
    assert name == safe_name(text)


def test_names_of_files_tell_texts_apart():
    assert safe_name("Figure 4_a.png") == "Figure-4-a-png"
    assert safe_name("café") == "cafe"
    assert len({safe_name(text) for text in ("道路", "空", "a$", "a%", "a" * 100, "a" * 101)}) == 6
    assert safe_names(["a b", "a_b", "A-B", "c", "a-b-2"]) == ["a-b", "a-b-2", "A-B-3", "c", "a-b-2-2"]


def test_letters_of_dejavu_need_no_other_font():
    assert families_for(["road ß φ → …", "Ω\nя"]) == ([], "")


def test_a_font_of_the_machine_is_found_for_other_letters(monkeypatch):
    """STIX comes with Matplotlib and has letters that DejaVu Sans has not."""
    own = get_font(findfont(FontProperties(family=texts.FONT)))
    stix = get_font(matplotlib.get_data_path() + "/fonts/ttf/STIXGeneral.ttf")
    letter = next(chr(c) for c in sorted(stix.get_charmap()) if c > 0x2000 and not own.get_char_index(c))
    texts._fonts_with.cache_clear()
    families, without = families_for([f"x{letter}"])
    assert len(families) == 1 and without == ""
    found = get_font(findfont(FontProperties(family=families[0]), fallback_to_default=False))
    assert found.get_char_index(ord(letter))
    monkeypatch.setattr(texts.fontManager, "ttflist", [])
    texts._fonts_with.cache_clear()
    assert families_for([f"x{letter}"]) == ([], letter)
    texts._fonts_with.cache_clear()


def test_every_letter_gets_its_font_and_those_without_are_named(monkeypatch):
    folder = matplotlib.get_data_path() + "/fonts/ttf/"
    entries = [
        FontEntry(fname=folder + file, name=name, style="normal", variant="normal", weight=400)
        for file, name in (("DejaVuSans.ttf", "DejaVu Sans"), ("STIXGeneral.ttf", "STIXGeneral"))
    ]
    monkeypatch.setattr(texts.fontManager, "ttflist", entries)
    texts._fonts_with.cache_clear()
    private = "\U000f0000"
    families, without = families_for([private])
    assert (families, without) == ([], private)
    texts._fonts_with.cache_clear()
