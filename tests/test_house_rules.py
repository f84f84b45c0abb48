"""Policies of the house, written as tests, so that they are kept without anybody remembering them."""

from __future__ import annotations

import ast
import gc
import inspect
import re
import tomllib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from tests.vacuous import nonempty, unguarded_loops

ROOT = Path(__file__).resolve().parents[1]
AUDIT_LOG = "luthier.platform.audit_log"
Functions = dict[Path, list[ast.FunctionDef | ast.AsyncFunctionDef]]
MAX_LINES, MOST_FUNCTION_LINES, MOST_LOOP_LINES = 500, 65, 110
"""Of a file, and of a function without its docstring: a described argument is no reason to split a function."""


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    """The sources by their files; read here, since every process that collects tests imports this module."""
    return {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))}


@pytest.fixture(scope="module")
def trees(texts: dict[Path, str]) -> dict[Path, ast.Module]:
    """Millions of objects, all of which stay: the garbage collector would walk over them again and again."""
    gc.disable()
    try:
        found = {path: ast.parse(text) for path, text in texts.items()}
        gc.freeze()  # they have no cycles: what refers to them frees them
    finally:
        gc.enable()
    return found


@pytest.fixture(scope="module")
def functions(trees: dict[Path, ast.Module]) -> Functions:
    """Those of each file, also within others."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return {path: [node for node in statements(tree) if isinstance(node, kinds)] for path, tree in trees.items()}


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """A module and the statements within it at any depth, outermost first, as `ast.walk` without the expressions.

    No class and no function is part of an expression, and expressions are nine tenths of a tree.
    """
    todo = deque([tree])
    while todo:
        node = todo.popleft()
        yield node
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            todo += getattr(node, part, ())


def test_all_classes_and_functions_are_found_without_a_look_at_expressions() -> None:
    code = """
class A:
    async def b(self):
        if x:
            pass
        elif y:
            def c(): return lambda: 0
        else:
            with z:
                class D: pass
try:
    def e(): pass
except E:
    def f(): pass
else:
    def g(): pass
finally:
    match x:
        case 1:
            for x in y:
                def h(): pass
            else:
                while x:
                    def i(): pass
"""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node.name for node in statements(ast.parse(code)) if isinstance(node, kinds)]
    assert "".join(sorted(found)) == "ADbcefghi"


def docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    return 0 if ast.get_docstring(function) is None else (first.end_lineno or 0) - first.lineno + 1


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_threads_are_started_in_one_place(texts: dict[Path, str], trees: dict[Path, ast.Module]) -> None:
    """`start_daemon` names each thread, lets the process end, and says what to do where the system starts no more.

    Timers (`threading.Timer` of mails and webhooks) are deadlines, and the block that sets one ends it.
    """
    made, imported = set[str](), set[str]()
    for path in (path for path, text in texts.items() if "Thread" in text):
        for node in ast.walk(trees[path]):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="threading"), attr="Thread")):
                    made.add(where(path))
                case ast.ImportFrom(module="threading") if any(name.name == "Thread" for name in node.names):
                    imported.add(where(path))
    assert made == {"src/luthier/core/system/process_setup.py"}
    assert imported == set()


def test_entries_of_the_audit_log_are_written_in_the_transaction_of_their_change(
    texts: dict[Path, str], trees: dict[Path, ast.Module]
) -> None:
    """`record` checks that while it runs; here it holds for code that no test reaches, too."""
    logged, offenders = 0, []
    for path in (path for path, text in texts.items() if AUDIT_LOG in text):
        tree = trees[path]
        inside = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and any(is_transaction(item.context_expr) for item in block.items)
            for node in ast.walk(block)
        }
        for call in calls_of_record(tree):
            logged += 1
            if id(call) not in inside:
                offenders.append(f"{where(path)}:{call.lineno}")
    assert logged > 10
    assert offenders == [], "put change and `record` into `with context.database.transaction():`"


def is_transaction(block: ast.expr) -> bool:
    return isinstance(block, ast.Call) and isinstance(block.func, ast.Attribute) and block.func.attr == "transaction"


def calls_of_record(tree: ast.Module) -> Iterator[ast.Call]:
    """The calls of the audit log's `record`, however it is imported."""
    names = {
        (name.asname or name.name, name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(AUDIT_LOG)
        for name in node.names
    }
    for call in ast.walk(tree):
        match call:
            case ast.Call(func=ast.Name(id=name)) if (name, "record") in names:
                yield call
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="record")) if (name, "service") in names:
                yield call


