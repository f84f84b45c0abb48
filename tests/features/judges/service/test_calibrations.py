"""Hold a judge against people, keep what came of it, and ask whether it may enter a gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.assessed import pair_ratings, reading_judge, write_ratings

from luthier.core.errors import DataError, NotFoundError, RequestError
from luthier.core.records.deployment import Deployment, Revision, Share
from luthier.core.results.human_eval import RatingsTable
from luthier.features.judges import service
from luthier.features.judges.service import calibrate, calibrations, is_calibrated
from luthier.ml.evaluation.judge import verdicts
from luthier.platform.home.context import Context
from luthier.testing.fake_engine import FakeEngine
from luthier.testing.openai_server import OpenAIServer, Trouble, serving
from luthier.testing.records import add_run

NUM = 60


@pytest.fixture
def project(context: Context) -> str:
    return context.access.project("default").project_id


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    return write_ratings(pair_ratings(), tmp_path / "ratings.csv")


def held(
    context: Context, project: str, ratings: Path, answer: Callable[[str], str], name: str = "m"
) -> tuple[OpenAIServer, str]:
    server = OpenAIServer(answer=answer)
    with serving(server) as url:
        calibrate(context, project, f"{url}#{name}", ratings=ratings)
        return server, f"{url}#{name}"


def test_a_judge_that_reads_is_calibrated_in_what_people_rated_and_nothing_else(
    context: Context, project: str, ratings: Path
) -> None:
    _, judge = held(context, project, ratings, reading_judge, name="a-judge")
    found = is_calibrated(context, project, judge, "preference")
    assert found is not None
    assert found.agreement is not None
    assert (found.judge, found.source, found.num_items) == (judge, str(ratings), NUM)
    assert is_calibrated(context, project, judge, "accuracy") is None
    assert is_calibrated(context, project, "another", "preference") is None
    assert is_calibrated(context, project, judge.replace("http://", "HTTP://").replace("#", "/#"), "preference")
    other = context.access.add_project("project-other", "other").project_id
    assert is_calibrated(context, other, judge, "preference") is None


def test_the_newest_word_counts(context: Context, project: str, ratings: Path) -> None:
    server = OpenAIServer(answer=reading_judge)
    with serving(server) as url:
        judge = f"{url}#m"
        calibrate(context, project, judge, ratings=ratings)
        assert is_calibrated(context, project, judge, "preference") is not None
        num_asked = len(server.requests)
        calibrate(context, project, judge, ratings=ratings)
        assert len(server.requests) == num_asked, "nothing is paid for twice"
        few = write_ratings(pair_ratings(num=10), ratings.with_name("few.csv"))
        calibrate(context, project, judge, ratings=few)
    assert is_calibrated(context, project, judge, "preference") is None
    assert [one.num_items for one in calibrations(context, project, judge)] == [10, NUM, NUM]


def test_another_form_of_the_questions_needs_another_calibration(
    context: Context, project: str, ratings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, judge = held(context, project, ratings, reading_judge)
    monkeypatch.setattr(verdicts, "_RULES", "Be fair.")
    assert is_calibrated(context, project, judge, "preference") is None


def test_a_judge_of_the_systems_own_family_is_warned_about(context: Context, project: str, ratings: Path) -> None:
    _, judge = held(context, project, ratings, reading_judge, name="m")
    (found,) = calibrations(context, project, judge)
    assert any("judges m, and both are m" in one for one in found.cautions)


def test_a_judge_that_fails_now_and_then_is_counted(context: Context, project: str, ratings: Path) -> None:
    def refuse(body: object) -> Trouble | None:
        text = body["messages"][-1]["content"]  # type: ignore[index]
        return Trouble(200, {"choices": []}) if "question 7\n" in text else None

    server = OpenAIServer(answer=reading_judge, refuse=refuse)
    with serving(server) as url:
        (found,) = calibrate(context, project, f"{url}#m", ratings=ratings)
    assert found.no_verdict == {"no answer": 1}
    assert found.may_enter_gate
    assert any("an error or no answer in time (1)" in one for one in found.cautions)


def test_raters_who_do_not_read_are_left_out_and_named(context: Context, project: str, tmp_path: Path) -> None:
    rows = pair_ratings()
    for item in range(NUM):
        rows.append(rows[2 * item].model_copy(update={"rater": "eve", "preference": "tie"}))
    for number in range(4):
        check = {"item": 1000 + number, "is_check": True, "passed": False, "rater": "eve"}
        rows.append(rows[0].model_copy(update=check))
    _, judge = held(context, project, write_ratings(rows, tmp_path / "r.csv"), reading_judge)
    (found,) = calibrations(context, project, judge)
    assert found.num_raters == 2
    assert found.cautions[0] == "eve failed 4 of 4 attention checks, and is left out."


def test_a_panel_is_taken_as_it_stands(context: Context, project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.features.human_eval import service as rating_panels

    def table(_: Context, project_id: str, panel_id: str) -> RatingsTable:
        assert (project_id, panel_id) == (project, "panel-1")
        return RatingsTable(tuple(pair_ratings()))

    monkeypatch.setattr(rating_panels, "ratings_table", table)
    server = OpenAIServer(answer=reading_judge)
    with serving(server) as url:
        (found,) = calibrate(context, project, f"{url}#m", panel="panel-1")
    assert (found.source, found.may_enter_gate) == ("panel-1", True)


def test_what_cannot_be_done_is_refused_before_the_judge_is_asked(
    context: Context, project: str, ratings: Path, tmp_path: Path
) -> None:
    judge = "http://127.0.0.1:9/v1#m"
    with pytest.raises(RequestError, match="neither --ratings nor --panel"):
        calibrate(context, project, judge)
    with pytest.raises(RequestError, match="both --ratings and --panel"):
        calibrate(context, project, judge, ratings=ratings, panel="panel-1")
    with pytest.raises(RequestError, match="no file"):
        calibrate(context, project, judge, ratings=tmp_path / "gone.csv")
    with pytest.raises(NotFoundError):
        calibrate(context, project, judge, panel="panel-20200101-000000-abcdef")
    with pytest.raises(DataError, match="ratings of 0 items"):
        calibrate(context, project, judge, ratings=write_ratings(pair_ratings(num=0), tmp_path / "empty.csv"))
    with pytest.raises(RequestError, match="names no model"):
        calibrate(context, project, "http://127.0.0.1:9/v1", ratings=ratings)


def test_callers_see_their_own_project_alone(context: Context, project: str, ratings: Path) -> None:
    held(context, project, ratings, reading_judge)
    other = context.access.add_project("project-other", "other").project_id
    assert calibrations(context, other) == []
    assert len(calibrations(context, project)) == 1


def test_what_a_deployment_routes_to_is_calibrated_and_not_its_name(
    context: Context, project: str, ratings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tomorrow the name may be that of another model."""
    run_id, other = add_run(context, "a"), add_run(context, "b")
    revision = Revision(number=1, kind="deploy", shares=(Share(target=run_id, fraction=1.0),))
    context.deployments.add(Deployment(deployment_id="dep-1", project_id=project, name="judge", revision=revision))
    asked: list[str] = []

    def opened(_: Context, name: str) -> FakeEngine:
        asked.append(name)
        return FakeEngine(lambda prompt: reading_judge(prompt.conversation.messages[-1].content), name=name)  # type: ignore[union-attr, arg-type]

    monkeypatch.setattr(service, "open_judge", opened)
    (found,) = calibrate(context, project, "judge", ratings=ratings)
    assert (found.judge, asked) == (run_id, ["judge"])
    assert found.may_enter_gate
    names = ("judge", run_id, other)
    assert [is_calibrated(context, project, name, "preference") is not None for name in names] == [False, True, False]
    assert [service.lasting_name(context, name) for name in (*names, "nobody")] == [run_id, run_id, other, "nobody"]
