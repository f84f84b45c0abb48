"""`luthier server prepare`: tables, checks and the first key, the same again changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.core.access import Caller
from luthier.core.errors import RequestError, WorkError
from luthier.platform.auth.service import digest_of
from luthier.platform.db import server_version
from luthier.platform.db.database import OutdatedError
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.server import service
from luthier.server.prepare import prepare_home

KEY = "k" * 20 + "0123456789ab"


def test_the_first_key_is_made_once(home: Context) -> None:
    made = prepare_home(home)
    assert (made.key_is, made.artifacts, str(made.key)[:11]) == ("made", "in the home", "sk-luthier-")
    again = prepare_home(home, KEY)
    assert (again.key_is, again.key) == ("there", None)
    assert len(home.access.keys()) == 1


def test_a_key_that_nobody_is_there_to_read_is_in_a_file_of_its_owner_alone(home: Context) -> None:
    made = prepare_home(home, is_shown=False)
    assert (made.key_is, made.key, made.key_file) == ("made", None, str(home.home / "admin-key"))
    place = home.home / "admin-key"
    assert place.stat().st_mode & 0o777 == 0o600
    kept = home.access.key_of(digest_of(place.read_text(encoding="utf-8").strip()))
    assert kept is not None
    assert kept.scopes == ("admin",)
    place.unlink()
    again = prepare_home(home, is_shown=False)
    assert (again.key_is, again.key_file, place.exists()) == ("there", None, False)


def test_a_key_that_cannot_be_written_is_not_made(home: Context) -> None:
    (home.home / "admin-key").mkdir()
    with pytest.raises(OSError, match="admin-key"):
        prepare_home(home, is_shown=False)
    assert home.access.keys() == []


def test_a_given_key_is_the_first_one_and_is_not_shown(home: Context) -> None:
    found = prepare_home(home, KEY)
    assert (found.key_is, found.key) == ("given", None)
    key = home.access.key_of(digest_of(KEY))
    assert key is not None
    assert (key.scopes, key.project_id) == (("admin",), Caller().project_id)


@pytest.mark.parametrize("key", ["short", "x" * 31, "with a blank in it and long enough for one", "é" * 40])
def test_a_key_that_can_be_guessed_or_not_be_sent_is_refused_and_not_quoted(home: Context, key: str) -> None:
    with pytest.raises(RequestError, match="a first key of") as caught:
        prepare_home(home, key)
    assert key not in str(caught.value)
    assert home.access.keys() == []


def test_what_cannot_be_used_is_named(home: Context) -> None:
    home.artifacts.incoming.mkdir(parents=True, exist_ok=True)
    home.settings = home.settings.model_copy(update={"home": home.home})
    blocked = home.artifacts.incoming
    blocked.rmdir()
    blocked.write_text("a file where a folder belongs", encoding="utf-8")
    with pytest.raises(WorkError, match="artifacts:"):
        prepare_home(home)


def test_the_command_takes_the_key_out_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LUTHIER_ADMIN_KEY", KEY)
    assert main(["server", "prepare", "--home", str(tmp_path / "home"), "--json"]) == 0
    said = capsys.readouterr().out
    assert json.loads(said)["key_is"] == "given"
    assert KEY not in said
    assert "LUTHIER_ADMIN_KEY" not in os.environ


@pytest.mark.parametrize("is_person", [False, True])
def test_the_command_prints_a_made_key_on_a_terminal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_person: bool
) -> None:
    monkeypatch.setattr("luthier.server.cli._is_read_by_a_person", lambda: is_person)
    assert main(["server", "prepare", "--home", str(tmp_path / "home")]) == 0
    said, place = capsys.readouterr(), tmp_path / "home" / "admin-key"
    assert ("sk-luthier-" in said.out, place.exists()) == (is_person, not is_person)
    assert "sk-luthier-" not in said.err
    assert is_person or "admin-key" in said.out


@pytest.mark.parametrize("command", [["server", "start"], ["up"], ["serve", "no-such-model"], ["worker"]])
def test_no_process_of_server_or_worker_gets_the_first_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setenv("LUTHIER_ADMIN_KEY", KEY)
    (tmp_path / "home").write_text("a file where a folder belongs", encoding="utf-8")
    assert main([*command, "--home", str(tmp_path / "home")]) != 0
    assert KEY not in capsys.readouterr().err
    assert "LUTHIER_ADMIN_KEY" not in os.environ


@pytest.mark.parametrize("is_shown", [False, True])
def test_what_signs_in_is_in_no_journal(home: Context, is_shown: bool) -> None:
    listener: Any = SimpleNamespace(url="http://127.0.0.1:8520", is_loopback=True)
    found = service._started(home, service.ServerRequest(shows_key=is_shown), listener, ())
    secrets = (found.key, found.link)
    assert all(secrets) if is_shown else secrets == (None, None)
    assert (found.key_file is None) == is_shown


def test_a_home_that_is_prepared_refuses_workers_of_older_versions(
    home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_version, "own_version", lambda: "9999.1")
    prepare_home(home)
    monkeypatch.setattr(server_version, "own_version", lambda: "9999.0")
    home.jobs.submit(Job(job_id="job-1", kind="export", document={}, run_id=""))
    with pytest.raises(OutdatedError, match=r"the server of .* is of version 9999.1"):
        home.jobs.claim("w")
    assert home.jobs.get("job-1").status == "queued"