def test_there_are_sources(trees: dict[Path, ast.Module]) -> None:
    assert len(trees) > 500


def test_files_stay_small(texts: dict[Path, str]) -> None:
    lengths = {where(path): len(text.splitlines()) for path, text in texts.items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}, "split these files"


def test_functions_stay_small(functions: Functions) -> None:
    offenders = []
    for path, of_file in nonempty(functions.items()):
        if "migrations/versions" in where(path):  # a migration lists tables from top to bottom
            continue
        most = MOST_LOOP_LINES if where(path).endswith("ml/training/loop.py") else MOST_FUNCTION_LINES
        for function in of_file:
            length = (function.end_lineno or 0) - function.lineno - docstring_lines(function)
            if length >= most:
                offenders.append(f"{where(path)}: {function.name} has {length} lines")
    assert offenders == []


def test_no_file_has_a_name_that_says_nothing(trees: dict[Path, ast.Module]) -> None:
    assert [where(path) for path in trees if path.stem in {"utils", "helpers", "common", "misc"}] == []


def test_nothing_is_left_open(texts: dict[Path, str]) -> None:
    offenders = []
    for path, text in texts.items():
        if where(path).endswith("ml/data/documents/python_docs.py"):  # names words that it leaves out
            continue
        for word in ("TODO", "FIXME", "XXX", "raise NotImplementedError", "coming soon", "pragma: no cover"):
            if word in text:
                offenders.append(f"{where(path)}: {word}")
    assert offenders == []


def test_public_things_have_docstrings(trees: dict[Path, ast.Module]) -> None:
    offenders = []
    for path, tree in trees.items():
        if not ast.get_docstring(tree):
            offenders.append(f"{where(path)}: the module")
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                offenders.append(f"{where(path)}: {node.name}")
    assert offenders == []


SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):$", re.MULTILINE)
NAMED_ERROR = re.compile(r"\b[A-Z]\w*(?:Error|Exit)\b")
RAISES = re.compile(r"\bRaises (?!nothing)((?:[^.\n]|\.(?=\w)|\n(?!\n))+)")
"""A sentence of prose, which may go over several lines."""
POINTS_ELSEWHERE = re.compile(r"(as|what|like|see|the same as)\b|an error of", re.IGNORECASE)


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods of classes that have a docstring; functions within functions are internal."""
    for node in tree.body:
        for one in node.body if isinstance(node, ast.ClassDef) else [node]:
            if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) or one.name.startswith("_"):
                continue
            if ast.get_docstring(one):
                yield one


def sections(docstring: str) -> dict[str, str]:
    """The entries of each section of a Google-style docstring, without their common indentation."""
    first, *rest = SECTION.split(docstring)
    found = {"": first}
    for title, text in zip(rest[::2], rest[1::2], strict=True):
        lines = text.split("\n\n")[0].strip("\n").split("\n")
        found[title] = "\n".join(line.removeprefix("    ") for line in lines)
    return found


def entries(section: str) -> Iterator[tuple[list[str], str]]:
    """The names of each entry, and its text."""
    for entry in re.split(r"\n(?! )", section):
        names, _, text = entry.partition(":")
        yield [name.strip().lstrip("*") for name in names.split(",")], text.strip()


def errors_without_condition(docstring: str) -> Iterator[str]:
    """Errors that a docstring names without saying when they are raised, or leaves to another function."""
    for names, text in entries(sections(docstring).get("Raises", "None: none")):
        if not text or POINTS_ELSEWHERE.match(text):
            yield f"{', '.join(names)}: {text}"
    for sentence in RAISES.findall(docstring):
        if not re.match(r"[`A-Z]", sentence):
            yield f"Raises {sentence}"
        for name in NAMED_ERROR.finditer(sentence):
            if re.match(r"[,;.]|$| as `", sentence[name.end() :]):
                yield f"Raises {name.group()}"


def unnamed_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef, docstring: str) -> set[str]:
    """Arguments that a section Args leaves out; none where there is no such section."""
    if "Args" not in (found := sections(docstring)):
        return set()
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg])]
    asked = {one.arg for one in every if one.arg not in ("self", "cls") and not one.arg.startswith("_")}
    return asked - {name for names, _ in entries(found["Args"]) for name in names}


def raised_errors(function: ast.FunctionDef | ast.AsyncFunctionDef, known: set[str]) -> set[str]:
    """Our errors that the body raises by name; not those of a `try` or a function within it, which may be caught."""
    found, todo = set[str](), list[ast.AST](function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Try):
            todo += [*node.handlers, *node.orelse, *node.finalbody]
            continue
        if isinstance(node, ast.Raise):
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(error, ast.Name) and error.id in known:
                found.add(error.id)
        todo += ast.iter_child_nodes(node)
    return found


def is_shown_to_users(path: Path, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the docstring is the help of a command, or the description of a route."""
    verbs = ("get", "post", "put", "patch", "delete", "command", "callback")
    ways = (one.func for one in function.decorator_list if isinstance(one, ast.Call))
    is_route = any(isinstance(way, ast.Attribute) and way.attr in verbs for way in ways)
    return is_route or "cli" in path.stem or "cli" in path.parent.parts


