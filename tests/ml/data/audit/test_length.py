"""How long rows are, and which are out of line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.length import check_length
from luthier.ml.data.audit.table import with_rows


def test_the_distribution_is_a_note_with_figures_for_a_histogram(audited: Callable[..., AuditRequest]) -> None:
    (finding,) = check_length(audited(*({"text": "a" * num} for num in (10, 20, 40, 80))))
    details = finding.details
    assert finding.severity == "info"
    assert (details["unit"], details["total"], details["mean"]) == ("characters", 150, 37.5)
    assert (details["quantiles"]["q00"], details["quantiles"]["q100"]) == (10, 80)
    assert sum(details["histogram"]["counts"]) == 4
    assert len(details["histogram"]["edges"]) == len(details["histogram"]["counts"]) + 1


def test_rows_far_from_the_rest_are_named_the_farthest_first(audited: Callable[..., AuditRequest]) -> None:
    usual = [{"text": "a" * num} for num in range(90, 130)]
    _, short, long = check_length(audited(*usual, {"text": "ab"}, {"text": "a" * 500}, {"text": "a" * 5_000}))
    assert (short.details["sort"], short.severity, short.lines) == ("short", "warning", (41,))
    assert (long.details["sort"], long.severity, long.lines) == ("long", "warning", (42, 43))
    assert long.examples[0].row == "rows.jsonl:43"


def test_outliers_within_ten_times_the_median_are_a_note(audited: Callable[..., AuditRequest]) -> None:
    _, finding = check_length(audited(*[{"text": "a" * 100}] * 30, {"text": "a" * 400}))
    assert finding.severity == "info"


def test_few_or_even_lengths_have_no_outliers(audited: Callable[..., AuditRequest]) -> None:
    assert len(check_length(audited({"text": "a"}, {"text": "a" * 10_000}))) == 1
    assert len(check_length(audited(*[{"text": "a" * 100}] * 30, {"text": "a" * 250}))) == 1


def test_tokens_are_used_where_they_were_counted(audited: Callable[..., AuditRequest]) -> None:
    request = audited({"text": "one two"}, {"text": "three"})
    frame = request.table.frame.with_columns(pl.Series("num_tokens", [2, 1], dtype=pl.UInt32))
    (finding,) = check_length(replace(request, table=with_rows(request.table, frame)))
    assert (finding.details["unit"], finding.details["total"]) == ("tokens", 3)


@given(lengths=st.lists(st.integers(0, 5_000), min_size=1, max_size=60))
def test_any_lengths_give_a_whole_histogram(lengths: list[int], empty_request: AuditRequest) -> None:
    table = empty_request.table
    frame = table.frame.clear(len(lengths)).with_columns(
        pl.Series("num_tokens", lengths, dtype=pl.UInt32), pl.lit("x").alias("text"), pl.lit(1, pl.UInt32).alias("line")
    )
    findings = check_length(replace(empty_request, table=with_rows(table, frame)))
    assert sum(findings[0].details["histogram"]["counts"]) == len(lengths)
    assert sum(finding.count for finding in findings) < len(lengths)
