"""`luthier automl`: what it asks for, refuses, and shows where it ends early."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_rows_that_fail_the_audit_end_it_with_a_page_and_exit_code_one(luthier, tiny_model, tmp_path):
    rows = [{"prompt": f"question {n}", "completion": "yes" if n % 2 else "no"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ["--data", tmp_path / "rows.jsonl", "--goal", "Say yes or no.", "--budget-hours", "1"]
    done = luthier("automl", *given, "--models", tiny_model, "--json")
    assert done.code == 1
    assert "2/7 repair: refused" in done.err
    assert "0.3 h of them to choose among" in done.err
    assert "grade F even after repair" in done.document["headline"]
    assert "Say yes or no." in Path(done.document["report_path"]).read_text()
    again = luthier("automl", "--resume", done.document["pipeline_id"])
    assert again.code == 1
    assert "repair: refused" in again.out
    assert done.document["report_path"] in again.out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no --data, --goal, --budget-hours"),
        (["--data", "nothing.jsonl", "--goal", "Say.", "--budget-hours", "1"], "nothing.jsonl"),
        (["--data", "nothing.jsonl", "--goal", "Say.", "--budget-hours", "nan"], "--budget-hours nan"),
        (["--data", "nothing.jsonl", "--goal", "Say.", "--budget-hours", "1", "--seed", "2147483648"], "--seed"),
        (["--data", __file__, "--goal", "Say.", "--budget-hours", "1", "--metric", "rogue"], "rogue"),
        (["--goal", "Say.", "--resume", "auto-20261126-000000-000000"], "--resume with --goal"),
        (
            ["--resume", "auto-20261126-000000-000000", "--tune-anyway", "--seed", "0"],
            "--resume with --seed, --tune-anyway",
        ),
        (["--resume", "auto-20261126-000000-000000"], "no workflow"),
        (["--resume", "auto-20261126-000000-000000", "--project", "nobodys"], "nobodys"),
    ],
)
def test_what_cannot_be_is_refused(luthier, given, said):
    refused = luthier("automl", *given)
    assert refused.code == 2
    assert said in refused.err