def test_docstrings_name_each_error_with_its_condition(trees: dict[Path, ast.Module]) -> None:
    """Errors by name and condition, where the function itself raises them or lets them pass."""
    from luthier.core import errors

    ours = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.LuthierError)}
    num_seen, offenders = 0, []
    for path, tree in trees.items():
        for function in public_functions(tree):
            docstring = ast.get_docstring(function) or ""
            num_seen += "Raises" in docstring
            wrong = list(errors_without_condition(docstring))
            if not is_shown_to_users(path, function):
                wrong += [name for name in raised_errors(function, ours) if name not in docstring]
            offenders += [f"{where(path)}:{function.lineno}: {function.name}: {one}" for one in wrong]
    assert num_seen > 500
    assert offenders == [], "write `Raises:` with each error and when it is raised"


def test_a_section_of_arguments_names_all_of_them(trees: dict[Path, ast.Module]) -> None:
    num_seen, offenders = 0, []
    for path, tree in trees.items():
        for function in public_functions(tree):
            docstring = ast.get_docstring(function) or ""
            num_seen += "Args:" in docstring
            if left_out := unnamed_arguments(function, docstring):
                offenders.append(f"{where(path)}:{function.lineno}: {function.name}: {', '.join(sorted(left_out))}")
    assert num_seen > 500
    assert offenders == []


@pytest.mark.parametrize(
    ("docstring", "num_wrong"),
    [
        ("One. Raises NotFoundError.", 1),
        ("One. Raises NotFoundError, ConflictError where it is used.", 1),
        ("One. Raises DataError as `read` does.", 1),
        ("One. Raises what `read` raises.", 1),
        ("One.\n\nRaises:\n    DataError: as `read`.", 1),
        ("One.\n\nRaises:\n    DataError", 1),
        ("One. Raises NotFoundError where there is none.", 0),
        ("One. Raises BusyError or WorkError where nothing is free.", 0),
        ("One. Raises nothing: what can be read counts.", 0),
        ("One.\n\nRaises:\n    DataError, OSError: it cannot\n        be read.\n    WorkError: it has ended.", 0),
    ],
)
def test_errors_without_condition_are_found(docstring: str, num_wrong: int) -> None:
    assert len(list(errors_without_condition(docstring))) == num_wrong


def test_no_open_keyword_arguments_in_public_functions(functions: Functions) -> None:
    offenders = []
    for path, of_file in nonempty(functions.items()):
        for function in of_file:
            argument = function.args.kwarg
            if argument is not None and not argument.arg.startswith("_") and not function.name.startswith("_"):
                offenders.append(f"{where(path)}: {function.name} takes **{argument.arg}")
    assert offenders == []


def test_every_source_folder_is_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in nonempty(sorted((ROOT / "src" / "luthier").iterdir())):
        if folder.is_dir() and folder.name != "__pycache__":
            assert f"{folder.name}/" in page, f"docs/architecture.md does not name {folder.name}/"


