"""The messages that the troubleshooting page quotes are those that the program prints."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
LONGEST_VALUE = 4
"""How many words in a row of a quoted message may be values instead of text of the program."""


def template(node: ast.AST) -> re.Pattern[str] | None:
    """What a string literal prints: its constant parts, a group each, with anything for the values of an f-string."""
    if isinstance(node, ast.JoinedStr):
        constants = [re.escape(str(part.value)) for part in node.values if isinstance(part, ast.Constant)]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        constants = [re.escape(node.value)]
    else:
        return None
    return re.compile(".*?".join(f"({part})" for part in constants)) if words(" ".join(constants), 3) else None


def words(text: str, least: int = 1) -> list[str]:
    found = re.findall(r"[A-Za-z]\w*", text)
    return found if len(found) >= least else []


@cache
def templates() -> list[re.Pattern[str]]:
    """The string literals of the package that have at least three words."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "panscope").rglob("*.py"))
    found = (template(node) for source in sources for node in ast.walk(ast.parse(source)))
    return [pattern for pattern in found if pattern]


def longest_unknown(message: str) -> list[str]:
    """The longest run of words that no string literal of the package accounts for."""
    rest = message
    for pattern in templates():
        for match in pattern.finditer(message):
            for group in range(1, pattern.groups + 1):
                start, end = match.span(group)
                rest = rest[:start] + "|" * (end - start) + rest[end:]
    return max((words(run) for run in re.split(r"\|+", rest)), key=len)


def quotes() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("message", quotes())
def test_a_quoted_message_is_one_of_the_program(message: str):
    unknown = longest_unknown(message)
    assert len(unknown) <= LONGEST_VALUE, f"no message of the program has the words {' '.join(unknown)!r}"


def test_a_stale_quote_is_found():
    assert len(longest_unknown("the text was gone through 3 times; more text would be better than more passes")) > 4
