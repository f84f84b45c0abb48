"""/api/v1/webhooks as clients see it."""

from __future__ import annotations

URL = "https://hooks.example/luthier"


def test_made_listed_tested_removed(visitor) -> None:  # type: ignore[no-untyped-def]
    asked = visitor("train", "read")
    made = asked.post("/api/v1/webhooks", json={"url": URL, "events": ["fine_tuning.job.failed"]})
    assert made.status_code == 201
    made = made.json()
    assert made["secret"].startswith("whsec_")
    shown = asked.get("/api/v1/webhooks").json()["data"]
    assert shown == [{name: value for name, value in made.items() if name != "secret"}]
    assert shown[0]["events"] == ["fine_tuning.job.failed"]
    place = f"/api/v1/webhooks/{made['id']}"
    assert asked.get(place).json() == shown[0]
    sent = asked.post(f"{place}/test")
    assert (sent.status_code, sent.json()["status"], sent.json()["num_attempts"]) == (202, "pending", 0)
    assert [one["id"] for one in asked.get(f"{place}/deliveries").json()["data"]] == [sent.json()["id"]]
    assert asked.delete(place).json() == {"id": made["id"], "object": "webhook", "deleted": True}
    assert asked.get(place).status_code == 404
    assert asked.get("/api/v1/webhooks").json() == {"object": "list", "data": []}


def test_another_projects_is_not_there(visitor, home) -> None:  # type: ignore[no-untyped-def]
    home.access.add_project("proj-b", "b")
    made = visitor("train").post("/api/v1/webhooks", json={"url": URL}).json()
    other = visitor("admin", project="b")
    for method, place in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/test")):
        assert other.request(method, f"/api/v1/webhooks/{made['id']}{place}").status_code == 404
    assert other.get("/api/v1/webhooks").json()["data"] == []


def test_what_is_wrong_is_told(visitor) -> None:  # type: ignore[no-untyped-def]
    asked = visitor("admin")
    for body in (
        {},
        {"url": URL, "events": []},
        {"url": URL, "events": ["x"]},
        {"url": URL, "more": 1},
        {"url": "ftp://x"},
    ):
        answer = asked.post("/api/v1/webhooks", json=body)
        assert answer.status_code == 400, body
        assert answer.json()["error"]["message"]
    assert visitor("read").post("/api/v1/webhooks", json={"url": URL}).status_code == 403
    assert visitor().get("/api/v1/webhooks").status_code == 401
    assert asked.get("/api/v1/webhooks/%00").status_code == 400
