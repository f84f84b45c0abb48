"""The prefix that prompts share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from luthier.ml.data.audit.base import AuditRequest, Skipped
from luthier.ml.data.audit.constant_prompt import check

PREFIX = "Classify the following review as good or bad. Review: "


def rows(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "completion": f"answer {at}"} for at, prompt in enumerate(prompts)]


def test_a_shared_prefix_is_a_note_with_its_share(audited: Callable[..., AuditRequest]) -> None:
    found = check(audited(*rows(*(f"{PREFIX}{chr(97 + at) * 10}" for at in range(18)), "something else", "zzz")))
    assert not isinstance(found, Skipped)
    (finding,) = found
    assert (finding.severity, finding.count) == ("info", 0)
    assert finding.details["prefix"] == PREFIX
    assert finding.details["num_characters"] == len(PREFIX)
    assert finding.details["fraction_of_rows"] == 0.9
    assert 0.8 < finding.details["fraction_of_prompt_characters"] < 0.9


@pytest.mark.parametrize("prompts", [["the same prompt"] * 20, ["one"] * 30 + ["two"] * 30])
def test_prompts_that_hardly_differ_are_a_warning(audited: Callable[..., AuditRequest], prompts: list[str]) -> None:
    found = check(audited(*rows(*prompts)))
    assert not isinstance(found, Skipped)
    assert [finding.severity for finding in found] == ["warning"]


def test_prompts_of_their_own_have_no_finding(audited: Callable[..., AuditRequest]) -> None:
    assert check(audited(*rows(*(f"{at} is a number" for at in range(20))))) == []


def test_plain_text_has_no_prompts(audited: Callable[..., AuditRequest]) -> None:
    assert isinstance(check(audited({"text": "a"})), Skipped)
