"""`luthier users`: people with a name and a password, and the link that signs in the person at the machine."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from luthier.core.access import DEFAULT_PROJECT
from luthier.platform.auth.members import member_by_password, session_of, sign_in_with_link
from luthier.platform.home.context import Context

PASSWORD = "correct horse battery"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\nanother line\n"))


def lets_in(home: Path, name: str, password: str) -> bool:
    with Context.open(home) as context:
        return member_by_password(context, name, password) is not None


@pytest.mark.usefixtures("typed")
def test_a_member_is_made_listed_changed_and_removed(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    assert "luthier users add" in luthier("users", "list").out
    luthier("projects", "create", "mine")
    done = luthier("users", "add", "Ada", "--role", "viewer", "--project", "mine", "--password-stdin", "--json")
    made = done.document
    assert (made["name"], made["role"], PASSWORD in done.out) == ("Ada", "viewer", False)
    assert lets_in(home, "Ada", PASSWORD)
    assert [one["id"] for one in luthier("users", "list", "--json").document] == [made["id"]]
    assert luthier("users", "list", "--project", "default", "--json").document == []
    assert "mine" in luthier("users", "list").out
    assert luthier("users", "role", "Ada", "admin", "--json").document["role"] == "admin"
    assert luthier("users", "remove", "Ada", "--json").document["id"] == made["id"]
    assert luthier("users", "list", "--json").document == []
    assert not lets_in(home, "Ada", PASSWORD)


def test_a_password_is_asked_for_twice(luthier, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    answers = [PASSWORD, PASSWORD, "another long one", "another long two", "another long one", "another long one"]
    monkeypatch.setattr("luthier.features.accounts.members_cli.getpass.getpass", lambda _prompt: answers.pop(0))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert luthier("users", "add", "Ada", "--role", "trainer").code == 0
    differ = luthier("users", "password", "Ada")
    assert (differ.code, "differ" in differ.err) == (2, True)
    assert luthier("users", "password", "Ada").code == 0
    assert lets_in(home, "Ada", "another long one")


def test_the_end_of_input_at_the_question_for_a_password_ends_the_command(
    luthier, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    def ended(_prompt: str) -> str:
        raise EOFError  # as at Ctrl-D

    monkeypatch.setattr("luthier.features.accounts.members_cli.getpass.getpass", ended)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    done = luthier("users", "add", "Ada", "--role", "trainer")
    assert (done.code, done.out, "Traceback" in done.err) == (130, "", False)
    assert luthier("users", "list", "--json").document == []


def test_without_a_terminal_the_password_comes_from_stdin(luthier) -> None:  # type: ignore[no-untyped-def]
    refused = luthier("users", "add", "Ada", "--role", "trainer")
    assert (refused.code, "--password-stdin" in refused.err) == (2, True)


@pytest.mark.usefixtures("typed")
@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "Ada", "--role", "owner", "--password-stdin"),
        ("add", "A\nda", "--role", "viewer", "--password-stdin"),
        ("add", "Ada", "--role", "viewer", "--project", "none", "--password-stdin"),
        ("role", "nobody", "viewer"),
        ("password", "nobody", "--password-stdin"),
        ("remove", "nobody"),
        ("link", "--url", "javascript:alert(1)"),
    ],
)
def test_wrong_asks_end_with_2(luthier, arguments: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    assert luthier("users", *arguments).code == 2


def test_a_short_password_and_a_taken_name_are_refused(luthier, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def add(password: str):  # type: ignore[no-untyped-def]
        monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))
        return luthier("users", "add", "Ada", "--role", "viewer", "--password-stdin")

    assert "10 characters" in add("short").err
    assert add(PASSWORD).code == 0
    taken = add(PASSWORD)
    assert (taken.code, "exists already" in taken.err) == (2, True)


def test_a_link_signs_the_person_at_the_machine_in_once(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    made = luthier("users", "link", "--url", "http://127.0.0.1:9000/", "--json").document
    assert made["url"] == f"http://127.0.0.1:9000{made['path']}"
    token = made["path"].removeprefix("/welcome/")
    with Context.open(home) as context:
        secret = sign_in_with_link(context, token)
        assert secret is not None
        session = session_of(context, secret)
        assert session is not None
        assert (session.caller.project_id, session.caller.may("admin")) == (DEFAULT_PROJECT, True)
        assert sign_in_with_link(context, token) is None
    assert "works once" in luthier("users", "link").out


def test_groups_of_the_provider_are_mapped_listed_and_unmapped(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    assert "luthier users map" in luthier("users", "groups").out
    luthier("projects", "create", "mine")
    made = luthier("users", "map", "ml-team", "--project", "mine", "--role", "trainer", "--json").document
    assert (made["group"], made["role"]) == ("ml-team", "trainer")
    assert luthier("users", "groups", "--json").document == [made]
    assert "ml-team" in luthier("users", "groups").out
    assert luthier("projects", "rename", "mine", "ours", "--json").document["name"] == "ours"
    assert luthier("users", "unmap", "ml-team", "--project", "ours", "--json").document["group"] == "ml-team"
    assert luthier("users", "unmap", "ml-team", "--project", "ours").code == 2
    assert luthier("users", "groups", "--json").document == []
