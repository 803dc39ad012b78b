"""The documentation: its code runs, the site is built without a warning, and nothing in it leads nowhere."""

import html.parser
import json
import logging
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

import jax_nano
from benchmarks import gallery

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CODE = re.compile(r"(?<!-->\n)^```python\n(.*?)^```", re.S | re.M)  # a comment before it says why it is not run
WITH_CODE = [page for page in PAGES if CODE.search(page.read_text())]


@pytest.fixture
def logs():
    """Loggers as they are, and afterwards as they were."""
    root, ours = logging.getLogger(), logging.getLogger("jax_nano")
    handlers, level = root.handlers[:], ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_runs(page, tmp_path, monkeypatch, logs):
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", str(tmp_path))
    code = "\n".join(CODE.findall(page.read_text()))
    exec(compile(code, page.name, "exec"), {"__name__": page.stem})


class Page(html.parser.HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links |= {found[name] for name in ("href", "src") if found.get(name)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A warning is an error."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_every_page_is_built(pages, site):
    built = {path.relative_to(site).with_suffix("") for path in pages}
    assert {page.relative_to(DOCS).with_suffix("") for page in PAGES} <= built


def test_no_link_is_dead(pages, site):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            if not target.exists():
                dead.append(f"{path.relative_to(site)}: {link}")
            elif url.fragment and target in pages and url.fragment not in pages[target].anchors:
                dead.append(f"{path.relative_to(site)}: {link}, which has no such place")
    assert not dead


def test_the_gallery_shows_every_example():
    page = (DOCS / "gallery.md").read_text()
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names == set(gallery.COMMANDS)
    for name in names:
        assert f"`{name}.py`" in page and f"images/gallery/{name}.txt" in page
        assert (gallery.FOLDER / f"{name}.txt").read_text().startswith(f"$ python examples/{name}.py")


def test_pictures_are_small():
    for picture in (DOCS / "images").rglob("*.*g"):
        assert picture.stat().st_size < 150_000, picture


def test_search_finds_what_pages_are_about(site):
    text = (site / "searchindex.js").read_text()
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    found = {**index["terms"], **index["titleterms"]}
    for word in ("quantiz", "attent", "convolut", "calibr", "doctor", "acceler"):
        assert any(term.startswith(word) for term in found), word


def test_the_reference_has_every_public_name(pages, site):
    anchors = pages[site / "reference.html"].anchors
    missing = [name for name in jax_nano.__all__ if name != "__version__" and f"jax_nano.{name}" not in anchors]
    assert not missing
