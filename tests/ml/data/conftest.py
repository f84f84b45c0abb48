"""Fixtures of the data tests: a real tiny chat template and a plain one, made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    """The template of the tiny chat model: ChatML with tools."""
    return ChatTemplate.load(make_tiny_model(tmp_path_factory.mktemp("chat")))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    """The plain layout on the tiny base model."""
    return ChatTemplate.load(make_tiny_model(tmp_path_factory.mktemp("plain"), chat=False))


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (objects, or lines as they are) to a JSONL file."""

    def write(*rows: dict[str, Any] | str, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines: Iterable[str] = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write
