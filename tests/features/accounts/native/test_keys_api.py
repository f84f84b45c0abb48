"""/api/v1/keys and /api/v1/projects: for who administers a project, and for that project alone."""

from __future__ import annotations

from luthier.platform.audit_log.service import newest_entries
from luthier.platform.auth.service import create_project


def test_made_used_listed_revoked(visitor) -> None:  # type: ignore[no-untyped-def]
    admin = visitor("admin")
    answer = admin.post("/api/v1/keys", json={"name": "ci", "scopes": ["read"], "expires_in_seconds": 3600})
    assert answer.status_code == 201
    made = answer.json()
    assert made["expires_at"] - made["created_at"] == 3600
    with_it = visitor()
    with_it.headers["Authorization"] = f"Bearer {made['key']}"
    assert with_it.get("/api/v1/runs").status_code == 200
    assert with_it.get("/api/v1/keys").status_code == 403
    listed = admin.get("/api/v1/keys")
    assert [key["name"] for key in listed.json()["data"]] == ["ci", "k"]
    assert made["key"] not in listed.text
    revoked = admin.delete(f"/api/v1/keys/{made['id']}").json()
    assert revoked["revoked_at"] is not None
    assert admin.delete(f"/api/v1/keys/{made['id']}").json() == revoked


def test_of_another_project_nothing_is_seen(visitor, home) -> None:  # type: ignore[no-untyped-def]
    create_project(home, "b")
    made = visitor("admin").post("/api/v1/keys", json={"name": "ci", "scopes": ["read"]}).json()
    other = visitor("admin", project="b")
    assert [one["name"] for one in other.get("/api/v1/projects").json()["data"]] == ["b"]
    assert [key["name"] for key in other.get("/api/v1/keys").json()["data"]] == ["k"]
    assert other.delete(f"/api/v1/keys/{made['id']}").status_code == 404


def test_an_admin_of_default_sets_the_file_quota_of_a_project(visitor, home) -> None:  # type: ignore[no-untyped-def]
    made, other = create_project(home, "b"), create_project(home, "c")
    admin, own = visitor("admin"), visitor("admin", project="b")
    address = f"/api/v1/projects/{made.project_id}"
    answer = admin.patch(address, json={"max_file_bytes": 5 << 30})
    assert answer.status_code == 200
    assert (answer.json()["max_file_bytes"], answer.json()["file_bytes"]) == (5 << 30, 0)
    assert own.get("/api/v1/projects").json()["data"] == [answer.json()]
    (entry,) = [one for one in newest_entries(home, limit=9) if one.action == "project.file_quota_set"]
    assert entry.subject == made.project_id
    refused = [
        own.patch(address, json={"max_file_bytes": None}),
        own.patch(f"/api/v1/projects/{other.project_id}", json={"max_file_bytes": 1}),
        admin.patch("/api/v1/projects/proj-none", json={"max_file_bytes": 1}),
        admin.patch(address, json={"max_file_bytes": -1}),
        admin.patch(address, json={}),
        visitor("train").patch(address, json={"max_file_bytes": 1}),
    ]
    assert [one.status_code for one in refused] == [403, 404, 404, 400, 400, 403]
    assert home.access.project("b").max_file_bytes == 5 << 30
    assert admin.patch(address, json={"max_file_bytes": None}).json()["max_file_bytes"] is None


def test_what_cannot_be_is_refused(visitor) -> None:  # type: ignore[no-untyped-def]
    admin = visitor("admin")
    for body in ({}, {"name": "a", "scopes": []}, {"name": "a", "scopes": ["x"]}, {"name": "\n", "scopes": ["read"]}):
        assert admin.post("/api/v1/keys", json=body).status_code == 400, body
