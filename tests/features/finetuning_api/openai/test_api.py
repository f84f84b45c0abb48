"""Jobs over HTTP: from the request to a model, whatever happens in between, and never another project's."""

from __future__ import annotations

import base64
import csv
import io
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.clock import wait_until
from tests.fixtures.openai import all_events, chat_row, look_at_one, ok, upload, work, work_here
from tests.vacuous import nonempty

from luthier.core.events import SnapshotSaved
from luthier.core.ids import sha256_file
from luthier.core.ports import SilentProgress
from luthier.core.records.deployment import Deployment, Revision, Share
from luthier.core.records.fine_tuning import FineTuningRequest
from luthier.features.finetuning_api.job import JobReporter
from luthier.features.finetuning_api.service import recipe_of
from luthier.ml.tracking.protocol import TrackerRules
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import ENDED

ClientOf = Callable[..., TestClient]
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def client(client_of: ClientOf) -> TestClient:
    return client_of()


def make_job(client: TestClient, **fields: Any) -> dict[str, Any]:
    """A job of 12 rows and 3 epochs of 3 steps, validated on 4 other rows."""
    files = {
        "training_file": upload(client, [chat_row(n) for n in range(12)]),
        "validation_file": upload(client, [chat_row(n) for n in range(50, 54)]),
    }
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}}
    body = {"model": "tiny", "suffix": "my suffix", "seed": 7, "method": method, **files} | fields
    return ok(client.post(JOBS, json={key: value for key, value in body.items() if value is not None}))


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def digests(context: Context, job_id: str) -> dict[str, str]:
    """The digest of the weights of the outcome and of each checkpoint, by the name of the model's end."""
    job = context.jobs.get(job_id)
    models = context.tuned_models.list(job.project_id, job_id=job_id)
    return {str(model.step): sha256_file(Path(model.adapter_path) / "adapter_model.safetensors") for model in models}


def told(client: TestClient, job_id: str) -> list[tuple[str, Any]]:
    """All that does not differ from attempt to attempt: figures, checkpoints, the model."""
    kept = re.compile(r"Step |Checkpoint |Files validated|The job has")
    return [(e["message"], e["data"]) for e in all_events(client, job_id) if kept.match(e["message"])]


