"""What people write about runs, their deletion, and saved views: kept, limited, logged, and of one project."""

from __future__ import annotations

import pytest
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.records.deployment import Deployment, Revision, Share
from luthier.features.models.store import TunedModel
from luthier.features.runs.changes import delete_run, delete_runs, edit_here, edit_run, edit_runs
from luthier.features.runs.labels import MAX_TAGS, LabelChanges, RunLabels, delete_view, save_view
from luthier.features.runs.state import standing
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job, JobStatus
from luthier.testing.records import RUN_ID, add_run, make_plan, make_record

OWN = Caller()


def test_a_run_is_called_by_its_given_name_else_its_default_one_else_its_id(context: Context) -> None:
    named, other = add_run(context, "a"), add_run(context, "b")
    edit_run(context, OWN, named, LabelChanges(name="Client mails"))
    default = context.run_labels.default_names([other])[other]
    assert default != other
    found = context.run_labels.names([named, other, "run-gone"])
    assert found == {named: "Client mails", other: default, "run-gone": "run-gone"}


def test_an_edit_changes_what_it_names_and_is_logged(context: Context) -> None:
    run_id = add_run(context, "a")
    changed = edit_run(context, OWN, run_id, LabelChanges(name="  Client \n mails ", add_tags=["Sweep", "best"]))
    assert changed == RunLabels(name="Client mails", tags=("best", "sweep"))
    changed = edit_run(context, OWN, run_id, LabelChanges(note="a\nb", remove_tags=["best"], is_starred=True))
    assert changed == RunLabels(name="Client mails", note="a\nb", is_starred=True, tags=("sweep",))
    assert context.run_labels.of_runs([run_id])[run_id] == changed
    entry = context.audit_log.newest(limit=1)[0]
    assert (entry.action, entry.subject) == ("run.edited", run_id)
    assert '"note":"changed"' in entry.document.replace(" ", "")
    edit_run(context, OWN, run_id, LabelChanges(name="Client mails"))
    assert context.audit_log.newest(limit=1)[0].number == entry.number, "an edit without a change is no edit"


def test_a_run_that_waits_has_labels_too(context: Context) -> None:
    context.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id=RUN_ID))
    assert edit_run(context, OWN, RUN_ID, LabelChanges(name="Next")).name == "Next"


@pytest.mark.parametrize(
    "changes",
    [
        LabelChanges(name="x" * 201),
        LabelChanges(note="x" * 10_001),
        LabelChanges(group="x" * 101),
        LabelChanges(add_tags=["two words"]),
        LabelChanges(add_tags=["x" * 51]),
        LabelChanges(tags=["<b>"]),
        LabelChanges(tags=[f"t{n}" for n in range(MAX_TAGS + 1)]),
        LabelChanges(name="a\0b"),
    ],
)
def test_what_is_too_long_or_no_tag_is_refused(context: Context, changes: LabelChanges) -> None:
    run_id = add_run(context, "a")
    with pytest.raises(RequestError):
        edit_run(context, OWN, run_id, changes)
    assert context.run_labels.of_runs([run_id])[run_id] == RunLabels()


def test_several_are_changed_together_or_none(context: Context) -> None:
    runs = [add_run(context, "a"), add_run(context, "b")]
    assert edit_runs(context, OWN, runs, LabelChanges(is_archived=True)) == 2
    with pytest.raises(NotFoundError):
        edit_runs(context, OWN, [*runs, "run-20261125-093000-ffffff"], LabelChanges(is_archived=False))
    found = context.run_labels.of_runs(runs)
    assert [found[one].is_archived for one in nonempty(runs)] == [True, True]
    with pytest.raises(RequestError, match="no run is chosen"):
        edit_runs(context, OWN, [], LabelChanges(is_archived=True))


