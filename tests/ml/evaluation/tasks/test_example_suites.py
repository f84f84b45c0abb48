"""The suites that we ship: their rows are sound, and the rows' own answers have the best figures."""

import json
from pathlib import Path

import pytest
import yaml

from luthier.core.results.suite import Suite
from luthier.ml.evaluation.sandbox.runners import isolation
from luthier.ml.evaluation.tasks.protocol import task_kind

SUITES = Path(__file__).resolve().parents[4] / "examples" / "suites"
BEST = {
    "classify": {"accuracy": 1, "macro_f1": 1, "no_label": 0},
    "json": {"field_accuracy": 1, "json_exact": 1, "json_valid": 1, "schema_valid": 1, "json_in_prose": 0},
    "rank": {"ndcg_at_3": 1, "ndcg_at_1": 1, "hit_at_3": 1, "hit_at_1": 1, "mrr": 1, "no_items": 0},
    "sql": {"execution_accuracy": 1, "sql_valid": 1, "own_query_runs": 1},
    "code": {"pass_at_1": 1, "code_failed": 0, "code_error": 0, "code_over_limit": 0},
}


def suite(name):
    return Suite.model_validate(yaml.safe_load((SUITES / name).read_text(encoding="utf-8")))


def rows_of(bench, task):
    lines = (SUITES / task.data).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        item = json.loads(line)
        yield bench.row(number, answer=item["completion"], **item)


PLACES = [("triage.yaml", place) for place in range(5)] + [("programs.yaml", place) for place in range(2)]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_the_rows_own_answers_are_the_best(bench, name, place):
    bench.folder = SUITES
    task = suite(name).tasks[place]
    if task.kind == "code" and not isolation().seccomp:
        pytest.skip("this machine cannot lock a process down")
    rows, kind = list(rows_of(bench, task)), task_kind(task.kind)
    outputs = [row.example.reference for row in rows]
    if getattr(task, "by", "text") == "likelihood":
        right = [set(row.item.get("relevant", [row.example.reference])) for row in rows]
        nats = [
            [0.5 if option in own else 9.0 for option in kind.options(task, row)]
            for row, own in zip(rows, right, strict=True)
        ]
        found = bench.figures(kind, task, rows, option_nats=nats)
        told = ("accuracy", "macro_f1") if task.kind == "classify" else ("ndcg_at_3", "hit_at_1", "mrr")
        assert [found[metric] for metric in told] == pytest.approx([1] * len(told))
    else:
        assert bench.figures(kind, task, rows, outputs, allows_code=True) == pytest.approx(BEST[task.kind])


def test_wikisql_reads_tables_from_chat_rows(bench):
    task = suite("wikisql.yaml").tasks[0]
    prompt = "table: 1-7-2\ncolumns: Player, Team\nQ: Which team is Jo in?"
    own = "SELECT Team FROM 1-7-2 WHERE Player = 'Jo'"
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": own}]
    rows = [bench.row(1, prompt=prompt, answer=own, messages=messages)]
    found = bench.figures(task_kind("sql"), task, rows, ['select "Team" from "1-7-2" where "Player" = \'Jo\''])
    assert found == {"execution_accuracy": 1, "sql_valid": 1, "own_query_runs": 1}
