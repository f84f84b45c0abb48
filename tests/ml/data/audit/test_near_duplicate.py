"""Rows that nearly repeat others."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.duplicates import check_near_duplicates
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.dedup import near_duplicates

Write = Callable[..., Path]
WORDS = [f"word{number}" for number in range(2_000)]


def text(seed: int, num_words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


def test_near_copies_are_reported_and_exact_ones_are_left_to_their_check(jsonl: Write) -> None:
    rows = [text(0), text(1), text(1).upper(), text(1) + " more", text(2), "And " + text(1), text(0) + " end"]
    (finding,) = check_near_duplicates(AuditRequest(build_table(jsonl(*({"text": row} for row in rows)))))
    assert (finding.check, finding.severity, finding.lines) == ("near_duplicate", "warning", (4, 6, 7))
    assert finding.details["num_clusters"] == 2
    assert finding.details["clusters"][0] == {
        "size": 3,
        "lines": [2, 4, 6],
        "excerpt": finding.details["clusters"][0]["excerpt"],
    }
    assert finding.details["histogram"] == {
        "0.8 to 0.85": 0,
        "0.85 to 0.9": 0,
        "0.9 to 0.95": 0,
        "0.95 to 1": 3,
        "1": 0,
    }
    assert finding.details["recall_at_threshold"] == 0.998
    assert finding.examples[0].note == "0.98 of its shingles (Jaccard) shared with rows.jsonl:2"


def test_other_punctuation_is_nearly_the_same(jsonl: Write) -> None:
    (finding,) = check_near_duplicates(
        AuditRequest(build_table(jsonl({"text": "Well, well; it works."}, {"text": "well well it works"})))
    )
    assert finding.lines == (2,)
    assert finding.details["histogram"]["1"] == 1


def test_a_shared_system_prompt_makes_no_near_duplicates(jsonl: Write) -> None:
    system = text(9, 300)
    rows = [
        {"messages": [{"role": "system", "content": system}, {"role": "user", "content": text(number, 12)},
                      {"role": "assistant", "content": text(number + 500, 5)}]}
        for number in range(50)
    ]  # fmt: skip
    assert check_near_duplicates(AuditRequest(build_table(jsonl(*rows)))) == []
    twin = {"messages": [*rows[7]["messages"][:2], {"role": "assistant", "content": text(507, 5) + " too"}]}
    (finding,) = check_near_duplicates(AuditRequest(build_table(jsonl(*rows, twin))))
    assert finding.lines == (51,)
    assert finding.details["shared_prefix"].startswith(system[:50])
    assert "without the 300 words that nearly all prompts begin with" in finding.message


def test_files_of_one_row_no_row_and_empty_rows(jsonl: Write) -> None:
    for rows in ([{"text": "alone"}], ['{"no": "json'], [{"text": ""}, {"text": "!"}, {"text": ""}]):
        assert check_near_duplicates(AuditRequest(build_table(jsonl(*rows)))) == []


def test_rows_of_a_long_chain_that_were_not_compared_with_all_of_it_are_counted(
    jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(number) for number in range(2_000)]
    request = AuditRequest(
        build_table(jsonl(*({"text": " ".join(words[start : start + 60])} for start in range(0, 200, 4))))
    )
    (finding,) = check_near_duplicates(request)
    details = finding.details
    assert details["num_kept_in_chains"] == 24, "every second row but the first"
    assert "num_unsettled" not in details
    monkeypatch.setattr(near_duplicates, "_LEAST_COMPARISONS", 0)
    monkeypatch.setattr(near_duplicates, "_MAX_ROUNDS", 2)
    (finding,) = check_near_duplicates(request)
    details = finding.details
    # Of three rounds: rows 1, 3 and 5 go for 0, 2 and 4; row 6 is the next that others are compared with.
    assert (details["num_kept_in_chains"], details["num_unsettled"]) == (3, 43)
