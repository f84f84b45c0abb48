"""A run that grades, teaches or is the base of another one is not deleted before that one has ended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError
from luthier.core.plan import Plan, TeacherPlan
from luthier.core.ports import SilentProgress
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.features.batches import service as batches
from luthier.features.batches.input_file import models_of_file
from luthier.features.batches.records import BatchRequest
from luthier.features.deployments import service as deployments
from luthier.features.evals_api import service as evals
from luthier.features.evals_api.records import EvalRequest, RunRequest
from luthier.features.model_browser.removal import base_uses, remove_local_base
from luthier.features.model_cards.service import list_bases
from luthier.features.models.store import TunedModel
from luthier.features.models.uses import commands_using, uses_of, uses_of_deployment
from luthier.features.runs.changes import delete_run
from luthier.features.serving.models import delete_model
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_project
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job, JobKind
from luthier.testing.records import add_run, make_plan, make_record

OWN = Caller()
WAITING = "run-20261201-093000-0000aa"


def asked(context: Context, name: str, run_id: str = "") -> TeacherPlan:
    folder = context.settings.run_folder(run_id or name) / "model"
    return TeacherPlan(
        name=name,
        path=str(folder),
        sha256="5" * 64,
        precision="float32",
        num_parameters=100,
        hidden_size=8,
        vocabulary_size=16,
        context_length_tokens=64,
    )


def planned(objective: dict[str, Any]) -> Plan:
    plan = make_plan()
    return plan.model_copy(update={"objective": plan.objective.model_copy(update=objective)})


def tuned(run_id: str, name: str, step: int | None = None) -> TunedModel:
    values = {"model_id": name, "project_id": "default", "job_id": "job-1", "run_id": run_id, "base_model": "tiny"}
    values["adapter_path"] = "/adapter"
    return TunedModel(**values, created_at=1.0, step=step)


@pytest.mark.parametrize("status", ["planned", "running", "paused"])
@pytest.mark.parametrize("part", ["judges", "teacher", "base"])
def test_weights_that_a_run_needs_are_kept_until_it_has_ended(context: Context, status: Any, part: str) -> None:
    judge = add_run(context, "a")
    plan = planned({"judges": (asked(context, judge),)} if part == "judges" else {"teacher": asked(context, judge)})
    if part == "base":
        path = str(context.settings.run_folder(judge) / "model")
        plan = make_plan()
        plan = plan.model_copy(update={"base_model": plan.base_model.model_copy(update={"path": path})})
    context.runs.create(make_record(WAITING, status=status), plan)
    with pytest.raises(ConflictError, match=rf"1 run that has not ended \({WAITING}\)"):
        delete_run(context, OWN, judge)
    assert context.runs.get(judge).run_id == judge
    context.runs.update(WAITING, status="succeeded")
    assert delete_run(context, OWN, judge).run_id == judge


@pytest.mark.parametrize("key", ["asked", "recipe", "request"])
def test_a_model_that_a_waiting_job_names_is_kept_until_it_has_ended(context: Context, key: str) -> None:
    judge = add_run(context, "a")
    grader = {"type": "score_model", "name": "opinion", "model": judge, "input": []}
    multi = {"type": "multi", "graders": {"opinion": grader}, "calculate_output": "opinion"}
    document = {key: {"objective": {"name": "grpo", "rewards": [{"grader": multi}]}}}
    context.jobs.submit(Job(job_id="job-1", kind="train", document=document, run_id=WAITING))
    assert [use.run_id for use in uses_of(context, judge)] == [WAITING]
    with pytest.raises(ConflictError, match=WAITING):
        delete_run(context, OWN, judge)
    context.jobs.ask("job-1", "cancel")
    assert delete_run(context, OWN, judge).run_id == judge


def test_a_checkpoint_that_grades_and_the_run_of_it_are_kept(context: Context) -> None:
    run_id, name = add_run(context, "a"), "ft:tiny:default::abc:ckpt-step-4"
    context.tuned_models.add(tuned(run_id, name, step=4))
    context.runs.create(make_record(WAITING, status="paused"), planned({"judges": (asked(context, name, run_id),)}))
    with pytest.raises(ConflictError, match=WAITING):
        delete_model(context, OWN, name)
    with pytest.raises(ConflictError, match=WAITING):
        delete_run(context, OWN, run_id, with_models=True)
    assert context.tuned_models.get("default", name).run_id == run_id


def test_a_name_that_a_waiting_job_asks_for_is_kept_and_that_of_a_begun_run_is_not_needed(context: Context) -> None:
    run_id, name = add_run(context, "a"), "ft:tiny:default::abc"
    context.tuned_models.add(tuned(run_id, name))
    document = {"asked": {"objective": {"name": "distillation", "teacher": name}}}
    context.jobs.submit(Job(job_id="job-1", kind="train", document=document, run_id=WAITING))
    with pytest.raises(ConflictError, match=WAITING):
        delete_model(context, OWN, name)
    # Its plan names the run: the weights, whatever they are called.
    context.runs.create(make_record(WAITING, status="running"), planned({"teacher": asked(context, run_id)}))
    assert delete_model(context, OWN, name).model_id == name
    with pytest.raises(ConflictError, match=WAITING):
        delete_run(context, OWN, run_id)


def test_runs_of_other_projects_are_counted_and_not_named(context: Context) -> None:
    judge = add_run(context, "a")
    stranger = create_project(context, "Other").project_id
    context.runs.create(make_record(WAITING, status="paused"), planned({"judges": (asked(context, judge),)}), stranger)
    with pytest.raises(ConflictError) as caught:
        delete_run(context, OWN, judge)
    assert "1 run that has not ended" in caught.value.came
    assert WAITING not in caught.value.came


def test_jobs_that_have_ended_and_other_models_keep_nothing(context: Context) -> None:
    judge, other = add_run(context, "a"), add_run(context, "b")
    document = {"asked": {"objective": {"teacher": judge}}}
    context.jobs.submit(Job(job_id="job-1", kind="train", document=document, run_id=WAITING))
    assert delete_run(context, OWN, other).run_id == other
    context.jobs.ask("job-1", "cancel")
    assert uses_of(context, judge) == ()


def test_a_cancelled_run_keeps_nothing_although_its_record_stays_as_it_was(context: Context) -> None:
    judge = add_run(context, "a")
    context.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id=WAITING))
    context.runs.create(make_record(WAITING, status="paused"), planned({"judges": (asked(context, judge),)}))
    assert [use.run_id for use in uses_of(context, judge)] == [WAITING]
    context.jobs.ask("job-1", "cancel")
    assert uses_of(context, judge) == ()


def test_a_base_model_is_needed_by_what_it_grades_itself_and_under_an_adapter(context: Context) -> None:
    adapter = add_run(context, "a")  # trained over `tiny`
    grader = {"type": "label_model", "name": "good", "model": adapter, "input": []}
    document = {"recipe": {"objective": {"rewards": [{"grader": grader}]}}}
    context.jobs.submit(Job(job_id="job-1", kind="train", document=document, run_id=WAITING))
    assert [use.run_id for use in uses_of(context, "tiny")] == [WAITING]
    over = asked(context, adapter).model_copy(update={"path": "/models/other"})
    context.runs.create(make_record(WAITING, status="paused"), planned({"judges": (over,)}))
    assert [use.run_id for use in uses_of(context, "another", "/models/other")] == [WAITING]
    assert uses_of(context, "another", "/models/third") == ()


def deploy(context: Context, name: str, letter: str, project_id: str = "default") -> str:
    run_id = add_run(context, letter, project_id=project_id)
    deployments.deploy(context, Caller(project_id=project_id), name, run_id)
    return run_id


@pytest.mark.parametrize("part", ["teacher", "score_model"])
def test_a_deployment_that_a_waiting_job_names_is_kept_until_the_job_has_begun_or_ended(
    context: Context, part: str
) -> None:
    deploy(context, "support", "a")
    grader = {"type": "score_model", "name": "opinion", "model": "support", "input": []}
    objective = {"teacher": "support"} if part == "teacher" else {"rewards": [{"grader": grader}]}
    document = {"asked": {"base_model": "tiny", "objective": objective}}
    context.jobs.submit(Job(job_id="job-1", kind="train", document=document, run_id=WAITING))
    with pytest.raises(ConflictError, match=rf"'support' is named as .* by 1 job that has not ended \({WAITING}\)"):
        deployments.remove(context, OWN, "support")
    assert context.deployments.find("default", "support") is not None
    # Its plan names the weights: the run is kept, and the name is free.
    context.runs.create(make_record(WAITING, status="running"), planned({}))
    assert deployments.remove(context, OWN, "support").name == "support"


def test_a_deployment_is_free_once_the_job_is_cancelled_and_others_were_never_kept(context: Context) -> None:
    deploy(context, "support", "a")
    deploy(context, "sales", "b")
    document = {"asked": {"base_model": "sales", "objective": {"teacher": "support"}}}
    context.jobs.submit(Job(job_id="job-1", kind="train", document=document, run_id=WAITING))
    assert deployments.remove(context, OWN, "sales").name == "sales", "no recipe is trained from a deployment"
    context.jobs.ask("job-1", "cancel")
    assert deployments.remove(context, OWN, "support").name == "support"


def test_of_deployments_of_one_name_that_of_the_projects_own_is_meant_and_jobs_of_others_are_not_named(
    context: Context,
) -> None:
    other, third = (create_project(context, name).project_id for name in ("Other", "Third"))
    deploy(context, "support", "a")
    deploy(context, "support", "b", other)
    document = {"asked": {"objective": {"teacher": "support"}}}
    context.jobs.submit(Job(job_id="job-1", kind="train", document=document, run_id=WAITING, project_id=third))
    deployments.remove(context, Caller(project_id=other), "support")
    # Without one of its own, a project's job finds that of `default`.
    with pytest.raises(ConflictError) as caught:
        deployments.remove(context, OWN, "support")
    assert "1 job that has not ended" in caught.value.came
    assert WAITING not in caught.value.came


def test_what_grades_a_run_of_the_evals_api_is_kept_until_it_has_ended(context: Context) -> None:
    judge = deploy(context, "support", "a")
    grader = {
        "type": "score_model",
        "name": "opinion",
        "model": "support",
        "input": [{"role": "user", "content": "{{item.q}}"}],
    }
    source = {"type": "custom", "item_schema": {"type": "object", "properties": {"q": {"type": "string"}}}}
    asked = EvalRequest.model_validate({"data_source_config": source, "testing_criteria": [grader]})
    made = evals.create(context, OWN, asked)
    rows = {"type": "file_content", "content": [{"item": {"q": "Who?"}}]}
    request = RunRequest.model_validate({"data_source": {"type": "jsonl", "source": rows}})
    run = evals.start_run(context, OWN, made.eval_id, request)
    with pytest.raises(ConflictError, match=run.run.job_id):
        deployments.remove(context, OWN, "support")
    assert [use.run_id for use in uses_of(context, judge)] == [run.run.job_id]
    context.jobs.ask(run.run.job_id, "cancel")
    assert deployments.remove(context, OWN, "support").name == "support"


def kept_by(context: Context, model: str, document: dict[str, Any], kind: JobKind, workflow_id: str = "") -> None:
    """A job of a kind keeps a model until it is cancelled."""
    job = Job(job_id="job-1", kind=kind, document=document, run_id="", workflow_id=workflow_id)
    context.jobs.submit(job)
    with pytest.raises(ConflictError, match=r"1 job that has not ended \(job-1\)"):
        delete_run(context, OWN, model)
    context.jobs.ask("job-1", "cancel")
    assert delete_run(context, OWN, model).run_id == model


@pytest.mark.parametrize("place", ["candidate", "against"])
def test_a_model_that_an_evaluation_asks_is_kept(context: Context, place: str) -> None:
    first, second = add_run(context, "a"), add_run(context, "b")
    order = {"kind": "rows", "result_id": "eval-1", "candidate": first, "against": [second]}
    kept_by(context, first if place == "candidate" else second, {"evaluation": order}, "evaluation")


def test_the_source_of_an_export_and_of_a_table_of_formats_is_kept(context: Context) -> None:
    run_id, other = add_run(context, "a"), add_run(context, "b")
    kept_by(context, run_id, {"export": {"export_id": "exp-1", "source": run_id, "to": "gguf"}}, "export")
    order = {"table_id": "formats-1", "source": other, "shown": other, "file_id": "file-1", "filename": "rows.jsonl"}
    document = {"benchmark": order}
    context.jobs.submit(Job(job_id="job-2", kind="export", document=document, run_id=""))
    assert [use.run_id for use in uses_of(context, other)] == ["job-2"]


def test_the_base_model_that_writes_questions_is_kept(context: Context) -> None:
    order = {"dataset_id": "d", "version": 1, "file_id": "f", "name": "n", "teacher": "tiny", "teacher_name": "tiny"}
    context.jobs.submit(Job(job_id="job-1", kind="synthesis", document={"synthesis": order}, run_id=""))
    assert [use.run_id for use in uses_of(context, "tiny")] == ["job-1"]
    far = order | {"teacher": "https://teacher.example/v1#tiny"}
    context.jobs.submit(Job(job_id="job-2", kind="synthesis", document={"synthesis": far}, run_id=""))
    assert len(uses_of(context, "tiny")) == 1, "a model at an address is none of this machine"


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("distill", {"teacher": "MODEL", "student": "tiny"}),
        ("tune", {"base_model": "tiny", "recipe": {"objective": {"teacher": "MODEL"}}}),
        ("automl", {"models": ["other", "MODEL"]}),
        ("compare-models", {"models": ["MODEL"]}),
    ],
)
def test_a_model_that_a_workflow_names_is_kept(context: Context, form: str, values: dict[str, Any]) -> None:
    run_id = add_run(context, "a")
    named = json.loads(json.dumps(values).replace("MODEL", run_id))
    order = {"form": form, "values": named, "caller": OWN.model_dump(mode="json")}
    kept_by(context, run_id, {"workflow": order}, "workflow")


def test_the_deployment_that_is_retrained_is_kept(context: Context) -> None:
    deploy(context, "support", "a")
    order = {"form": "retrain", "values": {"model": "support"}, "caller": OWN.model_dump(mode="json")}
    context.jobs.submit(Job(job_id="job-1", kind="workflow", document={"workflow": order}, run_id=""))
    with pytest.raises(ConflictError, match="job-1"):
        deployments.remove(context, OWN, "support")
    context.jobs.ask("job-1", "cancel")
    assert deployments.remove(context, OWN, "support").name == "support"


def test_a_workflow_that_is_resumed_by_its_id_keeps_the_models_of_its_record(context: Context) -> None:
    run_id = add_run(context, "a")
    workflow_id = "showdown-20261201-093000-0000aa"
    asked = {"contenders": [{"model": "tiny"}, {"model": run_id}]}
    stages = (Stage(name="choose"),)
    context.pipelines.create(Pipeline(pipeline_id=workflow_id, kind="showdown", asked=asked, stages=stages), "default")
    identity = OWN.model_dump(mode="json")
    order = {"form": "compare-models", "workflow_id": workflow_id, "values": {}, "caller": identity}
    kept_by(context, run_id, {"workflow": order}, "workflow", workflow_id)


def test_models_that_an_eval_run_asks_are_kept(context: Context) -> None:
    deploy(context, "support", "a")
    source = {"type": "custom", "item_schema": {"type": "object", "properties": {"q": {"type": "string"}}}}
    grader = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "x"}
    criteria = {"testing_criteria": [grader | {"operation": "eq"}], "data_source_config": source}
    criteria["data_source_config"] = source | {"include_sample_schema": True}
    made = evals.create(context, OWN, EvalRequest.model_validate(criteria))
    rows = {"type": "file_content", "content": [{"item": {"q": "Who?"}}]}
    request = RunRequest.model_validate({"data_source": {"type": "jsonl", "source": rows}})
    run = evals.start_run(context, OWN, made.eval_id, request)
    job = context.jobs.get(run.run.job_id)
    assert uses_of_deployment(context, context.deployments.get("default", "support")) == ()
    stored = run.run.model_copy(update={"eval_run_id": "evalrun_2", "job_id": "job-2", "model": "support"})
    context.evals.add_run(stored, job.model_copy(update={"job_id": "job-2"}))
    with pytest.raises(ConflictError, match="job-2"):
        deployments.remove(context, OWN, "support")


def batch_of(context: Context, models: list[str], project_id: str = "default") -> str:
    """Queue a batch whose requests ask these models; the id of its job."""
    caller = Caller(project_id=project_id)
    with files.incoming_file(context) as incoming:
        for number, model in enumerate(models):
            body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            incoming.write(json.dumps(line).encode() + b"\n")
        stored = files.keep_file(context, project_id, incoming, filename="requests.jsonl", purpose="batch")
    values = {"input_file_id": stored.file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return batches.start(context, caller, BatchRequest.model_validate(values)).job.job_id


def test_every_model_of_a_batch_is_kept_before_and_after_its_file_is_checked(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, name = add_run(context, "a"), "ft:tiny:default::abc"
    context.tuned_models.add(tuned(run_id, name))
    deploy(context, "support", "b")
    job_id = batch_of(context, [name, "support"])
    assert [use.run_id for use in uses_of(context, run_id)] == [job_id]
    with pytest.raises(ConflictError, match=job_id):
        delete_model(context, OWN, name)
    with pytest.raises(ConflictError, match=job_id):
        deployments.remove(context, OWN, "support")
    checked = {"status": "in_progress", "models": (name, "support")}
    context.batches.change(context.batches.of_job(job_id).batch_id, checked)
    monkeypatch.setattr(batches, "models_of_file", lambda _: pytest.fail("the rows were read again"))
    with pytest.raises(ConflictError, match=job_id):
        delete_model(context, OWN, name)


def test_rows_of_a_batch_are_never_read_within_a_transaction(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, name = add_run(context, "a"), "ft:tiny:default::abc"
    context.tuned_models.add(tuned(run_id, name))
    batch_of(context, ["tiny", "other"])
    seen = list[bool]()

    def read(path: Path) -> Any:
        seen.append(context.database.is_in_transaction)
        return models_of_file(path)

    monkeypatch.setattr(batches, "models_of_file", read)
    assert delete_run(context, OWN, run_id, with_models=True).run_id == run_id
    assert delete_deployed(context) == "support"
    assert seen, "nothing was read"
    assert not any(seen)


def delete_deployed(context: Context) -> str:
    deploy(context, "support", "b")
    return deployments.remove(context, OWN, "support").name


def test_a_batch_keeps_nothing_that_its_project_may_not_ask(context: Context) -> None:
    stranger = create_project(context, "Other").project_id
    run_id, name = add_run(context, "a"), "ft:tiny:default::abc"
    context.tuned_models.add(tuned(run_id, name))
    deploy(context, "support", "b")
    batch_of(context, [name, "support"], stranger)
    assert delete_run(context, OWN, run_id, with_models=True).run_id == run_id
    assert deployments.remove(context, OWN, "support").name == "support"


@contextmanager
def command_that_uses(context: Context, *names: str) -> Iterator[int]:
    """Another process that looks models up as a command does, until the block ends; its process id."""
    script = """
