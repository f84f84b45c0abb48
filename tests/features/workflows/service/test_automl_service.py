"""From a file and a goal to a judged model: what each stage hands on, kills, early ends, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.workflows.pipeline import AutomlSpec, Recommendation
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.workflows import views as pipeline_views
from luthier.features.workflows.automl import report
from luthier.features.workflows.automl import workflow as autos
from luthier.features.workflows.automl.report import headline, next_commands
from luthier.features.workflows.model_comparison import sizes
from luthier.ml.planning import defaults
from luthier.platform.workflows.engine import PausedError
from luthier.testing.tiny import make_tiny_model

WOODS = ("spruce", "maple", "ebony", "willow", "rosewood", "poplar", "boxwood")
PARTS = ("front", "back", "neck", "bridge", "peg", "rib", "scroll", "block", "lining", "post", "bass bar")
MAKERS = ("Anna", "Bruno", "Carla", "Dario", "Elena", "Fabio", "Gina", "Hugo", "Irma", "Jacopo", "Karin", "Luca")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("models") / "one"))


def write_rows(file, makers=MAKERS):
    """Eleven rows of each maker, and one of them again, which repair removes."""
    found = [
        {
            "prompt": f"{maker} of workshop {n} asks which wood the {part} of instrument {n * 7} needs",
            "completion": f"{WOODS[(n + len(part)) % 7]} for the {part}, {maker} said in the year {1700 + 3 * n}",
        }
        for n, (maker, part) in enumerate((maker, part) for maker in makers for part in PARTS)
    ]
    file.write_text("\n".join(map(json.dumps, [*found, found[0]])))
    return file


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", MAKERS[:6])


@pytest.fixture
def asked(model, rows, monkeypatch):
    # One pass over the rows shows what each stage hands on.
    monkeypatch.setattr(sizes, "MOST_EPOCHS", 1.0)
    monkeypatch.setattr(defaults, "EPOCHS", (1.0, "one pass is enough for a test"))

    def make(**changed):
        usual = {
            "data": rows,
            "goal": "Name the wood.",
            "hours": 1.0,
            "models": (model,),
            "few_shot": 2,
            "max_new_tokens": 6,
            "most_trials": 1,
            "most_judged": 12,
            "always_tunes": True,
            "is_probed": False,
        }
        given = usual | changed
        return AutomlSpec(**(given | {"data": str(given["data"])}))

    return make


@pytest.fixture
def few_prompts(monkeypatch):
    """The judgement at the end has the prompts of the comparison alone: no further draws, and no search."""
    monkeypatch.setattr(report, "FURTHER_SHARE", 0.0)


@pytest.fixture
def decided(monkeypatch):
    """The word of the showdown, as if the rows had said it."""

    def say(word):
        from luthier.ml.evaluation import workflow_verdicts

        def recommend(_spec, standings, *_rest):
            name = "" if word == "nothing" else standings[0].result.name
            return Recommendation(
                word=word, system=name, contender=None if word == "nothing" else 0, headline=f"It is {word}."
            )

        monkeypatch.setattr(workflow_verdicts, "recommend", recommend)

    return say


def searched(found):
    """The name of the best prompt, where the search found one that is better than the rows' own text."""
    return [one.name for one in found.systems if one.prompting and one.prompting.kind == "optimised_prompt"]


