"""`luthier export benchmark`, short of the measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.evaluation import Comparison, Metric, SystemResult
from luthier.core.records.export import FormatPrice, FormatTable, Spread
from luthier.features.exports.formats import tables as format_tables

SPEED = Spread(median=100.0, low=90.0, high=120.0)


def result(name: str, value: float) -> SystemResult:
    exact = Metric(value=value, low=value - 0.1, high=value + 0.1, unit="fraction", higher_is_better=True)
    perplexity = Metric(value=2.0, low=1.5, high=2.5, unit="", higher_is_better=False)
    metrics = {"exact_match": exact, "perplexity": perplexity}
    return SystemResult(name=name, model="m", num_samples=9, metrics=metrics, seconds=1.0)


def make_table() -> FormatTable:
    change = Comparison(
        baseline="source", candidate="gguf:q4_k_m", metric="exact_match", difference=-0.3, low=-0.5, high=-0.1,
        p_value=0.01, verdict="worse",
    )  # fmt: skip
    measured: dict[str, Any] = {
        "num_bytes": 270_000_000,
        "peak_memory_bytes": 600_000_000,
        "prompt_tokens_per_second": SPEED,
        "new_tokens_per_second": SPEED,
    }
    prices = (
        FormatPrice(label="source", format=None, precision="bfloat16", quality=result("source", 0.5), **measured),
        FormatPrice(
            label="gguf:q4_k_m",
            format="gguf",
            precision="q4_k_m",
            quality=result("gguf:q4_k_m", 0.2),
            comparisons=(change,),
            is_recommended=False,
            losses=("exact match 0.2 instead of 0.5",),
            **measured,
        ),
        FormatPrice(label="onnx:int4", format="onnx", precision="int4", status="missing", reason="another model"),
    )
    return FormatTable(
        name="run-1", base_name="m", data_file="t.jsonl", data_sha256="0" * 64, num_rows=9, num_timed=2, num_rounds=3,
        num_threads=2, max_new_tokens=8, metric="exact_match", prices=prices, created_at="2026-01-01T00:00:00+00:00",
        machine={}, seconds=1.0, report_path="x/formats.html",
    )  # fmt: skip


def test_what_was_asked_reaches_the_service(luthier, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    asked: list[format_tables.FormatRequest] = []

    def measure(_: object, request: format_tables.FormatRequest) -> FormatTable:
        asked.append(request)
        return make_table()

    monkeypatch.setattr(format_tables, "measure_formats", measure)
    arguments = ["export", "benchmark", "run-1", "--data", "t.jsonl", "-o", "x", "--rows", "9"]
    arguments += [
        "--rounds",
        "2",
        "--timed",
        "3",
        "--metrics",
        "exact_match",
        "--map",
        "prompt=question",
        "--max-new-tokens",
        "8",
        "--keep",
    ]
    document = luthier(*arguments, "--formats", "gguf:q8_0, onnx:int4", "--json").document
    assert [price["label"] for price in document["prices"]] == ["source", "gguf:q4_k_m", "onnx:int4"]
    text = luthier(*arguments).out
    wanted = ("not recommended for this model", "exact match 0.2 instead of 0.5", "another model", "100 (90 to 120)")
    for words in (*wanted, "-0.3 [-0.5, -0.1]", "report: x/formats.html"):
        assert words in text
    both: dict[str, Any] = {
        "name": "run-1",
        "data": Path("t.jsonl"),
        "folder": Path("x"),
        "metrics": ["exact_match"],
        "mapping": {"prompt": "question"},
        "num_rows": 9,
        "num_timed": 3,
        "num_rounds": 2,
        "max_new_tokens": 8,
        "keeps_exports": True,
    }
    assert asked == [
        format_tables.FormatRequest(**both, formats=("gguf:q8_0", "onnx:int4")),
        format_tables.FormatRequest(**both),
    ]