import sys
from pathlib import Path
from luthier.features.models.names import find_model
from luthier.platform.cli.command import open_context

sys.argv[0] = "luthier"
names, sys.argv[1:] = sys.argv[2:], ["eval"]
with open_context(Path(HOME)) as context:
    for name in names:
        find_model(context, name)
    print("held", flush=True)
    sys.stdin.read()
""".replace("HOME", repr(str(context.home)))
    command = [sys.executable, "-c", script, "eval", *names]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.stdin.close()


def test_models_that_a_command_uses_are_kept_until_it_has_ended(context: Context, tiny_model: Path) -> None:
    run_id, name, other = add_run(context, "a"), "ft:tiny:default::abc", add_run(context, "b")
    context.tuned_models.add(tuned(run_id, name))
    deploy(context, "support", "c")
    routed = context.deployments.get("default", "support").revision.main_share.target
    with command_that_uses(context, name, "support", str(tiny_model)) as process_id:
        with pytest.raises(ConflictError, match=rf"{name} is in use by luthier eval \(process {process_id}\)"):
            delete_model(context, OWN, name)
        with pytest.raises(ConflictError, match=rf"{run_id} is in use by luthier eval"):
            delete_run(context, OWN, run_id, with_models=True)
        # A name is not what it routes to: the weights are kept, the deployment is not.
        deployments.remove(context, OWN, "support")
        with pytest.raises(ConflictError, match=rf"{routed} is in use by luthier eval"):
            delete_run(context, OWN, routed)
        assert len(commands_using(context, "tiny")) == 1, "the base model under the adapters is in use, too"
        assert len(commands_using(context, str(tiny_model))) == 1
        assert commands_using(context, "another") == ()
        assert delete_run(context, OWN, other).run_id == other
    assert commands_using(context, "tiny") == ()
    assert delete_model(context, OWN, name).model_id == name
    assert delete_run(context, OWN, run_id).run_id == run_id


def test_a_base_model_that_a_command_uses_by_another_path_is_kept(context: Context, tiny_model: Path) -> None:
    sources.pull(str(tiny_model), context.home, SilentProgress())
    link = context.home / "a-link"
    link.symlink_to(tiny_model)
    with command_that_uses(context, str(link)):
        with pytest.raises(ConflictError, match="is in use by luthier eval"):
            remove_local_base(context, str(tiny_model))
        base = next(one for one in list_bases(context) if one.model.path == str(tiny_model))
        _, uses = base_uses(context, OWN.model_copy(update={"scopes": ("admin",)}), base.name)
        assert uses.is_needed
        assert len(uses.commands) == 1
    assert remove_local_base(context, str(tiny_model)).path == str(tiny_model)


@pytest.mark.parametrize("spelling", ["as it is", "by a link", "relative", "over it", "layers"])
def test_a_base_model_that_a_waiting_job_names_by_its_path_is_kept(
    context: Context, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    sources.pull(str(tiny_model), context.home, SilentProgress())
    (tmp_path / "a-link").symlink_to(tiny_model)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model)}))
    monkeypatch.chdir(tiny_model.parent)
    named = {
        "as it is": str(tiny_model),
        "by a link": str(tmp_path / "a-link"),
        "relative": f"./{tiny_model.name}",
        "over it": str(tmp_path / "adapter"),
        "layers": f"layers:1@{tmp_path / 'a-link'}",
    }[spelling]
    context.jobs.submit(Job(job_id="job-1", kind="train", document={"recipe": {"base_model": named}}, run_id=WAITING))
    with pytest.raises(ConflictError, match="runs that have not ended"):
        remove_local_base(context, str(tiny_model))
    assert uses_of(context, "another", "/models/another") == ()
    context.jobs.ask("job-1", "cancel")
    assert remove_local_base(context, str(tiny_model)).path == str(tiny_model)


def test_a_run_whose_folder_a_waiting_job_names_is_kept(context: Context) -> None:
    judge, other = add_run(context, "a"), add_run(context, "b")
    folder = context.settings.run_folder(judge) / "merged" / "model"
    folder.mkdir(parents=True)
    context.jobs.submit(
        Job(job_id="job-1", kind="train", document={"recipe": {"base_model": str(folder)}}, run_id=WAITING)
    )
    with pytest.raises(ConflictError, match=WAITING):
        delete_run(context, OWN, judge)
    assert delete_run(context, OWN, other).run_id == other
    context.jobs.ask("job-1", "cancel")
    assert delete_run(context, OWN, judge).run_id == judge


@pytest.mark.parametrize("part", ["run", "model", "deployment"])
@pytest.mark.parametrize("asks", [True, False])
def test_a_batch_that_is_queued_before_the_transaction_is_read_outside_of_it(
    context: Context, monkeypatch: pytest.MonkeyPatch, part: str, asks: bool
) -> None:
    run_id, name = add_run(context, "a"), "ft:tiny:default::abc"
    context.tuned_models.add(tuned(run_id, name))
    deploy(context, "support", "b")
    plain, queued, seen = context.database.transaction, list[str](), list[bool]()

    def read(path: Path) -> Any:
        seen.append(context.database.is_in_transaction)
        return models_of_file(path)

    def transaction() -> Any:
        if not queued:
            queued.append("")  # queueing it opens a transaction, too
            queued[0] = batch_of(context, [name, "support"] if asks else ["other"])
        return plain()

    monkeypatch.setattr(batches, "models_of_file", read)
    monkeypatch.setattr(context.database, "transaction", transaction)
    remove: dict[str, Callable[[], object]] = {
        "run": lambda: delete_run(context, OWN, run_id, with_models=True),
        "model": lambda: delete_model(context, OWN, name),
        "deployment": lambda: deployments.remove(context, OWN, "support"),
    }
    if asks:
        with pytest.raises(ConflictError) as caught:
            remove[part]()
        assert queued[0] in caught.value.came
    else:
        remove[part]()
    assert seen == [False]


def test_batches_that_never_stop_coming_end_in_a_refusal(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = add_run(context, "a")
    plain, is_queueing = context.database.transaction, list[bool]()

    def transaction() -> Any:
        if not is_queueing:
            is_queueing.append(True)
            batch_of(context, [f"other-{len(context.jobs.list())}"])
            is_queueing.clear()
        return plain()

    monkeypatch.setattr(context.database, "transaction", transaction)
    with pytest.raises(ConflictError, match="new batches were queued"):
        delete_run(context, OWN, run_id)
    assert context.runs.get(run_id).run_id == run_id
