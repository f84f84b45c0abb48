"""The buttons, links and tabs that docs/tutorials/browser.md names in bold are those of the pages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.vacuous import nonempty

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorials" / "browser.md"
PACKAGE = ROOT / "src" / "luthier"
BOLD = re.compile(r"\*\*([^*\n]+)\*\*")


def strings_of_the_program() -> set[str]:
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def is_written(label: str, templates: str) -> bool:
    """Whether a template has this text between tags or quotes; a number in it may be a value of the template."""
    words = re.sub(r"\\? \d+", r" (?:\\d+|\\{\\{[^}]+\\}\\})", re.escape(label))
    return re.search(rf"[>\"'}}]\s*{words}\s*[<\"'{{(]", templates) is not None


def test_every_label_is_on_a_page() -> None:
    labels = nonempty(sorted(set(BOLD.findall(PAGE.read_text(encoding="utf-8")))))
    assert len(labels) >= 20
    templates = "\n".join(file.read_text(encoding="utf-8") for file in sorted(PACKAGE.rglob("*.html")))
    strings = strings_of_the_program()
    assert [label for label in labels if label not in strings and not is_written(label, templates)] == []


def test_a_label_of_another_name_is_found() -> None:
    assert is_written("Make version 2", "<button>Make version {{ next }}</button>")
    assert is_written("Start", '<a class="b">\n  Start\n</a>')
    assert not is_written("Start", "<p>Start here</p>")
