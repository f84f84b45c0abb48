"""Commands that an answer or an error names are about the home of the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from luthier.cli.home_option import home_in, with_home
from luthier.core.text.printed_commands import in_home

RUN = "run-20261125-093000-eeeeee"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resume it: luthier train --resume r", "resume it: luthier train --home /h --resume r"),
        ("see `luthier runs show r`, or wait", "see `luthier runs show --home /h r`, or wait"),
        ("luthier train recipe.yaml", "luthier train --home /h recipe.yaml"),
        ("see `luthier runs list`.", "see `luthier runs list --home /h`."),
        ("luthier promote a, or luthier rollback a", "luthier promote --home /h a, or luthier rollback --home /h a"),
        ("luthier export benchmark m", "luthier export benchmark --home /h m"),
        ("luthier export model --to gguf", "luthier export --home /h model --to gguf"),
        # No command that takes a home.
        ("write: luthier launch ray RECIPE", "write: luthier launch ray RECIPE"),
        ("luthier is not installed", "luthier is not installed"),
        ("install luthier[ray]", "install luthier[ray]"),
        ("the command luthier runs", "the command luthier runs"),
        ("luthier up --home other", "luthier up --home other"),
    ],
)
def test_commands_in_a_text_get_the_home(text: str, expected: str) -> None:
    assert with_home(text, "/h") == expected


def test_a_home_with_blanks_is_quoted() -> None:
    words = shlex.split(with_home("luthier up", "Jörg's home"))
    assert words == ["luthier", "up", "--home", "Jörg's home"]


@pytest.mark.parametrize(
    ("arguments", "home"),
    [
        (["runs", "list", "--home", "h"], "h"),
        (["runs", "list", "--home=h", "--json"], "h"),
        (["runs", "list"], None),
        (["runs", "list", "--home"], None),
        (["monitor", "--", "--home", "h"], None),
        # The home of the nodes.
        (["launch", "ray", "r.yaml", "--home", "h"], None),
        ([], None),
    ],
)
def test_the_home_of_a_command_line(arguments: list[str], home: str | None) -> None:
    assert home_in(arguments) == home


def test_an_error_and_an_answer_name_the_home_where_the_command_line_does(luthier, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    place = tmp_path / "other"
    usual, other = luthier("runs", "show", RUN), luthier("runs", "show", RUN, "--home", place)
    assert (usual.code, other.code) == (2, 2)
    assert f"luthier runs list --home {place}" in other.err
    assert "luthier runs list" in usual.err
    assert "--home" not in usual.err
    as_json = luthier("runs", "show", RUN, "--home", place, "--json").document
    assert f"luthier runs list --home {place}" in as_json["error"]["do"]
    assert f"luthier train --home {place} RECIPE" in luthier("runs", "list", "--home", place).out
    assert in_home("luthier up") == "luthier up", "the next command line has the usual home"
