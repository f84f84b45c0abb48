"""Which architectures a converter of others takes, by its own list, read out of its source without running it.

So what it cannot take is refused before a model is merged and written for it, which takes minutes and gigabytes.
"""

from __future__ import annotations

import ast
from pathlib import Path

from luthier.core.errors import RequestError
from luthier.ml.inference.models.architecture import load_config, model_class
from luthier.ml.inference.models.weights import read_json


def architecture_of(base: Path) -> str:
    """The name under which converters know the model in a folder: that of its language model where it states one.

    Raises:
        ModelSourceError: the folder has no config that transformers knows.
    """
    # Of a composite model the converter writes the language model alone, under that one's name.
    stated = (read_json(base / "config.json").get("text_config") or {}).get("architectures") or ()
    return str(stated[0]) if stated else model_class(load_config(base)).__name__


def refuse_unknown(base: Path, known: frozenset[str], who: str, do: str) -> None:
    """Check an architecture against a list; an empty list lets all pass.

    Args:
        base: folder of the model.
        known: names of architectures.
        who: the program whose list it is.
        do: what the user can do instead.

    Raises:
        RequestError: it is not on the list.
    """
    name = architecture_of(base)
    if known and name not in known:
        raise RequestError(
            f"{who}: {name} is not currently supported",
            expected=f"one of the {len(known)} architectures on its own list, as {', '.join(sorted(known)[:3])}",
            do=do,
        )


def keys_of(file: Path, table: str) -> frozenset[str]:
    """The keys of a dictionary that a source file assigns to the name `table`; none where it has no such one."""
    for node in _nodes(file):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict) and any(isinstance(one, ast.Name) and one.id == table for one in targets):
            return frozenset(filter(None, map(_text, value.keys)))
    return frozenset()


def compared_with(file: Path, expression: str) -> frozenset[str]:
    """The texts that a source file compares an expression with, by `==` or `in`."""
    found: set[str] = set()
    for node in _nodes(file):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == expression:
            for other in node.comparators:
                parts = other.elts if isinstance(other, (ast.Tuple, ast.List, ast.Set)) else [other]
                found.update(filter(None, map(_text, parts)))
    return frozenset(found)


def _nodes(file: Path) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    except (OSError, SyntaxError, ValueError):
        return []  # another version, which says for itself what it cannot take


def _text(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
