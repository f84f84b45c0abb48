"""A training that is reported to trackers: it never waits for them, and is the same without them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.fixtures.plug_ins import installed_package
from tests.fixtures.service import write_recipe
from tests.vacuous import nonempty

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.core.ports import Prompt, SilentProgress
from luthier.core.recipe import BudgetRecipe
from luthier.core.run import RunRecord
from luthier.core.tracking import TrackerPlan, TrackerRecipe
from luthier.features.recipes.service import load_recipe
from luthier.features.trackers import service as trackers
from luthier.features.trackers.reporting import reported
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.ml.tracking import mlflow_model
from luthier.ml.tracking.protocol import TrackerRules
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, make_plan, make_record

POINTS = """\
[luthier.trackers]
jsonl = theirs:JsonLines
down = theirs:Down
hangs = theirs:Hangs
slow = theirs:Slow
"""
CODE = """
import json
import time
from pathlib import Path

from luthier.ml.tracking.protocol import RemoteRun, Tracker, TrackerRules


class JsonLines(Tracker):
    rules = TrackerRules(title="JSON Lines", summary="figures in a file")

    def begin(self, run):
        self.file = run.folder / "figures.jsonl"
        self.write("begin", id=run.tracker_run_id, rate=run.parameters["training.learning_rate"])
        return RemoteRun("theirs", str(self.file))

    def log(self, points):
        for point in points:
            self.write("point", step=point.step, **point.values)

    def end(self, outcome):
        self.write("end", status=outcome.status, texts=dict(outcome.texts), report=str(outcome.report),
                   weights=str(outcome.weights))
        return []

    def write(self, kind, **values):
        with self.file.open("a") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\\n")


class Down(JsonLines):
    rules = TrackerRules(title="Down", summary="never answers")

    def begin(self, run):
        raise ConnectionError("no answer")


class Hangs(JsonLines):
    rules = TrackerRules(title="Hangs", summary="answers too late")

    def begin(self, run):
        time.sleep(3600)


class Slow(JsonLines):
    rules = TrackerRules(title="Slow", summary="answers late while there is a file beside this module")

    def log(self, points):
        while Path(__file__).with_name("slow").exists():
            time.sleep(0.05)
        super().log(points)
"""


@pytest.fixture(scope="module")
def plug_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trackers of another package, which the processes that deliver find, too."""
    folder = tmp_path_factory.mktemp("theirs")
    with pytest.MonkeyPatch.context() as patched, installed_package(folder, patched, POINTS, CODE):
        yield


def trained(context: Context, folder: Path, tiny_model: Path, tracking: list[str], **more: object) -> TrainOutcome:
    recipe = write_recipe(folder, tiny_model, tracking=tracking, **more)
    return train(context, load_recipe(recipe), base_dir=folder)


def lines_of(context: Context, record: RunRecord) -> list[dict[str, object]]:
    file = context.settings.run_folder(record.run_id) / "trackers" / "figures.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@dataclass(frozen=True)
class Ended:
    """A run with one tracker that answers, and one that is down."""

    context: Context
    folder: Path
    outcome: TrainOutcome


@pytest.fixture(scope="module")
def ended(plug_ins: None, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Ended]:
    folder = tmp_path_factory.mktemp("ended")
    with Context.open(folder / "home") as context:
        yield Ended(context, folder, trained(context, folder / "work", tiny_model, ["jsonl", "down"]))


def test_a_run_is_reported_while_another_tracker_is_down(ended: Ended) -> None:
    context, outcome = ended.context, ended.outcome
    run_id = outcome.record.run_id
    assert outcome.record.status == "succeeded"
    whole, down = outcome.trackers
    assert (whole.status, down.status) == ("delivered", "waiting")
    assert down.error == "ConnectionError: no answer"
    begin, *points, end = lines_of(context, outcome.record)
    assert (begin["kind"], begin["rate"]) == ("begin", 0.01)
    steps = [one["step"] for one in points if "train/loss" in one]
    assert steps == list(range(1, outcome.record.num_steps + 1))
    assert [one["step"] for one in points if "eval/loss" in one] == [3, 6, 9, 10]
    assert (end["status"], end["report"]) == ("succeeded", outcome.record.report_path)
    assert outcome.evaluation is not None
    assert outcome.evaluation.verdict is not None
    assert end["texts"] == {**end["texts"], "verdict": outcome.evaluation.verdict.title}  # type: ignore[dict-item]
    assert whole.num_events == len(context.runs.events(run_id))
    log = (context.settings.run_folder(run_id) / "log.txt").read_text()
    assert "down lacks part of this run (ConnectionError: no answer); deliver the rest with" in log
    assert f"luthier runs track {run_id}" in log


def test_what_is_trained_and_the_hash_of_its_plan_are_those_without_a_tracker(ended: Ended, tiny_model: Path) -> None:
    plain = trained(ended.context, ended.folder / "plain", tiny_model, [])
    assert ended.outcome.plan.hash == plain.plan.hash
    results = [one.record.result for one in (ended.outcome, plain)]
    assert len({result.adapter_sha256 for result in nonempty(results) if result is not None}) == 1
    assert plain.trackers == ()


