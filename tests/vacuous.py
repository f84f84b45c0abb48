"""Assertions over each of many, which pass where there is nothing: the guard, and what finds those without one."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Found = TypeVar("Found")
_PASS_ON = {"sorted", "list", "tuple", "set", "frozenset", "reversed", "enumerate", "dict", "iter"}
"""Functions whose result is as empty as their first argument is."""
_VIEWS = {"items", "values", "keys", "copy"}
_FROM_ALL = {"product", "permutations", "combinations", "pairwise"}
_DEEPEST = 8
"""How many names are followed to what they were assigned: far more than tests nest, and an end for those in circles."""


def nonempty(found: Iterable[Found]) -> list[Found]:
    """All of it, for a loop of assertions. Raises AssertionError where there is nothing."""
    all_of_it = list(found)
    assert all_of_it, "nothing to look at: the assertions about each would all pass"
    return all_of_it


def unguarded_loops(tree: ast.Module) -> list[tuple[int, str]]:
    """Of the tests: each `for` with an assertion in it, and each `assert all(...)`, that may be over nothing.

    A loop passes where its iterable is written out with something in it, where it is wrapped in `nonempty`, and where
    another assertion of the same function is about the same expression, such as `assert len(found) == 3`. What
    Hypothesis makes (`@given`) may be empty, and the loops over it with it. Where nothing is a right answer, compare
    the list of what is wrong with an empty one.
    """
    found: set[tuple[int, str]] = set()
    # Tests are functions of the module and of its classes: a walk over all of it takes longer than to parse it.
    inside = [node for one in tree.body if isinstance(one, ast.ClassDef) for node in one.body]
    for function in (*tree.body, *inside):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or not function.name.startswith("test"):
            continue
        loops = list(_loops(function))
        if not loops or any(_name(one) == "given" for one in function.decorator_list):
            continue
        names = _Names(tree, function)
        found |= {(at.node.lineno, ast.unparse(at.iterable)) for at in loops if not _is_safe(at, function, names)}
    return sorted(found)


@dataclass(frozen=True)
class _Loop:
    node: ast.For | ast.Assert
    iterable: ast.expr


def _loops(function: ast.AST) -> Iterator[_Loop]:
    for node in ast.walk(function):
        if isinstance(node, ast.For) and any(isinstance(x, ast.Assert) for line in node.body for x in ast.walk(line)):
            yield _Loop(node, node.iter)
        elif isinstance(node, ast.Assert):
            tests = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
            for test in tests:
                if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "all":
                    yield _Loop(node, test.args[0])


def _is_safe(loop: _Loop, function: ast.AST, names: _Names) -> bool:
    if names.has_some(loop.iterable):
        return True
    of_loop = {id(node) for node in ast.walk(loop.node)}
    others = [node for node in ast.walk(function) if isinstance(node, ast.Assert) and id(node) not in of_loop]

    def is_seen(source: ast.expr) -> bool:
        return (
            isinstance(source, ast.Constant)
            or names.has_some(source)
            or any(_speaks_of(other.test, source) for other in others)
        )

    any_is_enough = _name(loop.iterable) == "zip" or isinstance(loop.iterable, ast.BinOp)
    return (any if any_is_enough else all)(is_seen(source) for source in _sources(loop.iterable))


def _sources(iterable: ast.expr) -> list[ast.expr]:
    """The expressions on which it depends whether an iterable has anything in it."""
    if isinstance(iterable, ast.Call):
        if _name(iterable) in _PASS_ON | _FROM_ALL | {"zip", "range", "len", "chain"} and iterable.args:
            return [source for argument in iterable.args for source in _sources(argument)]
        if isinstance(iterable.func, ast.Attribute) and iterable.func.attr in _VIEWS:
            return _sources(iterable.func.value)
    is_made_of_others = isinstance(iterable, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp)
    if is_made_of_others and not any(part.ifs for part in iterable.generators):
        return [source for part in iterable.generators for source in _sources(part.iter)]
    if isinstance(iterable, ast.BinOp):
        return _sources(iterable.left) + _sources(iterable.right)
    return [iterable]


def _speaks_of(test: ast.expr, source: ast.expr) -> bool:
    """Whether an assertion is about an expression, other than in a form that holds of nothing, too."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return False
    if isinstance(test, ast.Call) and _name(test) == "all":
        return False
    if isinstance(test, ast.Compare):
        is_about_nothing = any(_is_written_empty(other) for other in test.comparators)
        is_at_most = _name(test.left) == "len" and all(isinstance(sign, ast.Lt | ast.LtE) for sign in test.ops)
        if is_about_nothing or is_at_most or any(isinstance(sign, ast.NotIn) for sign in test.ops):
            return False
    # The kind first: writing expressions out costs most of what all of this takes.
    alike = [node for node in ast.walk(test) if type(node) is type(source)]
    return bool(alike) and ast.unparse(source) in map(ast.unparse, alike)


def _is_written_empty(node: ast.expr) -> bool:
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return not node.elts
    return isinstance(node, ast.Dict) and not node.keys


