"""The version of the server that was started last, by which older workers end."""

from __future__ import annotations

import pytest

from luthier.platform.db import server_version
from luthier.platform.db.database import Database
from luthier.platform.db.monitor_state import WatchStore
from luthier.platform.db.server_version import is_older, newer_server, record_server_version


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("0.1.0", "0.2.0", True),
        ("0.9.0", "0.10.0", True),
        ("0.10.0", "0.9.0", False),
        ("0.1", "0.1.0", False),
        ("0.1.0", "0.1", False),
        ("0.2.0rc1", "0.2.0", True),
        ("0.2.0", "0.2.0rc1", False),
        ("0.1.0", "0.2.0.dev3", True),
        ("0.2.0rc1", "0.2.0rc2", False),
        ("0.1.0+abc", "0.1.0", False),
        ("1.0", "0.9.9", False),
    ],
)
def test_versions_have_an_order(one: str, other: str, expected: bool) -> None:
    assert is_older(one, other) is expected


def test_the_server_that_was_started_last_counts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> str | None:
        with database.read() as connection:
            return newer_server(connection)

    documents = WatchStore(database)
    assert found() is None
    for version, seen in (("0.3.0", None), ("9.1.0", "9.1.0"), ("0.2.0", None)):
        with monkeypatch.context() as patched:
            patched.setattr(server_version, "own_version", lambda version=version: version)
            record_server_version(documents)
        monkeypatch.setattr(server_version, "own_version", lambda: "0.3.0")
        assert found() == seen
