"""One prompt, several answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.ml.data.audit.base import AuditRequest, Skipped
from luthier.ml.data.audit.conflicting_completion import check
from luthier.ml.data.audit.table import build_table

Write = Callable[..., Path]


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def test_all_rows_of_the_prompt_are_reported_with_the_other_answer(jsonl: Write) -> None:
    rows = [pair("Is it good?", "yes"), pair("Is it bad?", "no"), pair("is it  GOOD?", "no"), pair("Is it bad?", "No")]
    (finding,) = check(AuditRequest(build_table(jsonl(*rows))))
    assert (finding.severity, finding.count, finding.lines) == ("error", 2, (1, 3))
    assert finding.details == {"num_prompts": 1, "most_answers": 2}
    assert finding.examples[0].note == "rows.jsonl:3 answers the same prompt: 'no'"
    assert finding.examples[0].excerpt == "Is it good? → yes"


def test_few_of_many_rows_are_a_warning(jsonl: Write) -> None:
    rows = [pair(f"question {number}", "answer") for number in range(98)] + [pair("same", "one"), pair("same", "two")]
    (finding,) = check(AuditRequest(build_table(jsonl(*rows))))
    assert (finding.severity, finding.count) == ("warning", 2)


def test_the_same_answer_again_is_no_conflict(jsonl: Write) -> None:
    assert check(AuditRequest(build_table(jsonl(pair("a", "b"), pair("A", " B "), pair("c", "b"))))) == []


def test_plain_text_has_no_prompts(jsonl: Write) -> None:
    assert isinstance(check(AuditRequest(build_table(jsonl({"text": "a"})))), Skipped)
    assert isinstance(check(AuditRequest(build_table(jsonl('{"no": "json')))), Skipped)


def test_another_answer_beside_other_tools_is_no_conflict(jsonl: Write) -> None:
    """As files that teach when to call have it: the call where the tool is there, a refusal where it is not."""

    def asked(answer: str, *names: str) -> dict[str, Any]:
        turns = [{"role": "user", "content": "Is it good?"}, {"role": "assistant", "content": answer}]
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        return {"messages": turns, **({"tools": tools} if tools else {})}

    assert check(AuditRequest(build_table(jsonl(asked("yes", "tap"), asked("I cannot hear it"))))) == []
    (finding,) = check(AuditRequest(build_table(jsonl(asked("yes", "tap"), asked("unknown"), asked("no", "tap")))))
    assert finding.lines == (1, 3)
