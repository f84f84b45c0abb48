"""Each message that docs/troubleshooting.md explains is one of the program."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

from tests.vacuous import nonempty

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
HEADINGS: Final = ("message", "status and message")
GAP: Final = "\0"
"""In a text of the program: where a value is filled in."""


def messages_of(page: str) -> list[str]:
    """The code spans in the first column of the tables of messages; `...` in them is a placeholder for values."""
    found: list[str] = []
    is_messages = False
    for line in page.splitlines():
        if not line.startswith("|"):
            is_messages = False
            continue
        first = re.split(r"(?<!\\)\|", line)[1].strip()
        if first in HEADINGS:
            is_messages = True
        elif is_messages:
            found += [span.replace("\\|", "|") for span in SPAN.findall(first)]
    return found


def text_of(node: ast.expr) -> str | None:
    """A string of the program, with a gap for each value of a formatted one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    return None


@pytest.fixture(scope="module")
def program() -> list[str]:
    """All strings of the package."""
    texts = set()
    for file in sorted((ROOT / "src" / "luthier").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = text_of(node) if isinstance(node, ast.expr) else None
            if text:
                texts.add(text)
    return sorted(texts)


def is_said(message: str, texts: list[str]) -> bool:
    """Whether one string of the program has all parts of a message, in order."""
    parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
    pattern = re.compile(r"[\s\S]*?".join(parts))
    return any(pattern.search(text) for text in texts)


def test_every_message_is_one_of_the_program(program: list[str]) -> None:
    found = nonempty(messages_of(PAGE.read_text(encoding="utf-8")))
    assert len(found) >= 40
    assert [message for message in found if not is_said(message, program)] == []


def test_a_message_of_other_words_is_found() -> None:
    assert is_said("... is in use by ...", [f"port {GAP} is in use by another program"])
    assert not is_said("... is used by ...", [f"port {GAP} is in use by another program"])
    assert not is_said("another ... port", [f"port {GAP} is in use by another program"]), "parts have an order"
    table = "| message | cause |\n|---|---|\n| `a \\| b` | `c` |\n\n| problem | remedy |\n|---|---|\n| `d` | e |\n"
    assert messages_of(table) == ["a | b"]
