"""Over stdio the agent is the user of this machine, or the owner of a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import BusyError, NotAllowedError
from luthier.features.mcp_server.stdio import KeyIdentity
from luthier.platform.auth.service import create_key, revoke_key
from luthier.platform.home.context import Context

MESSAGES: list[dict[str, Any]] = [
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
    {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "create_dataset", "arguments": {}}},
    # Its answer is read from a database, in another thread: it takes longer than to see that there is no more input.
    {"jsonrpc": "2.0", "id": 4, "method": "tools/call", "params": {"name": "list_runs", "arguments": {}}},
]


def test_the_command_answers_all_that_it_has_received_and_speaks_the_protocol_alone_on_stdout(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "luthier", "mcp", "--read-only", "--home", str(tmp_path / "home")],
        # Its input ends with the last request: the answers come all the same.
        input="this is no JSON\n" + "".join(json.dumps(one) + "\n" for one in MESSAGES),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={name: value for name, value in os.environ.items() if name != "LUTHIER_API_KEY"},
    )
    assert said.returncode == 0, said.stderr
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert [line for line in lines if "jsonrpc" not in line] == []
    answers = {line.get("id"): line for line in lines}
    assert {1, 2, 3, 4} <= answers.keys(), said.stdout
    assert answers[1]["result"]["serverInfo"]["name"] == "luthier"
    names = {tool["name"] for tool in answers[2]["result"]["tools"]}
    assert {"list_runs", "plan_run", "ask"} <= names
    assert not {"start_run", "deploy", "create_dataset"} & names
    assert "this server is read-only" in answers[3]["error"]["message"]
    assert not answers[4]["result"].get("isError")


def test_a_key_is_looked_up_and_counted_for_each_request(home: Context) -> None:
    made, key = create_key(home, "agent", scopes=("read",), requests_per_minute=2)
    identity = KeyIdentity(home, key)
    assert identity.look_up().key_id == made.key_id
    assert identity.look_up().scopes == ("read",)
    with pytest.raises(BusyError, match="2 requests of this minute"):
        identity.look_up()
    revoke_key(home, made.key_id)
    with pytest.raises(NotAllowedError, match="unknown, expired or revoked"):
        KeyIdentity(home, key).look_up()


@pytest.mark.parametrize("arguments", [[], ["--project", "other"]])
def test_a_wrong_key_ends_the_command(
    cli_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    from luthier.cli.main import main

    monkeypatch.setenv("LUTHIER_API_KEY", "sk-luthier-wrong")
    assert main(["mcp", "--home", str(cli_home), *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "what to do" in said.err


@pytest.fixture
def cli_home(tmp_path: Path) -> Path:
    return tmp_path / "home"