def test_the_tables_of_folders_are_those_of_the_layers() -> None:
    """The page lists folders lowest first, import-linter highest first; none is left out of either."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    for tier in ("features", "platform", "ml"):
        (layers,) = (one["layers"] for one in contracts if one.get("containers") == [f"luthier.{tier}"])
        assert re.findall(rf"^\| `{tier}/(\w+)/` \|", page, re.MULTILINE) == layers[::-1], tier
        there = {path.parent.name for path in (ROOT / "src" / "luthier" / tier).glob("*/__init__.py")}
        assert set(layers) == there, tier


PRIVATE_WORDS = (
    "anew", "arrivals", "askable", "asked_by", "asks", "beginnings", "came_to", "cargo", "continue_all", "crew", "deed",
    "desk", "give_way", "keeper", "keeping", "listening", "lone", "lookout", "materials", "patiently", "roomy", "talk",
    "telling", "told", "untold",
)  # fmt: skip
"""What earlier versions called things that the field has names for (docs/glossary.md, third column)."""
PRIVATE_OF_CODE = ("gone", "kept", "most", "patience", "places")
"""Of classes and functions alone: arguments and fields may be called so."""
PUBLIC_ADDRESSES = {"features/human_eval/pages.py: deed"}
"""A part of the address of a route, which is public."""
_PRIVATE, _PRIVATE_OF_CODE = (
    re.compile(rf"(?:^|_)(?:{'|'.join(words)})(?:_|$)") for words in (PRIVATE_WORDS, PRIVATE_OF_CODE)
)


def names_in(tree: ast.AST) -> Iterator[str]:
    """Names of classes, functions, arguments, fields and constants; not those within a function."""
    for node in statements(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
            given = node.args
            every = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
            yield from (one.arg for one in every if one is not None)
        if isinstance(node, ast.Module | ast.ClassDef):
            for one in node.body:
                targets = one.targets if isinstance(one, ast.Assign) else [one.target] if is_annotated(one) else []
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def is_annotated(node: ast.AST) -> TypeGuard[ast.AnnAssign]:
    return isinstance(node, ast.AnnAssign)


def private_names(tree: ast.AST) -> list[str]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    code = {node.name for node in statements(tree) if isinstance(node, kinds)}
    words = {name: re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() for name in names_in(tree)}
    return [
        name
        for name, parts in words.items()
        if _PRIVATE.search(parts) or (name in code and _PRIVATE_OF_CODE.search(parts))
    ]


def test_names_are_the_terms_of_the_field(trees: dict[Path, ast.Module]) -> None:
    offenders = {
        f"{where(path).removeprefix('src/luthier/')}: {name}"
        for path, tree in trees.items()
        for name in [*private_names(tree), *([path.stem] if _PRIVATE.search(path.stem) else [])]
    }
    assert offenders == PUBLIC_ADDRESSES, "docs/glossary.md has the names of the field"


def test_a_private_name_is_found_wherever_one_is_given() -> None:
    code = """
ROOMY_SIZE = 1
class AdmissionDesk:
    told: int
    def kept_rows(self, *, num_told: int = 0, masks=(), kept=1):
        asks = 1
"""
    assert private_names(ast.parse(code)) == ["ROOMY_SIZE", "AdmissionDesk", "told", "kept_rows", "num_told"]


def test_recipe_fields_are_all_documented_in_the_readme_or_reference() -> None:
    from luthier.core import recipe
    from luthier.core.aliases import new_key

    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    for name, kind in nonempty(inspect.getmembers(recipe, inspect.isclass)):
        if name.endswith("Recipe") and kind.__module__ == recipe.__name__:
            section = name.removesuffix("Recipe").lower()
            prefix = "data.replay." if section == "replay" else f"{section}."
            for field in nonempty(kind.model_fields):
                shown = new_key(f"{prefix}{field}").removeprefix(prefix)
                assert f"`{shown}`" in page, f"docs/recipe.md does not name {name}.{field}"


def test_no_loop_of_assertions_passes_over_nothing() -> None:
    # One tree after the other: all of them at once are millions of objects for the garbage collector.
    offenders = [
        f"{where(path)}:{line}: {over}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, over in unguarded_loops(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert offenders == [], "wrap what they go over in tests.vacuous.nonempty"


def test_loops_over_nothing_are_found() -> None:
    loops = {
        "for x in f(): assert x": 1,
        "assert all(x for x in f())": 1,
        "found = f()\n    assert all(x for x in found if x > 1)": 1,
        "found = f()\n    assert found == []\n    for x in found: assert x": 1,
        "found = f()\n    assert len(found) < 9\n    for x in found: assert x": 1,
        "found = f()\n    assert found\n    for x in found: assert x": 0,
        "found = f()\n    assert len(found) == 2\n    for x, y in found.items(): assert x == y": 0,
        "for x in nonempty(f()): assert x": 0,
        "for x in (1, *f()): assert x": 0,
        "for x in f(): print(x)": 0,
    }
    for body, num_found in loops.items():
        assert len(unguarded_loops(ast.parse(f"def test():\n    {body}\n"))) == num_found, body
