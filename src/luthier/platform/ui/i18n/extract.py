"""Texts for the catalogs, as Babel extracts them: of templates for `pages.po`, of Python for `sentences.po`."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import product
from typing import Any, BinaryIO, Final, TypeAlias

from luthier.platform.ui.i18n.environments import messages_of

Extracted: TypeAlias = "tuple[int, str | None, str | tuple[str, str], list[str]]"
"""What Babel expects: line, function, text or the two forms of a plural, comments."""
_NO_TEXT_CALLS: Final = frozenset(
    (
        *("compile", "import_string", "getLogger", "debug", "info", "warning", "error", "exception", "get", "getattr"),
        *("startswith", "endswith", "replace", "split", "join", "removeprefix", "removesuffix", "partition", "Page"),
        *("Literal", "Path", "APIRouter", "Query", "Form", "encode", "strip", "rstrip", "lstrip"),
        *("AssertionError",),
    )
)
_WITH_UNIT: Final = frozenset(("size", "duration", "short_count", "percent", "speed"))
"""Functions that write a number with a unit."""
_ALWAYS: Final = ("Led", "redirect", "notice", "task", "track")
"""Endings of names of calls and variables whose texts are shown wherever they are: notices, and titles of work."""
_LETTERS: Final = re.compile(r"[A-Za-z]{2}")
_CODE: Final = re.compile(r"[<>{}\\=|^]|^\S*_\S*$|::|//|^[/#.]|^[a-z]+:[a-z]|%\w|^\S*/\S*$|^luthier ")


def templates(file: BinaryIO, _keywords: Any, _tags: Any, options: Any) -> Iterator[Extracted]:  # noqa: ARG001
    """The texts of a template."""
    seen = set[str]()
    for message in messages_of(file.read().decode("utf-8")):
        if message.id not in seen:
            seen.add(message.id)
            forms = (message.id, message.plural) if message.plural else message.id
            yield message.line, "ngettext" if message.plural else None, forms, []


def sentences(
    file: BinaryIO, _keywords: Collection[str], _tags: Collection[str], options: Mapping[str, str]
) -> Iterator[Extracted]:
    """The texts of a Python module: strings of several words or with a capital, without docstrings, logs and errors.

    Options of the mapping:
        errors: `yes` takes the texts of errors that the module raises, too.
        only: Names of functions, classes and constants of the module, separated by blanks; empty for all.
        within: Endings of names of calls and variables, separated by blanks: `Error note why` takes the arguments of
            `RequestError(...)` and `sources.note(...)` and what is assigned to `why`; empty for all. With `only`: what
            is taken of the rest of the module.
        functions: Names of functions and methods, at any depth, that are taken whole beside `within`.
        words: Further single words, separated by blanks, that the module makes.
    """
    tree = ast.parse(file.read())
    only, functions = options.get("only", "").split(), options.get("functions", "").split()
    is_partial = "within" in options or only or functions
    within = (*_ALWAYS, *options.get("within", "").split()) if is_partial else ()
    reader = _Reader(
        takes_errors=options.get("errors") == "yes" or "Error" in within, within=within, functions=frozenset(functions)
    )
    for node in tree.body:
        if only and reader.names_of(node) & set(only):
            reader.visit_whole(node)
        else:
            reader.visit(node)
    for line, text in reader.found:
        yield line, None, text, []
    for word in options.get("words", "").split():
        yield 1, None, word.replace("_", " "), []


def yaml_texts(file: BinaryIO, _keywords: Any, _tags: Any, options: Any) -> Iterator[Extracted]:
    """The texts of a YAML file below the keys that the option `keys` names, separated by blanks."""
    import yaml

    waiting, keys = [yaml.compose(file.read())], set(options.get("keys", "").split())
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(value, yaml.ScalarNode) and key.value in keys and value.value:
                    yield value.start_mark.line + 1, None, value.value, []
                waiting.append(value)
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def lines(file: BinaryIO, _keywords: Any, _tags: Any, options: Any) -> Iterator[Extracted]:  # noqa: ARG001
    """The lines of a text file, without those that begin with `#`."""
    for number, line in enumerate(file.read().decode("utf-8").splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, None, line, []


class _Reader(ast.NodeVisitor):
    def __init__(
        self, *, takes_errors: bool, within: tuple[str, ...] = (), functions: frozenset[str] = frozenset()
    ) -> None:
        self.found: list[tuple[int, str]] = []
        self._takes_errors = takes_errors
        self._within, self._functions = within, functions
        self._depth = 0 if within or functions else 1

    def visit_whole(self, node: ast.stmt) -> None:
        """Take all texts of a part of the module, also with `within`."""
        self._depth += 1
        self.visit(node)
        self._depth -= 1

    @staticmethod
    def names_of(node: ast.stmt) -> set[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return {node.name}
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        return {target.id for target in targets if isinstance(target, ast.Name)}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        is_named = node.name in self._functions
        self._depth += is_named
        self.generic_visit(node)
        self._depth -= is_named

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        if self._takes_errors:
            self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        """What only a bug would show is no text."""

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if (nouns := _nouns(node)) is not None:
            number = _placeholder(node, {})
            self.found += [(node.lineno, f"{{{number}}} {noun}") for noun in nouns if self._depth]
            return
        if name == "Page" and node.args and isinstance(node.args[0], ast.Constant):
            self.found.append((node.lineno, str(node.args[0].value)))
        if name not in _NO_TEXT_CALLS and (self._takes_errors or not name.endswith("Error")):
            self._visit_within(node, name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._visit_within(node, next((target.id for target in node.targets if isinstance(target, ast.Name)), ""))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._visit_within(node, getattr(node.target, "id", ""))

    def _visit_within(self, node: ast.AST, name: str) -> None:
        is_named = bool(self._within) and name.endswith(self._within)
        self._depth += is_named
        self.generic_visit(node)
        self._depth -= is_named

    def visit_Compare(self, node: ast.Compare) -> None:
        # What is compared is a key.
        if isinstance(node.left, ast.Call):
            self.visit(node.left)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        # The annotation is no text.
        if node.value is not None:
            self.visit(node.value)

    def visit_arguments(self, node: ast.arguments) -> None:
        for default in (*node.defaults, *node.kw_defaults):
            if default is not None:
                self.visit(default)

    def visit_Constant(self, node: ast.Constant) -> None:
        if self._depth and isinstance(node.value, str) and _is_text(node.value):
            self.found.append((node.lineno, node.value))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        names: dict[str, str] = {}
        parts = [_forms(part, names) for part in node.values]
        # A number with its noun has its own words; both forms of it are texts.
        counts = [part for part in node.values if isinstance(part, ast.FormattedValue) and _nouns(part.value)]
        text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        if self._depth and (_is_text(text, is_whole=False) or (counts and _LETTERS.search(text))):
            self.found += [(node.lineno, "".join(one)) for one in product(*parts)]
            counts = [part for part in node.values if part in counts]
        else:
            counts = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue) and part not in counts:
                self.visit(part.value)


def _is_text(text: str, *, is_whole: bool = True) -> bool:
    bare = text.strip()
    if not _LETTERS.search(bare) or _CODE.search(bare):
        return False
    return " " in bare or (is_whole and bare[0].isupper() and not bare.isupper())


def _nouns(node: ast.expr) -> tuple[str, str] | None:
    """The two forms of `counted(number, noun, plural)`; None for anything else."""
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "counted"
    if not is_call or not isinstance(node, ast.Call):
        return None
    words = [str(one.value) for one in node.args[1:] if isinstance(one, ast.Constant)]
    return (words[0], words[1] if len(words) > 1 else f"{words[0]}s") if words else None


def _forms(part: ast.expr, names: dict[str, str]) -> tuple[str, ...]:
    """A part of a text as the catalogs have it: of a number with its noun both forms."""
    if isinstance(part, ast.Constant):
        return (str(part.value),)
    nouns = _nouns(part.value) if isinstance(part, ast.FormattedValue) else None
    name = _placeholder(part, names)
    return (f"{{{name}}}",) if nouns is None else tuple(f"{{{name}}} {noun}" for noun in nouns)


def _placeholder(part: ast.expr, names: dict[str, str]) -> str:
    """A name for a value, the same for the same expression."""
    value = part.value if isinstance(part, ast.FormattedValue) else part
    source = ast.unparse(value)
    inner: ast.expr = value
    while isinstance(inner, ast.Call):
        inner = inner.args[0] if inner.args else inner.func
    name = inner.attr if isinstance(inner, ast.Attribute) else inner.id if isinstance(inner, ast.Name) else "value"
    if isinstance(value, ast.Call) and getattr(value.func, "attr", "") in _WITH_UNIT:
        # `num...` is a bare number.
        name = name.removeprefix("num_")
    if isinstance(value, ast.IfExp):
        name = "ending"
    if _nouns(value) is not None:
        # A placeholder that takes numbers alone.
        name = "num" if name in ("num", "value") else f"num_{name.removeprefix('num_')}"
    made, number = name, 1
    while names.get(made, source) != source:
        number += 1
        made = f"{name}{number}"
    names[made] = source
    return made
