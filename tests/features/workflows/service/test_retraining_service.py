"""Retraining: reviewed rows become a version, a run, a judgement and a canary; what is worse or wrong is not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.evaluation import (
    Alternative,
    AlternativeKind,
    Comparison,
    Evaluation,
    Metric,
    Verdict,
    VerdictWord,
)
from luthier.core.evaluation_plan import Bar, EvaluationRecipe, GoodEnoughRecipe
from luthier.core.recipe import Recipe
from luthier.core.records.traffic import ReviewItem, answer_of_calls
from luthier.core.run import RunRecord
from luthier.core.workflows.pipeline import Pipeline
from luthier.features.datasets.service import add_version, create_dataset, get_version, keep_rows
from luthier.features.deployments import service as deployments
from luthier.features.feedback.accepted_rows import CALLS_TOOLS, learning, targets
from luthier.features.planning.training_data import Part
from luthier.features.training import service as training
from luthier.features.workflows import views as pipeline_views
from luthier.features.workflows.retraining import workflow as retrains
from luthier.features.workflows.retraining.request import RetrainRequest, Rows
from luthier.features.workflows.retraining.rows import Reviewed, _groups_of_splits, example_of, joined, reviewed_rows
from luthier.ml.data.rows.formats import load_file
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import PausedError, WorkflowRun
from luthier.testing.records import make_evaluation

ME = Caller()
RUN = "run-20260101-120000-abcdef"
WORDS = ("river", "castle", "violin", "garden", "rocket", "window", "pepper", "market", "silver", "harbour")


def item(number: int, **changes: Any) -> ReviewItem:
    """A correction that was accepted, about something that no other asks."""
    first, second = WORDS[number % 10], WORDS[number // 10 % 10]
    question = f"{first} {second} {number * 7919}: which colour has the {second} beside a {first}?"
    values = {
        "review_id": f"rev-20261126-0930{number // 60:02d}-{number:06x}",
        "project_id": ME.project_id,
        "model": "support",
        "source": "correction",
        "exchange_id": f"chatcmpl-{number}",
        "messages": ({"role": "user", "content": question},),
        "answer": "I do not know.",
        "correction": f"The {second} number {number} beside a {first} is {WORDS[(number * 3) % 10]} coloured.",
        "status": "accepted",
        "decided_by": "ann",
        "decided_at": float(number),
    }
    return ReviewItem.model_validate(values | changes)


@pytest.fixture
def untrained(deployed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained or judged: the deployed run stands for the new one."""
    monkeypatch.setattr(retrains, "trained_run", lambda run, _run_id: run.context.runs.get(deployed))
    monkeypatch.setattr(retrains, "evaluated", lambda *_: None)
    monkeypatch.setattr(retrains, "against", lambda *_: ("better", "+0.1 (0.05 to 0.15, 95%)"))


def retrain(context: Context, **asked: Any) -> Pipeline:
    begun = retrains.begin(context, ME, RetrainRequest(model="support", **asked))
    return retrains.go_on(context, ME, begun.pipeline_id)


