"""Kinds in a comparison: every figure has its interval, and better answers are seen to be better."""

import json

import pytest

from luthier.core.ports import SilentProgress
from luthier.core.results.suite import ClassifyTask, JsonTask, RankTask, SqlTask
from luthier.ml.evaluation.compare import judge_in_full
from luthier.ml.evaluation.tasks.protocol import Resources, task_kind

SCRIPT = "CREATE TABLE t(a); INSERT INTO t VALUES (1), (2), (3);"
KINDS = {
    "classify": (ClassifyTask(kind="classify", name="t", data="-"), ["yes", "no"] * 10, "no idea", {}),
    "rank": (RankTask(kind="rank", name="t", data="-", k=(1,)), ["lamp\nrug"] * 20, "", {"relevant": ["lamp"]}),
    "json": (JsonTask(kind="json", name="t", data="-"), [json.dumps({"n": n, "m": 0}) for n in range(20)], "{", {}),
    "sql": (
        SqlTask(kind="sql", name="t", data="-", database_field="db"),
        [f"SELECT a FROM t WHERE a < {n}" for n in range(20)],
        "SELECT b FROM t",
        {"db": SCRIPT},
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_better_system_is_found_better(bench, system_of, name):
    task, own, wrong, more = KINDS[name]
    kind = task_kind(name)
    rows = [bench.row(number, answer=answer, **more) for number, answer in enumerate(own, 1)]
    kind.check(task, rows)
    metrics = kind.metrics(task, rows, Resources(bench.folder))
    systems = [system_of("base", [wrong] * 15 + own[15:], own), system_of("tuned", own[:18] + [wrong] * 2, own)]
    items = [row.item for row in rows]
    found = judge_in_full(systems, metrics=metrics, seed=0, progress=SilentProgress(), items=items)
    base, tuned = (system.metrics[metrics[0].name] for system in found.systems)
    assert (base.value, tuned.value) == pytest.approx((0.25, 0.9), abs=0.3)
    for system in found.systems:
        assert set(system.metrics) == {metric.name for metric in metrics}
        assert all(figure.low <= figure.value <= figure.high for figure in system.metrics.values())
    words = {comparison.metric: comparison.verdict for comparison in found.comparisons}
    assert words[metrics[0].name] == "better"
    assert found.systems[0].samples[0].scores
