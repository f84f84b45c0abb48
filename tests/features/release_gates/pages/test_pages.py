"""/settings/gate: rules that hold, that are set and removed, and wrong ones that are named."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.assessed import make_suite_result

from luthier.features.release_gates.rule_rows import NUM_EMPTY
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


def fields(*rules: dict[str, str], **others: str) -> dict[str, Any]:
    """What a browser sends: the fields of each row, in their order, and others."""
    empty = {
        "metric": "",
        "system": "candidate",
        "comparison": "at_least",
        "threshold": "",
        "against": "",
        "bound": "",
        "missing": "refused",
    }
    rows = [empty | rule for rule in rules]
    return {name: [row[name] for row in rows] for name in empty} | others


def test_rules_are_set_by_rows_without_those_that_are_empty(home: Context, browser: Browser) -> None:
    one = browser("admin")
    first = {"metric": "rouge_l", "threshold": "0.3"}
    second = {
        "metric": "sql.accuracy",
        "against": "base",
        "comparison": "at_most",
        "threshold": "-0.05",
        "bound": "value",
        "missing": "passes",
    }
    sent = fields({}, first, {}, second, suite="workshop", fingerprints="3f0c9a7be21d, 4f0c9a7be21d")
    answer = one.post("/settings/gate/rules", data=sent)
    assert answer.status_code == 303, answer.text
    path = default_gate(home, "default")
    assert path is not None
    gate = read_gate(path)
    assert (gate.suite, gate.fingerprints) == ("workshop", ("3f0c9a7be21d", "4f0c9a7be21d"))
    assert [one.model_dump(exclude_defaults=True) for one in gate.rules] == [
        {"metric": "rouge_l", "at_least": 0.3},
        {"metric": "sql.accuracy", "against": "base", "at_most": -0.05, "bound": "value", "required": False},
    ]
    page = one.get("/settings/gate").text
    assert page.count('<fieldset class="gate-rule">') == 2 + NUM_EMPTY
    # The metric of a suite that has not run is offered, too: sending the form again changes nothing.
    assert '<optgroup label="Other rules"><option value="sql.accuracy" selected>' in page
    assert '<option value="rouge_l" selected>' in page
    assert 'name="threshold" inputmode="text" maxlength="40" autocomplete="off" value="-0.05"' in page
    assert "metric: sql.accuracy" in page, "the same rules as text"


def test_a_row_is_removed_and_rows_are_added_without_a_change_of_the_gate(home: Context, browser: Browser) -> None:
    one = browser("admin")
    both = {"metric": "rouge_l", "threshold": "0.3"}, {"metric": "bleu", "threshold": "12"}

    def after(sent: dict[str, Any]) -> str:
        return one.get(one.post("/settings/gate/rules", data=sent).headers["location"]).text

    removed = after(fields({}, *both, remove="2", suite="kept"))
    assert removed.count('<fieldset class="gate-rule">') == 1 + NUM_EMPTY
    assert '<option value="bleu" selected>' in removed
    assert '<option value="rouge_l" selected>' not in removed
    assert 'value="kept"' in removed
    added = after(fields(*both, *[both[0]] * 3, add="1"))
    assert added.count('<fieldset class="gate-rule">') == 5 + NUM_EMPTY
    assert default_gate(home, "default") is None


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"metric": "rouge_l", "threshold": "a lot"}, "rule 1 with the limit &#39;a lot&#39;"),
        ({"metric": "rouge_l"}, "rule 1 with the limit"),
        ({"metric": "rouge_l", "threshold": "inf"}, "rule 1 with the limit"),
        ({"threshold": "0.5"}, "rule 1 without a metric"),
        ({"metric": "rouge l", "threshold": "0.5"}, "rules.0.metric"),
        ({"metric": "rouge_l", "threshold": "0.5", "against": "candidate"}, "another system than the rule&#39;s own"),
        ({"metric": "rouge_l", "threshold": "0.5", "bound": "middle"}, "bound &#39;middle&#39;"),
    ],
)
def test_wrong_rows_change_nothing_and_stay_in_the_form(
    home: Context, browser: Browser, rule: dict[str, str], words: str
) -> None:
    answer = browser("admin").post("/settings/gate/rules", data=fields({}, rule, suite="workshop"))
    assert (answer.status_code, words in answer.text) == (422, True), answer.text
    assert default_gate(home, "default") is None
    if "bound" not in rule:  # what no browser sends is not shown again
        assert f'value="{rule.get("threshold", "")}"' in answer.text
    assert 'value="workshop"' in answer.text


def test_a_form_that_lacks_fields_is_refused(home: Context, browser: Browser) -> None:
    sent = fields({"metric": "rouge_l", "threshold": "0.5"})
    sent["bound"] = []
    answer = browser("admin").post("/settings/gate/rules", data=sent)
    assert (answer.status_code, "load the page again" in answer.text) == (422, True)
    assert default_gate(home, "default") is None


def test_no_rule_is_refused_as_in_a_file(home: Context, browser: Browser) -> None:
    answer = browser("admin").post("/settings/gate/rules", data=fields({}, {}))
    assert (answer.status_code, "wrong place" in answer.text) == (422, True)
    assert browser("train").post("/settings/gate/rules", data=fields({})).status_code == 403


def test_numbers_are_typed_and_shown_as_in_the_language_of_the_page(home: Context, browser: Browser) -> None:
    one, german = browser("admin"), {"accept-language": "de"}
    sent = fields({"metric": "rouge_l", "threshold": "0,125"})
    assert one.post("/settings/gate/rules", data=sent, headers=german).status_code == 303
    path = default_gate(home, "default")
    assert path is not None
    assert read_gate(path).rules[0].at_least == 0.125
    page = one.get("/settings/gate", headers=german).text
    assert 'value="0,125"' in page
    assert "Auswertung auf Testzeilen" in page


def test_metrics_of_results_of_the_project_are_offered(home: Context, browser: Browser) -> None:
    home.assessments.save("suite", "suite-1", make_suite_result(), project_id="default", subject="base")
    page = browser("admin").get("/settings/gate").text
    [offered] = re.findall(r'<optgroup label="Suites">(.*?)</optgroup>', page.partition("</fieldset>")[0])
    assert '<option value="sql.' in offered


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