def test_the_whole_way_though_it_is_killed_in_between(
    deployed: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.review_items.add([item(number) for number in range(30)])
    begun = retrains.begin(context, ME, RetrainRequest(model="support", canary=0.2))
    real = training.train_prepared

    def killed(*arguments: Any, **named: Any) -> Any:
        real(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_prepared", killed)
    with pytest.raises(KeyboardInterrupt):
        retrains.go_on(context, ME, begun.pipeline_id)
    monkeypatch.setattr(training, "train_prepared", real)
    stopped = context.pipelines.get(begun.pipeline_id)
    assert stopped.next_stage is not None
    assert stopped.next_stage.name == "train"
    done = retrains.go_on(context, ME, begun.pipeline_id)
    assert [stage.status for stage in done.stages] == ["done"] * 7, [stage.reason for stage in done.stages]
    assert done.came("version") == stopped.came("version")
    assert len(list(context.runs.of_project(ME.project_id, limit=10))) == 2, "nothing is trained twice"
    rows = done.came("rows")
    assert rows["by_source"] == {"correction": 30}
    assert rows["num_old"] == 24
    assert rows["num_new"] + rows["num_new_held_out"] + sum(rows["left_out"].values()) == 30
    assert rows["num_new_held_out"] == 6
    assert rows["num_old_held_out"] == 4
    version = get_version(context, ME, done.came("version")["train"]["dataset_id"])
    assert (version.number, version.origin, version.num_rows) == (1, "review", 24 + rows["num_new"])
    assert version.details["from_run"] == deployed
    run_id = done.came("train")["run_id"]
    plan = context.runs.plan(run_id)
    assert plan.data.train.sha256 == version.sha256
    assert plan.data.held_out is not None
    assert plan.data.held_out.num_rows == 10
    assert plan.data.validation is not None
    assert plan.base_model.sha256 == context.runs.plan(deployed).base_model.sha256
    judged = context.evaluations.get(done.came("judge")["new"])
    assert [system.name for system in judged.systems if system.kind == "model"] == [deployed, run_id]
    assert done.came("judge")["old_word"] in ("better", "not distinguishable")
    assert done.came("gate") == {"said": "no gate holds for this project"}
    revision = context.deployments.get(ME.project_id, "support").revision
    assert (revision.canary, revision.share_of(run_id).fraction) == (run_id, 0.2)  # type: ignore[union-attr]
    view = pipeline_views.view_pipeline(context, ME, begun.pipeline_id)
    made = [thing for stage in view.stages for thing, _ in stage.made]
    assert made == ["dataset", "dataset", "run", "evaluation", "evaluation"]
    assert f"{run_id} against {deployed}: old rows: " in view.answer
    assert "gives it 20% of the users" in view.answer

    # and once more, from there on: what was learned is old now, and what was held out still is
    deployments.promote(context, ME, "support")
    context.review_items.add([item(number) for number in range(30, 55)])
    second = retrain(context, start="last")
    assert second.asked["run_id"] == run_id
    assert second.came("version")["train"]["dataset_id"] == version.dataset_id
    assert second.came("version")["train"]["version"] == 2
    assert second.came("rows")["num_old_held_out"] == 10
    assert second.came("rows")["num_old"] == version.num_rows
    assert second.came("rows")["left_out"]["was learned by the last run already"] == rows["num_new"]
    plan = context.runs.plan(second.came("train")["run_id"])
    assert plan.base_model.path == str(context.home / "pipelines" / second.pipeline_id / "merged")
    assert second.came("canary")["command"].startswith(f"luthier deploy {second.came('train')['run_id']} --as support")
    assert context.deployments.get(ME.project_id, "support").revision.canary is None


def test_the_judgement_says_whether_it_is_good_enough_and_better_than_what_needs_no_model() -> None:
    def judged(**of_verdict: Any) -> Evaluation:
        one = Comparison(
            baseline="old", candidate="new", metric="label_accuracy", difference=0.2, low=0.1, high=0.3,
            p_value=0.001, verdict="better",
        )  # fmt: skip
        verdict = Verdict(word="better", metric="label_accuracy", headline="It is.", **of_verdict)
        return Evaluation(
            evaluation_id="e", created_at="", held_out_file="f", held_out_sha256="", num_rows=80, systems=(),
            comparisons=(one,), verdict=verdict, seconds=1.0,
        )  # fmt: skip

    plain = retrains.against(judged(), "new", "old")
    assert plain == ("better", "better by label_accuracy: +0.2 (+0.1 to +0.3, 95%) on 80 rows")
    bar = Bar(metric="label_accuracy", value=0.9)
    word, sentence = retrains.against(
        judged(
            bar=bar, good_enough="no", best_alternative="linear classifier",
            better_than_best_alternative="not_distinguishable",
        ),
        "new",
        "old",
    )  # fmt: skip
    assert word == "better"  # than the deployed model
    assert sentence.endswith(
        "on 80 rows; not shown to be good enough (0.9 by label_accuracy required); not shown to be better than linear "
        "classifier, which needs no language model"
    )
    found = judged(bar=bar, good_enough="yes", best_alternative="n", better_than_best_alternative="better")
    assert retrains.against(found, "new", "old")[1].endswith("; good enough (0.9 by label_accuracy required)")


def test_the_deployed_model_is_not_named_twice_among_what_the_new_one_is_held_against() -> None:
    def alternative(name: str, kind: AlternativeKind, value: float) -> Alternative:
        return Alternative(name=name, kind=kind, metric="exact_match", value=value, low=0.1, high=0.9, seconds=0.5)

    def compared(name: str, word: VerdictWord) -> Comparison:
        return Comparison(
            baseline=name, candidate="new", metric="exact_match", difference=0.1, low=-0.1, high=0.3, p_value=0.2,
            verdict=word,
        )  # fmt: skip

    def sentence(other: AlternativeKind, word: VerdictWord) -> str:
        judged = Metric(value=0.7, low=0.6, high=0.8, unit="fraction", higher_is_better=True)
        found = make_evaluation()
        verdict = Verdict(
            word="not distinguishable", metric="exact_match", headline="It is.", best_alternative=RUN,
            better_than_best_alternative="not_distinguishable",
            alternatives=(alternative(RUN, "run", 0.6), alternative("other", other, 0.5)),
        )  # fmt: skip
        new = found.systems[-1].model_copy(update={"name": "new", "metrics": {"exact_match": judged}})
        comparisons = (compared(RUN, "not distinguishable"), compared("other", word))
        update = {"systems": (new,), "comparisons": comparisons, "verdict": verdict}
        return retrains.against(found.model_copy(update=update), "new", RUN)[1]

    assert sentence("linear", "better").endswith(" rows"), "what is beaten needs no words"
    assert sentence("linear", "not distinguishable").endswith(
        "; not shown to be better than other, which needs no language model"
    )
    assert sentence("few_shot", "not distinguishable").endswith(
        "; not shown to be better than other, which needs no training"
    )


def test_a_training_that_is_asked_to_stop_is_a_paused_stage(
    deployed: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.review_items.add([item(number) for number in range(30)])
    begun = retrains.begin(context, ME, RetrainRequest(model="support"))
    record = SimpleNamespace(status="paused", stopped_because="SIGTERM received")
    monkeypatch.setattr(training, "train", lambda *_, **__: SimpleNamespace(record=record))
    with pytest.raises(PausedError, match="SIGTERM received"):
        retrains.go_on(context, ME, begun.pipeline_id)
    stage = context.pipelines.get(begun.pipeline_id).next_stage
    assert stage is not None
    assert (stage.name, stage.status) == ("train", "paused")


def test_files_of_a_pattern_that_are_new_are_named(
    untrained: None, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.review_items.add([item(number) for number in range(30)])
    said = "train rows of talks: 1 file is new since the last run: b.jsonl"
    monkeypatch.setattr(retrains, "pattern_changes", lambda _sources: (said,))
    found = retrain(context)
    assert found.came("rows")["changed_files"] == [said]
    assert Rows.model_validate(found.came("rows")).lines()[1:] == [said]


def test_held_out_rows_of_a_shared_file_become_a_dataset_of_their_own(
    untrained: None, deployed: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = context.runs.plan(deployed)
    data = plan.data
    assert data.held_out is not None
    # As where a fraction of the training file was held out: both have the digest of that file.
    shared = data.model_copy(update={"held_out": data.held_out.model_copy(update={"sha256": data.train.sha256})})
    monkeypatch.setattr(retrains, "_plan", lambda _run: plan.model_copy(update={"data": shared}))
    file = keep_rows(context, ME, [Path(data.train.file).read_bytes()], "shop.jsonl")
    shop, _ = create_dataset(context, ME, "shop", file, columns={"prompt": "question", "completion": "answer"})
    context.review_items.add([item(number) for number in range(22)])
    made = retrain(context).came("version")
    train = get_version(context, ME, made["train"]["dataset_id"])
    held_out = get_version(context, ME, made["held_out"]["dataset_id"])
    assert (train.dataset_id, train.number, train.columns) == (shop.dataset_id, 2, {})
    assert held_out.dataset_id != shop.dataset_id
    assert held_out.sha256 != train.sha256
    assert made["held_out_path"] != made["train_path"]
    assert {one.dataset.name for one in targets(context, ME)} == {"shop"}, "nothing is added to what is held out"
    edited = keep_rows(context, ME, [b'{"messages":[]}\n'], "rows.jsonl")
    add_version(context, ME, held_out.dataset_id, edited, origin="annotation", parent=1)
    assert {one.dataset.name for one in targets(context, ME)} == {"shop"}


def test_a_worse_model_goes_no_further(untrained: None, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrains, "against", lambda *_: ("worse", "-0.4 (-0.5 to -0.3, 95%)"))
    context.review_items.add([item(number) for number in range(20)])
    done = retrain(context, canary=0.2)
    assert [stage.status for stage in done.stages[4:]] == ["refused", "waiting", "waiting"]
    assert "is worse than" in done.stages[4].reason
    assert context.deployments.get(ME.project_id, "support").revision.canary is None


def test_a_gate_that_refuses_ends_it(untrained: None, context: Context, tmp_path: Path) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("rules:\n  - {metric: exact_match, at_least: 1.1}\n", encoding="utf-8")
    context.review_items.add([item(number) for number in range(20)])
    done = retrain(context, canary=0.2, gate=gate)
    assert done.stages[5].status == "refused"
    assert "the gate refuses" in done.stages[5].reason
    assert context.deployments.get(ME.project_id, "support").revision.canary is None


def test_a_reviewed_row_with_a_secret_is_refused_by_the_audit(deployed: str, context: Context) -> None:
    secret = "The key is AKIAIOSFODNN7EXAMQLE and wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMQLEKEY."
    context.review_items.add([item(number, correction=f"{secret} {number}") for number in range(20)])
    done = retrain(context)
    assert done.stages[1].status == "refused"
    assert "the audit refuses reviewed rows" in done.stages[1].reason
    assert Path(context.home / "pipelines" / done.pipeline_id / "audit.html").is_file()


def test_only_what_was_accepted_is_learned(context: Context) -> None:
    context.review_items.add(
        [
            item(1),
            item(2, status="waiting"),
            item(3, status="rejected"),
            item(4, model="other"),
            item(5, source="traffic", correction=None, answer="Seen in traffic."),
            item(6, source="rating", correction=None, answer="Liked."),
        ]
    )
    found = reviewed_rows(context, ME, "support", from_traffic=False)
    assert found.by_source == {"correction": 1, "rating": 1}
    assert sum(found.left_out.values()) == 1
    assert reviewed_rows(context, ME, "support", from_traffic=True).by_source["traffic"] == 1


def test_of_two_words_on_one_prompt_the_newest_counts(context: Context) -> None:
    first = item(1)
    again = item(2, messages=first.messages, correction="Blue.")
    context.review_items.add([again, first])
    found = reviewed_rows(context, ME, "support", from_traffic=False)
    assert [row["messages"][-1]["content"] for row in found.rows] == ["Blue."]
    assert found.left_out == {"the same prompt was decided again later": 1}


def test_earlier_answers_are_not_learned_and_what_cannot_be_read_is_counted(context: Context) -> None:
    talk = (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "What?"},
        {"role": "user", "content": "Hello again"},
    )
    context.review_items.add([item(1, messages=talk), item(2, messages=({"role": "robot", "content": "x"},))])
    found: Reviewed = reviewed_rows(context, ME, "support", from_traffic=False)
    assert len(found.rows) == 1
    learned = [message.is_learned for message in example_of(found.rows[0]).conversation.messages]  # type: ignore[union-attr]
    assert learned == [False, False, False, True]
    assert [reason for reason in found.left_out if reason.startswith("cannot be read")]


def test_answers_of_tool_calls_are_not_learned_as_text(context: Context) -> None:
    function = {"name": "price", "arguments": "{}"}
    logged = answer_of_calls([{"id": "call_1", "type": "function", "function": function}])
    context.review_items.add([item(1), item(2, source="rating", correction=None, answer=logged)])
    found = reviewed_rows(context, ME, "support", from_traffic=False)
    assert (len(found.rows), found.left_out) == (1, {CALLS_TOOLS: 1})


def test_a_corrected_row_takes_the_place_of_the_old_one(untrained: None, context: Context) -> None:
    old = {"role": "user", "content": "What comes after 7?"}
    held_out = {"role": "user", "content": "What comes after 202?"}
    more = [item(50, messages=(old,), correction="Eight."), item(51, messages=(held_out,), correction="Two hundred.")]
    context.review_items.add([item(number) for number in range(22)] + more)
    done = retrain(context)
    rows = done.came("rows")
    assert rows["num_replaced"] == 1
    assert rows["left_out"]["has the prompt of a held-out row"] == 1
    text = (context.home / "pipelines" / done.pipeline_id / "train.jsonl").read_text(encoding="utf-8")
    asked = [json.loads(line)["messages"][0]["content"] for line in text.splitlines()]
    assert asked.count("What comes after 7?") <= 1
    assert "What comes after 202?" not in asked


def test_beside_rows_with_groups_each_reviewed_row_has_its_own_also_where_it_is_held_out(
    context: Context, tmp_path: Path
) -> None:
    def rows(start: int, num: int) -> list[dict[str, Any]]:
        items = [item(number) for number in range(start, start + num)]
        return [learning(one.messages, one.learned) | {"review_id": one.review_id} for one in items]

    old = [row | {"group": f"customer {n % 3}"} for n, row in enumerate(rows(60, 6))]
    made = joined(context, tmp_path, {"train": tuple(old[:4]), "held_out": tuple(old[4:])}, rows(0, 30))
    assert len(made.new_held_out) == 6
    groups = [row["group"] for row in (*made.new, *made.new_held_out)]
    assert len(set(groups)) == len(made.new) + 6
    assert not set(groups) & {row["group"] for row in old}


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"canary": 1.5}, RequestError, "a canary of 1.5"),
        ({"min_rows": 0}, RequestError, "--min-rows 0"),
        ({"gate": Path("/nowhere.yaml")}, NotFoundError, "no file /nowhere.yaml"),
        ({"panels": ["panel-x"]}, NotFoundError, "panel-x"),
        ({"review": True}, ConflictError, "1 answer of support waits"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_begun(
    context: Context, asked: dict[str, Any], error: type[Exception], words: str
) -> None:
    from luthier.testing.records import add_run

    deployments.deploy(context, ME, "support", add_run(context, "a"))
    context.review_items.add([item(1, status="waiting")])
    with pytest.raises(error, match=words):
        retrains.begin(context, ME, RetrainRequest(model="support", **asked))
    assert list(context.pipelines.list(ME.project_id, "retrain")) == []


def test_too_few_rows_are_said_and_it_goes_on_when_there_are_more(untrained: None, context: Context) -> None:
    begun = retrains.begin(context, ME, RetrainRequest(model="support", min_rows=5))
    with pytest.raises(ConflictError, match="0 reviewed rows"):
        retrains.go_on(context, ME, begun.pipeline_id)
    context.review_items.add([item(number) for number in range(8)])
    assert retrains.go_on(context, ME, begun.pipeline_id).next_stage is None


def test_a_base_model_has_no_run_to_go_on_from(context: Context, tiny_model: Path) -> None:
    from luthier.features.models.service import pull_model

    pull_model(context, str(tiny_model))
    deployments.deploy(context, ME, "support", tiny_model.name)
    with pytest.raises(ConflictError, match="no run belongs to"):
        retrains.begin(context, ME, RetrainRequest(model="support"))


def test_a_model_that_another_project_permits_is_used_and_its_rows_stay_there(context: Context) -> None:
    from luthier.core.records.deployment import Revision, Share
    from luthier.features.models.store import TunedModel
    from luthier.features.monitoring.service import _run_behind
    from luthier.features.serving.checkpoint_permissions import permit
    from luthier.testing.records import add_run

    run_id, name = add_run(context, "a"), "ft:tiny:default:shared:1"
    context.access.add_project("proj-friend", "friend")
    context.tuned_models.add(
        TunedModel(
            model_id=name, project_id="default", job_id="", run_id=run_id, base_model="tiny", adapter_path="/adapter"
        )
    )
    permit(context, ME, name, ["proj-friend"])
    revision = Revision(number=1, kind="deploy", shares=(Share(target=name, fraction=1),))
    assert deployments.deployed_run(context, ME, revision) == run_id
    assert _run_behind(context, "default", name) == run_id
    with pytest.raises(ConflictError, match="made by another project"):
        deployments.deployed_run(context, Caller(project_id="proj-friend"), revision)
    assert _run_behind(context, "proj-friend", name) is None


def test_a_bar_of_second_answers_that_reviewed_rows_lack_is_left_out_and_it_is_said(
    deployed: str, context: Context, untrained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.review_items.add([item(number) for number in range(30)])
    plan = context.runs.plan(deployed)
    evaluation = EvaluationRecipe(good_enough=GoodEnoughRecipe(agreement="second"))
    recipe = plan.recipe.model_copy(update={"evaluation": evaluation})
    barred = plan.model_copy(update={"recipe": recipe})
    monkeypatch.setattr(type(context.runs), "plan", lambda *_: barred)
    recipes: list[Recipe] = []

    def trained(run: WorkflowRun, _run_id: str) -> RunRecord:
        recipes.append(retrains._recipe(run))
        return context.runs.get(deployed)

    monkeypatch.setattr(retrains, "trained_run", trained)
    done = retrain(context)
    assert recipes[0].evaluation == EvaluationRecipe()
    view = pipeline_views.view_pipeline(context, ME, done.pipeline_id)
    assert view.stages[0].found[-1] == "no figure is required: these rows have no column second"


def test_groups_that_the_split_of_the_files_has_kept_together_stay(tmp_path: Path) -> None:
    """A recipe names no group where `luthier data split` has made its files: the proof of the split does."""

    def rows(start: int, num: int) -> list[dict[str, Any]]:
        return [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(start, start + num)]

    held_out, train = tmp_path / "held_out.jsonl", tmp_path / "train.jsonl"
    held_out.write_text("\n".join(json.dumps(row | {"customer": n % 3}) for n, row in enumerate(rows(20, 6))))
    train.write_text("\n".join(map(json.dumps, rows(0, 4))))
    loaded = {name: load_file(path) for name, path in (("train", train), ("held_out", held_out))}
    parts = {name: Part(one, tmp_path / f"{name}.jsonl", one.examples) for name, one in loaded.items()}
    found = _groups_of_splits(parts, "customer")
    assert list(found["held_out"].values()) == ["0", "1", "2", "0", "1", "2"]
    assert len(set(found["train"].values())) == 4, "each row by itself: all rows of a version have the field"
    assert not any(_groups_of_splits(parts, None).values())
    assert not any(_groups_of_splits(parts, "provenance.file").values())
