"""`luthier runs`."""

from __future__ import annotations

from pathlib import Path

from tests.task_heads import add_head_run
from tests.vacuous import nonempty

from luthier.core.task_head import TASK_HEAD_FILE
from luthier.features.models.store import TunedModel
from luthier.features.training.checkpoint_uploads.lease import OWN_LEASE
from luthier.platform.home.context import Context
from luthier.testing.records import make_plan, make_record, make_result, make_step

OTHER = "run-20261125-093000-bbbbbb"


def test_no_runs_yet(luthier) -> None:  # type: ignore[no-untyped-def]
    assert luthier("runs", "list", "--json").document == []
    assert "luthier quickstart" in luthier("runs", "list").out


def test_a_filter_that_no_run_matches_does_not_deny_the_runs(luthier, run: str) -> None:  # type: ignore[no-untyped-def]
    assert luthier("runs", "list", "--filter", "tag:sweep", "--json").document == []
    assert luthier("runs", "list", "--filter", "tag:sweep").out == "No run matches the filter.\n"
    assert run in luthier("runs", "list", "--filter", "not tag:sweep").out


def test_list_is_newest_first(luthier, run: str, home: Path) -> None:  # type: ignore[no-untyped-def]
    with Context.open(home) as context:
        context.runs.create(make_record(OTHER, status="running"), make_plan())
    document = luthier("runs", "list", "--json").document
    assert [(one["run_id"], one["status"]) for one in document] == [(OTHER, "running"), (run, "succeeded")]
    assert len(luthier("runs", "list", "--limit", 1, "--json").document) == 1
    text = luthier("runs", "list").out
    assert text.index(OTHER) < text.index(run)
    assert "its process is gone" in text


def test_show(luthier, run: str) -> None:  # type: ignore[no-untyped-def]
    document = luthier("runs", "show", run, "--json").document
    assert document["run_id"] == run
    assert document["task_head"] is None
    assert document["last_step"]["step"] == 2
    text = luthier("runs", "show", run).out
    for words in (run, "succeeded", "training.learning_rate", "Verdict: not distinguishable", "Cannot tell."):
        assert words in text