def test_those_of_another_project_are_not_there(context: Context) -> None:
    run_id = add_run(context, "a")
    stranger = Caller(project_id=create_project(context, "Other").project_id)
    for change in (lambda: edit_run(context, stranger, run_id, LabelChanges(name="x")),
                   lambda: delete_run(context, stranger, run_id)):  # fmt: skip
        with pytest.raises(NotFoundError):
            change()
    save_view(context, OWN, "mine", "filter=tag:a")
    assert context.run_labels.views(stranger.project_id) == []
    with pytest.raises(NotFoundError):
        delete_view(context, stranger, "mine")


def test_a_person_at_the_machine_edits_runs_of_any_project(context: Context) -> None:
    project = create_project(context, "Other").project_id
    context.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id=RUN_ID, project_id=project))
    context.runs.create(make_record(), make_plan())
    assert edit_here(context, RUN_ID, LabelChanges(group="g")).group == "g"


def test_a_run_is_deleted_and_that_is_logged(context: Context) -> None:
    run_id = add_run(context, "a")
    edit_run(context, OWN, run_id, LabelChanges(name="x", tags=["t"]))
    assert delete_run(context, OWN, run_id).run_id == run_id
    assert context.runs.some([run_id]) == {}
    assert context.run_labels.of_runs([run_id])[run_id] == RunLabels()
    assert context.audit_log.newest(limit=1)[0].action == "run.deleted"


def test_a_deleted_run_is_gone_though_its_job_is_kept(context: Context) -> None:
    context.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id=RUN_ID))
    context.runs.create(make_record(status="succeeded"), make_plan())
    job = context.jobs.claim("w")
    assert job is not None
    context.jobs.finish(job.job_id, job.attempt, "succeeded")
    delete_run(context, OWN, RUN_ID)
    assert context.jobs.get("job-1").status == "succeeded"
    with pytest.raises(NotFoundError):
        standing(context, OWN, RUN_ID)
    assert context.run_entries.page("default", limit=5, hides_archived=False).entries == []


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_the_copies_of_rows_that_a_job_has_persistent_for_a_run_go_with_the_run(
    context: Context, status: JobStatus
) -> None:
    for number, run_id in (("1", RUN_ID), ("2", "run-20261125-093000-bbbbbb")):
        context.jobs.submit(Job(job_id=f"job-{number}", kind="train", document={}, run_id=run_id))
        job = context.jobs.claim("w")
        assert job is not None
        context.jobs.finish(job.job_id, job.attempt, status)
        context.runs.create(make_record(run_id, status="failed"), make_plan())
        copy = context.settings.jobs_folder / job.job_id / "files" / "training.jsonl"
        copy.parent.mkdir(parents=True)
        copy.write_text("{}\n")
    delete_run(context, OWN, RUN_ID)
    copies = [context.settings.jobs_folder / name / "files" for name in ("job-1", "job-2")]
    assert [copy.exists() for copy in copies] == [False, True]


def test_what_a_training_client_has_saved_goes_with_its_run(context: Context) -> None:
    from luthier.features.tinker_api.records import AdapterOptions, TinkerCheckpoint, TinkerModel

    for letter in "ab":
        run_id, client = add_run(context, letter), f"session-{letter}:train:0"
        context.tinker.add_model(
            TinkerModel(
                model_id=client, project_id="default", session_id=f"session-{letter}", run_id=run_id, base_model="tiny",
                options=AdapterOptions(rank=4), plan=context.runs.plan(run_id),
            )
        )  # fmt: skip
        context.tinker.add_checkpoint(
            TinkerCheckpoint(
                checkpoint_id=f"tck-{letter}", model_id=client, project_id="default", kind="training", name="one",
                step=1, num_bytes=1, served_name=f"ft:tiny:default:one:{letter}",
            )
        )  # fmt: skip
    delete_run(context, Caller(), context.tinker.model("default", "session-a:train:0").run_id)
    left, _ = context.tinker.checkpoints("default")
    assert [one.checkpoint_id for one in left] == ["tck-b"]