def test_from_request_to_model(client: TestClient, home: Context) -> None:
    job = make_job(client, metadata={"team": "a"})
    assert job["status"] == "validating_files"
    assert job["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": "auto"}
    assert (job["fine_tuned_model"], job["error"], job["result_files"], job["trained_tokens"]) == (None, None, [], None)
    work_here(home)
    done = ok(client.get(f"{JOBS}/{job['id']}"))
    assert (done["status"], done["error"]) == ("succeeded", None)
    assert re.fullmatch(r"ft:tiny:default:my-suffix:[0-9a-f]{10}", done["fine_tuned_model"])
    assert done["finished_at"] >= done["created_at"]
    assert done["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert done["method"]["supervised"]["hyperparameters"] == done["hyperparameters"]
    assert (done["seed"], done["metadata"], done["organization_id"]) == (7, {"team": "a"}, "default")
    assert (job["user_provided_suffix"], done["user_provided_suffix"]) == ("my suffix", "my suffix")
    assert done["trained_tokens"] > 0

    events = all_events(client, job["id"])
    messages = [event["message"] for event in events]
    assert messages[0] == f"Created fine-tuning job: {job['id']}"
    assert messages[1:4] == [
        "Validating the files",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    assert messages[-2:] == [
        f"New fine-tuned model created: {done['fine_tuned_model']}",
        "The job has successfully completed",
    ]
    steps = [event for event in events if event["type"] == "metrics"]
    assert [event["data"]["step"] for event in steps] == list(range(1, 10))
    assert re.fullmatch(r"Step 9/9: training loss=\d+\.\d\d, validation loss=\d+\.\d\d, full .*", steps[-1]["message"])
    assert all(0 <= event["data"]["train_mean_token_accuracy"] <= 1 for event in steps)
    assert steps[-1]["data"]["valid_loss"] == steps[-1]["data"]["full_valid_loss"] > 0

    found = ok(client.get(f"{JOBS}/{job['id']}/checkpoints"))
    assert [one["step_number"] for one in found["data"]] == [9, 6, 3]
    assert found["data"][0]["fine_tuned_model_checkpoint"] == f"{done['fine_tuned_model']}:ckpt-step-9"
    assert found["data"][0]["metrics"]["train_loss"] == steps[-1]["data"]["train_loss"]
    assert found["data"][0]["metrics"]["full_valid_loss"] == steps[-1]["data"]["valid_loss"]
    assert set(digests(home, job["id"])) == {"None", "3", "6", "9"}

    (result_file,) = done["result_files"]
    text = client.get(f"/v1/files/{result_file}/content").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [float(row["train_loss"]) for row in rows] == [event["data"]["train_loss"] for event in steps]
    assert float(rows[-1]["valid_loss"]) == steps[-1]["data"]["valid_loss"]


def test_pairs_to_prefer_without_a_validation_file(client: TestClient, home: Context) -> None:
    rows = [
        {
            "input": {"messages": chat_row(n)["messages"][:1]},
            "preferred_output": chat_row(n)["messages"][1:],
            "non_preferred_output": [{"role": "assistant", "content": "no"}],
        }
        for n in range(10)
    ]
    home.settings = home.settings.model_copy(update={"result_files_base64": True})
    method = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 5, "beta": 0.3}}}
    job = make_job(client, method=method, training_file=upload(client, rows), validation_file=None)
    work_here(home)
    done = ok(client.get(f"{JOBS}/{job['id']}"))
    assert (done["status"], done["error"]) == ("succeeded", None)
    assert done["method"]["dpo"]["hyperparameters"]["beta"] == 0.3
    assert [(data["step"], data["valid_loss"]) for _, data in told(client, job["id"]) if data] == [(1, None), (2, None)]
    assert [one["step_number"] for one in ok(client.get(f"{JOBS}/{job['id']}/checkpoints"))["data"]] == [2]
    encoded = client.get(f"/v1/files/{done['result_files'][0]}/content").content
    assert base64.b64decode(encoded, validate=True).endswith(b",,,\n")


def test_answers_to_grade_are_validated_with_their_grader(client: TestClient, home: Context) -> None:
    grader = {"type": "string_check", "name": "g", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader | {"operation": "like"}}}
    good = upload(client, [chat_row(n) | {"answer": "x"} for n in range(10)])
    jobs = [
        make_job(client, method=method, training_file=file, validation_file=None)
        for file in (good, upload(client, [chat_row(n) for n in range(10)]))
    ]
    for _ in jobs:
        look_at_one(home)
    assert ok(client.get(f"{JOBS}/{jobs[0]['id']}"))["status"] == "queued"
    lost = ok(client.get(f"{JOBS}/{jobs[1]['id']}"))
    assert (lost["status"], lost["error"]["code"]) == ("failed", "invalid_training_file")
    assert "item.answer" in lost["error"]["message"]


def test_prompts_without_answers_are_graded_as_the_hosted_service_takes_them(client: TestClient, home: Context) -> None:
    grader = {"type": "string_check", "name": "g", "input": "{{sample.output_text}}", "operation": "like"}
    prompts = [{"messages": chat_row(n)["messages"][:1], "answer": str(n)} for n in range(10)]
    file, jobs = upload(client, prompts), []
    for field in ("answer", "reference"):
        method = {"type": "reinforcement", "reinforcement": {"grader": grader | {"reference": f"{{{{item.{field}}}}}"}}}
        jobs.append(make_job(client, method=method, training_file=file, validation_file=None)["id"])
        look_at_one(home)
    good, bad = (ok(client.get(f"{JOBS}/{job}")) for job in jobs)
    assert (good["status"], good["error"]) == ("queued", None)
    assert (bad["status"], bad["error"]["param"]) == ("failed", "training_file")
    assert bad["error"]["message"].startswith(f"10 of 10 rows of {file} are wrong")
    assert f"{file}:1 field 'reference': ends with a prompt and has nothing in a field" in bad["error"]["message"]


