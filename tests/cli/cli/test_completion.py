"""`luthier completion`: PowerShell's script, and what the program answers to it. bash: `test_main.py`."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.cli.main import main


def answers(
    text: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """What may follow, with its help, for a command line and the word of it that is being typed."""
    monkeypatch.setenv("_LUTHIER_COMPLETE", "complete_powershell")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", text)
    monkeypatch.setenv("_TYPER_COMPLETE_WORD_TO_COMPLETE", word)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    found = {}
    for line in filter(None, capsys.readouterr().out.splitlines()):  # as the script does
        value, border, words = line.partition(":::")
        assert border, f"the script splits each line at {border!r}: {line}"
        assert words, f"PowerShell takes no empty help: {line}"
        found[value] = words
    return found


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("luthier comp", "comp", ["compare-models", "completion"]),
        ("luthier runs tr", "tr", ["track"]),
        ("luthier train --budget-u", "--budget-u", ["--budget-usd"]),
        ("luthier completion ", "", ["bash", "zsh", "fish", "powershell"]),
        ("luthier nothing-of-the-kind", "nothing-of-the-kind", []),
    ],
)
def test_powershell_is_given_what_may_follow(
    text: str, word: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(answers(text, word, monkeypatch, capsys)) == expected


def test_all_verbs_of_a_group_come_after_a_blank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answers("luthier runs ", "", monkeypatch, capsys)
    assert {"list", "show", "track"} <= set(found)


def test_the_script_sets_what_the_program_reads_and_removes_it(luthier: Any) -> None:
    script = luthier("completion", "powershell").out
    set_by_script = re.findall(r"^\s+\$env:(\w+) = [^=\n]+$", script, re.MULTILINE)
    assert set_by_script == ["_LUTHIER_COMPLETE", "_TYPER_COMPLETE_ARGS", "_TYPER_COMPLETE_WORD_TO_COMPLETE"]
    (removed,) = re.findall(r"finally \{\s+(.+) = \$null\s+\}", script)
    assert removed.split(" = ") == [f"$env:{name}" for name in nonempty(set_by_script)]
    assert "luthier | Where-Object { $_ } | ForEach-Object" in script, "an empty line where nothing may follow"
    assert script.count("{") == script.count("}")
    assert "Register-ArgumentCompleter -Native -CommandName luthier" in script