def test_from_a_file_to_a_judged_model(context, asked, decided):
    decided("tuned")
    pipeline = autos.begin(context, asked())
    done = autos.go_on(context, pipeline.pipeline_id)
    assert [(stage.name, stage.status) for stage in done.stages] == [
        (name, "done") for name in ("audit", "repair", "split", "showdown", "tune", "judge", "report")
    ]
    assert done.came("repair")["actions"] == {"exact_duplicate": 1}
    sides = {name: side["num_rows"] for name, side in done.came("split")["sides"].items()}
    assert sum(sides.values()) == done.came("repair")["num_rows"] == 66
    study = context.studies.get(done.came("tune")["study_id"])
    assert study.final_run_id == done.came("tune")["run_id"]
    found = context.evaluations.get(done.came("judge")["evaluation_id"])
    nearest = ["nearest training row (BM25)", "nearest training row (embeddings)"]
    shown = ["one + 2 examples", "one + 2 nearest examples", *searched(found)]
    assert found.systems[1].prompting.num_draws == 4
    assert any(note.startswith("Figures of one + 2 examples are means over 4 draws") for note in found.rows_notes)
    assert any(note.startswith("A search over") for note in found.rows_notes)
    assert [one.name for one in found.systems] == ["one", *shown, *nearest, "tuned"]
    assert {one.candidate for one in found.comparisons if one.baseline in nearest} >= {"one", "tuned"}
    assert [one.name for one in found.verdict.alternatives] == [*shown, *nearest]
    assert found.verdict.best_alternative in nearest  # a tiny random model writes nothing like the rows
    assert "which takes" in found.verdict.headline
    assert found.held_out_file.endswith("held_out.jsonl")
    assert found.num_rows == min(12, sides["held_out"])
    for record in nonempty(context.runs.list()):  # the held-out rows are in no run's reach
        assert context.runs.plan(record.run_id).data.held_out is None
    page = (autos.WORKFLOW.folder_of(context, pipeline.pipeline_id) / "report.html").read_text()
    for said in ("Name the wood.", headline(done).split(".")[0][:40], found.evaluation_id, "base_model:", *nearest):
        assert said in page
    assert next_commands(done)[0] == f"luthier chat {study.final_run_id}"
    assert autos.go_on(context, pipeline.pipeline_id) == done  # nothing is done again
    view = pipeline_views.view_pipeline(context, Caller(), pipeline.pipeline_id)
    made = [thing for stage in view.stages for thing, _ in stage.made]
    assert (view.answer, made) == (headline(done), ["showdown", "study", "run", "evaluation"])
    assert [stage.page for stage in view.stages[:3]] == ["audit.html", "audit_repaired.html", None]


def test_where_prompting_is_enough_nothing_more_is_trained(context, asked, decided):
    decided("prompting")
    pipeline = autos.begin(context, asked(always_tunes=False))
    done = autos.go_on(context, pipeline.pipeline_id)
    assert (done.came("tune")["skipped"], done.came("tune")["run_id"]) == ("prompting is enough", None)
    assert len(context.runs.list()) == 1  # the short training of the showdown
    found = context.evaluations.get(done.came("judge")["evaluation_id"])
    assert [one.name for one in found.systems if one.kind == "model"] == [
        "one + 2 examples",
        "one + 2 nearest examples",
        *searched(found),
        "one",
    ]
    # Prompting is held against what needs no model alone: which way of prompting is best was decided before.
    verdict = found.verdict
    assert {one.kind for one in verdict.alternatives} == {"nearest"}
    assert headline(done) == f"It is prompting. {verdict.headline}"
    assert verdict.better_than_best_alternative != "better"
    page = (autos.WORKFLOW.folder_of(context, pipeline.pipeline_id) / "report.html").read_text()
    assert f"no better than {verdict.best_alternative}" in page


def test_nothing_that_is_any_good_ends_the_way_and_is_told(context, asked, decided):
    decided("nothing")
    pipeline = autos.begin(context, asked())
    done = autos.go_on(context, pipeline.pipeline_id)
    assert [stage.status for stage in done.stages][3:] == ["refused", "waiting", "waiting", "waiting"]
    page = (autos.WORKFLOW.folder_of(context, pipeline.pipeline_id) / "report.html").read_text()
    assert "It is nothing." in page
    assert next_commands(done) == []


