"""Exports by a job: made whole by a worker with real processes, or not there at all."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import tarfile
from pathlib import Path

import pytest
from tests.fixtures.at_work import at_work, child_of, work
from tests.fixtures.service import chat_row, write_rows

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.features.deployments import service as deployments
from luthier.features.exports import requests as export_files
from luthier.features.exports import requests as server_exports
from luthier.features.models.service import pull_model
from luthier.features.models.store import TunedModel
from luthier.features.training import jobs
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.testing.records import add_run

ME, STRANGER = Caller(), Caller(project_id="proj-other")


@pytest.fixture
def base(context: Context, tiny_model: Path) -> str:
    """The name of a base model on this machine."""
    pull_model(context, str(tiny_model))
    return tiny_model.name


def left_over(context: Context) -> list[str]:
    folder = context.settings.exports_folder
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def proof(context: Context, tmp_path: Path) -> str:
    """A file of the project with two rows of a proof, which takes less time than the built-in prompts."""
    path = write_rows(tmp_path / "proof.jsonl", [chat_row(n) for n in range(2)])
    return files.add_file(context, "default", path, filename="proof.jsonl", purpose="fine-tune").file_id


@pytest.fixture
def made(context: Context, base: str, proof: str) -> str:
    """An export that a worker has made."""
    export = server_exports.start(context, ME, base, "merged", "float32", file_id=proof)
    assert server_exports.show_export(context, ME, export.export_id).job.status == "queued"
    with pytest.raises(ConflictError, match="not finished yet"):
        export_files.archive_of(context, ME, export.export_id)
    work(context)
    return export.export_id


def test_an_export_is_made_proved_handed_out_deployed_and_removed(context: Context, base: str, made: str) -> None:
    view = server_exports.show_export(context, ME, made)
    assert (view.job.status, view.has_ended) == ("succeeded", True)
    document = view.export.document
    assert document is not None
    assert document.parity is not None
    assert document.parity.passed
    assert left_over(context) == [made]
    told = [event.message for event in context.job_events.page(view.job.job_id)[0]]
    assert any(message.startswith("Running the source") for message in told)
    assert server_exports.verify(context, ME, made).is_whole
    assert export_files.card_of(context, ME, made).startswith("---")

    archive = export_files.archive_of(context, ME, made)
    content = b"".join(archive.blocks)
    assert len(content) == archive.num_bytes
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert {name.removeprefix(f"{made}/") for name in tar.getnames()} == set(document.files)
        inside = tar.extractfile(f"{made}/bundle.json")
        assert inside is not None
        assert inside.read() == export_files.file_of(context, ME, made, "bundle.json").read_bytes()
    for path in ("../../luthier.db", "/etc/passwd", "", "nothing.json"):
        with pytest.raises(NotFoundError, match="no file"):
            export_files.file_of(context, ME, made, path)

    deployments.deploy(context, ME, "small", f"export:{made}")
    with pytest.raises(NotFoundError):
        deployments.deploy(context, STRANGER, "small", f"export:{made}")
    with pytest.raises(ConflictError, match="answers as small"):
        server_exports.remove(context, ME, made)
    deployments.remove(context, ME, "small")
    server_exports.remove(context, ME, made)
    assert left_over(context) == []
    with pytest.raises(NotFoundError):
        server_exports.show_export(context, ME, made)


def test_a_changed_file_is_found_and_not_deployed(context: Context, made: str) -> None:
    path = export_files.file_of(context, ME, made, "config.json")
    path.chmod(0o644)
    path.write_text("{}")
    report = server_exports.verify(context, ME, made)
    assert [fault.path for fault in report.faults] == ["config.json"]
    with pytest.raises(ConflictError, match="cannot be trusted"):
        deployments.deploy(context, ME, "small", f"export:{made}")


@pytest.mark.drill
def test_killed_it_begins_anew_and_leaves_nothing_half_written(context: Context, base: str) -> None:
    export = server_exports.start(context, ME, base, "merged")
    at_work(context, export.job_id, "source", lambda: os.kill(child_of(context, export.job_id), signal.SIGKILL))
    view = server_exports.show_export(context, ME, export.export_id)
    assert (view.job.status, view.job.attempt) == ("succeeded", 2)
    assert left_over(context) == [export.export_id]
    assert server_exports.verify(context, ME, export.export_id).is_whole


def test_cancelled_it_leaves_nothing(context: Context, base: str) -> None:
    export = server_exports.start(context, ME, base, "merged")
    at_work(context, export.job_id, "source", lambda: server_exports.cancel(context, ME, export.export_id))
    view = server_exports.show_export(context, ME, export.export_id)
    assert (view.job.status, view.export.document) == ("cancelled", None)
    assert left_over(context) == []
    with pytest.raises(ConflictError):
        server_exports.cancel(context, ME, export.export_id)


def test_made_but_not_yet_written_down_it_is_made_again(context: Context, base: str, proof: str) -> None:
    export = server_exports.start(context, ME, base, "merged", file_id=proof)
    folder = server_exports.export_folder(context, export.export_id)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("of an attempt that died")
    work(context)
    assert server_exports.verify(context, ME, export.export_id).is_whole


def test_what_failed_says_why_and_can_be_tried_again(context: Context) -> None:
    run_id = add_run(context, "a")  # its folder holds nothing that can be loaded
    export = server_exports.start(context, ME, run_id, "merged")
    with pytest.raises(ConflictError, match="is queued"):
        server_exports.remove(context, ME, export.export_id)
    work(context)
    view = server_exports.show_export(context, ME, export.export_id)
    assert view.job.status == "failed"
    assert view.job.error is not None
    assert "trained weights" in view.job.error["came"]
    server_exports.retry(context, ME, export.export_id)
    assert server_exports.show_export(context, ME, export.export_id).job.status == "queued"
    assert context.runs.project_of(run_id) == "default"


def test_what_cannot_be_exported_is_refused_at_once(
    context: Context, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add_run(context, "a")
    context.tuned_models.add(
        TunedModel(
            model_id="ft:x:ckpt-step-1", project_id="default", job_id="j", run_id=run_id, base_model=base,
            adapter_path="/x", step=1,
        )
    )  # fmt: skip
    for source, to, quantise, error, words in (
        (run_id, "zip", None, RequestError, "the format 'zip'"),
        (run_id, "merged", "q4_k_m", RequestError, "the precision 'q4_k_m'"),
        ("nothing", "merged", None, NotFoundError, "does not exist"),
        ("smollm2-135m-instruct", "merged", None, NotFoundError, "not on this machine"),
        ("run-20261125-093000-ffffff", "merged", None, NotFoundError, "no run"),
        (add_run(context, "b", status="failed"), "merged", None, ConflictError, "is failed"),
        ("ft:x:ckpt-step-1", "merged", None, RequestError, "is a checkpoint"),
        ("ft:nothing", "merged", None, NotFoundError, "does not exist"),
    ):
        with pytest.raises(error, match=words):
            server_exports.start(context, ME, source, to, quantise)
    with pytest.raises(NotFoundError, match="no run"):
        server_exports.start(context, STRANGER, run_id, "merged")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else found(name))
    with pytest.raises(RequestError, match=r"needs xllamacpp.*\n.*\n.*luthier\[gguf\]"):
        server_exports.start(context, ME, run_id, "gguf")
    assert server_exports.list_exports(context, ME) == []


def test_an_export_is_not_paused(context: Context, base: str) -> None:
    export = server_exports.start(context, ME, base, "merged")
    with pytest.raises(ConflictError, match="is an export"):
        jobs.ask(context, export.job_id, "pause")


def test_who_did_what_is_written_down(context: Context, base: str) -> None:
    export = server_exports.start(context, ME, base, "merged")
    server_exports.cancel(context, ME, export.export_id)
    server_exports.remove(context, ME, export.export_id)
    entries = context.audit_log.about("default", export.export_id, limit=9)
    assert [entry.action for entry in entries] == ["export.removed", "export.cancelled", "export.started"]
    assert json.loads(entries[-1].document)["source"] == base


def test_rows_of_the_proof_are_a_file_of_the_project(
    context: Context, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [chat_row(n) for n in range(4)])
    rows = files.add_file(context, "default", path, filename="rows.jsonl", purpose="fine-tune").file_id
    for wrong in ("/etc/passwd", "file-20260101-000000-aaaaaa"):
        with pytest.raises(RequestError, match="Rows of the proof"):
            server_exports.start(context, ME, base, "merged", file_id=wrong)
    made = server_exports.start(context, ME, base, "merged", file_id=rows)
    used: list[Path] = []

    def export(*_given: object, held_out: Path, **_named: object) -> None:
        used.append(held_out)
        raise RequestError("not now", expected="nothing", do="nothing")

    monkeypatch.setattr(export_files, "export", export)
    with pytest.raises(RequestError, match="not now"):
        export_files.carry_out(context, server_exports.show_export(context, ME, made.export_id).job)
    assert [one.read_bytes() for one in used] == [path.read_bytes()]
