"""/settings/gate: rules that hold, that are set and removed, and wrong ones that are named."""

from __future__ import annotations

import html
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from luthier.features.release_gates.service import default_gate, read_gate
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
RULES = "rules:\r\n  - {metric: rouge_l, at_least: 0.3}\r\n  - {metric: sql.accuracy, against: base, at_most: 0.1}\r\n"


def test_rules_are_set_shown_and_removed(home: Context, browser: Browser) -> None:
    one = browser("admin")
    page = one.get("/settings/gate").text
    assert "every model that was evaluated may be deployed" in page
    assert one.post("/settings/gate", data={"text": RULES}).status_code == 303
    path = default_gate(home, "default")
    assert path == home.home / "gates" / "default.yaml"
    assert [rule.metric for rule in read_gate(path).rules] == ["rouge_l", "sql.accuracy"]
    page = one.get("/settings/gate").text
    for words in ("at least 0.3", "difference to base", "high end of the 95% interval", "luthier gates set"):
        assert words in page
    assert one.post("/settings/gate/remove").status_code == 303
    assert default_gate(home, "default") is None
    assert one.post("/settings/gate/remove").status_code == 404
    assert [entry.action for entry in newest_entries(home, limit=2)] == ["gate.removed", "gate.changed"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules:\n  - {metric: rouge_l}", "exactly one of at_least and at_most"),
        ("rules:\n  - {metric: rouge_l, at_least: 1, colour: red}", "colour"),
        ("- 1", "a mapping with the key rules"),
        ("a: [", "the gate"),
        ("a: &x 1\nb: *x", "write its rules in full"),
    ],
)
def test_wrong_rules_change_nothing_and_stay_in_the_form(
    home: Context, browser: Browser, text: str, words: str
) -> None:
    answer = browser("admin").post("/settings/gate", data={"text": text})
    assert (answer.status_code, words in answer.text) == (422, True)
    assert html.escape(text.splitlines()[0]) in answer.text
    assert default_gate(home, "default") is None


def test_a_file_that_was_written_by_hand_shows_its_fault_without_its_place(home: Context, browser: Browser) -> None:
    (home.home / "gate.yaml").write_text("rules: 3", encoding="utf-8")
    answer = browser("read").get("/settings/gate")
    assert answer.status_code == 200
    assert "wrong place" in answer.text
    assert str(home.home) not in answer.text


def test_only_admins_change_the_rules_and_only_those_of_their_project(home: Context, browser: Browser) -> None:
    other = create_project(home, "support")
    trainer = browser("train", "read")
    assert "<textarea" not in trainer.get("/settings/gate").text
    assert trainer.post("/settings/gate", data={"text": RULES}).status_code == 403
    assert browser("admin", project="support").post("/settings/gate", data={"text": RULES}).status_code == 303
    assert default_gate(home, "default") is None
    assert default_gate(home, other.project_id) is not None