def test_a_grader_is_taken_as_openai_s_guide_writes_it(client: TestClient, home: Context) -> None:
    part = {"name": "name_grader", "type": "text_similarity", "input": "{{sample.output_text}}"}
    part |= {"reference": "{{item.reference}}", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.9}
    exact = {"name": "exact", "type": "string_check", "input": "{{sample.output_text}}", "reference": "x"}
    graders = {"name": part, "exact": exact | {"operation": "eq"}}
    grader = {"type": "multi", "graders": graders, "calculate_output": "(name ^ 2 + exact) / 2"}
    for sent in (grader, grader | {"graders": [one | {"name": key} for key, one in graders.items()]}):
        method = {"type": "reinforcement", "reinforcement": {"grader": sent}}
        file = upload(client, [chat_row(n) for n in range(10)])
        job = make_job(client, method=method, training_file=file, validation_file=None)
        assert job["method"]["reinforcement"]["grader"] == sent
        look_at_one(home)
        job = ok(client.get(f"{JOBS}/{job['id']}"))
        assert (job["status"], job["error"]) == ("queued", None)


def test_rows_over_the_context_are_refused_without_settings_that_a_client_cannot_name(
    client: TestClient, home: Context
) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 5_000}, {"role": "assistant", "content": "Yes."}]}
    file = upload(client, [*(chat_row(n) for n in range(10)), long])
    job = make_job(client, training_file=file, validation_file=None)
    look_at_one(home)
    error = ok(client.get(f"{JOBS}/{job['id']}"))["error"]
    assert (error["code"], error["param"]) == ("invalid_training_file", "training_file")
    assert f"{file}:11" in error["message"]
    assert "shorten or split" in error["message"]
    assert "training." not in error["message"]


def test_what_has_no_effect_is_told(client: TestClient) -> None:
    grader = {
        "type": "string_check",
        "name": "g",
        "input": "{{sample.output_text}}",
        "reference": "x",
        "operation": "eq",
    }
    asked = {"hyperparameters": {"n_epochs": 1, "eval_interval": 3, "reasoning_effort": "high"}}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader} | asked}
    job = make_job(client, method=method, training_file=upload(client, [chat_row(0)]), validation_file=None)
    events = ok(client.get(f"{JOBS}/{job['id']}/events"))["data"]
    warned = [event["message"].split()[0] for event in events if event["level"] == "warn"]
    assert sorted(warned) == ["eval_interval", "reasoning_effort"]


