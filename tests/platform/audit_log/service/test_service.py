"""The log told in a way that shows what was done to it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from luthier.core.access import ApiKey, Caller
from luthier.core.errors import RequestError
from luthier.core.records.traffic import TrafficPolicy
from luthier.features.datasets import service as datasets
from luthier.features.deployments import service as deployments
from luthier.features.monitoring import alerts
from luthier.features.runs import state as run_state
from luthier.features.traffic.policy import set_traffic_policy
from luthier.platform.audit_log import service as audit_log
from luthier.platform.audit_log.service import GENESIS_HASH, AuditEntry
from luthier.platform.auth import members, passkeys
from luthier.platform.auth import service as access
from luthier.platform.auth.members_store import Member
from luthier.platform.auth.passkeys_store import Passkey
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import add_run

KEY = Caller(project_id="default", key_id="key-1", name="ci", scopes=("train",))


def recorded(context: Context, caller: Caller, action: str, subject: str, document: dict[str, Any]) -> AuditEntry:
    with context.database.transaction():
        return audit_log.record(context, caller, action, subject, document)


@pytest.fixture
def heads(context: Context) -> list[str]:
    """Six entries; the heads after each."""
    made = [recorded(context, KEY, "file.deleted", f"file-{n}", {"n": n}) for n in range(6)]
    return [f"{entry.number}:{entry.hash}" for entry in made]


@pytest.fixture
def tamper(context: Context) -> Callable[..., None]:
    """What somebody can do who owns the database: triggers are no hindrance to them."""

    def change(statement: str, *values: Any) -> None:
        context.close()
        with closing(sqlite3.connect(context.settings.database_path)) as plain, plain:
            for verb in ("update", "delete"):
                plain.execute(f"DROP TRIGGER IF EXISTS audit_log_no_{verb}")
            plain.execute(statement, values)

    return change


def test_an_untouched_log_is_whole(context: Context, heads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "_BATCH", 4)
    verdict = audit_log.verify_log(context)
    assert (verdict.is_whole, verdict.num_entries, verdict.problem) == (True, 6, None)
    assert f"{verdict.head_number}:{verdict.head_hash}" == heads[-1]
    for head in (heads[0], heads[-1], f"0:{GENESIS_HASH}"):
        assert audit_log.verify_log(context, expect=head).is_whole


def test_an_empty_log_is_whole(context: Context) -> None:
    verdict = audit_log.verify_log(context)
    assert (verdict.is_whole, verdict.head_number, verdict.head_hash) == (True, 0, GENESIS_HASH)


@pytest.mark.parametrize("column", ["actor", "action", "subject", "project_id", "document", "created_at", "hash"])
def test_a_changed_entry_is_named(context: Context, heads: list[str], tamper: Callable[..., None], column: str) -> None:
    tamper(f"UPDATE audit_log SET {column} = ? WHERE number = 3", 1.5 if column == "created_at" else "x")
    verdict = audit_log.verify_log(context)
    assert (verdict.is_whole, verdict.num_entries, verdict.broken_number) == (False, 2, 3)
    assert "changed" in (verdict.problem or "")


@pytest.mark.parametrize("number", [1, 4])
def test_a_missing_entry_is_named(context: Context, heads: list[str], tamper: Callable[..., None], number: int) -> None:
    tamper("DELETE FROM audit_log WHERE number = ?", number)
    verdict = audit_log.verify_log(context)
    assert (verdict.is_whole, verdict.broken_number) == (False, number)
    assert f"missing: {number - 1} is followed by {number + 1}" in (verdict.problem or "")


def test_an_entry_that_was_sealed_anew_breaks_the_next(
    context: Context, heads: list[str], tamper: Callable[..., None]
) -> None:
    old = context.audit_log.after(2, limit=1)[0]
    forged = AuditEntry(**(old.model_dump() | {"subject": "harmless"}))
    tamper("UPDATE audit_log SET subject = ?, hash = ? WHERE number = 3", "harmless", forged.hash_of_it())
    verdict = audit_log.verify_log(context)
    assert (verdict.broken_number, "reordered" in (verdict.problem or "")) == (4, True)


def test_a_cut_off_end_shows_by_the_head_kept_outside(
    context: Context, heads: list[str], tamper: Callable[..., None]
) -> None:
    tamper("DELETE FROM audit_log WHERE number > 4")
    assert audit_log.verify_log(context).is_whole, "a chain alone cannot tell"
    verdict = audit_log.verify_log(context, expect=heads[-1])
    assert (verdict.is_whole, verdict.broken_number) == (False, 5)
    assert "cut off" in (verdict.problem or "")
    context.audit_log.append(audit_log.make_audit_event(KEY, "a", "b"))
    context.audit_log.append(audit_log.make_audit_event(KEY, "a", "b"))
    again = audit_log.verify_log(context, expect=heads[-1])
    assert (again.broken_number, "written again" in (again.problem or "")) == (6, True)


@pytest.mark.parametrize("expect", ["", "3", "3:abc", "x:" + "0" * 64, "-1:" + "0" * 64])
def test_a_head_that_is_none_is_refused(context: Context, expect: str) -> None:
    with pytest.raises(RequestError, match="--expect"):
        audit_log.verify_log(context, expect=expect)


def test_what_is_written_down(context: Context) -> None:
    entry = recorded(
        context,
        KEY,
        "webhook.made",
        "wh-1\0" + "x" * 300,
        {"secret": "whsec_abcDEF123=", "nested": [{"key": "sk-luthier-abc"}], "half": "\ud800", "n": 1, "none": None},
    )
    assert (entry.actor, entry.project_id, len(entry.subject)) == ("key-1 ci", "default", 255)
    assert json.loads(entry.document) == {
        "secret": "whsec_***",
        "nested": [{"key": "sk-luthier-***"}],
        "half": "?",
        "n": 1,
        "none": None,
    }
    large = recorded(context, Caller(), "a", "b", {"text": "x" * 100_000})
    assert large.actor == "local"
    assert set(json.loads(large.document)) == {"num_bytes", "sha256"}
    assert audit_log.verify_log(context).is_whole
    assert audit_log.newest_entries(context, limit=1) == [large]


RUN, OTHER_RUN, QUEUED_RUN = (f"run-20261125-093000-{letter * 6}" for letter in "abc")


def fill(context: Context) -> None:
    """One of each of the things that are changed."""
    context.access.add_key(ApiKey(key_id="key-9", project_id="default", name="k", scopes=("read",)), "0" * 64)
    context.members.add(Member(member_id="member-1", project_id="default", name="Ada", role="viewer"), "hash")
    passkey = {"passkey_id": "passkey-1", "name": "Laptop", "credential_id": "c", "rp_id": "localhost"}
    context.passkeys.add(Passkey(member_id="member-1", public_key="k", sign_count=0, **passkey))
    file = datasets.keep_rows(context, Caller(), [b'{"text": "a"}\n'], "rows.jsonl")
    datasets.create_dataset(context, Caller(), "Rows", file)
    add_run(context, "a")
    add_run(context, "b")
    deployments.deploy(context, Caller(), "chat", RUN)
    context.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id=QUEUED_RUN, project_id="default"))


def ada(context: Context) -> Member:
    return context.members.get("default", "member-1")


def rows(context: Context) -> str:
    """The id of the dataset."""
    return datasets.list_datasets(context, Caller())[0][0].dataset_id


def everything_in(context: Context) -> list[str]:
    """All rows of all tables, as SQL."""
    context.database.close()
    with closing(sqlite3.connect(context.settings.database_path)) as plain:
        return list(plain.iterdump())


CHANGES: dict[str, Callable[[Context], object]] = {
    "key.created": lambda context: access.create_key(context, "ci", scopes=("read",)),
    "key.revoked": lambda context: access.revoke_key(context, context.access.keys()[0].key_id),
    "project.created": lambda context: access.create_project(context, "mine"),
    "project.file_quota_set": lambda context: access.set_file_quota(context, Caller(), "default", 1 << 30),
    "member.created": lambda context: members.add_member(context, Caller(), "Bo", "a long password", "viewer"),
    "member.role_changed": lambda context: members.change_role(context, Caller(), ada(context).member_id, "admin"),
    "member.removed": lambda context: members.remove_member(context, Caller(), ada(context).member_id),
    "session.begun": lambda context: members.sign_in_as(context, ada(context)),
    "passkey.removed": lambda context: passkeys.remove_passkey(context, members.caller_for(ada(context)), "passkey-1"),
    "dataset.removed": lambda context: datasets.remove_dataset(context, Caller(), rows(context)),
    "deployment.deployed": lambda context: deployments.deploy(context, Caller(), "support", OTHER_RUN),
    "deployment.deleted": lambda context: deployments.remove(context, Caller(), "chat"),
    "job.cancel": lambda context: run_state.cancel(context, Caller(), QUEUED_RUN),
    "traffic.policy_set": lambda context: set_traffic_policy(context, KEY, TrafficPolicy(keep_days=8)),
    "alerts.settings_changed": lambda context: alerts.change_settings(context, Caller(), {"every_minutes": 30}),
}
"""What is done by one call, by its entry in the log."""


@pytest.mark.parametrize("action", CHANGES)
def test_a_change_and_its_entry_take_effect_together(
    context: Context, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(context)
    before = everything_in(context)

    def fail(*_: Any) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(audit_log, "append_audit_event", fail)
        with pytest.raises(OSError, match="no room"):
            CHANGES[action](context)
    assert not context.database.is_in_transaction
    assert everything_in(context) == before
    CHANGES[action](context)
    assert audit_log.newest_entries(context, limit=1)[0].action == action


def test_an_entry_without_its_change_is_a_fault_of_the_caller(context: Context) -> None:
    with pytest.raises(AssertionError, match=r"file\.deleted is logged outside of the transaction"):
        audit_log.record(context, KEY, "file.deleted", "file-1")
    assert audit_log.newest_entries(context, limit=1) == []
