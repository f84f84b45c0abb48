"""Each tool has the rights of its caller and nothing beyond; what is wrong is a result with three parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mcp import MCPError
from tests import homes
from tests.features.mcp_server.conftest import Calls, call
from tests.fixtures.echo_engine import answering
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.ports import SilentProgress
from luthier.core.stream import TextRequest
from luthier.features.deployments import service as deployments
from luthier.features.mcp_server.service import TOOLS
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context

ROWS = [{"prompt": f"What comes after {n}?", "completion": f"After {n} comes {n + 1}."} for n in range(12)]


def test_every_tool_says_what_it_does_and_changes() -> None:
    names = [tool.name for tool in TOOLS]
    assert len(set(names)) == len(names)
    for tool in nonempty(TOOLS):
        assert (tool.handler is None) != (tool.waits is None), tool.name
        assert not (tool.is_read_only and tool.is_destructive), tool.name
        assert len(tool.description) > 30, tool.name
        assert tool.scopes, tool.name
        bare = [name for name, one in tool.arguments.model_fields.items() if not one.description]
        assert bare == [], tool.name
        assert tool.arguments.model_config.get("extra") == "forbid"
    assert {tool.name for tool in TOOLS if tool.is_destructive} == {"cancel_run", "deploy", "promote", "rollback"}


def test_the_page_names_every_tool_with_its_scope() -> None:
    page = (Path(__file__).parents[3] / "docs" / "mcp.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for tool in nonempty(TOOLS):
        (row,) = [line for line in rows if f"`{tool.name}`" in line.split("|")[1]]
        assert set(tool.scopes) <= set(re.findall(r"\w+", row.split("|")[3])), tool.name
        assert (row.split("|")[4].strip() != "") or tool.is_read_only, tool.name


# Of each scope the tools that it lacks: asked with arguments that would be refused later, so that the scope is first.
@pytest.mark.parametrize("scope", ["read", "train", "infer"])
def test_a_tool_needs_its_scope(home: Context, as_caller: Calls, scope: str) -> None:
    others = [tool for tool in TOOLS if scope not in tool.scopes]
    for tool in nonempty(others):
        found = as_caller(tool.name, scopes=(scope,))
        assert found.is_error, tool.name
        assert found.document["error"]["code"] == "not_allowed", tool.name
        assert f"the scope {' or '.join(tool.scopes)}" in found.text
        assert re.search(r"Expected: .+\nWhat to do: .+", found.text)
    assert home.audit_log.after(0, limit=10) == []


def test_no_caller_sees_runs_datasets_or_deployments_of_another_project(home: Context, as_caller: Calls) -> None:
    made = homes.fill(home)
    run_id = made.runs[1]
    home.access.add_project("proj-other", "other")
    dataset = as_caller("create_dataset", {"name": "mine", "rows": ROWS}).document
    assert as_caller("get_run", {"run_id": run_id}).document["run_id"] == run_id
    theirs: list[tuple[str, dict[str, Any]]] = [
        ("get_run", {"run_id": run_id}),
        ("get_verdict", {"run_id": run_id}),
        ("compare_runs", {"run_ids": [run_id, made.runs[0]]}),
        ("watch", {"id": run_id, "max_seconds": 0}),
        ("pause_run", {"run_id": run_id}),
        ("resume_run", {"run_id": run_id}),
        ("cancel_run", {"run_id": run_id}),
        ("evaluate", {"candidate": run_id, "file_id": dataset["newest"]["file_id"]}),
        ("worth", {"answers_per_week": 9, "minutes_each": 9, "cost_of_an_error": 9, "run_id": run_id}),
        ("deploy", {"name": "theirs", "target": run_id}),
        ("get_dataset", {"dataset_id": dataset["dataset_id"]}),
        ("create_dataset", {"dataset_id": dataset["dataset_id"], "rows": ROWS}),
        ("audit_dataset", {"file_id": dataset["newest"]["file_id"]}),
        ("plan_run", {"recipe": {"base_model": "smollm2-135m", "data": {"train": dataset["newest"]["file_id"]}}}),
        ("ask", {"model": run_id, "prompt": "Hello"}),
    ]
    for tool, arguments in theirs:
        found = as_caller(tool, arguments, project="proj-other")
        assert found.is_error, tool
        error = found.document["error"]
        assert error["code"] in ("not_found", "invalid_value"), (tool, error)
        assert error["came"], tool
        assert error["expected"], tool
        assert error["do"], tool
    for tool, key in (("list_runs", "runs"), ("list_datasets", "datasets"), ("list_deployments", "deployments")):
        assert as_caller(tool, project="proj-other").document[key] == []
        assert str(home.home) not in as_caller(tool).text
    assert len(as_caller("list_runs").document["runs"]) == len(made.runs)


def test_what_cannot_be_is_refused_with_what_to_do(as_caller: Calls) -> None:
    with pytest.raises(MCPError, match="no tool 'train_everything'") as caught:
        as_caller("train_everything")
    assert "What to do: list the tools" in str(caught.value)
    found = as_caller("list_runs", {"limit": 5_000})
    assert (found.is_error, found.document["error"]["do"]) == (True, "correct the call")
    assert "limit" in found.text
    assert "arguments: filter, sort, limit, after" in found.text
    assert as_caller("list_runs", {"colour": "red"}).is_error
    found = as_caller("create_dataset", {"name": "large", "rows": [{"text": "x" * (5 << 20)}]})
    assert "arguments of 5,24" in found.text
    assert "at most 4,194,304 bytes" in found.text
    deep: Any = "x"
    for _ in range(80):
        deep = [deep]
    found = as_caller("create_dataset", {"name": "deep", "rows": [{"text": deep}]})
    assert "nested too deeply" in found.text
    found = as_caller("watch", {"id": "run-../../etc"})
    assert "the id of a run (run-...) or of a job (job-...)" in found.text
    assert as_caller("start_run", {"recipe": {"base_model": "/etc", "data": {"train": "/etc/passwd"}}}).is_error


def test_a_read_only_server_has_no_tool_that_changes_something(home: Context, as_caller: Calls) -> None:
    with pytest.raises(MCPError, match="this server is read-only"):
        as_caller("create_dataset", {"name": "x", "rows": ROWS}, is_read_only=True)
    assert as_caller("list_datasets", is_read_only=True).document == {"datasets": []}


def test_rows_become_a_dataset_and_its_next_version(home: Context, as_caller: Calls, tmp_path: Path) -> None:
    found = as_caller("create_dataset", {"name": "after", "rows": ROWS, "note": "made up"})
    assert not found.is_error, found.text
    assert (found.document["newest"]["number"], found.document["newest"]["num_rows"]) == (1, 12)
    more = as_caller("create_dataset", {"dataset_id": found.document["dataset_id"], "rows": ROWS[:3]})
    assert more.document["newest"]["number"] == 2
    shown = as_caller("get_dataset", {"dataset_id": found.document["dataset_id"]}).document
    assert [one["num_rows"] for one in shown["versions"]] == [3, 12]
    taken = as_caller("create_dataset", {"name": "after", "rows": ROWS})
    assert "give its dataset_id to add a version" in taken.text
    assert "neither rows nor path" in as_caller("create_dataset", {"name": "none"}).text
    entries = home.audit_log.after(0, limit=10)
    assert [entry.action for entry in entries] == ["dataset.created", "dataset.version_added"]
    assert {entry.actor for entry in entries} == {"key-of-the-test agent"}


def test_chosen_columns_stay_with_the_next_version_only_where_its_rows_have_them(
    home: Context, as_caller: Calls
) -> None:
    rows = [{"Frage": "Wer?", "Antwort": "Ich."}]
    made = as_caller("create_dataset", {"name": "faq", "rows": rows}).document["dataset_id"]
    chosen = {"prompt": "Frage", "completion": "Antwort"}
    home.datasets.choose_columns(made, 1, chosen)
    as_caller("create_dataset", {"dataset_id": made, "rows": [*rows, {"Frage": "Was?", "Antwort": "Das."}]})
    as_caller("create_dataset", {"dataset_id": made, "rows": [{"prompt": "Who?", "completion": "Me."}]})
    assert [one.columns for one in home.datasets.versions(made)] == [{}, chosen, chosen]


def test_only_a_person_at_this_machine_names_its_files(home: Context, as_caller: Calls, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    refused = as_caller("create_dataset", {"name": "path", "path": str(file)})
    assert "only a person at this machine may name its files" in refused.text
    here = call(home, Caller(), "create_dataset", {"name": "path", "path": str(file)})
    assert here.document["newest"]["num_rows"] == 1
    assert "no file" in call(home, Caller(), "create_dataset", {"name": "gone", "path": "/dev/zero"}).text


def test_a_queued_run_without_a_worker_says_so(home: Context, as_caller: Calls, tiny_model: Path) -> None:
    sources.pull(str(tiny_model), home.home, SilentProgress())
    file_id = as_caller("create_dataset", {"name": "after", "rows": ROWS}).document["newest"]["file_id"]
    started = as_caller("start_run", {"recipe": {"base_model": "tiny", "data": {"train": file_id}}})
    assert started.document["status"] == "queued", started.text
    assert "No worker of this home is running" in started.text
    seen = as_caller("watch", {"id": started.document["job_id"], "max_seconds": 0})
    assert (seen.document["run_id"], seen.document["is_settled"]) == (started.document["run_id"], False)
    assert [message for _, _, message in seen.progress] == [
        seen.text.splitlines()[0].removesuffix(" Call watch again to follow it.")
    ]
    assert as_caller("cancel_run", {"run_id": started.document["run_id"]}).document["status"] == "cancelled"
    settled = as_caller("watch", {"id": started.document["run_id"], "max_seconds": 600})
    assert settled.document["is_settled"]


def test_a_canary_is_deployed_promoted_and_rolled_back(home: Context, as_caller: Calls, tiny_model: Path) -> None:
    sources.pull(str(tiny_model), home.home, SilentProgress())
    made = as_caller("deploy", {"name": "support", "target": "tiny"})
    assert made.document["revision"]["shares"] == [{"target": "tiny", "fraction": 1.0}], made.text
    stale = as_caller("deploy", {"name": "support", "target": "tiny", "expected_revision": 7})
    assert (stale.is_error, stale.document["error"]["code"]) == (True, "conflict")
    assert as_caller("get_deployment", {"name": "support"}).document["name"] == "support"
    assert [one["name"] for one in as_caller("list_deployments").document["deployments"]] == ["support"]
    assert as_caller("rollback", {"name": "support"}).document["error"]["code"] == "conflict"
    assert [view.deployment.name for view in deployments.list_deployments(home, Caller())] == ["support"]


def test_a_thought_does_not_use_up_the_tokens_of_the_answer(home: Context, tiny_model: Path) -> None:
    sources.pull(str(tiny_model), home.home, SilentProgress())
    engine = answering(home)
    found = call(home, Caller(), "ask", {"model": "tiny", "prompt": "say one", "max_tokens": 7})
    assert (found.is_error, found.document.get("text")) == (False, "one"), found.text
    (asked,) = engine.asked
    assert isinstance(asked, TextRequest)
    assert (asked.max_new_tokens, asked.max_thinking_tokens) == (7, None)


def test_worth_is_answered_without_an_evaluation_by_assumptions(as_caller: Calls) -> None:
    asked = {"answers_per_week": 400, "minutes_each": 3, "cost_of_an_error": 5}
    found = as_caller("worth", asked)
    assert not found.is_error, found.text
    assert "No evaluation was given" in found.document["assumed"]
    assert found.document["figures"]
    assert "\N{NO-BREAK SPACE}" not in found.text
    assert as_caller("worth", asked | {"run_id": "run-1", "evaluation_id": "eval-1"}).is_error


def test_figures_of_a_program_are_not_taken_for_thousands_that_a_person_typed(as_caller: Calls) -> None:
    """In a form 2.125 could be two thousand; a number in JSON could not."""
    asked = {"answers_per_week": 400, "minutes_each": 2.125, "cost_of_an_error": 5}
    found = as_caller("worth", asked)
    assert not found.is_error, found.text
    assert found.document["figures"] == as_caller("worth", asked | {"minutes_each": 2.1250000001}).document["figures"]
    in_euros = as_caller("worth", asked | {"currency": "EUR", "currency_per_usd": 0.925})
    assert "EUR" in in_euros.text
    assert as_caller("worth", asked | {"currency": "EUR"}).is_error


def test_a_fault_of_our_own_is_logged_and_shown_without_its_words(
    home: Context, as_caller: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str) -> Any:
        raise ZeroDivisionError("a secret of the machine")

    monkeypatch.setattr(home.datasets, "list", broken)
    found = as_caller("list_datasets")
    assert (found.is_error, found.document["error"]["code"]) == (True, "internal_error")
    assert "secret" not in found.text
    assert "a secret of the machine" in caplog.text


def test_unknown_arguments_are_refused_by_every_tool() -> None:
    for tool in nonempty(TOOLS):
        assert tool.arguments.model_json_schema()["additionalProperties"] is False
