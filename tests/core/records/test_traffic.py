"""Answers as the log keeps them: text, calls of tools, or both."""

from __future__ import annotations

import pytest

from luthier.core.records.traffic import answer_of_calls, is_of_calls, said_in, written_in

CALL = {"id": "call_1f2e", "type": "function", "function": {"name": "price", "arguments": '{"wood": "maple"}'}}


@pytest.mark.parametrize(
    ("answer", "is_calls", "said", "written"),
    [
        ("It is oak.", False, "It is oak.", "It is oak."),
        ("", False, "", ""),
        ('{"wood": "oak"}', False, '{"wood": "oak"}', '{"wood": "oak"}'),
        (answer_of_calls([CALL]), True, None, 'price\n{"wood": "maple"}'),
        (answer_of_calls([CALL], "Let me see."), True, "Let me see.", 'Let me see.\nprice\n{"wood": "maple"}'),
        ('{"tool_calls": [null, {"function": "price"}]}', True, None, ""),
    ],
)
def test_the_parts_of_a_logged_answer(answer: str, is_calls: bool, said: str | None, written: str) -> None:
    assert (is_of_calls(answer), said_in(answer), written_in(answer)) == (is_calls, said, written)
