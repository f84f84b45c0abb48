"""A real dataset on every machine: functions of Python's own standard library, and what their authors say of them.

Each prompt asks for the summary of a function; the answer is the first sentence of its docstring, which is cut out of
the source that the model is shown. Every function that is left out is counted under its reason.
"""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, Split
from luthier.core.errors import NotFoundError
from luthier.core.ports import Progress
from luthier.ml.data.split.split import split_by_fraction

INSTRUCTION = "Summarise what this Python function does in one sentence."
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3",
                              "turtledemo", "__pycache__", "ensurepip"})  # fmt: skip
_MAX_SOURCE_CHARACTERS = 1_500
_MIN_WORDS, _MAX_WORDS = 3, 25
_MAX_SAME_ANSWERS = 3
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)\.(?=\s|$)")
_SIGNATURE = re.compile(r"^[\w.]+\(|=>| = ")
_MARKUP = re.compile(r":[a-z]+:`~?\.?([^`]+)`|``?([^`]+)``?")
_BOILERPLATE = ("see ", "internal", "todo", "deprecated", "for internal", "helper", "same as ", "as above", "xxx",
                "like ", "ditto", "override", "implement", "undocumented", "not implemented")  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PythonDocs:
    """Rows from Python sources.

    Attributes:
        rows: in the order of module and line.
        num_left_out: functions that were left out, by reason.
        num_modules: modules that the rows are from.
    """

    rows: tuple[Row, ...]
    num_left_out: Mapping[str, int]
    num_modules: int


class _LeftOutError(Exception):
    """A function that makes no row. The message is the reason, the key under which it is counted."""


def build_python_docs(
    folder: Path | None = None, *, progress: Progress, max_rows: int | None = None, max_characters: int | None = None
) -> PythonDocs:
    """Rows {"messages", "module", "function"} from all Python files under `folder` (default: the standard library).

    Deterministic for a folder.

    Args:
        folder: of the sources; None for the standard library.
        progress: shows the reading.
        max_rows: take at most this many rows, spread evenly over all of them.
        max_characters: leave out rows with more, question and answer together.

    Raises:
        NotFoundError: the folder does not exist or holds no Python file.
    """
    folder = folder if folder is not None else Path(sysconfig.get_path("stdlib"))
    files = sorted(_python_files(folder), key=lambda file: file.relative_to(folder).as_posix())
    if not files:
        raise NotFoundError(
            f"no Python file under {folder}",
            expected="a folder with Python sources, such as the standard library",
            do="install Python with its library sources, or name another folder",
        )
    left_out: Counter[str] = Counter()
    rows: list[Row] = []
    with progress.task("Reading the standard library", total=len(files), unit="files") as task:
        for file in files:
            rows.extend(_rows_of_file(file, _module_name(file, folder), left_out))
            task.advance()
    rows = _without_repeats(rows, left_out)
    if max_characters is not None:
        short = [row for row in rows if sum(len(one["content"]) for one in row["messages"]) <= max_characters]
        left_out[f"more than {max_characters:,} characters"] = len(rows) - len(short)
        rows = short
    if max_rows is not None and len(rows) > max_rows:
        left_out["not among the requested rows"] = len(rows) - max_rows
        # Evenly spread, so that every part of the library is represented.
        rows = [rows[index * len(rows) // max_rows] for index in range(max_rows)]
    return PythonDocs(tuple(rows), dict(sorted(left_out.items())), len({row["module"] for row in rows}))


def split_python_docs(rows: Sequence[Row], *, validation: float, held_out: float, seed: int) -> dict[Split, list[Row]]:
    """The rows split so that no module is in two splits.

    Args:
        rows: each with the module that it comes from.
        validation: share of the rows, from 0 to 1.
        held_out: share of the rows, from 0 to 1.
        seed: of the draw.
    """
    examples = [_as_example(index, row) for index, row in enumerate(rows)]
    parts = split_by_fraction(examples, validation=validation, held_out=held_out, seed=seed)
    return {split: [rows[int(example.id)] for example in part] for split, part in parts.items()}


def _as_example(index: int, row: Row) -> Example:
    messages = tuple(Message(role=message["role"], content=message["content"]) for message in row["messages"])
    return Example(id=str(index), conversation=Conversation(messages=messages), group=row["module"])


def _python_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        # In place, so that os.walk does not enter them.
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        yield from (Path(parent, name) for name in names if name.endswith(".py"))


def _module_name(file: Path, folder: Path) -> str:
    parts = file.relative_to(folder).with_suffix("").parts
    # A package is called by its folder.
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _rows_of_file(file: Path, module: str, left_out: Counter[str]) -> Iterator[Row]:
    try:
        source = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources have invalid escapes; they are not ours to judge
            tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError):
        left_out["file that is not UTF-8 Python"] += 1
        return
    lines = [line + "\n" for line in source.split("\n")]  # as Python counts them: a form feed ends no line
    for name, function in _functions(tree, ""):
        if ast.get_docstring(function) is None:
            left_out["no docstring"] += 1
            continue
        try:
            yield _row(function, name, module, lines)
        except _LeftOutError as reason:
            left_out[str(reason)] += 1


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Function]]:
    """Functions and methods in the order of their lines, with their dotted names inside the module."""
    for child in ast.iter_child_nodes(node):
        # No function is defined within an expression; a lambda has no docstring.
        if isinstance(child, ast.expr):
            continue
        if isinstance(child, _Function):
            yield f"{prefix}{child.name}", child
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        else:
            yield from _functions(child, prefix)


