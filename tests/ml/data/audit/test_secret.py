"""The check of secrets: always an error, and no secret in what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.personal_data import check_secrets
from luthier.ml.data.audit.table import build_table

TOKEN = "gh" + "p_" + "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8"
PASSWORD = "k3y!" + "W0rd#x9"


def test_secrets_are_an_error_and_stay_hidden(jsonl: Callable[..., Path]) -> None:
    rows = [{"text": f"row {n}"} for n in range(300)]
    path = jsonl(
        *rows, {"text": f"use {TOKEN} and password='{PASSWORD}' and {TOKEN}"}, {"text": "x" * 500 + f" {TOKEN}"}
    )
    (finding,) = check_secrets(AuditRequest(build_table(path)))
    assert (finding.check, finding.severity, finding.count, finding.lines) == ("secret", "error", 2, (301, 302))
    assert finding.details == {"kinds": {"GitHub token": 3, "password in an assignment": 1}, "num_secrets": 4}
    assert finding.message == "2 rows with 4 secrets: 3 GitHub token, 1 password in an assignment"
    written = finding.model_dump_json()
    assert TOKEN not in written
    assert PASSWORD not in written
    assert TOKEN[:12] not in written
    assert "gh" + "p_… (40 characters)" in finding.examples[0].excerpt
    assert "gh" + "p_… (40 characters)" in finding.examples[1].excerpt


def test_a_clean_file_has_no_finding(jsonl: Callable[..., Path]) -> None:
    assert check_secrets(AuditRequest(build_table(jsonl({"text": "the secret is token effort"})))) == []


def test_a_secret_in_a_thought_is_found_whatever_name_the_thought_has(jsonl: Callable[..., Path]) -> None:
    user, answer = {"role": "user", "content": "Deploy."}, {"role": "assistant", "content": "Done."}
    block = [{"type": "thinking", "thinking": f"use {TOKEN}"}, {"type": "text", "text": "Done."}]
    rows = [
        {"messages": [user, answer | {"reasoning_content": f"use {TOKEN}"}]},
        {"messages": [user, answer | {"thinking": "nothing"}]},
        {"messages": [user, answer | {"content": block}, user, answer]},
        {"prompt": [user], "chosen": [answer], "rejected": [answer | {"content": "No.", "reasoning": f"use {TOKEN}"}]},
    ]
    (finding,) = check_secrets(AuditRequest(build_table(jsonl(*rows[:3]))))
    assert finding.lines == (1, 3)
    assert "gh" + "p_… (40 characters)" in finding.examples[0].excerpt
    (finding,) = check_secrets(AuditRequest(build_table(jsonl(rows[3]))))
    assert finding.lines == (1,)


def test_a_secret_in_the_definition_of_a_tool_is_found(jsonl: Callable[..., Path]) -> None:
    turns = [{"role": "user", "content": "Deploy."}, {"role": "assistant", "content": "Done."}]
    tools = [{"type": "function", "function": {"name": "deploy", "description": f"Calls with {TOKEN}"}}]
    path = jsonl({"messages": turns}, {"messages": turns, "tools": tools})
    (finding,) = check_secrets(AuditRequest(build_table(path)))
    assert (finding.lines, finding.details["num_secrets"]) == ((2,), 1)
    assert "gh" + "p_… (40 characters)" in finding.examples[0].excerpt
    assert TOKEN not in finding.model_dump_json()
