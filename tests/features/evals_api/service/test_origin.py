"""Whose result a run is: the tuned model's own, unless it was trained on the items or that is not known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.echo_engine import answering

from luthier.core.access import Caller
from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import ConflictError
from luthier.core.ports import SilentProgress
from luthier.core.records.deployment import Share
from luthier.core.results.suite import SuiteResult
from luthier.features.deployments import service as deployments
from luthier.features.evals_api import job as eval_job
from luthier.features.evals_api import origin, report, service
from luthier.features.evals_api.records import EvalRequest, RunRequest
from luthier.features.models.store import TunedModel
from luthier.features.release_gates.service import outcome_of_target, unjudged_targets
from luthier.ml.evaluation.sandbox.runners import isolation
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.testing.records import add_run

ME = Caller()
RUN = f"run-20261125-093000-{'a' * 6}"
TUNED, CHECKPOINT = "ft:tiny:default::one", "ft:tiny:default::one:ckpt-step-5"
CHECK = {
    "type": "string_check",
    "name": "right",
    "input": "{{sample.output_text}}",
    "reference": "{{item.a}}",
    "operation": "eq",
}
CODE = {"type": "python", "name": "right", "source": "def grade(sample, item):\n    return 1.0\n"}
JUDGE = {
    "type": "label_model",
    "name": "right",
    "model": "tiny",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    "labels": ["a", "b"],
    "passing_labels": ["a"],
}

needs_sandbox = pytest.mark.skipif(not isolation().seccomp, reason="this machine cannot lock a process down")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Context]:
    """A home with a base model and one run; every test has evals of its own."""
    from luthier.ml.inference.models import sources

    home = tmp_path_factory.mktemp("evals") / "home"
    home.mkdir()
    with Context(Settings(home=home, python_graders=True), SilentProgress()) as context:
        sources.pull(str(tiny_model), home, SilentProgress())
        run_id = add_run(context, "a")
        assert run_id == RUN
        place = str(context.runs.get(run_id).result.adapter_path)  # type: ignore[union-attr]
        for name, step in ((TUNED, None), (CHECKPOINT, 5)):
            context.tuned_models.add(
                TunedModel(
                    model_id=name,
                    project_id="default",
                    job_id="job-1",
                    run_id=run_id,
                    base_model="tiny",
                    adapter_path=place,
                    step=step,
                )
            )
        yield context


def taught(prompt: str, answer: str, system: str = "") -> Example:
    turns = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    before = (Message(role="system", content=system),) if system else ()
    return Example(id=f"train.jsonl:{len(prompt)}", conversation=Conversation(messages=(*before, *turns)))


def result_of(
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    trained: Sequence[Example] | Exception,
    *,
    model: str = TUNED,
    grader: dict[str, Any] = CHECK,
    items: Sequence[dict[str, Any]] = ({"q": "say a", "a": "a"}, {"q": "say b", "a": "b"}),
) -> SuiteResult:
    """The stored report of a run. The base model answers in place of the tuned one, whose weights are not there."""
    answering(context)

    def rows_of_run(_context: Context, _run_id: str) -> Sequence[Example]:
        if isinstance(trained, Exception):
            raise trained
        return trained

    monkeypatch.setattr(origin, "rows_of_run", rows_of_run)
    monkeypatch.setattr(
        report,
        "origin_of",
        lambda at, one, run, rows: origin.origin_of(at, one, run.model_copy(update={"model": model}), rows),
    )
    schema = {"type": "object", "properties": {}}
    config = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    asked = {"name": "support", "data_source_config": config, "testing_criteria": [grader]}
    one = service.create(context, ME, EvalRequest.model_validate(asked))
    prompt = {"type": "template", "template": [{"role": "user", "content": "{{item.q}}"}]}
    rows = {"type": "file_content", "content": [{"item": item} for item in items]}
    source = {"type": "completions", "model": "tiny", "input_messages": prompt, "source": rows}
    view = service.start_run(context, ME, one.eval_id, RunRequest.model_validate({"data_source": source}))
    job = context.jobs.claim("here", ("infer",))
    assert job is not None
    outcome = eval_job.carry_out(context, job)
    context.jobs.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)
    assert outcome.status == "succeeded", outcome.error
    return context.assessments.get("suite", SuiteResult, "default", view.run.result_id)


def at_the_gate(context: Context, tmp_path: Path, target: str = TUNED) -> tuple[bool, str]:
    gate = tmp_path / "gate.yaml"
    gate.write_text("rules:\n  - {metric: right.pass_rate, at_least: 0.05}\n", encoding="utf-8")
    found = outcome_of_target(context, ME, Share(target=target, fraction=1), gate)
    return found.passed, found.outcomes[0].sentence


def test_a_result_of_a_tuned_model_counts_for_its_run(
    shared: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = result_of(shared, monkeypatch, [taught("say c", "c")])
    (task,) = found.tasks
    assert (found.run_id, task.num_leaked, task.cautions) == (RUN, 0, ())
    assert at_the_gate(shared, tmp_path)[0]
    assert unjudged_targets(shared, ME, [Share(target=TUNED, fraction=1)]) == ()


def test_a_result_of_a_checkpoint_is_none_of_its_run(
    shared: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = result_of(shared, monkeypatch, [taught("say c", "c")], model=CHECKPOINT)
    assert found.run_id is None
    assert found.result_id in shared.assessments.suites("default", CHECKPOINT).values()
    assert at_the_gate(shared, tmp_path, CHECKPOINT)[0]


def test_items_that_were_trained_on_are_counted_and_the_gate_takes_none_of_their_figures(
    shared: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained = [taught("Say  A", "a"), taught("say b", "something else"), taught("say c", "c")]
    found = result_of(shared, monkeypatch, trained)
    (task,) = found.tasks
    assert task.num_leaked == 1
    assert "1 item was trained on, of 2" in task.cautions[0]
    assert "1 item has the prompt of a training row with another answer, of 2" in task.cautions[1]
    passed, sentence = at_the_gate(shared, tmp_path)
    assert not passed
    assert "1 of its rows is among the rows that the model was trained on" in sentence


@pytest.mark.parametrize(
    ("grader", "items", "trained", "num_leaked"),
    [
        # The answer is in a list within the item, and a number.
        (CHECK, [{"q": "add", "a": "x", "also": [{"is": 12}]}], [taught("add", "12")], 1),
        (CHECK, [{"q": "add", "a": "x"}], [taught("add", "12")], 0),
        # A template that puts words around a field.
        (CHECK | {"reference": "it is {{item.a}}"}, [{"q": "add", "a": "x"}], [taught("add", "it is x")], 1),
        # Code may compare with anything of the item; a model needs no answer, and the prompt alone counts.
        pytest.param(CODE, [{"q": "add", "right": "12"}], [taught("add", "12")], 1, marks=needs_sandbox),
        pytest.param(CODE, [{"q": "add", "right": "12"}], [taught("add", "13")], 0, marks=needs_sandbox),
        (JUDGE, [{"q": "add"}], [taught("add", "13")], 1),
        (JUDGE, [{"q": "add"}], [taught("add", "13", system="Be brief.")], 0),
        # An item that cannot be asked is no row of a training.
        (CHECK, [{"a": "12"}], [taught("add", "12")], 0),
    ],
    ids=["nested", "other answer", "template", "code", "code, other answer", "model", "system turn", "no prompt"],
)
def test_any_text_of_an_item_may_be_its_answer(
    shared: Context,
    monkeypatch: pytest.MonkeyPatch,
    grader: dict[str, Any],
    items: list[dict[str, Any]],
    trained: list[Example],
    num_leaked: int,
) -> None:
    found = result_of(shared, monkeypatch, trained, grader=grader, items=items)
    assert [task.num_leaked for task in found.tasks] == [num_leaked]


def test_a_result_whose_training_rows_are_not_known_is_stored_and_counts_at_no_gate(
    shared: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shared.assessments.suites("default", RUN)
    gone = ConflictError("the training file /secret/rows.jsonl has changed", expected="it", do="restore it")
    found = result_of(shared, monkeypatch, gone)
    assert found.run_id is None
    assert "does not count at a gate" in found.tasks[0].cautions[0]
    assert "/secret" not in found.model_dump_json()
    assert shared.assessments.suites("default", RUN) == before
    deleted = result_of(shared, monkeypatch, [], model="ft:tiny:default::gone")
    assert "was deleted" in deleted.tasks[0].cautions[0]


def test_nothing_of_another_projects_rows_is_given_away(shared: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.runs, "project_of", lambda _run_id: "other")
    found = result_of(shared, monkeypatch, [taught("say a", "a")])
    assert (found.tasks[0].num_leaked, found.run_id) == (0, None)
    assert "another project" in found.tasks[0].cautions[0]


def test_a_result_of_a_deployments_name_says_that_it_counts_for_no_run(
    shared: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shared.assessments.suites("default", RUN)
    deployments.deploy(shared, ME, "asked-by-name", RUN)
    found = result_of(shared, monkeypatch, [], model="asked-by-name")
    assert "The model is a deployment" in found.tasks[0].cautions[0]
    assert found.run_id is None
    assert shared.assessments.suites("default", RUN) == before
    plain = result_of(shared, monkeypatch, [], model="tiny")
    assert not any("deployment" in caution for caution in plain.tasks[0].cautions)
