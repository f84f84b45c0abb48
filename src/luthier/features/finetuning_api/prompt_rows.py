"""Rows of OpenAI's reinforcement fine-tuning, which end with the user's message: each gets an answer, as our rows have.

No grader reads that answer and nothing learns it: GRPO learns the answers that it draws. Only `{{item.reference}}` is
the row's own answer, so rows that end with a prompt need a field `reference` where a grader uses that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import DataError
from luthier.core.system.files import sync
from luthier.ml.data.files.untrusted_input import MAX_LINE_BYTES

ANSWER: Final = "-"
"""What stands for the answer of a row without one; never empty, since an empty answer is refused."""
_PROMPTS: Final = "-prompts"
_SUFFIX: Final = ".jsonl"


def with_answers(path: Path, *, needs_reference: bool) -> Path:
    """The file with an answer in each row; the file itself where all rows have one, or where it is not JSONL.

    Lines keep their numbers, and lines that are not such a row stay as they are: the job names what is wrong with them.
    The file is written once, beside the other, and appears when it is complete.

    Args:
        path: of the job's own copy.
        needs_reference: whether a grader reads `item.reference`.

    Raises:
        DataError: a row ends with a prompt, has no field `reference`, and a grader reads it.
    """
    made = path.with_name(f"{path.stem}{_PROMPTS}{_SUFFIX}")
    if made.exists():
        return made
    if path.suffix != _SUFFIX or not any(_is_prompt(row) for _, row in _rows(path)):
        return path
    partial = made.with_name(f".{made.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            for number, (line, row) in enumerate(_rows(path), start=1):
                file.write(_answered(path.name, number, row, needs_reference) if _is_prompt(row) else line)
        sync(partial)
        partial.replace(made)
    finally:
        partial.unlink(missing_ok=True)
    return made


def _rows(path: Path) -> Iterator[tuple[bytes, Any]]:
    """Each line with its value; None where it is no JSON, or too long for a row."""
    with path.open("rb") as file:
        # The rest of a line over the limit comes as a line of its own; it is written again as it is.
        while line := file.readline(MAX_LINE_BYTES + 1):
            try:
                yield line, json.loads(line)
            except (ValueError, RecursionError):
                yield line, None


def _is_prompt(row: Any) -> bool:
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return False
    return isinstance(messages[-1], dict) and messages[-1].get("role") not in ("assistant", None)


def _answered(name: str, number: int, row: dict[str, Any], needs_reference: bool) -> bytes:
    own = row.get("reference")
    if own is None and needs_reference:
        raise DataError(
            f"{name}:{number} ends with a prompt and has no field reference, which the grader reads as item.reference",
            expected="a field reference in each such row, or an assistant message at its end",
            do="add it, or name the field of the rows that has the right answer in the grader, such as {{item.answer}}",
        )
    text = own if isinstance(own, str) else json.dumps(own, ensure_ascii=False)
    answer = text if own is not None and text.strip() else ANSWER
    whole = row | {"messages": [*row["messages"], {"role": "assistant", "content": answer}]}
    return json.dumps(whole, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
