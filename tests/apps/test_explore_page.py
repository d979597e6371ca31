"""The page in a headless Chromium: what it does when a reader clicks, types, draws, and prints."""

import base64
import math

import numpy as np
import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from regseg_d2.apps.explore.page.features import LEVELS
from regseg_d2.apps.explore.page.page import write_page
from tests.apps.explore.page_content import HOSTILE_CLASSES, HOSTILE_RUNS, content_of, hostile_content
from tests.apps.explore.reader import Reader
from tests.chromium import NEEDS_CHROMIUM, chromium

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Paths of pages by name."""
    folder = tmp_path_factory.mktemp("pages")
    contents = {
        "two": content_of(),
        "hostile": hostile_content(),
        "one": content_of(1, runs=("alone",), pixels=None),
        "bare": content_of(runs=("a", "b", "c", "d", "e"), images=[], pixels=None),
    }
    for name, content in contents.items():
        write_page(content, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in contents}


@pytest.fixture
def two(browser, pages):
    reader = Reader(browser, pages["two"])
    yield reader
    assert reader.errors() == []


def expected_cosines(feature, cell_size, y, x):
    """Cosines (h w) in float64, cell by cell."""
    row, column = int(y // cell_size[0]), int(x // cell_size[1])
    cells = feature.astype(np.float64).reshape(len(feature), -1).T
    chosen = cells[row * feature.shape[2] + column]
    return [float(chosen @ cell) / (np.linalg.norm(chosen) * np.linalg.norm(cell)) for cell in cells]


def click_pixel(reader, selector, y, x):
    """Clicks on the middle of a pixel of the label."""
    canvas = reader.find(selector)
    height, width = reader.run("explore.shown.image.size")
    reader.drag(
        canvas, [(x + 0.5) / width * canvas.size["width"], (y + 0.5) / height * canvas.size["height"]]
    )


@pytest.mark.parametrize(
    "place", ["#label", "canvas.predicted[data-run='1']", "canvas.relation[data-run='0']"]
)
def test_a_click_on_a_pixel_changes_the_relation_maps_of_all_runs(two, place):
    content = content_of()
    image = content.images[two.run("explore.shown.image.index")]
    maps = set()
    for y, x in ((40, 20), (70, 110)):
        click_pixel(two, place, y, x)
        assert two.pixel() == pytest.approx([y, x], abs=1)
        values, pictures = two.relations()
        maps |= set(pictures)
        for made, shown in zip(image.runs, values, strict=True):
            D = len(made.feature)
            bound = 2 * math.sqrt(D) * 0.5 / LEVELS + D * (0.5 / LEVELS) ** 2
            off = np.abs(np.array(shown) - expected_cosines(made.feature, made.cell_size, *two.pixel()))
            assert off.max() < bound
    assert len(maps) == 4  # two runs at two places
    two.wait("document.getElementById('said').textContent.includes('row 70, column 110')")


def test_arrow_keys_move_the_pixel_and_page_keys_change_the_image(two):
    click_pixel(two, "#label", 40, 20)
    before, _ = two.relations()
    two.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert two.pixel() == pytest.approx([48, 28], abs=1)  # a cell each
    assert two.relations()[0] != before
    two.driver.execute_script("document.getElementById('stage').focus()")
    ActionChains(two.driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT).key_up(Keys.SHIFT).perform()
    assert two.pixel() == pytest.approx([48, 27], abs=1)
    first = two.run("explore.state.image")
    two.press(Keys.PAGE_DOWN)
    two.wait(f"explore.shown.image !== explore.data.images[{first}]")
    two.press(Keys.PAGE_UP)
    two.wait(f"explore.shown.image === explore.data.images[{first}]")


def test_the_strip_is_one_stop_of_the_tab_key_and_arrows_go_along_it(two):
    assert len(two.find_all("#strip button[tabindex='0']")) == 1
    two.driver.execute_script("document.querySelector('#strip button[tabindex=\"0\"]').focus()")
    two.press(Keys.ARROW_RIGHT)
    wanted = two.run("Number(document.activeElement.dataset.image)")
    assert wanted != two.run("explore.state.image")
    two.press(Keys.ENTER)
    two.wait(f"explore.shown.image === explore.data.images[{wanted}]")


def test_all_can_be_reached_with_the_tab_key(two):
    two.driver.execute_script(
        """globalThis.reached = []; document.activeElement.blur(); scrollTo(0, 0);
        addEventListener("focusin", ({ target }) => reached.push(target.id || target.className))"""
    )
    two.press(*[Keys.TAB] * 120)
    reached = set(two.run("reached"))
    assert {
        "filter-add",
        "theme",
        "class",
        "class-order",
        "image-order",
        "strength",
        "stage",
        "matrix-plot",
        "wrong",
    } <= reached


def points_of(reader, run):
    """Places in pixels of the points of a scatter plot, inside of what is dragged over."""
    found = reader.each(
        "#pixels .plot",
        """((trace, { xaxis, yaxis }) => trace.x.map((x, i) => [xaxis.l2p(x), yaxis.l2p(trace.y[i])]))(
        element.data[0], element._fullLayout)""",
    )
    return np.array(found[run])


def test_a_brush_lists_pixels_and_finds_them_in_the_other_plot(two):
    content = content_of()
    count = len(content.pixels.image)
    assert len(two.listed()) == min(count, 60)
    points = points_of(two, 0)
    target = points[np.lexsort(points.T)[0]]  # at the left border
    box = target - 12, target + [40, 40]
    inside = {int(i) for i in np.nonzero(((points > box[0]) & (points < box[1])).all(1))[0]}
    assert 0 < len(inside) < 60
    two.click("#pixels .modebar-btn[data-val=select]")
    surface = two.find("#pixels .plot .nsewdrag")
    two.drag(surface, *box)
    two.wait("explore.state.brushed !== null")
    assert set(two.run("explore.state.brushed")) == inside == set(two.listed())
    selected = two.each("#pixels .plot", "element.data[0].selectedpoints")
    assert [set(points) for points in selected] == [inside, inside]
    assert two.find("#list-title").text.startswith(f"{len(inside)} pixel")
    p = two.listed()[0]
    assert f"row {content.pixels.y[p]}, column {content.pixels.x[p]}" in two.find("#pixel-list tbody tr").text
    two.click("#pixel-list tbody tr button")
    two.wait(f"explore.state.y === {content.pixels.y[p]} && explore.state.x === {content.pixels.x[p]}")
    two.click("#unbrush")
    assert len(two.listed()) == min(count, 60)


def test_a_point_shows_its_place_and_opens_it(two):
    content = content_of()
    points = points_of(two, 1)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e6 * np.eye(len(points))
    p = int(distances.min(1).argmax())  # the loneliest
    surface = two.find_all("#pixels .plot .nsewdrag")[1]
    two.drag(surface, points[p])
    two.wait(f"explore.state.y === {content.pixels.y[p]} && explore.state.x === {content.pixels.x[p]}")
    assert two.run("explore.shown.image.index") == content.pixels.image[p]
    tip = two.run("document.querySelector('#tip div').textContent")
    assert (
        content.image_names[content.pixels.image[p]] in tip
        and content.classes[content.pixels.label[p]] in tip
    )


def test_the_filter_leaves_the_chosen_class_everywhere(two):
    content = content_of()
    k = 2
    before = two.run("document.getElementById('label').toDataURL()")
    two.click(f"#classes button[data-class='{k}']")
    assert two.run("[...explore.state.classes]") == [k]
    assert two.find("#chips").text.startswith("car")
    pixels = content.pixels
    wanted = [
        p
        for p in range(len(pixels.label))
        if k in (pixels.label[p], pixels.predicted[0][p], pixels.predicted[1][p])
    ]
    assert len(wanted) < len(pixels.label)
    assert two.each("#pixels .plot", "element.data[0].x.length") == [len(wanted)] * 2
    with_class = {i for i, image in enumerate(content.images) if (image.label == k).any()}
    shown = two.each("#strip button:not([hidden])", "Number(element.dataset.image)")
    assert set(shown) == with_class
    scores = f"#strip button[data-image='{shown[0]}'] .image-scores > span"
    ious = two.each(scores, "element.lastChild.textContent")
    assert ious == [f"{made.iou[k]:.1f}" for made in content.images[shown[0]].runs]
    assert two.run("document.getElementById('label').toDataURL()") != before
    pairs = two.each("#pairs tr[data-pair]", "element.dataset.pair")
    assert pairs and all(str(k) in pair.split() for pair in pairs)
    two.click("#chips button")
    assert two.run("explore.state.classes.size") == 0
    assert two.run("document.getElementById('label').toDataURL()") == before


def test_a_click_on_a_pair_of_classes_lists_its_images(two):
    content = content_of()
    two.click("#matrix input[value='0']")  # the first run's own matrix
    confusion = content.runs[0].confusion.copy()
    np.fill_diagonal(confusion, 0)
    a, b = np.unravel_index(confusion.argmax(), confusion.shape)
    place = two.run(
        f"""(() => {{ const layout = document.getElementById('matrix-plot')._fullLayout;
        return [layout.xaxis.l2p({b}), layout.yaxis.l2p({a})]; }})()"""
    )
    two.drag(two.find("#matrix-plot .nsewdrag"), place)
    two.wait(f"String(explore.state.selected) === '{a},{b}'")
    named = {int(i) for run in content.runs for i in run.pair_images[a, b] if i >= 0}
    opens = two.each("#pair [data-opens]", "Number(element.dataset.opens)")
    assert named and set(opens) == named
    text = two.find("#pair").text
    assert f"{content.classes[a]} taken for {content.classes[b]}" in text.replace("\n", " ")
    assert f"{content.runs[0].confusion[a, b]:,} pixels" in text
    two.click(f"#pair [data-opens='{opens[0]}']")
    two.wait(f"explore.shown.image.index === {opens[0]} && explore.state.mode === 'mistakes'")
    y, x = two.pixel()
    image = content.images[opens[0]]
    assert image.label[y, x] == a and b in [made.predicted[y, x] for made in image.runs]
    assert two.find("#pair-note").is_displayed()


def test_arrow_keys_move_the_chosen_field_of_the_matrix(two):
    two.driver.execute_script("document.getElementById('matrix-plot').focus()")
    two.press(
        *[Keys.ARROW_UP] * 4, *[Keys.ARROW_LEFT] * 4, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT
    )
    assert two.run("explore.state.selected") == [1, 2]
    two.wait("document.getElementById('pair-said').textContent.startsWith('label sky, prediction car')")


def test_hostile_names_are_inert_and_legible(browser, pages):
    reader = Reader(browser, pages["hostile"])
    reader.click("#classes button[data-class='0']")
    reader.click("#pairs tbody button")
    reader.click("#pair [data-opens]")
    reader.wait("explore.state.mode === 'mistakes'")
    reader.click("#pixel-list tbody button")
    assert reader.run("globalThis.hacked === undefined && window.hacked === undefined")
    assert reader.find_all("img[src=x], svg[onload], [onclick], [onerror]") == []
    assert reader.driver.title == "</title><script>globalThis.hacked='title'</script>"
    names = dict(
        reader.each("#classes button", "[element.dataset.class, element.querySelector('bdi').textContent]")
    )
    assert names == {str(k): name for k, name in enumerate(HOSTILE_CLASSES)}
    assert [card.text.strip("●◆ ") for card in reader.find_all(".cards h3")] == list(HOSTILE_RUNS)
    reader.click("#chips button")
    ticks = reader.each("#matrix-plot .ytick text", "element.textContent")
    shortened = [name if len(name) <= 16 else f"{name[:15]}…" for name in HOSTILE_CLASSES]
    assert ticks == shortened  # plotly.js reads tags in texts that are not escaped
    assert reader.errors() == []


def test_the_page_fetches_nothing(two):
    resources = two.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in resources if not name.startswith(("data:", "blob:"))] == []
    refused = two.driver.execute_async_script(
        "const done = arguments[0]; fetch('data.json').then(() => done('fetched'), () => done('refused'))"
    )
    assert refused == "refused"
    assert any("Content Security Policy" in message or "URL scheme" in message for message in two.errors())


@pytest.mark.parametrize("dark", [False, True])
def test_the_theme_is_that_of_the_system_until_it_is_switched(browser, pages, dark):
    reader = Reader(browser, pages["two"], dark=dark)

    def colors():
        body = reader.run("getComputedStyle(document.body).backgroundColor")
        plot = reader.run("document.getElementById('matrix-plot').layout.paper_bgcolor")
        return [sum(map(int, body[4:-1].split(","))) < 200, int(plot[1:3], 16) < 64]

    assert colors() == [dark, dark]
    reader.click("#theme")
    assert colors() == [not dark, not dark]
    assert reader.find("#theme").get_attribute("aria-pressed") == str(not dark).lower()
    reader.click("#theme")
    assert colors() == [dark, dark]
    assert reader.errors() == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["two", "hostile", "one", "bare"])
def test_nothing_is_wider_than_the_window(browser, pages, name, width):
    reader = Reader(browser, pages[name], width=width)
    assert reader.run("document.documentElement.scrollWidth") <= width
    assert reader.run("document.getElementById('trouble').hidden")
    assert reader.errors() == []


def test_all_is_printed_on_light_paper(browser, pages):
    reader = Reader(browser, pages["two"], dark=True)
    widths = reader.each(".plot", "element._fullLayout.width")
    reader.driver.execute_script(
        """globalThis.printed = []; addEventListener("beforeprint", () => printed.push(
        document.documentElement.dataset.theme, ...[...document.querySelectorAll(".plot")].map((plot) =>
        [plot.layout.paper_bgcolor, plot.querySelector("svg").getBoundingClientRect().width])))"""
    )
    pdf = reader.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(pdf["data"]).startswith(b"%PDF")
    assert reader.run("printed") == ["light", ["#ffffff", 640], ["#ffffff", 330], ["#ffffff", 330]]
    assert reader.run("document.documentElement.dataset.theme === undefined")
    assert reader.each(".plot", "element._fullLayout.width") == widths
    assert reader.errors() == []


def test_a_larger_label_is_read_at_its_own_pixels(browser, tmp_path):
    content = content_of(1, size=(800, 1200), stride=16, pixels=None)
    write_page(content, tmp_path / "large.html")
    reader = Reader(browser, tmp_path / "large.html")
    assert reader.run("explore.shown.image.picture") == [512, 768]
    click_pixel(reader, "#label", 600, 900)
    y, x = reader.pixel()
    assert [y, x] == pytest.approx([600, 900], abs=3)
    made = content.images[0].runs[1]
    off = np.array(reader.relations()[0][1]) - expected_cosines(made.feature, made.cell_size, y, x)
    assert np.abs(off).max() < 0.04
    assert reader.errors() == []