def _row(function: _Function, name: str, module: str, lines: Sequence[str]) -> Row:
    answer = _summary(ast.get_docstring(function) or "")
    shown = _source_without_docstring(function, lines)
    if len(shown) > _MAX_SOURCE_CHARACTERS:
        raise _LeftOutError("source too long")
    if not shown.isascii() or not answer.isascii():
        raise _LeftOutError("not ASCII")
    # A comment or a message may repeat the docstring: the answer could then be copied.
    if answer.rstrip(".").casefold() in " ".join(shown.split()).casefold():
        raise _LeftOutError("answer is in the source")
    messages = [
        {"role": "user", "content": f"{INSTRUCTION}\n\n```python\n{shown}\n```"},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "module": module, "function": name}


def _source_without_docstring(function: _Function, lines: Sequence[str]) -> str:
    """The function's own lines, decorators included, without the lines of its docstring, dedented."""
    docstring, rest = function.body[0], function.body[1:]
    if not rest:
        raise _LeftOutError("nothing but a docstring")
    # Decorators come before the line of `def`.
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    end, doc_end = function.end_lineno or function.lineno, docstring.end_lineno or docstring.lineno
    # Whole lines are cut out: code on one of them would be lost.
    shares_a_line = docstring.lineno == function.lineno or rest[0].lineno == doc_end
    if shares_a_line or lines[docstring.lineno - 1].lstrip()[:1] not in ("'", '"', "r", "R", "u", "U"):
        raise _LeftOutError("docstring shares its line with code")
    kept = [*lines[first - 1 : docstring.lineno - 1], *_without_leading_blanks(lines[doc_end:end])]
    return textwrap.dedent("".join(kept)).strip("\n").rstrip()


def _without_leading_blanks(lines: Sequence[str]) -> Sequence[str]:
    for index, line in enumerate(lines):
        if line.strip():
            return lines[index:]
    return ()


def _summary(docstring: str) -> str:
    """The first sentence of the docstring's first paragraph, as plain text that ends with a period."""
    paragraph = " ".join(docstring.strip().split("\n\n", 1)[0].split())
    paragraph = _MARKUP.sub(lambda match: match[1] or match[2], paragraph)
    end = _SENTENCE_END.search(paragraph)
    sentence = (paragraph[: end.start()] if end else paragraph).strip()
    words = sentence.split()
    if not words or _SIGNATURE.search(sentence) or ">>>" in sentence:
        raise _LeftOutError("docstring without a summary sentence")
    if len(words) < _MIN_WORDS:
        raise _LeftOutError("summary too short")
    if len(words) > _MAX_WORDS:
        raise _LeftOutError("summary too long")
    if sentence.casefold().startswith(_BOILERPLATE) or not sentence[0].isalpha() or sentence[-1] in ":,;([-":
        raise _LeftOutError("boilerplate or broken summary")
    if words[0].islower() and words[0].isalpha():
        sentence = sentence[0].upper() + sentence[1:]
    return sentence if sentence[-1] in "!?" else sentence + "."


def _without_repeats(rows: Sequence[Row], left_out: Counter[str]) -> list[Row]:
    kept: list[Row] = []
    sources: set[str] = set()
    answers: Counter[str] = Counter()
    for row in rows:
        source, answer = (message["content"] for message in row["messages"])
        if source in sources:
            left_out["same source as an earlier row"] += 1
        # Methods of one protocol share their docstring; too many would be memorised.
        elif answers[answer] >= _MAX_SAME_ANSWERS:
            left_out[f"answer that occurs {_MAX_SAME_ANSWERS} times already"] += 1
        else:
            kept.append(row)
            answers[answer] += 1
            sources.add(source)
    return kept
