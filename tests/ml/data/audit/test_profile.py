"""What a file holds in numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.run import profile_of
from luthier.ml.data.audit.table import build_table


def test_lengths_labels_and_sources_are_counted(audited: Callable[..., AuditRequest]) -> None:
    rows = [
        {"prompt": "a" * num, "completion": "b", "label": label, "source": source}
        for num, label, source in [(1, "x", "one.pdf"), (2, "x", "one.pdf"), (3, "y", "two.pdf")]
    ]
    profile = profile_of(audited(*rows, "{broken").table)
    assert profile["num_unreadable_rows"] == 1
    assert profile["prompt_characters"]["mean"] == 2.0
    assert (profile["prompt_characters"]["q00"], profile["prompt_characters"]["q100"]) == (1.0, 3.0)
    assert profile["labels"] == {"x": 2, "y": 1}
    assert (profile["num_labels"], profile["num_sources"]) == (2, 2)
    assert "text_tokens" not in profile
    json.dumps(profile, allow_nan=False)


def test_tokens_are_there_where_they_were_counted(jsonl: Callable[..., Path]) -> None:
    table = build_table(
        jsonl({"text": "a b"}, {"text": "c"}), count_tokens=lambda texts: [len(t.split()) for t in texts]
    )
    profile = profile_of(table)
    assert (profile["num_tokens"], profile["text_tokens"]["mean"]) == (3, 1.5)
    assert "prompt_characters" not in profile


def test_a_file_without_readable_rows_has_only_their_number(audited: Callable[..., AuditRequest]) -> None:
    assert profile_of(audited("{broken").table) == {"num_unreadable_rows": 1}


def test_equal_counts_come_in_a_fixed_order(audited: Callable[..., AuditRequest]) -> None:
    rows = [{"text": f"t{at}", "label": f"l{at % 30}"} for at in range(60)]
    assert len({json.dumps(profile_of(audited(*rows).table)) for _ in range(3)}) == 1
