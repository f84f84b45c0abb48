"""Answers that say nothing."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from luthier.ml.data.audit import schema
from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.empty_completion import check

GOOD = [f"A real answer, number {at}." for at in range(30)]


@pytest.mark.parametrize(
    "text", ["N/A", "none", "TBD", "...", "…", "[todo]", "  -  ", "***null***", "Lorem ipsum.", "\u200b-"]
)
def test_placeholders_are_found(pairs: Callable[..., AuditRequest], text: str) -> None:
    (finding,) = check(pairs(*GOOD, text))
    assert finding.lines == (31,)
    assert finding.details == {"num_empty": 0, "num_placeholders": 1}


@pytest.mark.parametrize(
    "text", ["No", "0", "42", "None of them.", "[]", "{}", ":-)", "???", "Unknown to me, sorry", "好", "x"]
)
def test_short_answers_are_answers(pairs: Callable[..., AuditRequest], text: str) -> None:
    assert check(pairs(*GOOD, text)) == []


def test_empty_texts_and_invisible_ones_are_found(audited: Callable[..., AuditRequest]) -> None:
    (finding,) = check(audited({"text": " \n\u00a0"}, {"text": "\u200b\ufeff"}, {"text": "a"}))
    assert (finding.details["num_empty"], finding.severity, finding.lines) == (2, "error", (1, 2))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "completion": "  "},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": ""}]},
        {"instruction": "Why?", "output": "\n"},
    ],
)
def test_answers_that_training_refuses_as_empty_are_an_error_of_this_check_alone(
    audited: Callable[..., AuditRequest], row: dict[str, object]
) -> None:
    good = json.loads(json.dumps(row).replace('"  "', '"So."').replace('""', '"So."').replace('"\\n"', '"So."'))
    request = audited(*(good for _ in range(300)), row)
    (finding,) = check(request)
    assert (finding.severity, finding.lines, finding.details["num_empty"]) == ("error", (301,), 1)
    assert "Why?" in finding.examples[0].excerpt
    assert schema.check(request) == []


def test_few_of_them_are_a_warning(pairs: Callable[..., AuditRequest]) -> None:
    (finding,) = check(pairs(*(f"Answer {at}." for at in range(150)), "tbd"))
    assert finding.severity == "warning"


def test_a_class_may_be_called_none(pairs: Callable[..., AuditRequest]) -> None:
    assert check(pairs(*["none", "spam", "ham"] * 10)) == []


def test_the_mark_of_a_missing_value_is_no_class(pairs: Callable[..., AuditRequest]) -> None:
    (finding,) = check(pairs(*(["yes", "no"] * 20), "\\N"))
    assert finding.details == {"num_empty": 0, "num_placeholders": 1}
    assert check(pairs(*(["yes", "no"] * 20))) == []
