"""bubblewrap is taken where it runs, said where it does not, and is a wall of its own around the child's locks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.ml.evaluation.sandbox import bubblewrap as sandbox
from luthier.ml.evaluation.sandbox.bubblewrap import Bubblewrap, interpreter, library_paths, signal_of, wrapped
from luthier.ml.evaluation.sandbox.process import Child, ChildError
from luthier.ml.evaluation.sandbox.runners import Isolation, isolation

LOOK = """
import ctypes, json, os, socket, sys

def fails(what):
    try:
        what()
    except OSError:
        return True
    return False

print(json.dumps({
    "root": sorted(os.listdir("/")), "tmp": os.listdir("/tmp"),
    "secret": os.path.exists(sys.argv[1]), "pid": os.getpid(), "environment": sorted(os.environ),
    "host": os.uname().nodename, "interfaces": [name for _, name in socket.if_nameindex()],
    "no_new_privileges": ctypes.CDLL(None).prctl(39, 0, 0, 0, 0),
    "read_only": [fails(lambda: open(place, "w")) for place in ("/x", "/tmp/x", "/usr/x")],
    "no_mount": ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, 0),
}))
"""


@pytest.fixture
def searched() -> Iterator[None]:
    """The search for bubblewrap is not cached."""
    sandbox.bubblewrap.cache_clear()
    yield
    sandbox.bubblewrap.cache_clear()


def test_the_outer_wall_alone(outer: Bubblewrap, tmp_path: Path) -> None:
    if outer.path is None:
        assert "without bubblewrap: this test leaves it out" in isolation().sentence
        return
    secret = tmp_path / "secret"
    secret.write_text("hush")
    program = [interpreter(), "-S", "-c", LOOK, str(secret)]
    command = wrapped(outer.path, program, readable=library_paths(), cwd="/")
    ended = subprocess.run(command, capture_output=True, text=True, env={"PYTHONHASHSEED": "0"}, check=True)
    seen = json.loads(ended.stdout)
    assert not {"work", "var", "proc", "sys", "opt"} & set(seen["root"])
    assert not seen["secret"]
    assert seen["tmp"] == []
    assert seen["pid"] <= 3
    assert seen["host"] == "sandbox"
    assert seen["interfaces"] == ["lo"]
    assert seen["no_new_privileges"] == 1
    assert seen["read_only"] == [True] * 3
    assert seen["no_mount"] == -1
    assert set(seen["environment"]) <= {"PYTHONHASHSEED", "PWD", "LC_CTYPE"}
    assert f"{outer.version} around seccomp" in isolation().sentence


def test_the_child_is_within_it(outer: Bubblewrap) -> None:
    with Child("code_child.py", seconds=5, most_memory_bytes=2**28) as child:
        assert child.is_wrapped == (outer.path is not None)
        assert child.ask({"policy": child.policy}, 60)["in_force"]["seccomp"]


def test_the_end_of_a_child_is_told_apart(outer: Bubblewrap) -> None:
    with Child("code_child.py", seconds=5, most_memory_bytes=2**28) as child:
        child.ask({"policy": child.policy}, 60)
        with pytest.raises(ChildError) as caught:
            child.ask({"answer": "import ctypes\nctypes.string_at(0)"}, 20)
    assert (caught.value.signal_number, caught.value.is_late) == (11, False)


@pytest.mark.parametrize(("code", "number"), [(0, 0), (1, 0), (128, 0), (137, 9), (152, 24), (-9, 9)])
def test_signals_by_the_exit_code_of_bwrap(code: int, number: int) -> None:
    assert signal_of(code) == number


@pytest.mark.usefixtures("searched")
def test_a_bwrap_that_this_machine_forbids_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sandbox.shutil, "which", lambda _: str(broken))
    monkeypatch.setattr(sandbox, "PACKAGE", "luthier_no_such_package")
    found = sandbox.bubblewrap()
    assert found.path is None
    assert found.why_not == f"{broken} ends with code 1 (bwrap: setting up uid map: Permission denied)"
    assert f"without bubblewrap: {broken} ends with code 1" in Isolation(True, True, True, found.sentence).holds


@pytest.mark.usefixtures("searched")
def test_where_there_is_none_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda _: None)
    monkeypatch.setattr(sandbox, "PACKAGE", "luthier_no_such_package")
    assert sandbox.bubblewrap().why_not == "there is no bwrap on PATH and no package luthier_no_such_package"
    assert "no seccomp filters" in Isolation(False, False, False).holds
