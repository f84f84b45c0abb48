"""Filters and orders of the list of runs, in the database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.core.run import RunStatus
from luthier.features.evaluations.store import EvaluationStore
from luthier.features.runs.entries_store import RunEntryStore
from luthier.features.runs.filter_language import parse_filter
from luthier.features.runs.filter_query import Order, key_of
from luthier.features.runs.labels import RunLabels, RunLabelStore
from luthier.features.runs.store import RunStore
from luthier.platform.db.database import Database
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.store import JobStore
from luthier.testing.records import make_evaluation, make_plan, make_record, make_result


class World:
    """A database with runs of five days whose ids tell them apart by one letter."""

    def __init__(self, database: Database) -> None:
        self.runs, self.jobs = RunStore(database), JobStore(database)
        self.entries, self.labels = RunEntryStore(database), RunLabelStore(database)
        self.evaluations = EvaluationStore(database)

    def run(
        self,
        letter: str,
        day: int = 25,
        *,
        lr: float = 2e-4,
        loss: float | None = None,
        metric: float | None = None,
        status: RunStatus = "succeeded",
        labels: RunLabels | None = None,
        **changed: str,
    ) -> str:
        run_id = f"run-202611{day}-093000-{letter * 6}"
        created = datetime(2026, 11, day, 9, 30, tzinfo=UTC).isoformat(timespec="seconds")
        record = make_record(run_id, status=status).model_copy(update={"created_at": created, **changed})
        self.runs.create(record, make_plan(learning_rate=lr))
        if loss is not None:
            self.runs.update(run_id, result=make_result(train_loss=loss))
        if metric is not None:
            made = make_evaluation(f"eval-20261125-093000-{letter * 6}", run_id=run_id, value=metric)
            self.evaluations.save(made)
        if labels is not None:
            self.labels.put(run_id, labels)
        return run_id

    def letters(self, text: str = "", sort: str = "", **asked: object) -> str:
        found = self.entries.page(
            "default",
            limit=100,
            tree=parse_filter(text),
            order=Order.parse(sort),
            **asked,  # type: ignore[arg-type]
        )
        assert found.num_left == len(found.entries)
        return "".join(entry.run_id[-1] for entry in found.entries)


@pytest.fixture
def world(database: Database) -> World:
    return _filled(database)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The same for tests that change nothing."""
    if request.param == "sqlite":
        place: str | Path = tmp_path_factory.mktemp("filled") / "luthier.db"
    else:
        place = request.getfixturevalue("new_postgresql")()
    with Database.open(place) as database:
        yield _filled(database)


def _filled(database: Database) -> World:
    made = World(database)
    made.run("a", 21, lr=1e-4, loss=3.0, metric=0.5, labels=RunLabels(name="Client mails", tags=("sweep", "best")))
    made.run("b", 22, lr=1e-3, loss=1.0, metric=0.25, base_model="Qwen 100%", method="dora")
    made.run("c", 23, lr=1e-2, loss=2.0, labels=RunLabels(note="Too fast", group="speed", is_starred=True))
    made.run("d", 24, lr=5e-3, status="failed", stopped_because="loss is not a number")
    made.run("e", 25, labels=RunLabels(is_archived=True))
    return made


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("", "dcba"),
        ("lr>1e-3", "dc"),
        ("lr>=1e-3", "dcb"),
        ("lr<0.001", "a"),
        ("lr:0.001", "b"),
        ("lr!=0.001", "dca"),
        ("training.learning_rate<=1e-3 tag:sweep", "a"),
        ("rank:8 epochs:2", "dcba"),
        ("not (lr:0.001 or lr:0.01)", "da"),
        ("precision:float32 -tag:BEST", "dcb"),
        ("tag:none", "dcb"),
        ("tag~swe", "a"),
        ('verdict:"not distinguishable"', "ba"),
        ("verdict:none", "dc"),
        ("exact_match>=0.5", "a"),
        ("metric.exact_match<0.5", "b"),
        ("loss<2.5 loss>1", "c"),
        ("state:failed", "d"),
        ("status:succeeded reason~number", ""),
        ("reason~NUMBER", "d"),
        ("method:dora", "b"),
        ("model~qwen", "b"),
        ('model:"Qwen 100%"', "b"),
        ("name~client", "a"),
        ("name:none", ""),
        ("note~fast group:speed star:yes", "c"),
        ("group:none star:no", "dba"),
        ("archived:yes", "e"),
        ("archived:no or archived:yes", "edcba"),
        ("created>2026-11-22", "dc"),
        ("created>=2026-11-22", "dcb"),
        ("created:2026-11-22", "b"),
        ("created<2026-11-22", "a"),
        ("created<=2026-11-22T09:30 created>=2026-11-22T09:30", "b"),
        ("created!=2026-11-22", "dca"),
        ("client", "a"),
        ("sweep or fast or 100%", "cba"),
        ("steps:0", "dcba"),
        ("rows:40 id~aaaaaa", "a"),
    ],
)
def test_a_filter_keeps(filled: World, text: str, letters: str) -> None:
    hides = "archived" not in text
    assert filled.letters(text, hides_archived=hides) == letters


