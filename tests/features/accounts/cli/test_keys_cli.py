"""`luthier keys`, `luthier projects` and `luthier audit-log`."""

from __future__ import annotations

import pytest


def test_a_key_is_made_listed_and_revoked(luthier) -> None:  # type: ignore[no-untyped-def]
    assert "luthier keys create" in luthier("keys", "list").out
    made = luthier("keys", "create", "--name", "ci", "--scopes", "read, train", "--expires", "30d", "--json").document
    assert made["key"].startswith("sk-luthier-")
    assert made["scopes"] == ["read", "train"]
    assert made["expires_at"] - made["created_at"] == pytest.approx(30 * 86_400, abs=5)
    listed = luthier("keys", "list", "--json")
    assert [key["id"] for key in listed.document] == [made["id"]]
    assert made["key"] not in listed.out + luthier("keys", "list").out
    assert luthier("keys", "revoke", made["id"], "--json").document["revoked_at"] is not None
    assert "revoked" in luthier("keys", "list").out
    assert luthier("keys", "revoke", "key-none").code == 2


def test_a_person_is_shown_the_key_on_a_line_of_its_own(luthier) -> None:  # type: ignore[no-untyped-def]
    done = luthier("keys", "create", "--name", "me", "--scopes", "admin", "--requests-per-minute", 5)
    assert done.out.splitlines()[0].startswith("sk-luthier-")
    assert "not shown again" in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--expires", "soon"], "--expires 30d"),
        (["--scopes", "write"], "read, train, infer, admin"),
        (["--scopes", ","], "read, train, infer, admin"),
        (["--project", "none"], "luthier projects create"),
    ],
)
def test_a_wrong_key_is_explained(luthier, options: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    done = luthier("keys", "create", "--name", "ci", "--scopes", "read", *options)
    assert done.code == 2
    assert words in done.err


def test_the_file_quota_of_a_project(luthier) -> None:  # type: ignore[no-untyped-def]
    luthier("projects", "create", "mine")
    assert luthier("projects", "quota", "mine").out.strip() == "mine uses 0 B for files"
    assert luthier("projects", "quota", "mine", "20 GiB").out.strip() == "mine uses 0 B of 20 GiB for files"
    (_, mine) = luthier("projects", "list", "--json").document
    assert (mine["max_file_bytes"], mine["file_bytes"]) == (20 << 30, 0)
    assert "20 GiB" in luthier("projects", "list").out
    assert luthier("projects", "quota", "mine", "none", "--json").document["max_file_bytes"] is None
    for wrong in (("mine", "much"), ("nobody", "1 GiB")):
        assert luthier("projects", "quota", *wrong).code == 2


def test_projects(luthier) -> None:  # type: ignore[no-untyped-def]
    made = luthier("projects", "create", "mine", "--json").document
    assert (made["id"].startswith("proj-"), made["name"]) == (True, "mine")
    assert [project["name"] for project in luthier("projects", "list", "--json").document] == ["default", "mine"]
    assert "mine" in luthier("projects", "list").out
    assert luthier("projects", "create", "mine").code == 2
    key = luthier("keys", "create", "--name", "a", "--scopes", "read", "--project", "mine", "--json").document
    assert key["project_id"] == made["id"]


def test_the_audit_log_is_shown_and_verified(luthier) -> None:  # type: ignore[no-untyped-def]
    assert luthier("audit-log", "show", "--json").document == []
    assert "the audit log is empty" in luthier("audit-log", "show").out
    luthier("projects", "create", "mine")
    luthier("keys", "create", "--name", "a", "--scopes", "read")
    shown = luthier("audit-log", "show", "--limit", 1, "--json").document
    assert [(entry["action"], entry["document"]["name"]) for entry in shown] == [("key.created", "a")]
    assert "project.created" in luthier("audit-log", "show").out
    verdict = luthier("audit-log", "verify", "--json").document
    assert (verdict["is_whole"], verdict["num_entries"]) == (True, 2)
    assert luthier("audit-log", "verify", "--expect", verdict["head"]).code == 0
    broken = luthier("audit-log", "verify", "--expect", f"3:{'0' * 64}")
    assert broken.code == 1
    assert "cut off" in broken.out
    assert luthier("audit-log", "verify", "--expect", "what").code == 2
