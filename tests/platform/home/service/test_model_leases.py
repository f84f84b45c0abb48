"""Models that a command uses are known to other processes until it has ended, however it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier.core.errors import ConflictError
from luthier.core.system.files import file_lock
from luthier.platform.home import model_leases
from luthier.platform.home.model_leases import ModelLeases, leased_models

_HOLDER = """
import sys
from pathlib import Path
from luthier.platform.home.model_leases import ModelLeases

leases = ModelLeases(Path(sys.argv[1]), "luthier eval")
for name in sys.argv[2:]:
    leases.hold(name, name)
print("held", flush=True)
sys.stdin.read()
leases.close()
"""


@contextmanager
def holder(folder: Path, *names: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds models until its input is closed."""
    command = [sys.executable, "-c", _HOLDER, str(folder), *names]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_another_process_sees_them_until_the_command_has_ended(tmp_path: Path) -> None:
    with holder(tmp_path, "a", "b", "a") as process:
        found = list(leased_models(tmp_path))
        assert [(one.asked, one.command, one.process_id) for one in found] == [
            ("a", "luthier eval", process.pid),
            ("b", "luthier eval", process.pid),
        ]
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
        assert list(tmp_path.iterdir()) == []
        assert list(leased_models(tmp_path)) == []


def test_a_killed_command_holds_nothing_and_its_file_is_deleted(tmp_path: Path) -> None:
    with holder(tmp_path, "a") as process:
        assert len(list(leased_models(tmp_path))) == 1
        process.kill()
        process.wait(60)
    assert len(list(tmp_path.iterdir())) == 1
    assert list(leased_models(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_command_is_not_held_up_by_itself(tmp_path: Path) -> None:
    leases = ModelLeases(tmp_path, "luthier chat")
    leases.hold("a", "a")
    assert len(list(tmp_path.iterdir())) == 1
    assert list(leased_models(tmp_path)) == []
    leases.close()
    leases.close()
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_names_no_model_makes_no_file(tmp_path: Path) -> None:
    ModelLeases(tmp_path / "leases", "luthier runs").close()
    assert not (tmp_path / "leases").exists()
    assert list(leased_models(tmp_path / "leases")) == []


def test_a_line_that_is_half_written_hides_no_other(tmp_path: Path) -> None:
    with holder(tmp_path, "a"):
        (path,) = tmp_path.iterdir()
        with path.open("a", encoding="utf-8") as file:
            file.write('{"command": "luth')
        assert [one.asked for one in leased_models(tmp_path)] == ["a"]


@pytest.mark.parametrize("error", [OSError("no locks here"), ConflictError("x", expected="y", do="z")])
def test_a_home_without_locks_stops_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(model_leases, "file_lock", refuse)
    leases = ModelLeases(tmp_path, "luthier eval")
    leases.hold("a", "a")
    leases.hold("b", "b")
    leases.close()
    assert len(caplog.records) == 1, "it is said once"
    assert "not protected from removal" in caplog.text


def test_a_file_that_is_deleted_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, paths = file_lock, list[Path]()

    @contextmanager
    def slow(path: Path, *, what: str, timeout_seconds: float) -> Iterator[int]:
        with plain(path, what=what, timeout_seconds=timeout_seconds) as descriptor:
            paths.append(path)
            if len(paths) == 1:
                path.unlink()
            yield descriptor

    monkeypatch.setattr(model_leases, "file_lock", slow)
    leases = ModelLeases(tmp_path, "luthier eval")
    leases.hold("a", "a")
    assert len(paths) == 2
    assert list(tmp_path.iterdir()) == [paths[1]]
    leases.close()
