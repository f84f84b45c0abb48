"""Policies of the house, written as tests, so that they are kept without anybody remembering them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES, MOST_LOOP_LINES = 500, 65, 120


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES, "split the file"
    for function in functions(ast.parse(text)):
        if "migrations/versions" in where(path):  # a migration lists tables from top to bottom
            continue
        most = MOST_LOOP_LINES if where(path).endswith("train/loop.py") else MOST_FUNCTION_LINES
        assert (function.end_lineno or 0) - function.lineno < most, f"{function.name} is too long"


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_no_room_without_a_name_and_nothing_left_open(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    text = path.read_text(encoding="utf-8")
    for word in ("TODO", "FIXME", "XXX", "raise NotImplementedError", "coming soon", "pragma: no cover"):
        allowed = where(path).endswith("data/python_docs.py")  # names words that it leaves out
        assert allowed or word not in text, word


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_public_things_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module says in one sentence what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_no_open_keyword_arguments_in_public_functions(path: Path) -> None:
    for function in functions(ast.parse(path.read_text(encoding="utf-8"))):
        named = function.args.kwarg is not None and not function.args.kwarg.arg.startswith("_")
        assert function.name.startswith("_") or not named, f"{function.name} takes **{function.args.kwarg}"


def test_every_source_folder_is_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in sorted((ROOT / "src" / "luthier").iterdir()):
        if folder.is_dir() and folder.name != "__pycache__":
            assert f"{folder.name}/" in page, f"docs/architecture.md does not name {folder.name}/"


def test_recipe_fields_are_all_documented_in_the_readme_or_reference() -> None:
    from luthier.core import recipe

    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    for name, kind in inspect.getmembers(recipe, inspect.isclass):
        if name.endswith("Recipe") and kind.__module__ == recipe.__name__:
            for field in kind.model_fields:
                assert f"`{field}`" in page, f"docs/recipe.md does not name {name}.{field}"