def test_show_has_the_head_of_a_run_and_says_where_it_is_damaged(luthier, home: Path, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    assert luthier("models", "pull", tiny_model).code == 0
    with Context.open(home) as context:
        counted = {"labels": ("bug", "praise"), "label_counts": (9, 5), "temperature": 1.25}
        classifies, _, folder = add_head_run(context, "tiny", "a", kind="classify", **counted)
    document = luthier("runs", "show", classifies, "--json").document
    assert (document["task_head"]["labels"], document["task_head"]["temperature"]) == (["bug", "praise"], 1.25)
    text = luthier("runs", "show", classifies).out
    assert "bug (9), praise (5)" in text
    assert "last: the state of the last token" in text
    (folder / TASK_HEAD_FILE).write_text("{", encoding="utf-8")
    document = luthier("runs", "show", classifies, "--json").document
    assert document["task_head"] is None
    assert [TASK_HEAD_FILE in one for one in document["warnings"]] == [True]


def test_compare(luthier, run: str, home: Path) -> None:  # type: ignore[no-untyped-def]
    with Context.open(home) as context:
        result = make_result(train_loss=0.5)
        context.runs.create(make_record(OTHER, status="succeeded", result=result), make_plan(learning_rate=1e-3))
    document = luthier("runs", "compare", run, OTHER, "--json").document
    assert document["plan"] == [{"name": "training.learning_rate", "values": [2e-4, 1e-3]}]
    text = luthier("runs", "compare", run, OTHER).out
    (left_out,) = [line for line in text.splitlines() if line.startswith("empty or no figures, so only in --json: ")]
    shown = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert "train_loss" in shown
    for name in nonempty(left_out.partition(": ")[2].split(", ")):
        assert name in [row["name"] for row in document["results"]]
        assert name not in shown
    for words in (OTHER, "0.0002", "0.001", "1.062", "tuned: exact_match", "1 of 2 runs was not evaluated"):
        assert words in text
    assert luthier("runs", "compare", run).code == 2


def test_watch(luthier, run: str) -> None:  # type: ignore[no-untyped-def]
    document = luthier("runs", "watch", run, "--json").document
    assert [event["step"] for event in document["events"]] == [1, 2]
    lines = luthier("runs", "watch", run).out.splitlines()
    assert lines[0].startswith("step 1  epoch 0.20  loss 1.0000")
    assert lines[-1] == f"{run}: succeeded"


def test_watch_of_a_killed_run_says_how_to_go_on(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    with Context.open(home) as context:
        context.runs.create(make_record(OTHER, status="running"), make_plan())
        context.runs.append(OTHER, make_step(1))
    out = luthier("runs", "watch", OTHER).out
    assert "its process is gone" in out
    assert f"luthier train --resume {OTHER}" in out


def test_watch_ends_with_the_exit_code_of_the_run(luthier, run: str, home: Path) -> None:  # type: ignore[no-untyped-def]
    codes = {run: luthier("runs", "watch", run).code}
    with Context.open(home) as context:
        for number, status in enumerate(("failed", "running", "paused")):
            run_id = f"{OTHER[:-1]}{number}"
            context.runs.create(make_record(run_id, status=status), make_plan())
            codes[status] = luthier("runs", "watch", run_id).code
    # None of them has a process: the one that is running was killed.
    assert codes == {run: 0, "failed": 1, "running": 1, "paused": 0}
    assert luthier("runs", "watch", f"{OTHER[:-1]}0", "--json").code == 1


def test_edit_and_find_again(luthier, run: str, home: Path) -> None:  # type: ignore[no-untyped-def]
    with Context.open(home) as context:
        context.runs.create(make_record(OTHER, status="failed"), make_plan(learning_rate=1e-3))
    document = luthier("runs", "edit", run, "--name", "Client mails", "--tag", "sweep", "--star", "--json").document
    assert document == {
        "run_id": run, "name": "Client mails", "note": "", "group": "", "is_starred": True, "is_archived": False,
        "tags": ["sweep"],
    }  # fmt: skip
    out = luthier("runs", "edit", run, "--note", "slow", "--group", "g", "--untag", "sweep", "--archive").out
    assert "slow" in out
    assert luthier("runs", "edit", "run-1", "--name", "x").code == 2
    listed = luthier("runs", "list", "--filter", 'name~"client" star:yes', "--json").document
    assert [(one["run_id"], one["name"], one["tags"]) for one in listed] == [(run, "Client mails", [])]
    assert [one["run_id"] for one in luthier("runs", "list", "--sort", "-lr", "--json").document] == [OTHER, run]
    assert "Client mails" in luthier("runs", "list").out
    assert "Client mails" in luthier("runs", "show", run).out
    wrong = luthier("runs", "list", "--filter", "lr>>1")
    assert wrong.code == 2
    assert "at character 4" in wrong.err


def test_rm(luthier, run: str) -> None:  # type: ignore[no-untyped-def]
    removed = {"removed": run, "status": "succeeded", "leaves_uploads": False}
    assert luthier("runs", "rm", run, "--json").document == removed
    assert luthier("runs", "rm", run).code == 2
    assert luthier("runs", "list", "--json").document == []


def test_rm_is_in_the_audit_log(luthier, run: str, home: Path) -> None:  # type: ignore[no-untyped-def]
    project_id = "proj-20261201-080000-abcdef"
    with Context.open(home) as context:
        context.access.add_project(project_id, "mails")
        context.runs.create(make_record(OTHER, status="failed"), make_plan(), project_id)
    for name in (run, OTHER):
        assert luthier("runs", "rm", name).code == 0
    assert luthier("runs", "rm", run).code == 2
    with Context.open(home) as context:
        entries = context.audit_log.newest(limit=2)
    assert [(one.action, one.subject, one.project_id) for one in entries] == [
        ("run.deleted", OTHER, project_id),
        ("run.deleted", run, "default"),
    ]
    assert '"failed"' in entries[0].document


def test_rm_with_the_models_that_were_registered_of_it(luthier, run: str, home: Path) -> None:  # type: ignore[no-untyped-def]
    with Context.open(home) as context:
        context.tuned_models.add(
            TunedModel(
                model_id="ft:a", project_id="default", job_id="j", run_id=run, base_model="tiny", adapter_path="/"
            )
        )
    refused = luthier("runs", "rm", run)
    assert refused.code == 2
    assert f"luthier runs rm {run} --with-models" in refused.err.replace("\n", " ")
    assert luthier("runs", "rm", run, "--with-models", "--json").document["removed"] == run
    with Context.open(home) as context:
        assert context.tuned_models.list("default") == []


def test_rm_names_uploads_that_it_cannot_reach(luthier, run: str, home: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with Context.open(home) as context:
        context.runs.create(make_record(OTHER), make_plan())
        for run_id in (run, OTHER):
            context.settings.run_folder(run_id).mkdir(parents=True, exist_ok=True)
            (context.settings.run_folder(run_id) / OWN_LEASE).write_text("{}")
    place = tmp_path / "store"
    (place / "runs" / OTHER).mkdir(parents=True)
    (place / "runs" / OTHER / "object").write_text("uploaded")
    assert f"delete the folder runs/{run} there" in luthier("runs", "rm", run).out
    assert "runs/" not in luthier("runs", "rm", OTHER, "--checkpoints", place).out
    assert not (place / "runs" / OTHER / "object").exists()


def test_track_says_what_each_tracker_has(luthier, run: str, home: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from tests.fixtures.plug_ins import installed_package

    code = """
from luthier.ml.tracking.protocol import RemoteRun, Tracker, TrackerRules

class Theirs(Tracker):
    rules = TrackerRules(title="Theirs", summary="counts")

    def begin(self, run):
        if not run.plan.tags and (run.folder / "down").exists():
            raise ConnectionError("no answer")
        return RemoteRun("1", "http://host/1")

    def log(self, points):
        pass

    def end(self, outcome):
        return ["stored"]
"""
    folder = tmp_path / "theirs"
    folder.mkdir()
    assert "has no tracker" in luthier("runs", "track", run).err
    with installed_package(folder, monkeypatch, "[luthier.trackers]\ntheirs = theirs:Theirs\n", code):
        down = home / "runs" / run / "trackers" / "down"
        down.parent.mkdir(parents=True)
        down.touch()
        failed = luthier("runs", "track", run, "--to", "theirs", "--json")
        assert failed.code == 1
        (state,) = failed.document["trackers"]
        assert (state["status"], state["error"]) == ("waiting", "ConnectionError: no answer")
        down.unlink()
        done = luthier("runs", "track", run, "--to", "theirs")
        assert done.code == 0
        for words in ("delivered, 2 events; http://host/1", "note: theirs: stored"):
            assert words in done.out
        assert luthier("runs", "show", run, "--json").document["trackers"][0]["url"] == "http://host/1"
        assert "delivered, 2 events; http://host/1" in luthier("runs", "show", run).out
    assert "correct tracking" in luthier("runs", "track", run, "--to", "mlfow").err
