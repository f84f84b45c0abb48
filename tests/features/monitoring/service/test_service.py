"""Looking at a deployed model through the log of its traffic."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from tests.assessed import make_suite_result, make_task

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.records.deployment import Deployment, Revision, Share
from luthier.core.records.monitoring import WatchSettings
from luthier.core.records.traffic import Exchange
from luthier.features.monitoring import scheduled_suites as watch_settings
from luthier.features.monitoring import service as monitoring
from luthier.features.monitoring.scheduled_suites import suite_signals
from luthier.features.monitoring.service import text_checks, training_profile
from luthier.features.traffic import service as traffic
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.rows.prompt_rows import PromptRule
from luthier.ml.drift.traffic.log import line_of
from luthier.platform.home.context import Context
from luthier.testing.records import add_run
from luthier.testing.traffic import Change, made_traffic

DAY = 86_400.0


def put(context: Context, frame: pl.DataFrame, target: str = "base") -> float:
    """Write made traffic into the log as if it had just ended; returns the time now."""
    now = context.access.now()
    moved = now - float(frame["at"].max()) - 1  # type: ignore[arg-type]
    lines = [
        line_of(
            Exchange(
                project_id=context.access.project("default").project_id,
                model="shop",
                target=target,
                messages=tuple(json.loads(row.pop("messages"))),
                **(row | {"at": row["at"] + moved}),
            )
        )
        for row in frame.iter_rows(named=True)
    ]
    traffic.spool(context).append(lines)
    return now


def test_a_look_through_the_log_tells_a_change_and_writes_a_page(context: Context, tmp_path: Path) -> None:
    num = made_traffic(12, 6.0, seed=3).height
    frame = made_traffic(12, 6.0, seed=3, change=Change(at=num - 300, moved=0.4, refusals=True))
    now = put(context, frame)
    found = monitoring.look(context, "default", "shop", since=now - 3 * DAY, html=tmp_path / "look.html")
    signal = found.report.signal("answer_refusals")
    assert signal is not None
    assert signal.state == "changed"
    assert found.report.num_with_text == found.report.num_exchanges > 200
    assert found.page == tmp_path / "look.html"
    assert "Answers that refuse" in (tmp_path / "look.html").read_text(encoding="utf-8")
    monitoring.set_model_settings(context, "default", "shop", WatchSettings(normal_since=now - 2 * DAY))
    again = monitoring.watch(context, "default", "shop", since=now - DAY)
    assert "changed" not in {one.state for one in again.signals}


def test_a_model_that_nobody_asked_is_refused_by_name_and_known_ones_are_told(context: Context) -> None:
    put(context, made_traffic(0.2, 5.0, seed=1))
    with pytest.raises(NotFoundError, match="'shop'"):
        monitoring.look(context, "default", "shpo", since=0.0)
    assert {one.state for one in monitoring.watch(context, "default", "shpo", since=0.0).signals} == {"unknown"}
    with pytest.raises(RequestError, match="--since"):
        monitoring.watch(context, "default", "shop", since=2.0, until=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        WatchSettings(groups={"a b": "x"}),
        WatchSettings(groups={"a": "("}),
        WatchSettings(groups={f"g{n}": "x" for n in range(13)}),
    ],
)
def test_settings_that_cannot_be_are_refused(context: Context, wrong: WatchSettings) -> None:
    with pytest.raises(RequestError):
        monitoring.set_model_settings(context, "default", "shop", wrong)
    with pytest.raises(NotFoundError, match="--corpus"):
        monitoring.set_model_settings(context, "default", "shop", WatchSettings(corpus="/nowhere"))
    assert watch_settings.model_settings(context, "default", "shop") == WatchSettings()


def test_the_training_rows_are_those_named_or_those_of_the_run(context: Context, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    file.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(5)), encoding="utf-8")
    profile = training_profile(context, "default", "", WatchSettings(data=str(file)))
    assert profile is not None
    assert list(profile.prompts) == ["Q"] * 5
    assert list(profile.answers) == ["A"] * 5
    assert training_profile(context, "default", "some base", WatchSettings()) is None
    put(context, made_traffic(0.2, 5.0, seed=1))
    monitoring.set_model_settings(context, "default", "shop", WatchSettings(data=str(file)))
    file.unlink()
    report = monitoring.watch(context, "default", "shop", since=0.0)
    assert any("training data could not be read" in one for one in report.cautions)


def test_what_stands_for_a_missing_answer_is_no_answer_of_the_training_rows(tmp_path: Path) -> None:
    file, asked = tmp_path / "rows.jsonl", {"role": "user", "content": "Q"}
    turns = [[asked], [asked, {"role": "assistant", "content": "A"}]]
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns), encoding="utf-8")
    profile = monitoring._profile(load_file(file, prompts=PromptRule(needs_reference=False)).examples)
    assert list(profile.prompts) == ["Q", "Q"]
    assert list(profile.answers) == ["A"]


def test_quality_is_the_newest_suite_against_the_one_before(context: Context) -> None:
    run_id = add_run(context, "a")
    for number, value in enumerate((0.8, 0.5)):
        task = make_task(metrics={"sql_accuracy": (0.3, value)})
        result = make_suite_result(f"suite-20261126-12000{number}-aaaaaa", run_id=run_id, tasks=(task,))
        context.assessments.save("suite", result.result_id, result, project_id="default", subject=run_id, run_id=run_id)
        found = suite_signals(context, "default", run_id)
        assert len(found) == 1
        assert found[0].group == "quality"
        assert found[0].state == ("changed" if number else "unknown")
    assert "worse" in found[0].sentence
    assert suite_signals(context, "default", "") == ()


def test_quality_is_known_while_nobody_asks(context: Context) -> None:
    """Else an open alert of a suite would close as steady in a quiet night."""
    run_id = add_run(context, "a")
    for number, value in enumerate((0.8, 0.5)):
        task = make_task(metrics={"sql_accuracy": (0.3, value)})
        result = make_suite_result(f"suite-20261126-12000{number}-aaaaaa", run_id=run_id, tasks=(task,))
        context.assessments.save("suite", result.result_id, result, project_id="default", subject=run_id, run_id=run_id)
    shares = (Share(target=run_id, fraction=0.9), Share(target="run-canary", fraction=0.1))
    revision = Revision(number=1, kind="deploy", shares=shares, canary="run-canary")
    context.deployments.add(Deployment(deployment_id="d-shop", project_id="default", name="shop", revision=revision))
    report = monitoring.watch(context, "default", "shop", since=0.0)
    assert report.num_exchanges == 0
    assert [one.state for one in report.signals if one.name.startswith("suite_")] == ["changed"]
    none = monitoring.watch(context, "default", "another", since=0.0)
    assert not any(one.name.startswith("suite_") for one in none.signals)


def test_checks_see_what_they_are_to_see(context: Context, tmp_path: Path) -> None:
    (tmp_path / "law.txt").write_text(
        "The duty of care, Harrow v. Tallow Mills, 31 Pelm. 204 (2019).", encoding="utf-8"
    )
    checks = text_checks(context, tmp_path)
    assert checks.citations is not None
    assert checks.citations("See Harrow v. Tallow Mills, 31 Pelm. 204 (2019).") == (1, 0)
    assert checks.citations("See Budd v. Stone, 99 Pelm. 7 (2001).") == (1, 1)
    assert checks.is_refusal("I'm sorry, but I cannot do that.")
    assert checks.has_personal_data("Write to jane.roe@firm.de")
    assert not checks.has_personal_data("Write to us")
    assert checks.words(["a b", "", "c"]).counts.tolist() == [2, 0, 1]
    assert checks.languages(["This is a sentence in plain English, which can be told.", "1 2 3"]) == ["en", None]
