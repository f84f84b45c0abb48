"""Figures by source follow what was evaluated: rows, or the queries of a search."""

from __future__ import annotations

from typing import Any

import numpy as np

from luthier.core.data_sources import SourceFile, SourcePlan
from luthier.core.evaluation import Comparison, Verdict
from luthier.features.evaluations.by_source import with_sources
from luthier.features.models.resolve import Candidate
from luthier.ml.evaluation.compare import Judged

METRIC = "ndcg_at_10"


def source(name: str, first: int) -> SourcePlan:
    file = SourceFile(name=name, sha256="0" * 64, num_bytes=1, num_rows=20)
    return SourcePlan(split="held_out", name=name, path=name, files=(file,), first_row=first, num_rows=20)


def candidate(name: str) -> Candidate:
    given: dict[str, Any] = {"model_name": "m", "model_path": "/m", "adapter_path": None, "template": "auto"}
    return Candidate(name=name, precision="float32", device="cpu", context_length_tokens=64, **given)


def test_a_query_of_several_rows_counts_once_for_the_source_of_its_first_row() -> None:
    row_ids = [f"mix.jsonl:{line}" for line in (*range(1, 19, 3), *range(21, 39, 3))]
    statistics = {
        (name, METRIC): np.array([[value + 0.01 * row, 1.0] for row in range(len(row_ids))])
        for name, value in (("base", 0.2), ("tuned", 0.7))
    }
    compared = Comparison(
        baseline="base", candidate="tuned", metric=METRIC, difference=0.5, low=0.4, high=0.6, p_value=0.001,
        verdict="better",
    )  # fmt: skip
    words, found = with_sources(
        Verdict(word="better", metric=METRIC, headline="Better."),
        Judged((), (compared,), {}, statistics),
        [compared],
        [candidate("base"), candidate("tuned")],
        [source("orders", 1), source("faq", 21)],
        row_ids,
    )
    assert [(one.source, one.num_rows) for one in found] == [("orders", 6), ("faq", 6)]
    assert words is not None
    assert len(words.details) == 2
