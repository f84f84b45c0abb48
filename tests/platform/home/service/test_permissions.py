"""A home is for one user: made so, kept so, and said where it is not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fixtures.forked_children import SessionForkServer

from luthier.core.access import Caller
from luthier.features.doctor.service import examine
from luthier.platform.auth.members import add_member
from luthier.platform.home.context import Context
from luthier.platform.home.permissions import exposed_paths, private_files
from luthier.testing.servers import running_server


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """The usual one, which lets others read what is made."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("real_migration")
def test_a_home_and_its_database_are_made_for_one_user(tmp_path: Path) -> None:
    with Context.open(tmp_path / "new" / "home") as context:
        add_member(context, Caller(), "Ada", "correct horse battery", "viewer")
        files = {path.name: mode(path) for path in context.home.glob("luthier.db*")}
        assert {"luthier.db", "luthier.db-wal", "luthier.db-shm", "luthier.db.lock"} <= set(files)
        assert set(files.values()) == {0o600}
        assert mode(context.home) == 0o700
        assert mode(context.home.parent) == 0o755, "that is not ours"
        assert exposed_paths(context.settings) == ()


@pytest.mark.usefixtures("real_migration")
def test_a_database_in_a_file_elsewhere_is_made_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "elsewhere.db"
    monkeypatch.setenv("LUTHIER_DATABASE", f"sqlite:///{place}")
    with Context.open(tmp_path / "home") as context:
        assert context.access.keys() == []
        assert mode(place) == 0o600
        assert exposed_paths(context.settings) == ()
        place.chmod(0o644)
        (found,) = exposed_paths(context.settings)
        assert found.message == f"the database {place} is open to other users of this machine (mode 0644)"
        assert found.do.startswith(f"close it: chmod go-rwx {place}")


@pytest.mark.parametrize("database", [None, "postgresql://somebody:secret@db.example/luthier"])
def test_an_open_home_is_told_with_the_command_that_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str | None
) -> None:
    if database is not None:
        monkeypatch.setenv("LUTHIER_DATABASE", database)
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "traffic").mkdir(mode=0o755)
    (home / "closed").mkdir(mode=0o700)
    with Context.open(home) as context:
        (found,) = exposed_paths(context.settings)
        assert (
            found.message == f"the home {home} is open to other users of this machine (mode 0755), and with it traffic"
        )
        assert found.do == f"close it: chmod -R go-rwx {home}"
        said = [warning for warning in examine(context).warnings if warning.do == found.do]
        assert [warning.message.partition(" is open to")[0] for warning in said] == [f"the home {home}"]
        os.system(found.do.removeprefix("close it: "))
        assert exposed_paths(context.settings) == ()


def test_what_a_process_makes_is_its_own_for_as_long_as_it_says(tmp_path: Path) -> None:
    with private_files():
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "file").touch()
    (tmp_path / "out").touch()
    assert [mode(tmp_path / name) for name in ("in", "in/file", "out")] == [0o700, 0o600, 0o644]


def test_a_server_says_that_its_home_is_open_and_makes_nothing_open_in_it(
    tmp_path: Path, fork_server: SessionForkServer
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    with running_server(home, num_workers=1, popen=fork_server.popen_text) as server:
        log = server.log.read_text()
    assert f"chmod -R go-rwx {home}" in log
    made = sorted(home.rglob("*"))
    assert made
    assert [str(path) for path in made if mode(path) & 0o077] == []
