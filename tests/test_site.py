"""The site of the documentation: built without a warning, and searched as a reader does."""

import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.chromium import NEEDS_CHROMIUM, chromium

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "examples", "configs", "datasets", "tools", "regseg_d2")
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "setup.py")
pytestmark = pytest.mark.slow


def copy_of_the_pages(folder):
    """What the site is made of, in a folder of its own."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "experiments",
        folder / "experiments",
        ignore=lambda _, names: {n for n in names if n.endswith(".json")},
    )
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def build(folder):
    return subprocess.run(
        [sys.executable, str(folder / "tools" / "make_docs.py")], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Address of the site, which is built and served for the tests."""
    folder = copy_of_the_pages(tmp_path_factory.mktemp("pages"))
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder / "build" / "site"))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@NEEDS_CHROMIUM
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("label_map", "docs/own_data.html"),
        ("NaN", "docs/faq.html"),
        ("Mask2Former", "docs/huggingface.html"),
        ("LinearConvBlock", "docs/choosing.html"),
        ("inference_model", "reference/detectron2_models.html"),
    ],
)
def test_a_reader_finds_a_page(site, words, page):
    with chromium() as driver:
        driver.get(f"{site}/index.html")
        box = driver.find_element(By.CSS_SELECTOR, ".md-search__input")
        driver.execute_script("arguments[0].focus()", box)
        box.send_keys(words)
        links = WebDriverWait(driver, 30).until(
            lambda d: [
                a.get_attribute("href") for a in d.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
            ]
        )
        pages = [link.removeprefix(f"{site}/").split("?")[0].split("#")[0] for link in links]
        assert page in pages
        driver.get(next(link for link in links if page in link))
        assert words.lower() in driver.find_element(By.CSS_SELECTOR, "article").text.lower()
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_link_to_nothing_is_an_error(tmp_path):
    folder = copy_of_the_pages(tmp_path)
    page = folder / "docs" / "faq.md"
    page.write_text(page.read_text() + "\n[nothing](nowhere.md) and [no section](own_data.md#nothing)\n")
    done = build(folder)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr and "#nothing" in done.stderr