def test_the_model_that_mlflow_loads_writes_what_the_tuned_model_writes(ended: Ended, tiny_model: Path) -> None:
    import pandas

    result, evaluation = ended.outcome.record.result, ended.outcome.evaluation
    assert result is not None
    assert evaluation is not None
    model = mlflow_model._load_pyfunc(str(result.adapter_path), {"base_model": str(tiny_model), "template": "chat"})
    frame = pandas.DataFrame({"prompt": ["What comes after 200?", "What comes after 201?"]})
    answers = model.predict(frame, {"max_new_tokens": 6})
    engine = TransformersEngine.open(str(tiny_model), adapter_path=result.adapter_path, dtype="float32")
    talks = [Conversation(messages=(Message(role="user", content=text),)) for text in frame["prompt"]]
    prompts = [Prompt(conversation=talk, max_new_tokens=6) for talk in talks]
    assert answers == [one.text for one in engine.generate(prompts, SilentProgress())]
    assert model.predict("What comes after 200?", {"max_new_tokens": 6}) == answers[:1]
    with pytest.raises(RequestError, match="columns question"):
        model.predict(frame.rename(columns={"prompt": "question"}))


@pytest.mark.usefixtures("plug_ins")
def test_a_paused_run_goes_on_in_the_same_run_of_its_tracker(tmp_path: Path, tiny_model: Path) -> None:
    with Context.open(tmp_path / "home") as context:
        budget = {"tokens": 500}
        paused = trained(context, tmp_path / "work", tiny_model, ["jsonl"], budget=budget)
        assert paused.record.status == "paused"
        assert paused.trackers[0].status == "delivered", "all that there is"
        ended = resume(context, paused.record.run_id, budget=BudgetRecipe(tokens=10**9))
        lines = lines_of(context, ended.record)
        assert [(one["kind"], one.get("id")) for one in lines if one["kind"] == "begin"] == [
            ("begin", ""), ("begin", "theirs")
        ]  # fmt: skip
        assert [one["status"] for one in lines if one["kind"] == "end"] == ["paused", "succeeded"]
        steps = [one["step"] for one in lines if "train/loss" in one]
        assert steps == list(range(1, ended.record.num_steps + 1))


@pytest.mark.usefixtures("plug_ins")
def test_one_that_hangs_is_ended_when_its_time_is_up(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan().model_copy(update={"tracking": (TrackerPlan(name="hangs", project="mails"),)})
    context.settings.run_folder(RUN_ID).mkdir(parents=True)
    context.runs.create(make_record(status="running"), plan)
    settings = context.settings.model_copy(update={"tracker_wait_seconds": 0.0})
    monkeypatch.setattr(context, "settings", settings)
    with reported(context, RUN_ID, plan) as found:
        assert found == []
    assert [(state.name, state.status) for state in found] == [("hangs", "waiting")]
    assert not (context.settings.run_folder(RUN_ID) / "trackers" / "figures.jsonl").exists()


@pytest.mark.usefixtures("plug_ins")
def test_one_that_is_slow_does_not_delay_the_run_and_gets_the_rest_later(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import theirs  # type: ignore[import-not-found]

    slow = Path(theirs.__file__).with_name("slow")
    slow.touch()
    with Context.open(tmp_path / "home") as context:
        monkeypatch.setattr(context, "settings", context.settings.model_copy(update={"tracker_wait_seconds": 0.0}))
        outcome = trained(context, tmp_path / "work", tiny_model, ["slow"])
        run_id = outcome.record.run_id
        assert outcome.record.status == "succeeded"
        (state,) = outcome.trackers
        assert (state.status, state.last_step) == ("waiting", 0), "its first answer has not come"
        assert [one.status for one in trackers.states(context, run_id)] == ["waiting"], "what pages show"
        slow.unlink()
        (state,) = trackers.deliver(context, run_id)
        assert (state.status, state.num_events) == ("delivered", len(context.runs.events(run_id)))
        steps = [one["step"] for one in lines_of(context, outcome.record) if "train/loss" in one]
        assert steps == list(range(1, outcome.record.num_steps + 1)), "each step once, in order"


def test_a_package_that_is_missing_is_named_before_anything_is_trained(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrackerRules, "missing", lambda self: list(self.modules))
    with Context.open(tmp_path / "home") as context:
        with pytest.raises(RequestError, match="needs mlflow, which is not installed") as caught:
            trained(context, tmp_path / "work", tiny_model, ["mlflow"])
        assert "pip install 'luthier[mlflow]'" in caught.value.do
        assert context.runs.list() == []


def test_a_tracker_of_the_environment_without_its_package_is_said_in_the_plan(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    monkeypatch.setattr(TrackerRules, "missing", lambda self: list(self.modules))
    found = trackers.with_tracking(context, plan, plan.recipe, {"WANDB_PROJECT": "mails"})
    (row,) = [row for row in found.values() if row["name"] == "tracking"]
    assert row["value"] == []
    assert "WANDB_PROJECT is set, but not reported to: pip install 'luthier[wandb]'" in row["why"]
    assert trackers.with_tracking(context, plan, plan.recipe, {}) is plan


def test_mlflow_without_an_address_has_a_database_in_the_home(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrackerRules, "missing", lambda self: [])
    plan = make_plan()
    recipe = plan.recipe.model_copy(update={"tracking": (TrackerRecipe(name="mlflow"),)})
    for variables, place in (
        ({}, f"sqlite:///{context.home}/mlflow.db"),
        ({"MLFLOW_TRACKING_URI": "http://h"}, "http://h"),
    ):
        assert trackers.with_tracking(context, plan, recipe, variables).tracking[0].location == place


def test_a_relative_folder_of_the_environment_is_that_of_the_folder_where_the_run_was_started(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrackerRules, "missing", lambda self: [])
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    plan, variables = make_plan(), {"TENSORBOARD_LOGGING_DIR": "curves", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    found = trackers.with_tracking(context, plan, plan.recipe, variables)
    # Resumed from elsewhere the run goes on there: its plan holds the place.
    assert {one.name: one.location for one in found.tracking} == {
        "tensorboard": str(tmp_path / "first" / "curves"),
        "mlflow": f"sqlite:///{tmp_path / 'first' / 'mlflow.db'}",
    }
