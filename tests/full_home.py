"""A home with one of everything, with local paths in every document that can hold one: for tests of routes.

Nothing was trained for it. Its base model lies in a folder of the user's, its rows in another: both outside the home.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.access import Caller
from luthier.core.evaluation import Evaluation
from luthier.core.events import CheckpointSaved, RunEnded, SnapshotSaved, WarningRaised
from luthier.platform.jobs.records import Job
from luthier.testing.records import add_run, make_evaluation, make_plan, make_record, make_result
from tests import assessed, homes
from tests.assessed import make_panel

if TYPE_CHECKING:
    from luthier.platform.home.context import Context

ME = Caller()
ROWS = "".join(f'{{"prompt": "question {n}", "completion": "answer {n}"}}\n' for n in range(24))
QUOTED = "/imagine cats/dogs and what the row says"
"""Text of rows and answers that begins as a path does."""


@dataclass(frozen=True, slots=True)
class FullHome:
    """Ids of what is there, by the name of the parameter of a path; `of_route` says more of single routes."""

    ids: dict[str, str]
    of_route: dict[str, dict[str, str]]

    def address(self, path: str) -> str:
        """The path of a route with its parameters filled in.

        Raises:
            KeyError: A parameter is not known.
        """
        known = self.ids
        for start, more in self.of_route.items():
            if path.startswith(start):
                # Parameters of one name mean other things below some addresses.
                known = known | more
        for name, value in known.items():
            path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
        if "{" in path:
            raise KeyError(path)
        return path


def fill_home(home: Context, folder: Path, base: Path) -> FullHome:
    """Put one of everything into a home.

    Args:
        home: An empty one.
        folder: Where the user's rows lie, outside of it.
        base: The folder of a transformers model.
    """
    from luthier.features.deployments import service as deployments
    from luthier.features.models.service import pull_model
    from luthier.platform.auth.service import create_project
    from luthier.platform.files import service as files

    pull_model(home, str(base))
    rows = folder / "rows.jsonl"
    rows.write_text(ROWS, encoding="utf-8")
    made = homes.fill(home)
    job_id, run_id = _failed_run(home, rows, base)
    evaluation = _evaluation(home, run_id, rows, base)
    homes.add_model_comparison(home)
    retrain = homes.add_retrain(home, {"status": "failed", "reason": f"no room in {home.home}/runs"})
    homes.add_auto(home, {"status": "failed", "reason": f"{home.home}/rows/orders.jsonl has no rows"})
    homes.add_study(home, {"notes": (f"{home.home}/rows/train.jsonl was read",)})
    suite = assessed.make_suite_result(run_id=made.runs[1], candidate=str(base))
    home.assessments.save("suite", suite.result_id, suite, project_id="default", subject=made.runs[1])
    safety = assessed.make_safety_result(run_id=made.runs[1], candidate=str(base))
    home.assessments.save("safety", safety.result_id, safety, project_id="default", subject=made.runs[1])
    panel = make_panel(home)
    file_id = files.add_file(home, "default", rows, filename="rows.jsonl", purpose="fine-tune").file_id
    base_name = base.name
    deployments.deploy(home, ME, "front-desk", base_name)
    ids = {
        "dataset_id": made.dataset_id,
        "run_id": run_id,
        "project_id": create_project(home, "a second one").project_id,
        "study_id": homes.STUDY_ID,
        "pipeline_id": retrain.pipeline_id,
        "panel_id": panel.panel.panel_id,
        "rater_id": panel.links[0].rater.rater_id,
        "evaluation_id": evaluation.evaluation_id,
        "export_id": made.export_id,
        "file_id": file_id,
        "job_id": job_id,
        "name": "front-desk",
        "model": base_name,
        "checkpoint": f"{made.tuned}:ckpt-step-5",
        "number": "1",
        "deed": "revoke",
        "file_format": "csv",
        "path": "README.md",
        "result_id": suite.result_id,
        "task": suite.tasks[0].name,
    }
    of_route = {
        "/datasets/jobs/": {"job_id": _failed_import(home, file_id)},
        "/models/": {"name": made.runs[1]},
        "/batches/": {"kind": "input"},
        "/v1/conversations/": {"item_id": "msg_0"},
        "/evaluations/safety/": {"result_id": safety.result_id, "task": safety.probes[0].name},
        "/pipelines/{pipeline_id}/report": {"pipeline_id": homes.SHOWDOWN_ID},
    }
    of_openai, of_evals = _of_openai(home, base_name)
    return FullHome(ids | _of_projects(home, made) | of_openai, of_route | {"/v1/evals/": of_evals})


def _of_openai(home: Context, model: str) -> tuple[dict[str, str], dict[str, str]]:
    """A stored completion, a batch, and an eval with a run of one graded item: ids, and those below `/v1/evals`."""
    from luthier.features.batches import service as batches
    from luthier.features.batches.records import BatchRequest
    from luthier.features.evals_api import service as evals
    from luthier.features.evals_api.records import EvalRequest, OutputItem, RunRequest, RunTotals
    from luthier.features.traffic.stored_completions import StoredCompletion
    from luthier.platform.files import service as files

    asked = {"model": model, "messages": [{"role": "user", "content": QUOTED}]}
    message = {"role": "assistant", "content": QUOTED}
    said = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model}
    said |= {"choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}], "usage": None}
    document = {"request": asked, "response": said}
    home.stored_completions.add(
        StoredCompletion(
            completion_id="chatcmpl-1", project_id="default", model=model, user_digest="", labels={}, document=document
        )
    )
    _store_response(home, model)
    _add_conversation(home)
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": asked}
    with files.incoming_file(home) as incoming:
        incoming.write(f"{json.dumps(line)}\n".encode())
        stored = files.keep_file(home, "default", incoming, filename="batch.jsonl", purpose="batch")
    ordered = BatchRequest(input_file_id=stored.file_id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = batches.start(home, ME, ordered)
    check = {
        "type": "string_check",
        "name": "right",
        "operation": "eq",
        "input": "{{item.a}}",
        "reference": "{{item.q}}",
    }
    schema = {"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}}
    config = {"type": "custom", "item_schema": schema}
    one = evals.create(
        home, ME, EvalRequest.model_validate({"data_source_config": config, "testing_criteria": [check]})
    )
    rows = {"type": "file_content", "content": [{"item": {"q": QUOTED, "a": QUOTED}}]}
    run = evals.start_run(
        home, ME, one.eval_id, RunRequest.model_validate({"data_source": {"type": "jsonl", "source": rows}})
    ).run
    item = OutputItem(
        item_id="outputitem_1", eval_run_id=run.eval_run_id, eval_id=one.eval_id, position=0, status="pass",
        item={"q": QUOTED}, sample={},
        results=({"name": "right", "type": "string_check", "passed": True, "score": 1.0},),
    )  # fmt: skip
    home.evals.append(run.eval_run_id, [item], RunTotals(num_items=1, passed=1))
    below = {"eval_id": one.eval_id, "run_id": run.eval_run_id, "item_id": item.item_id}
    ids = {
        "completion_id": "chatcmpl-1",
        "response_id": "resp_1",
        "conversation_id": "conv_1",
        "batch_id": batch.batch.batch_id,
        "eval_id": one.eval_id,
    }
    return ids | {"item_id": item.item_id} | _of_tinker(home), below


def _store_response(home: Context, model: str) -> None:
    """A stored response with one item of input and one of output."""
    from luthier.features.traffic.stored_responses import StoredResponse

    text = {"type": "output_text", "text": QUOTED, "annotations": []}
    output = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    response = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "status": "completed"}
    response |= {"output": [output], "tools": [], "usage": {"input_tokens": 1}, "metadata": {}}
    asked = {"id": "msg_0", "type": "message", "role": "user", "content": [{"type": "input_text", "text": QUOTED}]}
    document = {"input": [asked], "parameters": {"model": model}, "response": response}
    home.stored_responses.add(
        StoredResponse(
            response_id="resp_1", project_id="default", model=model, user_digest="", earlier_ids=(), labels={},
            document=document,
        )
    )  # fmt: skip


def _add_conversation(home: Context) -> None:
    """A conversation with one item."""
    from luthier.features.traffic.conversation_store import Conversation

    item = {"id": "msg_0", "type": "message", "role": "user", "content": [{"type": "input_text", "text": QUOTED}]}
    one = Conversation(conversation_id="conv_1", project_id="default", labels={"use": QUOTED})
    home.conversations.add(one, [item | {"status": "completed"}])


def _of_tinker(home: Context) -> dict[str, str]:
    """A training client of the Tinker API with a saved state, a session that is alive, and a sampling client in it."""
    from luthier.features.tinker_api.live import LiveSampler
    from luthier.features.tinker_api.records import AdapterOptions, TinkerCheckpoint, TinkerModel

    session = home.tinker_sessions.open(ME, {})
    sampler = LiveSampler(f"{session.session_id}:sample:0", session.session_id, {}, "tiny")
    home.tinker_sessions.add_sampler(session, sampler)
    model = TinkerModel(
        model_id="session-1:train:0",
        project_id="default",
        session_id="session-1",
        run_id="run-20261125-093000-dddddd",
        base_model="tiny",
        options=AdapterOptions(rank=4),
        plan=make_plan(),
    )
    home.tinker.add_model(model)
    home.tinker.add_checkpoint(
        TinkerCheckpoint(
            checkpoint_id="tck-20261125-093000-dddddd",
            model_id=model.model_id,
            project_id="default",
            kind="training",
            name="tinker-state-1",
            step=1,
            num_bytes=1,
            served_name="ft:tiny:default:one:1",
        )
    )
    named = {"tinker_session_id": session.session_id, "sampler_id": sampler.sampler_id}
    return named | {"training_run_id": model.model_id, "tinker_kind": "weights", "tinker_name": "tinker-state-1"}


def _failed_run(home: Context, rows: Path, base: Path) -> tuple[str, str]:
    """A run of rows and a base model outside of the home, all of whose words name paths, and its job."""
    run_id = "run-20261125-093000-eeeeee"
    add_run(home, "d")
    plan = make_plan()
    recipe = plan.recipe.model_copy(
        update={"base_model": str(base), "data": plan.recipe.data.model_copy(update={"train": str(rows)})}
    )
    profile = plan.data.train.model_copy(update={"file": str(rows)})
    plan = plan.model_copy(
        update={
            "recipe": recipe,
            "base_model": plan.base_model.model_copy(update={"name": str(base), "path": str(base)}),
            "data": plan.data.model_copy(update={"train": profile}),
        }
    )
    made = home.settings.run_folder(run_id)
    made.mkdir(parents=True)
    (made / "report.html").write_text(f"<p>{home.home}/runs, {rows} and {base}</p>", encoding="utf-8")
    words = f"{rows} is on a full disk, as {home.home} and {base} are"
    result = make_result().model_copy(update={"adapter_path": str(made / "adapter"), "warnings": (words,)})
    record = make_record(run_id, status="failed", result=result)
    changes = {"base_model": str(base), "report_path": str(made / "report.html"), "stopped_because": words}
    home.runs.create(record.model_copy(update=changes), plan)
    for event in (
        WarningRaised(step=1, code="full", message=words),
        CheckpointSaved(step=1, path=str(made / "checkpoints" / "1"), num_bytes=1),
        SnapshotSaved(step=1, path=str(made / "snapshots" / "1")),
        RunEnded(step=1, status="failed", reason=words),
    ):
        home.runs.append(run_id, event)
    document = {"recipe": recipe.model_dump(mode="json")}
    job = home.jobs.submit(Job(job_id="job-20261125-093000-eeeeee", kind="train", document=document, run_id=run_id))
    taken = home.jobs.claim("w")
    assert taken is not None
    error = {"type": "DataError", "came": words, "expected": f"room in {home.home}", "do": f"empty {base}"}
    home.jobs.finish(taken.job_id, taken.attempt, "failed", error=error)
    home.job_events.append(job.job_id, "full", words)
    return job.job_id, run_id


def _failed_import(home: Context, file_id: str) -> str:
    """A job that has read added files, whose error names a path."""
    order = {"files": [{"file_id": file_id, "name": "papers/a.pdf"}], "name": "papers"}
    job = Job(job_id="job-20261125-093100-eeeeee", kind="import", document={"import": order}, run_id="")
    home.jobs.submit(job)
    taken = home.jobs.claim("w")
    assert taken is not None
    words = f"{home.home}/jobs/a.pdf cannot be read"
    found = {
        "files": [{"name": "papers/a.pdf", "status": "failed", "reason": QUOTED}],
        "num_files": 1,
        "num_left_out": 1,
    }
    error = {"type": "DataError", "came": words, "expected": "a document with text", "do": "add another one"}
    home.jobs.finish(taken.job_id, taken.attempt, "failed", error, found | {"datasets": [], "unit": "words"})
    return job.job_id


def _evaluation(home: Context, run_id: str, rows: Path, base: Path) -> Evaluation:
    """Systems that are called as their folders are, judged on a file by its path, with answers that look like paths."""
    plain = make_evaluation("eval-20261125-093000-eeeeee", run_id=run_id)
    one, other = plain.systems
    samples = tuple(
        sample.model_copy(update={"prompt": QUOTED, "output": QUOTED, "reference": QUOTED}) for sample in one.samples
    )
    named = f"{base} + 4 examples"
    systems = (
        one.model_copy(update={"name": named, "model": str(base), "samples": samples}),
        other.model_copy(update={"name": run_id, "model": str(base), "adapter": str(home.home / "adapter")}),
    )
    assert plain.verdict is not None
    verdict = plain.verdict.model_copy(update={"headline": f"{run_id} is not better than {named}."})
    comparison = plain.comparisons[0].model_copy(update={"baseline": named, "candidate": run_id})
    changes = {"systems": systems, "held_out_file": str(rows), "verdict": verdict, "comparisons": (comparison,)}
    evaluation = plain.model_copy(update=changes)
    home.evaluations.save(evaluation)
    home.runs.update(run_id, evaluation_id=evaluation.evaluation_id)
    return evaluation


def _of_projects(home: Context, made: homes.Made) -> dict[str, str]:
    """Keys, members, webhooks, exchanges and uploads: what needs no file of rows."""
    from luthier.core.records.traffic import Exchange
    from luthier.features.feedback import review as review_queue
    from luthier.features.inbox.sources import item_id_of
    from luthier.features.serving import checkpoint_permissions
    from luthier.features.traffic import service as traffic
    from luthier.platform.auth import members
    from luthier.platform.auth import service as access
    from luthier.platform.auth.invitations import invite
    from luthier.platform.auth.passkeys_store import Passkey
    from luthier.platform.files.uploads import create_upload
    from luthier.platform.notifications.store import EVENT_TYPES, Webhook

    key, _ = access.create_key(home, "mine", scopes=("read",))
    member = members.add_member(home, ME, "ada", "correct horse battery staple", "viewer")
    passkey = Passkey(
        passkey_id="passkey-20261125-093000-aaaaaa",
        member_id=member.member_id,
        name="Laptop",
        credential_id="AAAA",
        rp_id="localhost",
        public_key="AAAA",
        sign_count=0,
    )
    address = Webhook(
        webhook_id="webhook-20261125-093000-aaaaaa",
        project_id="default",
        url="https://example.com/hook",
        event_types=EVENT_TYPES,
    )
    webhook = home.webhooks.add(address, "a secret of forty-one characters, made up")
    upload = create_upload(
        home, "default", filename="a.jsonl", purpose="fine-tune", mime_type="application/jsonl", num_bytes=10
    )
    turns: tuple[dict[str, Any], ...] = ({"role": "user", "content": QUOTED},)
    exchange = Exchange(
        exchange_id="chatcmpl-1", project_id="default", at=1e9, model="front-desk", messages=turns, answer=QUOTED
    )
    traffic.record(home, exchange)
    review_queue.queue_sample(home, ME, "front-desk", 1, seed=0)
    home.access.add_project("proj-friend", "friend")
    checkpoint = f"{made.tuned}:ckpt-step-5"
    permission = checkpoint_permissions.permit(home, ME, checkpoint, ["proj-friend"])[0]
    return {
        "key_id": key.key_id,
        "member_id": member.member_id,
        "passkey_id": home.passkeys.add(passkey).passkey_id,
        "webhook_id": webhook.webhook_id,
        "upload_id": upload.upload_id,
        "exchange_id": exchange.exchange_id,
        "permission_id": permission.permission_id,
        "invitation_id": invite(home, ME, "viewer").invitation.invitation_id,
        "item": item_id_of("review", "front-desk"),
    }
