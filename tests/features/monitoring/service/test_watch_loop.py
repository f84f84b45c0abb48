"""The whole loop with a tiny model: serve, drift, feedback, review, retrain, gate, canary, back when it is worse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.features.workflows.service.test_retraining_service import item

from luthier.core.access import Caller
from luthier.core.records.traffic import Exchange, TrafficPolicy
from luthier.features.deployments import canary_release as canary_watch
from luthier.features.deployments import service as deployments
from luthier.features.feedback import review as review_queue
from luthier.features.lineage import rows as row_lineage
from luthier.features.monitoring import alerts
from luthier.features.monitoring import loop as monitor_loop
from luthier.features.monitoring import service as monitoring
from luthier.features.traffic import policy as traffic_policy
from luthier.features.traffic import service as traffic
from luthier.features.workflows.retraining import workflow as retrains
from luthier.features.workflows.retraining.request import RetrainRequest
from luthier.platform.audit_log import service as audit_log
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.server.api import create_app

ME = Caller()
NUM_CORRECTED = 14


@pytest.fixture
def client(deployed: str, context: Context) -> Iterator[TestClient]:
    """Of a server of the home in which a trained run answers as `support`; all words are kept."""
    traffic_policy.set_traffic_policy(context, ME, TrafficPolicy(keep="full"))
    key = create_key(context, "client", scopes=("admin",))[1]
    with TestClient(create_app(context), headers={"Authorization": f"Bearer {key}"}) as made:
        yield made


def ask(client: TestClient, question: str, user: str) -> Any:
    body = {"model": "support", "user": user, "max_tokens": 4, "messages": [{"role": "user", "content": question}]}
    return client.post("/v1/chat/completions", json=body)


def drifted(context: Context) -> None:
    """Three days of questions about rivers, and a day of others, as they would stand in the log."""
    now = context.access.now()
    for number in range(900):
        is_new = number >= 600
        words = "refund parcel invoice customs" if is_new else "river bridge water boat"
        traffic.record(
            context,
            Exchange(
                exchange_id=f"chatcmpl-past-{number}",
                project_id=ME.project_id,
                at=now - (1_000 - number) * 400,
                model="support",
                seconds=1.0,
                user_digest=f"past {number}",
                messages=({"role": "user", "content": f"{words} {number % 97}?"},),
                answer="Yes.",
            ),
        )


def test_from_an_answer_to_a_better_model_and_back_from_a_worse_one(
    client: TestClient, context: Context, deployed: str, tmp_path: Path
) -> None:
    # serve: real answers, each in the log
    questions = [item(number).messages[0]["content"] for number in range(NUM_CORRECTED)]
    answers = [ask(client, question, f"user {at}") for at, question in enumerate(questions)]
    assert [one.status_code for one in answers] == [200] * NUM_CORRECTED, answers[0].text
    assert context.traffic_recorder.log is not None
    assert context.traffic_recorder.log.flush()
    assert traffic.exchanges(context, ME.project_id, model="support").height == NUM_CORRECTED

    # drift: seen in the traffic, and told
    drifted(context)
    now = context.access.now()
    report = monitoring.watch(context, ME.project_id, "support", since=now - 120_000)
    changed = [one for one in report.signals if one.state == "changed"]
    assert any(one.group == "input" for one in changed), [(s.name, s.state, s.sentence) for s in report.signals]
    for _ in range(3):
        alerts.review(context, ME.project_id, report)
    assert alerts.list_alerts(context, ME.project_id, model="support")

    # feedback by the ids that the client got, reviewed by a person
    for at, answer in enumerate(answers):
        said = {"exchange_id": answer.json()["id"], "correction": item(at).learned, "author": "bob"}
        assert client.post("/api/v1/feedback", json=said).json()["waits_for_review"]
    with pytest.raises(Exception, match=f"{NUM_CORRECTED} answers of support wait"):
        retrains.begin(context, ME, RetrainRequest(model="support", review=True))
    for waiting in context.review_items.list(ME.project_id, status="waiting"):
        review_queue.decide(context, ME, waiting, "accept")

    # retrain, past a gate, to a canary
    gate = tmp_path / "gate.yaml"
    gate.write_text("rules:\n  - {metric: perplexity, at_most: 1000000}\n", encoding="utf-8")
    asked = RetrainRequest(model="support", review=True, min_rows=10, gate=gate, canary=0.5)
    begun = retrains.begin(context, ME, asked)
    done = retrains.go_on(context, ME, begun.pipeline_id)
    assert [stage.status for stage in done.stages] == ["done"] * 7, [(s.name, s.reason) for s in done.stages]
    assert done.came("gate")["said"] == "passed"
    canary = done.came("train")["run_id"]
    assert context.deployments.get(ME.project_id, "support").revision.canary == canary

    # lineage: which models saw a corrected answer
    seen = row_lineage.row_lineage(context, ME, answers[0].json()["id"])
    assert [(one.run_id, one.deployments) for one in seen.saw] == [(canary, (("support", True),))]

    # the canary is deliberately made worse: its weights are broken
    weights = sorted((context.settings.run_folder(canary)).rglob("adapter/*.safetensors"))
    assert weights
    for file in weights:
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:100])
    statuses: list[int] = []
    # Until enough users of each side have asked: who is on which follows from the id of the deployment.
    while (sum(one >= 500 for one in statuses) < 20 or statuses.count(200) < 5) and len(statuses) < 120:
        statuses.append(ask(client, f"once more {len(statuses)}", f"other {len(statuses)}").status_code)
    assert statuses.count(200) >= 5
    assert context.traffic_recorder.log.flush()
    (watched,) = canary_watch.check_canaries(context)
    assert watched.state == "worse", watched
    assert "have all failed" in watched.sentence
    revision = context.deployments.get(ME.project_id, "support").revision
    assert (revision.canary, [share.target for share in revision.shares]) == (None, [deployed])
    actions = [entry.action for entry in audit_log.newest_entries(context, limit=5)]
    assert "canary.rolled_back" in actions
    assert {ask(client, f"and again {at}", f"other {at}").status_code for at in range(10)} == {200}
    assert deployments.authors_of(context, ME, "support")[revision.number] == "canary watch"
    assert monitor_loop.monitored_models(context, ME.project_id) == ["support"]
