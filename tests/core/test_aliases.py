"""The table of old names, and environment variables by them. Commands: tests/cli; recipes: tests/features/recipes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.core import aliases
from luthier.core.aliases import COMMANDS, RECIPE_KEYS, VARIABLES, new_key, stored_key
from luthier.core.errors import RequestError
from luthier.platform.home.settings import Settings


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that ends with the test, and no warning given yet."""
    monkeypatch.setattr(aliases, "_warned", set())
    for name in (*VARIABLES, *VARIABLES.values()):
        monkeypatch.setenv(name, "")  # pytest puts it back, whatever is done to it


@pytest.mark.parametrize("table", [COMMANDS, VARIABLES, RECIPE_KEYS])
def test_no_name_is_renamed_twice_or_to_itself(table: dict[str, str]) -> None:
    assert table
    assert not set(table) & set(table.values())
    assert len(set(table.values())) == len(table)


def test_every_new_variable_is_a_setting() -> None:
    known = {f"LUTHIER_{name.upper()}" for name in Settings.model_fields}
    assert set(VARIABLES.values()) <= known
    assert not set(VARIABLES) & known


@pytest.mark.parametrize(("old", "new"), VARIABLES.items())
def test_an_old_variable_sets_the_new_one_with_one_line_of_warning(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(old, "7")
    settings = Settings.read(tmp_path)
    assert getattr(settings, new.removeprefix("LUTHIER_").lower()) == 7
    said = f"warning: the environment variable {old!r} is now called {new!r}; the old name still works\n"
    assert capsys.readouterr() == ("", said)
    assert (old in os.environ, os.environ[new]) == (False, "7"), "child processes see the new name alone"
    assert Settings.read(tmp_path) == settings
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("old", "new"), VARIABLES.items())
def test_old_and_new_at_once_are_an_error_that_names_both(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(old, "7")
    monkeypatch.setenv(new, "8")
    with pytest.raises(RequestError, match=f"{old} and {new} are both set"):
        Settings.read(tmp_path)
    monkeypatch.setenv(old, "")
    assert getattr(Settings.read(tmp_path), new.removeprefix("LUTHIER_").lower()) == 8


def test_places_in_recipes_have_two_names_and_others_one() -> None:
    for old, new in nonempty(RECIPE_KEYS.items()):
        assert (new_key(old), stored_key(new)) == (new, old)
        assert (new_key(new), stored_key(old)) == (new, old)
    assert new_key("data.map.prompt") == "data.columns.prompt"
    assert stored_key("training.lr_schedule") == "training.schedule"
    for other in ("training.seed", "data.mapping", "map", "evaluation.map", "training"):
        assert (new_key(other), stored_key(other)) == (other, other)
