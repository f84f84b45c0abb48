"""Stock answers and answers that go round in circles."""

from __future__ import annotations

from collections.abc import Callable

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.repeated_completion import check

GOOD = [f"This is an answer of its own, number {at}." for at in range(30)]
STOCK = "Thank you for asking, we will come back to you."


def test_an_answer_to_five_prompts_is_a_stock_answer_and_the_first_is_kept(pairs: Callable[..., AuditRequest]) -> None:
    (finding,) = check(pairs(STOCK, *GOOD, *[STOCK.upper()] * 4))
    assert (finding.severity, finding.details["sort"], finding.lines) == ("warning", "stock_answer", (32, 33, 34, 35))
    assert finding.details["top"] == [{"completion": STOCK, "num_prompts": 5, "num_rows": 5}]


def test_four_prompts_short_answers_classes_and_one_prompt_are_no_stock(
    audited: Callable[..., AuditRequest], pairs: Callable[..., AuditRequest]
) -> None:
    assert check(pairs(*GOOD, *[STOCK] * 4, *["yes"] * 20)) == []
    assert check(pairs(*["this review is positive", "this review is negative"] * 15)) == []
    assert check(audited(*[{"prompt": "the same", "completion": STOCK}] * 10)) == []


def test_a_loop_is_a_warning_in_completions_and_plain_text(
    audited: Callable[..., AuditRequest], pairs: Callable[..., AuditRequest]
) -> None:
    text = "It begins well. " + "and then it goes on " * 12
    (finding,) = check(pairs(*GOOD, text))
    assert (finding.details["sort"], finding.lines) == ("loop", (31,))
    assert [finding.lines for finding in check(audited({"text": text}, {"text": "b"}))] == [(1,)]