def test_rows_that_fail_the_audit_end_the_way_before_anything_is_trained(context, asked, tmp_path):
    bad = [{"prompt": f"question {n}", "completion": "yes" if n % 2 else "no"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, bad)))
    pipeline = autos.begin(context, asked())
    done = autos.go_on(context, pipeline.pipeline_id)
    ended = next(stage for stage in done.stages if stage.name == "repair")
    assert (ended.status, context.runs.list()) == ("refused", [])
    assert "grade F even after repair" in ended.reason


@pytest.mark.usefixtures("few_prompts")
def test_a_budget_that_holds_no_search_judges_the_short_training(context, asked, decided, monkeypatch):
    from luthier.features.studies import service as studies

    def too_small(*_given, **_named):
        raise BudgetTooSmallError("0.1 h for a search", expected="more", do="give more")

    decided("tuned")
    monkeypatch.setattr(studies, "begin", too_small)
    pipeline = autos.begin(context, asked())
    done = autos.go_on(context, pipeline.pipeline_id)
    assert "0.1 h for a search" in done.came("tune")["skipped"]
    assert (done.came("tune")["run_id"], done.came("tune")["study_id"]) == (context.runs.list()[0].run_id, None)
    found = context.evaluations.get(done.came("judge")["evaluation_id"])
    assert found.verdict is not None


def test_documents_are_read_into_rows_first(context, asked, tmp_path, decided):
    decided("prompting")
    folder = tmp_path / "documents"
    folder.mkdir()
    for n, part in enumerate(PARTS * 6):
        wood, maker = WOODS[n % 7], MAKERS[n % 12]
        text = f"Note {n}. {maker} made the {part} of {wood} in {1600 + n}, and sold instrument {n * 13} the next year."
        (folder / f"note{n}.txt").write_text(text)
    pipeline = autos.begin(context, asked(data=folder, always_tunes=False))
    done = autos.go_on(context, pipeline.pipeline_id)
    assert [stage.status for stage in done.stages] == ["done"] * 8
    found = context.evaluations.get(done.came("judge")["evaluation_id"])
    assert set(found.systems[0].metrics) == {"bits_per_byte"}


CHILD = """
import sys
from luthier.platform.home.context import Context
from luthier.core.workflows.pipeline import Recommendation
from luthier.features.workflows.automl import workflow as autos
from luthier.ml.evaluation import workflow_verdicts
workflow_verdicts.recommend = lambda _spec, standings, *_rest: Recommendation(
    word="tuned", system=standings[0].result.name, contender=0, headline="It is tuned."
)
with Context.open(sys.argv[1]) as context:
    autos.go_on(context, sys.argv[2])
"""


@pytest.mark.drill
def test_killed_in_the_search_it_goes_on_and_begins_nothing_twice(context, asked, tmp_path, decided):
    decided("tuned")  # as the processes that are killed have it: a tiny random model writes nothing like the rows
    pipeline = autos.begin(context, asked())
    home = str(tmp_path / "home")
    for name in ("showdown", "tune"):
        child = subprocess.Popen([sys.executable, "-c", CHILD, home, pipeline.pipeline_id], env=dict(os.environ))
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and child.poll() is None:
            stages = {stage.name: stage for stage in context.pipelines.get(pipeline.pipeline_id).stages}
            if stages[name].status == "running" and (name == "showdown" or context.studies.list("default")):
                break
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = autos.go_on(context, pipeline.pipeline_id)
    assert {stage.status for stage in done.stages} == {"done"}
    assert len(context.studies.list("default")) == 1
    assert len(context.pipelines.list("default", "showdown")) == 1


class Killed(BaseException):
    pass


