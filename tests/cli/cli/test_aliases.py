"""Commands by the names that an earlier version had for them."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.cli.main import command_tree
from luthier.core import aliases
from luthier.core.aliases import COMMANDS


@pytest.fixture(autouse=True)
def _nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "_warned", set())


def warning(old: str, new: str) -> str:
    return f"warning: the command 'luthier {old}' is now called 'luthier {new}'; the old name still works\n"


@pytest.mark.parametrize(("old", "new"), COMMANDS.items())
def test_an_old_command_is_the_new_one_with_one_line_of_warning(luthier: Any, old: str, new: str) -> None:
    expected, first = luthier(*new.split(), "--help"), luthier(*old.split(), "--help")
    assert (expected.code, expected.err) == (0, "")
    assert (first.code, first.out, first.err) == (0, expected.out, warning(old, new))
    assert luthier(*old.split(), "--help").err == "", "once in a process"


def test_the_verbs_of_an_old_command_work_and_the_document_is_alone_on_stdout(luthier: Any) -> None:
    for old, new in (
        ("rate list", "human-eval list"),
        ("members list", "users list"),
        ("alerts look", "monitor check"),
    ):
        found = luthier(*old.split(), "--json")
        assert found.code == 0
        assert found.err.count("warning: the command") == 1
        assert found.document == luthier(*new.split(), "--json").document


def test_help_names_no_old_command(luthier: Any) -> None:
    commands = command_tree().commands  # type: ignore[attr-defined]
    assert not set(COMMANDS) & {*commands, *(f"alerts {verb}" for verb in commands["alerts"].commands)}
    shown = luthier("--help").out
    assert {line.split("  ")[1] for line in shown.splitlines() if line.startswith("  ")} >= {
        "automl",
        "compare-models",
        "distill",
        "export",
        "export benchmark",
        "human-eval",
        "monitor",
        "monitor check",
        "server",
        "up",
        "users",
    }


def test_an_old_name_after_the_command_is_a_value(luthier: Any) -> None:
    done = luthier("runs", "show", "rate")
    assert done.code == 2
    assert "warning" not in done.err


def test_a_command_with_arguments_and_one_that_begins_with_its_name(luthier: Any) -> None:
    assert "Usage: luthier monitor [OPTIONS]" in luthier("monitor", "--help").out
    assert luthier("monitor", "check", "--json").document["models"] == []
    assert "luthier monitor --help" in luthier("monitor", "--", "check", "one-too-many").err
    assert "Missing option '--to'" in luthier("export", "some-run", "-o", "x").err
    assert "Missing option '--data'" in luthier("export", "benchmark", "some-run", "-o", "x").err
    assert "Missing option '--to'" in luthier("export", "--", "benchmark").err


def test_up_is_short_for_server_start(luthier: Any) -> None:
    short, full = luthier("up", "--help"), luthier("server", "start", "--help")
    assert (short.code, short.err, full.code) == (0, "", 0)
    assert short.out.split("\n", 1)[1] == full.out.split("\n", 1)[1]
