"""The documentation site builds without a warning, needs nothing from elsewhere, and shows the whole public API."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from panscope import api

REPOSITORY = Path(__file__).parent.parent.parent
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter")
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href"), ("source", "src")}
"""What a browser fetches by itself."""


class Elements(HTMLParser):
    """What a page loads, and the names that links can go to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if value and (tag, key) in LOADED:
                self.loaded.append(value)
            if value and (tag, key) == ("a", "href"):
                self.links.append(value)
            if key == "id" and value:
                self.names.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning is an error."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the docs group is not installed ({', '.join(missing)}): pip install --group docs")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "RUN_NOTEBOOKS": "false"},  # test_guides.py runs them
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    return out


def _text(page: Path) -> set[str]:
    """The words a reader sees."""
    body = re.sub(r"<(script|style).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return set(_words(html.unescape(re.sub(r"<[^>]+>", "", body))))


def _words(text: str) -> list[str]:
    return re.findall(r"[\w<>./|*-]+", text.replace("`", ""))


def test_every_public_name_is_on_the_api_page(site: Path) -> None:
    names = Elements(site / "api" / "index.html").names
    assert {name for name in api.__all__ if f"panscope.api.{name}" not in names} == set()


def test_docstrings_reach_the_page_whole(site: Path) -> None:
    """Every word of them, also where Markdown or HTML might take it for a mark of its own."""
    shown = _text(site / "api" / "index.html")
    for name in set(api.__all__) - {"Positions"}:  # a name for several types, whose docstring is typing's own
        lost = [word for word in _words(getattr(api, name).__doc__ or "") if word not in shown]
        assert not lost, name


def test_there_is_a_guide_for_every_job(site: Path) -> None:
    guides = {path.parent.name for path in (site / "guides").glob("*/index.html")}
    assert {"train", "sweep", "report", "latents", "publish"} <= guides
    assert "api.attribution" in " ".join(_text(site / "guides" / "latents" / "index.html"))


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        elsewhere = [place for place in Elements(page).loaded if urlsplit(place).netloc]
        assert not elsewhere, page.relative_to(site)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\s\"']*(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_every_link_leads_somewhere(site: Path) -> None:
    """Notebooks too, whose links MkDocs itself does not look at; 404.html has its links from the root."""
    for page in sorted(set(site.rglob("index.html"))):
        for link in Elements(page).links:
            parts = urlsplit(link)
            if parts.netloc or not parts.path:
                continue
            place = page.parent / unquote(parts.path)
            target = place / "index.html" if place.is_dir() else place
            assert target.is_file(), f"{page.relative_to(site)}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in Elements(target).names, f"{page.relative_to(site)}: {link}"
