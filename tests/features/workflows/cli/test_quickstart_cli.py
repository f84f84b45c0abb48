"""`luthier quickstart`, short of the work itself."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.plan import Plan
from luthier.core.run import RunStatus
from luthier.features.datasets.previews import DataPreview
from luthier.features.training.service import TrainOutcome
from luthier.features.workflows.quickstart import workflow as quickstart
from luthier.features.workflows.quickstart.workflow import SIZES, ChosenSize
from luthier.ml.data.tokenise.preview import Preview, Span
from luthier.testing.records import RUN_ID, make_evaluation, make_plan, make_record, make_result


def fake(folder: Path, status: RunStatus) -> Callable[..., quickstart.QuickstartOutcome]:
    def work(
        _: object, *, full: bool, show: Callable[[Any, Any], None], show_plan: Callable[[str, Plan, str], None]
    ) -> quickstart.QuickstartOutcome:
        rows = {"train": 700, "validation": 80} if not full else {"train": 7000}
        chosen = ChosenSize(SIZES[2], 100.0, "a processor")
        data = quickstart.QuickstartData(
            folder=folder,
            num_rows=rows,
            num_left_out={"too long": 3},
            recipe_path=folder / "recipe.yaml",
            chosen=chosen,
        )
        row = Preview("train.jsonl:1", (Span("in", False, (1,)), Span("out", True, (2,))), 2, 1, 0)
        show(data, DataPreview("train.jsonl", "tiny", "chat", "chat", "every row has messages", 700, (row,)))
        show_plan(RUN_ID, make_plan(), "no prediction: a test")
        record = make_record(status=status, result=make_result())
        outcome = TrainOutcome(record, make_plan(), make_evaluation(run_id=RUN_ID), ("validation rises",))
        return quickstart.QuickstartOutcome(data, outcome)

    return work


def test_it_shows_what_will_be_trained_the_verdict_and_what_to_type_next(  # type: ignore[no-untyped-def]
    luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "quickstart", fake(tmp_path, "succeeded"))
    done = luthier("quickstart")
    assert done.code == 0
    assert "in[[out]]" in done.err
    assert "this machine: a processor" in done.err
    assert "chosen: 720 rows of up to 192 tokens, 50 of them evaluated; training and evaluation about 1" in done.err
    assert "rows: train 700, validation 80" in done.err
    assert f"run {RUN_ID}, plan " in done.err
    for words in ("Verdict: not distinguishable", "warning: validation rises", "Next:", f"luthier runs show {RUN_ID}"):
        assert words in done.out
    told = luthier("quickstart", "--full", "--json")
    assert told.document["train"]["run_id"] == RUN_ID
    assert len(told.document["next_commands"]) == 3
    assert "train 7,000" in told.err
    assert told.document["chosen"]["max_tokens"] == 192
    assert told.document["chosen"]["expected_seconds"] == 100.0


def test_a_run_that_failed_is_exit_code_1(luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(quickstart, "quickstart", fake(tmp_path, "failed"))
    done = luthier("quickstart", "--json")
    assert done.code == 1
    assert done.document["train"]["status"]


def test_what_to_type_next_holds_for_a_home_with_blanks(
    luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    home = tmp_path / "Jörg's home"
    monkeypatch.setattr(quickstart, "quickstart", fake(home / "quickstart", "succeeded"))
    done = luthier("quickstart", "--home", home)
    commands = [shlex.split(line) for line in done.out.partition("Next:\n")[2].splitlines()]
    assert len(commands) == 3
    assert all(words[-2:] == ["--home", str(home)] for words in commands)
    assert commands[1][3] == str(home / "quickstart" / "train.jsonl")
    assert commands[2][4] == str(home / "quickstart" / "held_out.jsonl")
