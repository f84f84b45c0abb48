"""A number before a noun has both forms in what commands print, too: "1 row", "2 rows"."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest
from tests.platform.ui.test_plural_forms import NOUNS
from tests.vacuous import nonempty

import luthier

SOURCE: Final = Path(luthier.__file__).parent
PRINTING: Final = re.compile(r"(?:.*_)?(?:cli|format)\.py|console\.py|notebook\.py")
"""Modules that write what a terminal shows; all of a folder `cli` are."""
_BETWEEN = r"(?:(?!of |by )[a-z-]+ ){0,2}"
_COUNTED: Final = re.compile(
    rf"(?<!of )(?<!to )(?<!most )(?<!about )\{{(?P<value>[^{{}}]+)\}} {_BETWEEN}(?P<noun>{NOUNS})\b(?!/s)"
)
"""Behind these words there is the number of all, of which another one is a part, a bound, or a rounded estimate."""
NEVER_ONE: Final = {
    "LINK_SECONDS / 60": "a constant",
    "view.context_length_tokens": "the context of a model",
    "settings.suite_every_hours": "`every 1 hours` is written with a unit",
    "figures.count(quote.num_tokens)": "the tokens of a whole run",
    "figures.count(found.num_tokens)": "the tokens of a whole file",
    "room.length_tokens": "the longest row",
    "found.num_seeds": "shown from two trainings on",
    "gain.more_rows": "a tenth of the rows, rounded up to tens",
    "model": "a name and a verb",
    "most": "a size",
    "figures.number(fit.scale)": "a formula",
}
"""Values that are never 1, each with the reason; or no number at all."""


def _text(node: ast.JoinedStr) -> str:
    """An f-string with its expressions in braces."""
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "{" + re.sub(r"[{}]", "", ast.unparse(part.value)) + "}"
        for part in node.values
        if isinstance(part, ast.Constant | ast.FormattedValue)
    )


def without_singular(tree: ast.Module) -> list[tuple[int, str, str]]:
    """Counted nouns that have one form only: line, value, and what is printed."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found += [(node.lineno, one["value"], one[0]) for one in _COUNTED.finditer(_text(node))]
    return [one for one in found if not one[1].startswith("counted(")]


def printing_modules() -> list[Path]:
    return [
        path
        for path in sorted(SOURCE.rglob("*.py"))
        if PRINTING.fullmatch(path.name) or "cli" in path.relative_to(SOURCE).parts[:-1]
    ]


@pytest.fixture(scope="module")
def found() -> list[tuple[Path, int, str, str]]:
    return [
        (path.relative_to(SOURCE), *one)
        for path in nonempty(printing_modules())
        for one in without_singular(ast.parse(path.read_text(encoding="utf-8")))
    ]


def test_what_commands_print_has_a_singular(found: list[tuple[Path, int, str, str]]) -> None:
    wrong = [f"{path}:{line}: {text}" for path, line, value, text in found if value not in NEVER_ONE]
    assert wrong == [], "write it with `counted` of luthier.core.text.counted"


def test_no_exception_is_left_over(found: list[tuple[Path, int, str, str]]) -> None:
    assert set(NEVER_ONE) - {value for _, _, value, _ in found} == set()


def test_plurals_by_hand_are_found() -> None:
    texts = (
        'f"{found.num_rows:,} rows"',
        'f"{num} more rows of {total:,} rows"',
        "f\"{counted(num, 'row')}, {num} bytes/s\"",
    )
    tree = ast.parse(", ".join(texts))
    assert [(value, text) for _, value, text in without_singular(tree)] == [
        ("found.num_rows", "{found.num_rows} rows"),
        ("num", "{num} more rows"),
    ]
