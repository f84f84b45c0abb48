"""The heat map of AdaLoRA's ranks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from luthier.core.run import RunRecord
from luthier.ml.evaluation.report import render_report
from luthier.ml.evaluation.report.charts import rank_charts, rank_grid

RANKS = {
    "model.layers.0.self_attn.q_proj": 3,
    "model.layers.1.self_attn.q_proj": 0,
    "model.layers.0.mlp.down_proj": 12,
    "model.layers.1.mlp.down_proj": 5,
}


def test_a_cell_a_matrix() -> None:
    assert rank_grid(RANKS) == {"q_proj": {0: 3, 1: 0}, "down_proj": {0: 12, 1: 5}}
    experts = {f"model.layers.0.experts.{i}.w1": rank for i, rank in enumerate((2, 4))}
    assert rank_grid(experts) == {"w1": {0: 3.0}}, "experts of a layer share a cell"
    assert rank_grid({"lm_head": 4}) == {}


def test_the_chart_says_every_rank_and_its_sums() -> None:
    (chart,) = rank_charts(RANKS)
    assert chart.caption == (
        "20 ranks over 4 matrices, 5 on average, 12 at most; 1 matrix has none. "
        "On average by kind: down_proj 8.5 and q_proj 1.5."
    )
    root = ElementTree.fromstring(str(chart.svg))
    texts = {"".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("text")}
    assert {"0", "3", "5", "12", "q_proj", "down_proj", "layer"} <= texts
    assert not re.search(r"#0001|#[0-9a-f]{6}\b", chart.svg), "a colour that does not follow the theme"
    assert rank_charts(RANKS) == [chart]


def test_it_stands_in_the_report_of_a_run_that_found_ranks(documents: Any, record_of: Callable[..., RunRecord]) -> None:
    record = record_of()
    assert record.result is not None
    found = record.model_copy(update={"result": record.result.model_copy(update={"ranks": RANKS})})
    page, document = render_report(documents.but(record=found))
    assert "Rank of each matrix at the end" in page
    assert document["run"]["result"]["ranks"] == RANKS
    without, _ = render_report(documents)
    assert "Rank of each matrix" not in without
