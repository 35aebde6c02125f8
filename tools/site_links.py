"""A hook of the documentation site: links from notebooks to other pages, which mkdocs-jupyter leaves alone.

MkDocs turns `sweep.md` into the place of that page only in Markdown. Here the same is done for notebooks, and a link to
a page that does not exist is a warning, which fails a strict build.
"""

import logging
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r'href="(?![a-z]+:|/|#)([^"#]+\.(?:md|ipynb))(#[^"]*)?"')
_log = logging.getLogger("mkdocs.hooks.site_links")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's HTML with links to where its pages are on the site."""
    here = page.file.src_uri
    if not here.endswith(".ipynb"):
        return html

    def placed(link: re.Match[str]) -> str:
        target = files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(here), link[1])))
        if target is None:
            _log.warning("Notebook '%s' has a link to '%s', which is no page of the site", here, link[1])
            return link[0]
        return f'href="{target.url_relative_to(page.file)}{link[2] or ""}"'

    return _LINK.sub(placed, html)
