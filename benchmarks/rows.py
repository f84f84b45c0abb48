"""The rows that benchmarks train on: WikiSQL from a data folder, or long rows made from the standard library."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def wikisql_rows(file: Path) -> list[Row]:
    """Chat rows from WikiSQL's text rows: all before the last "A: " is the question, the rest the answer."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        question, _, answer = json.loads(line)["text"].rpartition("\nA: ")
        rows.append(_chat(question, answer))
    return rows


def long_rows(num: int, seed: int = 0) -> list[Row]:
    """Functions of the standard library with their summary line, chosen long: a mean of about 250 tokens a row."""
    from luthier.core.ports import SilentProgress
    from luthier.ml.data.documents.python_docs import build_python_docs

    found = build_python_docs(progress=SilentProgress()).rows
    long = [{"messages": row["messages"]} for row in found if len(row["messages"][0]["content"]) > 650]
    random.Random(seed).shuffle(long)
    return long[:num]


def write_jsonl(rows: Iterable[Row], file: Path) -> Path:
    """One row a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _chat(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def text_rows(num: int, seed: int = 0, num_characters: int = 6000) -> list[Row]:
    """Plain text, all of it learned: functions of the standard library, put together until a row is long enough."""
    from luthier.core.ports import SilentProgress
    from luthier.ml.data.documents.python_docs import build_python_docs

    found = build_python_docs(progress=SilentProgress()).rows
    texts = [row["messages"][0]["content"] for row in found]
    random.Random(seed).shuffle(texts)
    rows, current = [], ""
    for text in texts:
        current += f"{text}\n\n"
        if len(current) >= num_characters:
            rows.append({"text": current})
            current = ""
        if len(rows) == num:
            break
    return rows