def test_killed_at_each_step_of_the_search_it_goes_on_with_the_same_study(context, asked, decided, monkeypatch):
    """The search itself is killed in the tests of studies."""
    from luthier.features.studies import service as studies
    from luthier.features.studies.store import StudyStore
    from luthier.features.workflows.store import PipelineStore

    decided("tuned")
    pipeline = autos.begin(context, asked())
    left, gone_on_with = [], []

    def once(moment):
        if moment not in left:
            left.append(moment)
            raise Killed

    def save(store, one, real=PipelineStore.save):
        stage = one.stage("tune")  # None of the model comparison
        is_running = stage is not None and stage.status == "running"
        if is_running:
            once("before it runs")
        real(store, one)
        if is_running:
            once("as it runs")

    def create(store, study, project_id, real=StudyStore.create):
        once("before the study")
        real(store, study, project_id)
        once("behind the study")

    def go_on(_context, study_id):
        gone_on_with.append(study_id)
        once("in the search")
        raise PausedError("paused", expected="nothing", do="nothing")

    for owner, name, new in ((PipelineStore, "save", save), (StudyStore, "create", create), (studies, "go_on", go_on)):
        monkeypatch.setattr(owner, name, new)
    for _ in range(5):
        with pytest.raises(Killed):
            autos.go_on(context, pipeline.pipeline_id)
    with pytest.raises(PausedError):
        autos.go_on(context, pipeline.pipeline_id)
    assert left == ["before it runs", "as it runs", "before the study", "behind the study", "in the search"]
    (study,) = context.studies.list("default")
    named = context.pipelines.get(pipeline.pipeline_id).came("tune")["study_id"]
    assert gone_on_with == [study.study_id, study.study_id] == [named, named]


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"hours": -1.0}, RequestError, "--budget-hours -1"),
        ({"goal": "  "}, RequestError, "no goal"),
        ({"models": ("no-such-model",)}, NotFoundError, "no-such-model"),
    ],
)
def test_what_cannot_be_is_refused_at_once(context, asked, changed, error, said):
    with pytest.raises(error, match=said):
        autos.begin(context, asked(**changed))
    assert context.pipelines.list("default", "auto") == []


def test_data_that_is_not_there_and_a_budget_too_small_are_refused(context, asked, tmp_path):
    with pytest.raises(NotFoundError, match=r"nothing\.jsonl"):
        autos.begin(context, asked(data=tmp_path / "nothing.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no file"):
        autos.begin(context, asked(data=tmp_path / "empty"))
    with pytest.raises(BudgetTooSmallError, match="at least"):
        autos.begin(context, asked(hours=1e-7))  # no file is read for that
    assert context.pipelines.list("default", "auto") == []
    # above the lower bound of the forecast, and still less than the probes of the showdown take
    pipeline = autos.begin(context, asked(data=write_rows(tmp_path / "all.jsonl"), hours=2e-4))
    with pytest.raises(BudgetTooSmallError, match="in all"):
        autos.go_on(context, pipeline.pipeline_id)
    assert context.runs.list() == []
    assert (
        "It ended at showdown" in (autos.WORKFLOW.folder_of(context, pipeline.pipeline_id) / "report.html").read_text()
    )


@pytest.mark.usefixtures("few_prompts")
def test_the_nearest_examples_at_the_end_are_those_of_all_training_rows(context, asked, decided, monkeypatch, tmp_path):
    """The comparison of models trains on fewer where its budget is small; the model that it chooses learns from all."""
    from luthier.features.workflows.model_comparison import request as comparisons

    decided("prompting")
    choose, record, shown = comparisons.choose_sizes, report.record, []
    monkeypatch.setattr(comparisons, "choose_sizes", lambda *a, **k: replace(choose(*a, **k), num_examples=64))

    def recorded(candidate, spec, kind, *rest):
        shown.append((kind, len(candidate.nearest_from)))
        return record(candidate, spec, kind, *rest)

    monkeypatch.setattr(report, "record", recorded)
    request = asked(data=write_rows(tmp_path / "all.jsonl"), always_tunes=False)
    done = autos.go_on(context, autos.begin(context, request).pipeline_id)
    num_train = done.came("split")["sides"]["train"]["num_rows"]
    assert num_train > 64
    assert dict(shown)["few-shot-nearest"] == num_train
