"""The formula of a `multi` grader: arithmetic over the scores of others, and nothing else that Python could do."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from luthier.core.errors import RequestError
from luthier.core.library_errors import library_reason

_MAX_CHARACTERS: Final = 1000
_OPERATORS: Final[dict[type[ast.AST], Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}


class Formula:
    """A formula, read once: numbers, names, + - * / **, and min, max, abs, floor, ceil, exp, sqrt, log.

    Args:
        text: the formula.
        names: variables that it may use.

    Raises:
        RequestError: the formula holds anything else.
    """

    def __init__(self, text: str, names: Sequence[str]) -> None:
        self.text, self._names = text, frozenset(names)
        try:
            if len(text) > _MAX_CHARACTERS:
                raise ValueError(f"{len(text)} characters")
            self._tree = ast.parse(text.strip(), mode="eval").body
            self._check(self._tree)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise RequestError(
                f"calculate_output {text[:100]!r}: {library_reason(error)}",
                expected=f"arithmetic over {', '.join(sorted(names))}, with {', '.join(_FUNCTIONS)}",
                do="correct objective.rewards",
            ) from error

    def __call__(self, values: Mapping[str, float]) -> float:
        """The result for these values.

        Raises:
            RequestError: there is none, such as a division by zero.
        """
        try:
            found = float(self._value(self._tree, values))
        except (ArithmeticError, ValueError, TypeError) as error:
            found, reason = math.nan, str(error)
        else:
            reason = f"gives {found}"
        if not math.isfinite(found):
            raise RequestError(
                f"calculate_output {self.text!r} with {dict(values)}: {reason}",
                expected="a finite number for every answer",
                do="correct objective.rewards",
            )
        return found

    def _check(self, node: ast.AST) -> None:
        # type(), since True is an int to isinstance.
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return
        if isinstance(node, ast.Name) and node.id in self._names:
            return
        if isinstance(node, ast.BinOp | ast.UnaryOp) and type(node.op) in _OPERATORS:
            parts = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.operand]
        elif isinstance(node, ast.Call) and _function_of(node) is not None and not node.keywords and node.args:
            parts = node.args
        else:
            raise ValueError(f"cannot use {ast.unparse(node)!r}")
        for part in parts:
            self._check(part)

    def _value(self, node: ast.AST, values: Mapping[str, float]) -> Any:
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Name):
            return values[node.id]
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](self._value(node.left, values), self._value(node.right, values))
        if isinstance(node, ast.UnaryOp):
            return _OPERATORS[type(node.op)](self._value(node.operand, values))
        assert isinstance(node, ast.Call)
        function = _function_of(node)
        assert function is not None
        # a whole number of Python's own has no largest, and a power of two of them no end
        return float(function(*(self._value(part, values) for part in node.args)))


def _function_of(node: ast.Call) -> Callable[..., Any] | None:
    return _FUNCTIONS.get(node.func.id) if isinstance(node.func, ast.Name) else None
