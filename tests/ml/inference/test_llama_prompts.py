"""Prompts for llama.cpp by the model's own template: the tokenizer beside a file must be that of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.errors import RequestError
from luthier.ml.inference.llama_cpp.prompts import TemplateReader
from luthier.ml.inference.models.templates.chat_template import ChatTemplate


def server_of(change: Callable[[list[int]], list[int]], template: ChatTemplate) -> Any:
    def tokenize(text: str, *, add_special: bool) -> list[int]:
        assert add_special
        return change(template.ids(text))

    return SimpleNamespace(tokenize=tokenize, context_tokens=64)


def test_a_first_token_of_the_file_alone_is_no_other_tokenizer(tiny: Path) -> None:
    template = ChatTemplate.load(tiny)
    for change in (list[int], lambda ids: [1, *ids]):
        assert TemplateReader(template, server_of(change, template)).text_ids("wood") == template.ids("wood")


@pytest.mark.parametrize(
    "change", [lambda ids: ids[1:], lambda ids: [1, 1, *ids], lambda ids: [*ids, 1], lambda ids: [1, *ids[:-1], 0]]
)
def test_another_tokenizer_is_refused(tiny: Path, change: Callable[[list[int]], list[int]]) -> None:
    template = ChatTemplate.load(tiny)
    with pytest.raises(RequestError, match="tokens of a probe"):
        TemplateReader(template, server_of(change, template))
