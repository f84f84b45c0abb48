"""What a form says when it is done, in German: every notice that a handler of the pages leads on with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.vacuous import nonempty

import luthier
from luthier.platform.ui.i18n.catalog import catalog

FEATURES = Path(luthier.__file__).parent / "features"
PLACES = {"redirect": 2, "Led": 1, "answer": 1}
"""Which argument of these calls is a notice, or the title of work that a page waits for."""
Assigned = dict[str, list[ast.expr]]


def modules() -> list[Path]:
    """Those with handlers of pages."""
    return sorted({*FEATURES.glob("**/*pages.py"), *FEATURES.glob("**/pages/*.py")})


def assigned_in(function: ast.AST) -> Assigned:
    """What each name of a function may hold."""
    found: Assigned = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return found


def texts_of(value: ast.expr, assigned: Assigned) -> Iterator[str]:
    """Samples of the text that an expression makes, with a 7 for each value; none of what other functions make."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.JoinedStr):
        yield "".join(next(iter(_part(part, assigned)), "7") for part in value.values)
    elif isinstance(value, ast.IfExp):
        yield from (*texts_of(value.body, assigned), *texts_of(value.orelse, assigned))
    elif isinstance(value, ast.Name):
        for one in assigned.get(value.id, []):
            yield from texts_of(one, assigned)
    elif isinstance(value, ast.Call) and getattr(value.func, "id", "") == "counted":
        words = [str(one.value) for one in value.args[1:] if isinstance(one, ast.Constant)]
        yield from (f"1 {words[0]}", f"7 {words[1] if len(words) > 1 else f'{words[0]}s'}")


def _part(part: ast.expr, assigned: Assigned) -> Iterator[str]:
    if not isinstance(part, ast.FormattedValue):
        yield from texts_of(part, assigned)
    elif isinstance(part.value, ast.Call | ast.IfExp):
        yield from reversed(list(texts_of(part.value, {})))


def notices_of(path: Path) -> Iterator[tuple[str, str]]:
    """The notices of a module, each with where it is."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assigned = assigned_in(function)
        for call in ast.walk(function):
            name = getattr(call.func, "id", "") or getattr(call.func, "attr", "") if isinstance(call, ast.Call) else ""
            if not isinstance(call, ast.Call) or name not in PLACES:
                continue
            given = [
                *call.args[PLACES[name] : PLACES[name] + 1],
                *(one.value for one in call.keywords if one.arg == "notice"),
            ]
            for value in given:
                for text in texts_of(value, assigned):
                    if re.search("[A-Za-z]{2}", text) and " " in text.strip():
                        yield f"{path.name}:{call.lineno}", text


def test_every_notice_of_a_form_is_translated() -> None:
    texts = catalog("de")
    found = nonempty(sorted({one for path in modules() for one in notices_of(path)}))
    assert len(found) > 80
    english = [f"{place}: {text}" for place, text in found if texts.sentence(text.strip(), str) is None]
    assert english == [], "name their modules, functions or variables in locale/sentences.cfg, and translate them"
