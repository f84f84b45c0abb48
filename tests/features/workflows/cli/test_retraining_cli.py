"""`luthier retrain`, `canary`, `lineage` and `forget-row` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.core.access import Caller
from luthier.features.deployments import service as deployments
from luthier.platform.home.context import Context
from luthier.testing.records import add_run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home in which `support` tries a canary."""
    with Context.open(tmp_path / "home") as context:
        deployments.deploy(context, Caller(), "support", add_run(context, "a"))
        deployments.deploy(context, Caller(), "support", add_run(context, "b"), canary=0.2)
    return tmp_path / "home"


def run(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = main([*words, "--json", "--home", str(home)])
    return code, json.loads(capsys.readouterr().out)


def test_a_canary_is_told_and_its_rules_are_changed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, seen = run(home, capsys, "canary", "support")
    assert (code, seen["state"], seen["num_seen"], seen["next_at"]) == (0, "too early", 0, 250)
    code, rules = run(home, capsys, "canary", "support", "--error", "0.01", "--only-tell")
    assert (code, rules["error"], rules["rolls_back"], rules["least_requests"]) == (0, 0.01, False, 50)
    code, refused = run(home, capsys, "canary", "support", "--error", "0.9")
    assert (code, refused["error"]["came"]) == (2, "error 0.9")
    assert main(["canary", "support", "--home", str(home)]) == 0
    assert "the first check is at 250" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "came"),
    [
        (["retrain"], "neither MODEL nor --resume"),
        (["retrain", "support", "--resume", "x"], "both MODEL and --resume"),
        (["retrain", "support", "--start", "middle"], "--start 'middle'"),
        (["retrain", "nobody"], "nobody"),
        (["retrain", "--resume", "retrain-20261126-093000-aaaaaa"], "no workflow"),
        (["retrain", "--resume", "retrain-20261126-093000-aaaaaa", "--gate", "gate.yaml"], "--resume with --gate"),
        (["retrain", "support", "--canary", "0.1"], "is being tried as a canary of support already"),
        (["lineage", "--row", "short"], "a row by 'short'"),
        (["data", "forget", "short", "--yes"], "a row by 'short'"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], came: str
) -> None:
    code, refused = run(home, capsys, *words)
    assert code == 2
    assert came in refused["error"]["came"]


def test_a_row_that_nobody_saw(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(home, capsys, "data", "forget", "Ann Example, 4 Mill Lane")
    assert (code, found["saw"], found["num_runs"]) == (0, [], 2)
    code, done = run(home, capsys, "data", "forget", "Ann Example, 4 Mill Lane", "--yes")
    assert (code, done["versions"], done["num_reviews"]) == (0, [], 0)
    assert main(["lineage", "--row", "Ann Example, 4 Mill Lane", "--home", str(home)]) == 0
    assert "2 runs and" in capsys.readouterr().out