def _name(node: ast.expr) -> str:
    """Of a call: what is called, without the module before it."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name
        case ast.Call():
            return ast.unparse(node.func).rpartition(".")[2]
    return ""


class _Names:
    """What the names of a function were given: by its module, in itself, by its loops and by `parametrize`."""

    def __init__(self, tree: ast.Module, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._values: dict[str, list[ast.expr]] = {}
        for node in (*tree.body, *ast.walk(function)):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._give(target, node.value)
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                self._give(node.target, node.value)
            elif isinstance(node, ast.For | ast.comprehension):
                self._give_each(node.target, node.iter)
        for call in function.decorator_list:
            if isinstance(call, ast.Call) and _name(call) == "parametrize" and len(call.args) > 1:
                self._give_each(_target(call.args[0]), call.args[1])

    def has_some(self, node: ast.expr, depth: int = 0) -> bool:
        """Whether an expression surely has something in it, from what is written alone."""
        if depth > _DEEPEST:
            return False

        def some(inner: ast.expr) -> bool:
            return self.has_some(inner, depth + 1)

        match node:
            case ast.Tuple() | ast.List() | ast.Set():
                return any(not isinstance(one, ast.Starred) or some(one.value) for one in node.elts)
            case ast.Dict():
                return any(key is not None or some(value) for key, value in zip(node.keys, node.values, strict=True))
            case ast.Constant():
                return isinstance(node.value, str | bytes) and bool(node.value)
            case ast.Name():
                return node.id in self._values and all(some(value) for value in self._values[node.id])
            case ast.IfExp():
                return some(node.body) and some(node.orelse)
            case ast.BinOp(op=ast.Add() | ast.BitOr() | ast.Mult()):
                return some(node.left) or some(node.right)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                return all(not part.ifs and some(part.iter) for part in node.generators)
            case ast.Call():
                return self._call_has_some(node, depth)
        return False

    def _call_has_some(self, node: ast.Call, depth: int) -> bool:
        name, arguments = _name(node), [self.has_some(argument, depth + 1) for argument in node.args]
        if name == "nonempty":
            return True
        if name in _PASS_ON:
            return arguments[:1] == [True]
        if name == "range":
            return all(self._is_number(argument, depth) for argument in node.args)
        if name == "zip":
            is_strict = any(given.arg == "strict" for given in node.keywords)
            return any(arguments) if is_strict else all(arguments)
        if name in _FROM_ALL:
            return all(has or isinstance(given, ast.Constant) for has, given in zip(arguments, node.args, strict=True))
        if name == "chain":
            return any(arguments)
        is_of_text = isinstance(node.func, ast.Attribute) and node.func.attr in _VIEWS | {"split", "splitlines"}
        return is_of_text and self.has_some(node.func.value, depth + 1)

    def _is_number(self, node: ast.expr, depth: int) -> bool:
        """Whether a bound of a range is fixed: a number, a constant by its name, or arithmetic of such."""
        match node:
            case ast.Constant():
                return isinstance(node.value, int)
            case ast.UnaryOp():
                return self._is_number(node.operand, depth)
            case ast.BinOp():
                return self._is_number(node.left, depth) and self._is_number(node.right, depth)
            case ast.Attribute():
                return node.attr.isupper()
            case ast.Name():
                values = self._values.get(node.id, [])
                is_given = bool(values) and depth < _DEEPEST
                return node.id.isupper() or (is_given and all(self._is_number(one, depth + 1) for one in values))
            case ast.Call():
                return _name(node) == "len" and self.has_some(node.args[0], depth + 1)
        return False

    def _give(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._values.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple | ast.List):
            parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
            if len(parts) != len(target.elts):
                parts = [ast.Constant(None)] * len(target.elts)
            for one, its in zip(target.elts, parts, strict=True):
                self._give(one, its)

    def _give_each(self, target: ast.expr, values: ast.expr) -> None:
        """Each element of what is written out; something unknown where it is not."""
        if _name(values) == "items" and isinstance(values.func.value, ast.Dict):  # type: ignore[attr-defined]
            pairs = values.func.value  # type: ignore[attr-defined]
            rows = [ast.Tuple([key, value]) for key, value in zip(pairs.keys, pairs.values, strict=True)]
        elif isinstance(values, ast.Tuple | ast.List):
            rows = values.elts
        else:
            rows = [ast.Constant(None)]
        for row in rows:
            if _name(row) == "param":
                given = row.args  # type: ignore[attr-defined]
                row = ast.Tuple(given) if isinstance(target, ast.Tuple) else given[0]
            self._give(target, row)


def _target(names: ast.expr) -> ast.expr:
    """The first argument of `parametrize` as a target of an assignment."""
    if isinstance(names, ast.Constant):
        parts = [ast.Name(part.strip()) for part in str(names.value).split(",")]
    elif isinstance(names, ast.Tuple | ast.List):
        parts = [ast.Name(part.value) for part in names.elts if isinstance(part, ast.Constant)]
    else:
        return ast.Constant(None)
    return parts[0] if len(parts) == 1 else ast.Tuple(list(parts))