def test_a_run_in_use_is_not_deleted(context: Context) -> None:
    run_id = add_run(context, "a")
    model = TunedModel(model_id="ft:tiny:default::a", project_id="default", job_id="j", run_id=run_id,
                       base_model="tiny", adapter_path="/a", step=None, checkpoint_id=None, metrics={})  # fmt: skip
    context.tuned_models.add(model)
    with pytest.raises(ConflictError, match="ft:tiny:default::a") as caught:
        delete_run(context, OWN, run_id)
    assert "DELETE /v1/models/" in caught.value.do
    context.tuned_models.delete("default", model.model_id)
    delete_run(context, OWN, run_id)


def registered(context: Context, run_id: str, name: str, step: int | None = None) -> str:
    model = TunedModel(model_id=f"ft:tiny:default::{name}", project_id="default", job_id="j", run_id=run_id,
                       base_model="tiny", adapter_path="/a", step=step, checkpoint_id=None, metrics={})  # fmt: skip
    return context.tuned_models.add(model).model_id


def test_a_run_is_deleted_with_the_models_that_were_registered_of_it(context: Context) -> None:
    run_id, other = add_run(context, "a"), add_run(context, "b")
    gone = {registered(context, run_id, "a"), registered(context, run_id, "a-ckpt-2", step=2)}
    stays = registered(context, other, "b")
    delete_run(context, OWN, run_id, with_models=True)
    assert [one.model_id for one in context.tuned_models.list("default")] == [stays]
    entries = [(entry.action, entry.subject) for entry in context.audit_log.newest(limit=3)]
    assert entries[0] == ("run.deleted", run_id)
    assert set(entries[1:]) == {("model.deleted", model) for model in gone}


def test_a_model_that_a_deployment_routes_to_keeps_its_run_and_the_other_models(context: Context) -> None:
    run_id = add_run(context, "a")
    models = [registered(context, run_id, "a"), registered(context, run_id, "b")]
    share = Share(target=models[1], fraction=1.0)
    revision = Revision(number=1, kind="deploy", shares=(share,))
    project = create_project(context, "Other").project_id
    context.deployments.add(Deployment(deployment_id="dep-1", project_id=project, name="shop", revision=revision))
    with pytest.raises(ConflictError, match="1 deployment routes to ft:tiny:default::b"):
        delete_run(context, OWN, run_id, with_models=True)
    assert sorted(one.model_id for one in context.tuned_models.list("default")) == models
    assert context.settings.run_folder(run_id).is_dir()


def test_of_several_runs_all_that_can_be_are_deleted(context: Context) -> None:
    first, second = add_run(context, "a"), add_run(context, "b")
    registered(context, second, "b")
    num, refused = delete_runs(context, OWN, [first, "run-20261125-093000-ffffff", second])
    assert (num, [type(error) for error in refused]) == (1, [NotFoundError, ConflictError])
    assert delete_runs(context, OWN, [second], with_models=True) == (1, [])
    with pytest.raises(RequestError, match="no run is chosen"):
        delete_runs(context, OWN, [])


def test_a_run_that_has_not_ended_is_not_deleted(context: Context) -> None:
    context.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id=RUN_ID))
    with pytest.raises(ConflictError, match="queued"):
        delete_run(context, OWN, RUN_ID)
    context.jobs.ask("job-1", "cancel")
    with pytest.raises(ConflictError, match="never started"):
        delete_run(context, OWN, RUN_ID)


def test_views_are_kept_by_name_without_the_place_in_the_list(context: Context) -> None:
    view = save_view(context, OWN, " Best  ones ", "sort=-lr&before=run-1&filter=tag%3Abest&evil=1&columns=state,lr")
    assert (view.name, view.query) == ("Best ones", "filter=tag%3Abest&sort=-lr&columns=state%2Clr")
    with pytest.raises(ConflictError, match="exists"):
        save_view(context, OWN, "Best ones", "")
    with pytest.raises(RequestError, match="without a name"):
        save_view(context, OWN, "  ", "")
    assert [(one.name, one.created_by) for one in context.run_labels.views("default")] == [("Best ones", "local")]
    delete_view(context, OWN, "Best ones")
    assert context.run_labels.views("default") == []
    assert [entry.action for entry in context.audit_log.newest(limit=2)] == ["run_view.deleted", "run_view.saved"]
