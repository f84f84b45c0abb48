"""POST /api/v1/evaluations, and what gates do to /api/v1/deployments."""

from __future__ import annotations

from tests.assessed import make_suite_result

from luthier.testing.records import add_run

PLACE, DEPLOYMENTS = "/api/v1/evaluations", "/api/v1/deployments"
REASON = "The old one insults customers; refusals are mended next week."


def test_an_evaluation_is_queued_and_its_job_can_be_looked_at(visitor, home) -> None:  # type: ignore[no-untyped-def]
    run = add_run(home, "a")
    asked = visitor("train", "read")
    made = asked.post(PLACE, json={"kind": "safety", "candidate": run})
    assert made.status_code == 201, made.text
    job = asked.get(f"/api/v1/jobs/{made.json()['job_id']}").json()
    assert (job["kind"], job["status"]) == ("evaluation", "queued")
    assert made.json()["result_id"].startswith("safety-")
    assert visitor("read").post(PLACE, json={"kind": "safety", "candidate": run}).status_code == 403
    home.access.add_project("proj-b", "b")
    assert visitor("admin", project="b").post(PLACE, json={"kind": "safety", "candidate": run}).status_code == 404
    for body, status in (
        ({"candidate": run}, 400),
        ({"candidate": run, "file_id": "/etc/passwd"}, 400),
        ({"candidate": run, "kind": "other"}, 400),
        ({"candidate": "http://127.0.0.1/v1#m", "kind": "safety"}, 400),
        ({"candidate": run, "kind": "safety", "against": ["http://127.0.0.1/v1#m"]}, 404),
        ({"candidate": run, "kind": "safety", "more": 1}, 400),
    ):
        assert asked.post(PLACE, json=body).status_code == status, body


def test_the_same_request_twice_queues_one_evaluation(visitor, home) -> None:  # type: ignore[no-untyped-def]
    body, asked = {"kind": "safety", "candidate": add_run(home, "a")}, visitor("train", "read")
    first, second = (asked.post(PLACE, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert len(home.jobs.list()) == 1


def test_a_gate_refuses_and_is_overridden_with_a_reason(visitor, home) -> None:  # type: ignore[no-untyped-def]
    run = add_run(home, "a")
    suite = make_suite_result(run_id=run)
    home.assessments.save("suite", suite.result_id, suite, project_id="default", subject=run, run_id=run)
    (home.home / "gate.yaml").write_text("rules:\n  - {metric: sql.runs, at_least: 0.99}\n", encoding="utf-8")
    asked = visitor("train", "read")
    body = {"name": "support", "target": run}
    refused = asked.post(DEPLOYMENTS, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert "is not at least 0.99" in refused.json()["error"]["message"]
    assert asked.post(DEPLOYMENTS, json=body | {"override": "because"}).status_code == 400
    gate = asked.post(DEPLOYMENTS, json=body | {"override": REASON}).json()["revision"]["gate"]
    assert (gate["passed"], gate["override"], gate["num_rules"], len(gate["failed"])) == (False, REASON, 1, 1)
    assert asked.get(f"{DEPLOYMENTS}/support").json()["history"][0]["gate"] == gate