@pytest.mark.parametrize(
    ("sort", "letters"),
    [
        ("created", "abcd"),
        ("-created", "dcba"),
        ("-lr", "cdba"),
        ("lr", "abdc"),
        ("loss", "bcad"),
        ("-loss", "acbd"),
        ("-exact_match", "abdc"),
        ("verdict", "badc"),
        ("method", "bdca"),
        ("-star", "cdba"),
        ("group", "cdba"),
        ("name", "abcd"),
    ],
)
def test_an_order_puts_runs_without_the_value_last_and_pages_follow_without_gap(
    filled: World, sort: str, letters: str
) -> None:
    assert filled.letters(sort=sort) == letters
    found, before = "", None
    for number in range(len(letters)):
        page = filled.entries.page("default", limit=1, order=Order.parse(sort), before=before)
        assert page.num_left == len(letters) - number
        found, before = found + page.entries[0].run_id[-1], page.entries[0].run_id
    assert found == letters
    assert filled.entries.page("default", limit=1, order=Order.parse(sort), before=before).entries == []


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("learnin_rate>1", "'learnin_rate', which is not a field, at character 1"),
        ("lr>fast", "lr>fast at character 1"),
        ("tag:a state:broken", "the state 'broken' at character 7"),
        ("created>yesterday", "created>yesterday"),
        ("created:2026-13-40", "2026-13-40"),
        ("created<9999-12-31", "9999-12-31"),
        ("star:perhaps", "star:perhaps"),
        ("name>a", "name>"),
        ("state~run", "state~"),
    ],
)
def test_a_condition_that_says_nothing_is_refused_with_its_place(filled: World, text: str, came: str) -> None:
    with pytest.raises(RequestError) as caught:
        filled.letters(text)
    assert came in caught.value.came
    assert "at character" in caught.value.came


def test_a_sort_by_nothing_is_refused(filled: World) -> None:
    with pytest.raises(RequestError, match="the order 'colour', which is not a field"):
        filled.letters(sort="colour")


def test_what_waits_is_listed_too_unless_only_begun_runs_are_asked_for(world: World) -> None:
    job = Job(
        job_id="job-1", kind="train", document={"recipe": {"x": "secret word"}}, run_id="run-20261126-000000-ffffff"
    )
    world.jobs.submit(job)
    assert world.letters() == "fdcba"
    assert world.letters("state:queued") == "f"
    assert world.letters('"secret word"') == "f"
    assert world.letters(sort="-lr") == "cdbaf"
    assert world.letters(only_begun=True) == "dcba"
    world.labels.put("run-20261126-000000-ffffff", RunLabels(tags=("next",)))
    assert world.letters("tag:next") == "f"


def test_a_deleted_run_takes_its_labels_along_and_its_job_is_not_listed(world: World) -> None:
    run_id = "run-20261121-093000-aaaaaa"
    job = world.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id=run_id))
    claimed = world.jobs.claim("w")
    assert claimed is not None
    world.jobs.finish(job.job_id, claimed.attempt, "succeeded")
    world.runs.delete(run_id)
    assert world.letters("archived:yes or archived:no", hides_archived=False) == "edcb"
    assert world.labels.of_runs([run_id])[run_id].tags == ()
    world.run("a", 21)
    assert world.letters() == "dcba", "made again by its job"


def test_values_are_those_of_the_last_result_and_evaluation(world: World) -> None:
    run_id = "run-20261121-093000-aaaaaa"
    world.runs.update(run_id, result=make_result(train_loss=0.5))
    values = world.entries.values([run_id], ["train_loss", "metric.exact_match", "verdict", "training.precision"])
    assert values[run_id] == {
        "train_loss": 0.5, "metric.exact_match": 0.5, "verdict": "not distinguishable", "training.precision": "float32",
    }  # fmt: skip
    keys = world.entries.keys()
    assert "metric.exact_match" in keys
    assert list(keys) == sorted(set(keys))


def test_an_evaluation_with_other_metrics_leaves_nothing_of_the_one_before(world: World) -> None:
    run_id = world.run("f", 26, metric=0.5)
    newer = make_evaluation("eval-20261127-093000-ffffff", run_id=run_id)
    systems = tuple(
        one.model_copy(update={"metrics": {"chrf": one.metrics["exact_match"]}}) for one in nonempty(newer.systems)
    )
    world.evaluations.save(newer.model_copy(update={"systems": systems, "verdict": None}))
    values = world.entries.values([run_id], ["metric.exact_match", "metric.chrf", "verdict"])
    assert values[run_id] == {"metric.chrf": 0.5}


def test_short_names_mean_one_field() -> None:
    for short, key in nonempty(
        {"lr": "training.learning_rate", "LR": "training.learning_rate", "schedule": "training.lr_schedule",
         "training.schedule": "training.lr_schedule", "rank": "method.rank", "loss": "train_loss", "Name": "name",
         "status": "state", "rouge_l": "metric.rouge_l"}.items()
    ):  # fmt: skip
        assert key_of(short) == key


@pytest.mark.parametrize("text", ["ärzte", "ÄRZTE", "name:Ärzte", "name~RZTE", 'name:"ärzte"', "ÜBUNG", "group:übung"])
def test_capitals_do_not_matter_in_other_letters_than_those_of_english(tmp_path: Path, text: str) -> None:
    # PostgreSQL follows the language that its cluster was made with.
    with Database.open(tmp_path / "luthier.db") as database:
        world = World(database)
        world.run("a", labels=RunLabels(name="Ärzte", group="Übung"))
        world.run("b", labels=RunLabels(name="Aerzte", group="uebung"))
        assert world.letters(text) == ("ba" if text == "name~RZTE" else "a")
        assert world.letters(sort="name") == "ba", "as their code points"


@pytest.mark.parametrize("text", ["übung", "Übung", "ÜBUNG", '"der \\"alten\\" übung"', "übung not jobs"])
def test_words_are_found_in_a_request_that_has_other_letters_than_those_of_english(world: World, text: str) -> None:
    asked = {"asked": {"data": {"train": 'Zeilen der "alten" Übung.jsonl'}}}
    world.jobs.submit(Job(job_id="job-1", kind="train", document=asked, run_id="run-20261126-000000-ffffff"))
    assert world.letters(text) == "f"
    assert world.letters(f"not ({text})") == "dcba"
