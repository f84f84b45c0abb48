"""What processes of a test run share, and that none of them waits for the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import text
from tests.fixtures.shared_answers import FOLDER, SharedAnswers, SharedKeys, shared_text

from luthier.platform.db.database import Database


def test_what_one_has_found_the_others_know(tmp_path: Path) -> None:
    one, other = SharedKeys(tmp_path, {"before"}), SharedKeys(tmp_path, ())
    one.add("a key of any length, and with / in it")
    assert "a key of any length, and with / in it" in other
    assert ("before" in one, "before" in other, "never" in other) == (True, False, False)
    first, second = SharedAnswers(tmp_path, {"before": {"path": 1}}), SharedAnswers(tmp_path, {})
    first["key"] = {"path": None}
    assert second.get("key") == {"path": None}
    assert (second.get("before"), second.get("never", 3)) == (None, 3)
    second["key"] = {"path": "another"}
    assert first.get("key") == {"path": None}


def test_a_text_is_made_by_the_first_one_that_asks_and_again_outside_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make() -> str:
        made.append("Grüße\n")
        return made[-1]

    monkeypatch.setenv(FOLDER, str(tmp_path / "answers"))
    assert [shared_text(key, make) for key in ("one", "one", "a / b", "one")] == ["Grüße\n"] * 4
    assert len(made) == 2
    monkeypatch.delenv(FOLDER)
    assert shared_text("one", make) == "Grüße\n"
    assert len(made) == 3


def test_nothing_waits_for_the_disk_and_what_is_not_open_fails_as_ever(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        os.fsync(file.fileno())
        os.fsync(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fsync(2**20)
    with Database.open(tmp_path / "luthier.db") as database, database.read() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 0
