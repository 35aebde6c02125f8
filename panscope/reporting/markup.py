"""Text as HTML: everything that comes from results is escaped, as names and texts are other people's."""

import html
from typing import Any


def text(value: Any) -> str:
    """Anything as text of the page."""
    return html.escape(str(value), quote=True)


def with_code(sentence: str) -> str:
    """A sentence as HTML, with what stands between backticks as code."""
    parts = sentence.split("`")
    return "".join(f"<code>{text(part)}</code>" if n % 2 else text(part) for n, part in enumerate(parts))
