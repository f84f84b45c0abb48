"""The check of personal data: a finding a kind, half-hidden values, and the word on names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.ml.data.audit import personal_data
from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.personal_data import check_personal_data
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.personal_data.recognizers import Span


def test_each_kind_is_a_finding_of_its_own(jsonl: Callable[..., Path]) -> None:
    path = jsonl(
        {"prompt": "Who?", "completion": "Write to ann.miller@firm.de or bob@firm.de, or to ann.miller@firm.de."},
        {"prompt": "Where?", "completion": "12 Baker Street, call 030 901820 55"},
        {"prompt": "What?", "completion": "Nothing."},
        {"prompt": "Mail?", "completion": "zoe@firm.de"},
    )
    email, phone, street = check_personal_data(AuditRequest(build_table(path)))
    assert [f.details["kind"] for f in (email, phone, street)] == ["email", "phone", "street"]
    assert (email.check, email.severity, email.count, email.fraction, email.lines) == (
        "personal_data",
        "warning",
        2,
        0.5,
        (1, 4),
    )
    assert (email.details["num_values"], email.details["num_distinct_values"]) == (4, 3)
    assert email.message == "2 rows hold 4 e-mail addresses (3 distinct)"
    assert "--only personal_data" in email.fix
    assert email.details["names"].startswith("names not searched: presidio")
    assert email.examples[0].row == "rows.jsonl:1"
    assert "an…@firm.de" in email.examples[0].excerpt
    everything = "".join(f.model_dump_json() for f in (email, phone, street))
    for value in ("ann.miller", "bob@", "901820", "Baker"):
        assert value not in everything


def test_many_accounts_are_an_error(jsonl: Callable[..., Path]) -> None:
    rows = [{"text": f"row {n}"} for n in range(150)]
    iban = {"text": "IBAN DE89370400440532013000"}
    assert [f.severity for f in check_personal_data(AuditRequest(build_table(jsonl(*rows, iban))))] == ["warning"]
    assert [f.severity for f in check_personal_data(AuditRequest(build_table(jsonl(*rows[:80], iban))))] == ["error"]


def test_a_clean_file_has_no_finding(jsonl: Callable[..., Path]) -> None:
    assert check_personal_data(AuditRequest(build_table(jsonl({"text": "person1@example.com, 5 of 5 stars"})))) == []


def test_the_excerpt_shows_the_place_in_a_long_row(jsonl: Callable[..., Path]) -> None:
    path = jsonl({"text": "word " * 4000 + "me@firm.de " + "word " * 4000})
    (finding,) = check_personal_data(AuditRequest(build_table(path)))
    assert "m…@firm.de" in finding.examples[0].excerpt
    assert len(finding.examples[0].excerpt) < 300


def test_what_may_be_a_value_is_told_apart_from_what_is(jsonl: Callable[..., Path]) -> None:
    path = jsonl(
        {"prompt": "Where?", "completion": "At 12 Baker Street."},
        {"prompt": "Where to?", "completion": "Send it to 14 Baker Street, Springfield, IL 62704."},
        {"prompt": "Rule?", "completion": "See 18.3.95.120 of the contract."},
    )
    ip, certain, perhaps = check_personal_data(AuditRequest(build_table(path)))
    assert (ip.severity, ip.details["is_certain"], ip.lines) == ("info", False, (3,))
    assert (certain.severity, certain.details["is_certain"], certain.lines) == ("warning", True, (2,))
    assert (perhaps.severity, perhaps.details["is_certain"], perhaps.lines) == ("info", False, (1,))
    assert perhaps.message == "1 row may hold 1 street address (1 distinct); nothing near them confirms it"
    assert certain.fix.endswith("--only personal_data --mask street")


def test_names_are_hidden_in_the_excerpts_of_every_kind(
    jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(text: str) -> list[Span]:
        start = text.find("Miriam Adler")
        return [] if start < 0 else [Span(start, start + 12, "name", "Miriam Adler")]

    monkeypatch.setattr(personal_data, "why_not", lambda: None)
    monkeypatch.setattr(personal_data, "name_finder", lambda: find)
    path = jsonl({"prompt": "Who?", "completion": "Ask Miriam Adler, zoe@firm.de"}, {"text": "Nobody."})
    email, name = check_personal_data(AuditRequest(build_table(path)))
    assert (email.details["kind"], name.details["kind"]) == ("email", "name")
    for finding in (email, name):
        assert "Mir…" in finding.examples[0].excerpt
        assert "Adler" not in finding.model_dump_json()


def test_escapes_in_arguments_of_tool_calls_hide_nothing(jsonl: Callable[..., Path]) -> None:
    """`@` as some programs write it in JSON, and an address as a key."""
    texts = (r'{"to": "anna.k\u0040firm.de"}', '{"zoe@firm.de": 1}', '{"to": "nobody"}')
    user = {"role": "user", "content": "Send it."}
    calls = [[{"type": "function", "function": {"name": "send", "arguments": text}}] for text in texts]
    path = jsonl(*({"messages": [user, {"role": "assistant", "tool_calls": one}]} for one in calls))
    (finding,) = check_personal_data(AuditRequest(build_table(path)))
    assert (finding.details["kind"], finding.lines) == ("email", (1, 2))


def test_values_in_the_definitions_of_tools_are_found(jsonl: Callable[..., Path]) -> None:
    turns = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "At zoe@firm.de."}]
    described = {"name": "find", "description": 'Ask:\nann.miller@firm.de "now"', "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": described}]
    side = {"prompt": turns[:1], "chosen": turns[1:], "rejected": [{"role": "assistant", "content": "No."}]}
    (finding,) = check_personal_data(AuditRequest(build_table(jsonl(*[{"messages": turns, "tools": tools}] * 3))))
    assert (finding.lines, finding.details["num_values"], finding.details["num_distinct_values"]) == ((1, 2, 3), 6, 2)
    plain = {"messages": [turns[0], {"role": "assistant", "content": "Here."}]}
    path = jsonl(plain, plain | {"tools": tools}, plain | {"tools": []})
    (finding,) = check_personal_data(AuditRequest(build_table(path)))
    assert (finding.lines, finding.examples[0].note) == ((2,), "e-mail address an…@firm.de")
    assert "Here.\nfunction\nfind\nAsk:\nan…@firm.de" in finding.examples[0].excerpt
    (finding,) = check_personal_data(AuditRequest(build_table(jsonl(side | {"tools": tools}))))
    assert finding.details["num_values"] == 2
