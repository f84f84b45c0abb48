"""Every path of this repository and every dotted name of the package that the documentation mentions exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "luthier"
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    }
    - {ROOT / "CHANGELOG.md", ROOT / "docs" / "log.md"}  # history: what was there at the time
)
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?(?:::\w+)?")
TOP = {"src", "tests", "docs", "benchmarks", "recipes", "docsite", "frontend"}
TIERS = {"core", "ml", "platform", "features", "server", "testing"}
MADE = {"src/luthier/platform/ui/vendor"}
"""Folders that a build writes, so that a fresh checkout lacks them."""
DOTTED = re.compile(r"\bluthier(?:\.[A-Za-z_]\w*)+")
OTHER = {
    *("luthier.db", "luthier.dump", "luthier.fish"),  # files of a home, of a backup, of a shell
    *("luthier.alert.opened", "luthier.alert.closed", "luthier.inbox.assigned"),  # events of webhooks
    *("luthier.checks", "luthier.methods", "luthier.metrics", "luthier.objectives"),  # entry point groups
    *("luthier.exporters", "luthier.optimizers", "luthier.pages", "luthier.stream_engines"),
    "luthier.trackers",
}
"""Names with dots that are no modules."""


def paths_of(text: str) -> set[str]:
    """Paths in code spans that begin with a folder of the root or a tier of the package, or that end in `.py`."""
    found = set()
    for span in CODE.findall(text):
        for word in span.split():
            is_ours = word.split("/")[0] in TOP | TIERS or word.partition("::")[0].endswith(".py")
            if PATH.fullmatch(word) and "/" in word and is_ours:
                found.add(word)
    return found


def is_there(path: str) -> bool:
    """Whether a path exists, counted from the root or from `src/luthier`; `file::test` names a function of the file."""
    file, _, function = path.partition("::")
    if file.rstrip("/") in MADE:
        return True
    for base in (ROOT, PACKAGE):
        if (base / file).exists():
            return not function or f"def {function}(" in (base / file).read_text(encoding="utf-8")
    return False


def is_name(dotted: str) -> bool:
    """Whether a dotted name is a module of the package, or a name that a module of the package defines."""
    parts = dotted.split(".")[1:]
    here = PACKAGE
    while parts and (here / parts[0]).is_dir():
        here /= parts.pop(0)
    if not parts:
        return True
    file = here / f"{parts[0]}.py"
    if file.is_file():
        parts.pop(0)
    else:
        file = here / "__init__.py"
    return not parts or parts[0] in defined(file)


def defined(file: Path) -> set[str]:
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                found.add(node.name)
            case ast.Assign():
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case _:
                pass
    return found


def test_every_path_in_the_docs_exists() -> None:
    found = {(page, path) for page in PAGES for path in paths_of(page.read_text(encoding="utf-8"))}
    assert len(found) > 50
    assert sorted(f"{page.relative_to(ROOT)}: {path}" for page, path in found if not is_there(path)) == []


def test_every_dotted_name_in_the_docs_exists() -> None:
    found = {(page, name) for page in PAGES for name in DOTTED.findall(page.read_text(encoding="utf-8"))}
    assert len(found) > 20
    missing = sorted(
        f"{page.relative_to(ROOT)}: {name}" for page, name in found if name not in OTHER and not is_name(name)
    )
    assert missing == []


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (
            "see `src/luthier/core/recipe.py` and `ml/data/rows/formats.py`",
            {"src/luthier/core/recipe.py", "ml/data/rows/formats.py"},
        ),
        ("`luthier train recipe.yaml`, `GET /v1/models`, `out/report.html`", set()),
    ],
)
def test_what_counts_as_a_path(text: str, paths: set[str]) -> None:
    assert paths_of(text) == paths


def test_what_is_missing_is_found() -> None:
    assert not is_there("ml/data/no_such_file.py")
    assert not is_there("tests/test_docs_paths.py::test_no_such_test")
    assert not is_name("luthier.ml.data.no_such_module")
    assert not is_name("luthier.core.recipe.NoSuchRecipe")
    assert is_name("luthier.core.recipe.Recipe")
    assert is_name("luthier.train")