def child_of(job_id: str) -> int | None:
    """The process that trains a job: its command begins with the child itself, unlike its guard's."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[1:3] == ["-m", "luthier.platform.jobs.child"] and job_id in words[4]:
            return int(folder.name)
    return None


@pytest.mark.drill
def test_killed_paused_and_resumed_it_tells_and_makes_the_same(client: TestClient, home: Context) -> None:
    plain, job = make_job(client), make_job(client)
    assert ok(client.post(f"{JOBS}/{job['id']}/pause"))["status"] == "paused"
    work_here(home)  # the first one, undisturbed
    assert ok(client.get(f"{JOBS}/{plain['id']}"))["status"] == "succeeded"
    assert ok(client.post(f"{JOBS}/{job['id']}/resume"))["status"] == "validating_files"

    def step() -> int:
        return sum(message.startswith("Step ") for message, _ in told(client, job["id"]))

    def has_ended() -> str | None:
        return "it has ended" if home.jobs.get(job["id"]).status in ENDED else None

    worker = threading.Thread(target=work, args=(home, has_ended))
    worker.start()
    wait_until(lambda: step() >= 4)
    if (child := child_of(job["id"])) is not None:
        os.kill(child, signal.SIGKILL)
    worker.join(120)
    done = ok(client.get(f"{JOBS}/{job['id']}"))
    assert done["status"] == "succeeded"
    assert len(digests(home, job["id"])) == 4
    assert digests(home, job["id"]) == digests(home, plain["id"])
    assert [what for what in told(client, job["id"]) if what[0] != "Fine-tuning job paused"] == told(
        client, plain["id"]
    )
    ids = [event["id"] for event in all_events(client, job["id"])]
    assert len(set(ids)) == len(ids)
    results = [ok(client.get(f"{JOBS}/{one['id']}"))["result_files"][0] for one in (plain, job)]
    assert len({client.get(f"/v1/files/{file}/content").content for file in results}) == 1


def test_a_checkpoint_that_is_deployed_while_its_job_trains_goes_on_answering(
    client: TestClient, home: Context, tmp_path: Path
) -> None:
    job = home.jobs.get(make_job(client)["id"])
    reporter = JobReporter(home, job)

    def steps() -> list[int]:
        return sorted(model.step or 0 for model in home.tuned_models.list("default", job_id=job.job_id))

    reporter.listen(SnapshotSaved(step=3, path=str(tmp_path)))
    (checkpoint,) = home.tuned_models.list("default", job_id=job.job_id)
    assert not reporter.is_deployed(3)
    share = Share(target=checkpoint.model_id, fraction=1.0)
    revision = Revision(number=1, kind="deploy", shares=(share,))
    home.deployments.add(Deployment(deployment_id="dep-1", project_id="default", name="support", revision=revision))
    assert reporter.is_deployed(3)
    for step in (6, 9, 12, 15):
        reporter.listen(SnapshotSaved(step=step, path=str(tmp_path)))
    assert steps() == [3, 9, 12, 15]
    home.deployments.delete("default", "support")
    reporter.listen(SnapshotSaved(step=18, path=str(tmp_path)))
    assert steps() == [12, 15, 18]


def test_bad_files_fail_before_training_and_say_where(client: TestClient, home: Context) -> None:
    good = [chat_row(n) for n in range(12)]
    bad = upload(client, [*good[:2], '{"messages": []}', *good[3:], "{not json"])
    few, long = upload(client, good[:9]), upload(client, [*good, long_row()])
    jobs = {
        "rows": make_job(client, training_file=bad),
        "validation": make_job(client, validation_file=bad),
        "few": make_job(client, training_file=few),
        "long": make_job(client, training_file=long),
        "pairs": make_job(client, method={"type": "dpo"}),
    }
    work_here(home)
    errors = {}
    for name, job in jobs.items():
        failed = ok(client.get(f"{JOBS}/{job['id']}"))
        assert (failed["status"], failed["fine_tuned_model"]) == ("failed", None), name
        assert failed["finished_at"]
        errors[name] = failed["error"]
        assert all_events(client, job["id"])[-1]["level"] == "error"
    assert (errors["rows"]["code"], errors["rows"]["param"]) == ("invalid_training_file", "training_file")
    assert f"2 of 13 rows of {bad} are wrong" in errors["rows"]["message"]
    assert f"{bad}:3" in errors["rows"]["message"]
    assert f"{bad}:13" in errors["rows"]["message"]
    assert (errors["validation"]["code"], errors["validation"]["param"]) == (
        "invalid_validation_file",
        "validation_file",
    )
    assert "has 9 examples; expected: at least 10" in errors["few"]["message"]
    assert "512 tokens" in errors["long"]["message"]
    assert "preference" in errors["pairs"]["message"]
    assert str(home.home) not in str(errors)
    assert home.runs.list() == []


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
def test_a_file_that_is_deleted_before_the_job_has_copied_it_is_named_with_its_field(
    client: TestClient, home: Context, param: str
) -> None:
    job = make_job(client)
    ok(client.delete(f"/v1/files/{job[param]}"))
    work_here(home)
    error = ok(client.get(f"{JOBS}/{job['id']}"))["error"]
    assert (error["code"], error["param"]) == (f"invalid_{param}", param)
    assert f"no such file: '{job[param]}'" in error["message"]


def test_what_a_crash_has_said_last_names_no_place_of_this_machine(
    client: TestClient, home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_crashes, is_failed in ((1, True), (3, False)):
        monkeypatch.setattr("luthier.platform.jobs.store.MOST_CRASHES", num_crashes)
        job_id = make_job(client)["id"]
        running = home.jobs.claim("w", ("validate",))
        assert running is not None
        assert running.job_id == job_id
        home.jobs.crash(job_id, running.attempt, f"exit code 1: no space for {home.home}/jobs/x")
        job, events = ok(client.get(f"{JOBS}/{job_id}")), all_events(client, job_id)
        assert job["status"] == ("failed" if is_failed else "validating_files")
        said = job["error"]["message"] if is_failed else events[-1]["message"]
        assert "exit code 1: no space for jobs/x" in said
        assert str(home.home) not in str([job, events])


def test_a_base_model_that_is_gone_is_named_without_its_place(
    client: TestClient, home: Context, tmp_path: Path, tiny_model: Path
) -> None:
    from luthier.ml.inference.models import sources

    folder = tmp_path / "outside" / "mine"
    shutil.copytree(tiny_model, folder)
    sources.pull(str(folder), home.home, SilentProgress())
    job = make_job(client, model="mine")
    shutil.rmtree(folder)
    look_at_one(home)
    failed = ok(client.get(f"{JOBS}/{job['id']}"))
    assert (failed["status"], "mine" in failed["error"]["message"]) == ("failed", True)
    assert (failed["error"]["code"], failed["error"]["param"]) == ("model_unavailable", "model")
    shown = [failed, all_events(client, job["id"]), client.get(f"/api/v1/jobs/{job['id']}").json()]
    assert str(tmp_path) not in str(shown)


def long_row() -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "long " * 600}, {"role": "assistant", "content": "yes"}]}


def test_what_another_project_has_is_not_there(client: TestClient, client_of: ClientOf) -> None:
    job, stranger = make_job(client), client_of("other")
    asked = {"GET": ("", "/events", "/checkpoints"), "POST": ("/cancel", "/pause", "/resume")}
    for method, path in nonempty([(method, path) for method, paths in asked.items() for path in paths]):
        assert error_of(stranger.request(method, f"{JOBS}/{job['id']}{path}"), 404)["code"] == "not_found"
    assert ok(stranger.get(JOBS))["data"] == []
    error_of(stranger.get(f"{JOBS}?after={job['id']}"), 400)
    body = {"model": "tiny", "training_file": job["training_file"]}
    assert error_of(stranger.post(JOBS, json=body), 400)["param"] == "training_file"
    reader = client_of("default", ("read",))
    assert ok(reader.get(f"{JOBS}/{job['id']}"))["id"] == job["id"]
    error_of(reader.post(f"{JOBS}/{job['id']}/cancel"), 403)
    error_of(reader.post(JOBS, json=body), 403)


def test_jobs_page_by_page_and_by_what_is_noted_with_them(client: TestClient) -> None:
    files = {"training_file": upload(client, [chat_row(n) for n in range(12)]), "validation_file": None}
    notes: list[Any] = [{"a": "1"}, None, {"a": "2", "b": "x"}, {"a": "1", "b": "x"}]
    made = [make_job(client, metadata=note, **files)["id"] for note in notes]

    def ids(query: str) -> list[str]:
        return [job["id"] for job in ok(client.get(f"{JOBS}?{query}"))["data"]]

    assert ids("") == made[::-1]
    first = ok(client.get(f"{JOBS}?limit=3"))
    assert (len(first["data"]), first["has_more"]) == (3, True)
    rest = ok(client.get(f"{JOBS}?limit=3&after={first['data'][-1]['id']}"))
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (made[:1], False)
    assert ids("metadata[a]=1") == [made[3], made[0]]
    assert ids("metadata[a]=1&metadata[b]=x") == [made[3]]
    assert ids("metadata[a]=1&limit=1") == [made[3]]
    assert ids(f"metadata[a]=1&after={made[3]}") == [made[0]]
    assert ids("metadata=null") == [made[1]]
    error_of(client.get(f"{JOBS}?metadata=x"), 400)
    assert error_of(client.get(f"{JOBS}?after=ftjob-none"), 400)["param"] == "after"
    error_of(client.get(f"{JOBS}?limit=0"), 400)

    events = f"{JOBS}/{made[0]}/events"
    ok(client.post(f"{JOBS}/{made[0]}/pause"))
    page = ok(client.get(f"{events}?limit=1"))
    assert (page["data"][0]["message"], page["has_more"]) == ("Fine-tuning job paused", True)
    page = ok(client.get(f"{events}?limit=1&after={page['data'][0]['id']}"))
    assert (page["data"][0]["message"], page["has_more"]) == (f"Created fine-tuning job: {made[0]}", False)
    assert error_of(client.get(f"{events}?after=ftevent-none"), 400)["param"] == "after"
    assert error_of(client.get(f"{JOBS}/{made[0]}/checkpoints?after=ftckpt_none"), 400)["code"] == "invalid_value"


def test_what_a_state_forbids_is_a_conflict_that_waiting_does_not_mend(client: TestClient, home: Context) -> None:
    job = make_job(client)
    url = f"{JOBS}/{job['id']}"
    running = home.jobs.claim("w:validate", ("validate",))
    assert running is not None
    assert ok(client.get(url))["status"] == "validating_files"
    assert ok(client.post(f"{url}/pause"))["status"] == "pausing"
    answer = client.post(f"{url}/resume")
    assert "wait until it has paused" in error_of(answer, 409)["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert home.jobs.advance(running.job_id, running.attempt).status == "paused"
    error_of(client.post(f"{url}/pause"), 409)
    assert ok(client.post(f"{url}/resume"))["status"] == "queued"
    running = home.jobs.claim("w")
    assert running is not None
    assert ok(client.get(url))["status"] == "running"
    assert ok(client.post(f"{url}/cancel"))["status"] == "running"
    error_of(client.post(f"{url}/cancel"), 409)
    home.jobs.finish(running.job_id, running.attempt, "cancelled")
    for wish in ("cancel", "pause", "resume"):
        error_of(client.post(f"{url}/{wish}"), 409)
    assert ok(client.get(url))["status"] == "cancelled"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "gpt-9"}, "model", "model_not_found"),
        ({"model": "/etc"}, "model", "model_not_found"),
        ({"model": "ft:tiny:default::1"}, "model", "unsupported_model"),
        ({"training_file": "file-none"}, "training_file", "invalid_file"),
        ({"validation_file": "../x"}, "validation_file", "invalid_file"),
        ({"suffix": ""}, "suffix", "invalid_value"),
        ({"suffix": "x" * 65}, "suffix", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**31}, "seed", "invalid_value"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": "3"}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"batch_size": 0}}, "hyperparameters.batch_size", "invalid_value"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            "hyperparameters.learning_rate_multiplier",
            "invalid_value",
        ),
        (
            {"hyperparameters": {"learning_rate_multiplier": 1e6}},
            "hyperparameters.learning_rate_multiplier",
            "invalid_value",
        ),
        ({"method": {"type": "magic"}}, "method.type", "invalid_value"),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}},
            "method.dpo.hyperparameters.beta",
            "invalid_value",
        ),
        (
            {"method": {"type": "reinforcement", "reinforcement": {"grader": {"type": "python", "source": ""}}}},
            "method.reinforcement.grader",
            "unsupported_grader",
        ),
        (
            {
                "method": {
                    "type": "reinforcement",
                    "reinforcement": {
                        "grader": {
                            "type": "string_check",
                            "name": "g",
                            "input": "{{sample.choices[0].message.content}}",
                            "reference": "x",
                            "operation": "eq",
                        }
                    },
                }
            },
            "method.reinforcement.grader",
            "unsupported_method",
        ),
        (
            {
                "method": {
                    "type": "reinforcement",
                    "reinforcement": {"grader": {"type": "multi", "graders": ["g"], "calculate_output": "g"}},
                }
            },
            "method.reinforcement.grader",
            "unsupported_method",
        ),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement.grader", "unsupported_method"),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
            "integrations",
            "unsupported_integration",
        ),
        ({"unknown": 1}, "unknown", "unknown_parameter"),
    ],
)
def test_a_wrong_request_names_the_field(client: TestClient, fields: dict[str, Any], param: str, code: str) -> None:
    body = {"model": "tiny", "training_file": upload(client, [chat_row(1)])} | fields
    error = error_of(client.post(JOBS, json=body), 400)
    assert (error["param"], error["code"]) == (param, code)
    assert ok(client.get(JOBS))["data"] == []


def test_sent_twice_by_one_key_it_is_made_once(client: TestClient, home: Context) -> None:
    body = {"model": "tiny", "training_file": upload(client, [chat_row(1)])}
    once, again = (client.post(JOBS, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert ok(once) == ok(again)
    assert [job["id"] for job in ok(client.get(JOBS))["data"]] == [once.json()["id"]]
    deeds = [entry for entry in home.audit_log.newest(limit=10) if entry.action == "job.created"]
    assert [entry.subject for entry in deeds] == [once.json()["id"]]


def test_old_hyperparameters_defaults_and_seeds(client: TestClient) -> None:
    body = {"model": "tiny", "training_file": upload(client, [chat_row(1)]), "hyperparameters": {"n_epochs": 4}}
    one, other = ok(client.post(JOBS, json=body)), ok(client.post(JOBS, json=body))
    assert one["hyperparameters"] == {"n_epochs": 4, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert one["method"] == {"type": "supervised", "supervised": {"hyperparameters": one["hyperparameters"]}}
    assert one["seed"] != other["seed"]
    assert one["user_provided_suffix"] is None
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    dpo = ok(client.post(JOBS, json=body | {"method": method, "seed": 0}))
    assert dpo["method"]["dpo"]["hyperparameters"]["beta"] == 0.2
    assert (dpo["method"]["dpo"]["hyperparameters"]["n_epochs"], dpo["seed"]) == (4, 0)


WANDB = {"type": "wandb", "wandb": {"project": "mails", "name": "second", "tags": ["october"]}}


def test_wandb_is_taken_where_the_server_has_it(
    client: TestClient, home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "tiny", "training_file": upload(client, [chat_row(1)]), "integrations": [WANDB]}
    monkeypatch.setattr(TrackerRules, "missing", lambda self: [])
    error = error_of(client.post(JOBS, json=body), 400)
    assert (error["param"], error["code"]) == ("integrations", "unsupported_integration")
    assert "no key of Weights & Biases" in error["message"]
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    job = ok(client.post(JOBS, json=body))
    assert job["integrations"] == [WANDB]
    assert ok(client.get(f"{JOBS}/{job['id']}"))["integrations"] == [WANDB]
    assert "k" * 40 not in home.jobs.get(job["id"]).model_dump_json()
    error = error_of(client.post(JOBS, json=body | {"integrations": [WANDB, WANDB]}), 400)
    assert "2 of them" in error["message"]
    for wrong in ({"project": ""}, {"tags": ["t" * 300]}, {"tags": ["t"] * 51}, {"name": "n" * 300}):
        one = WANDB | {"wandb": WANDB["wandb"] | wrong}  # type: ignore[operator]
        assert next(iter(wrong)) in error_of(client.post(JOBS, json=body | {"integrations": [one]}), 400)["param"]
    monkeypatch.setattr(TrackerRules, "missing", lambda self: list(self.modules))
    assert "not installed" in error_of(client.post(JOBS, json=body), 400)["message"]


def test_the_recipe_of_a_job_has_the_client_s_project_beside_the_server_s_trackers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = FineTuningRequest.model_validate({"model": "tiny", "training_file": "f", "integrations": [WANDB]})
    base: Any = SimpleNamespace(name="tiny")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    monkeypatch.setenv("WANDB_PROJECT", "of the server")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "/curves")
    # Beside others alone: one whose package the server lacks is left out, as where a recipe names none.
    monkeypatch.setattr(TrackerRules, "missing", lambda self: [self.title] if self.title == "TensorBoard" else [])
    found = recipe_of(request, base, Path("train.jsonl")).tracking
    assert [(one.name, one.project, one.run_name) for one in found or ()] == [
        ("mlflow", None, None), ("wandb", "mails", "second")
    ]  # fmt: skip
    silent = request.model_copy(update={"integrations": None})
    assert recipe_of(silent, base, Path("train.jsonl")).tracking is None
