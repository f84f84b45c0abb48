"""Programs that a fork server forks are what an exec makes of them, and where they would not be they are executed."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from tests.vacuous import nonempty

from luthier.core.child_process import fork_client, fork_server
from luthier.core.child_process.fork_client import ForkedProcess, ForkServer, NotStartedError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork servers are Linux's own")
FREE = ("PYTEST_CURRENT_TEST",)
PROGRAM = [sys.executable, "-m", "tests.core.child_process.program"]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def server(told: list[str]) -> Iterator[ForkServer]:
    with ForkServer(("json", "argparse"), tell=told.append, free_variables=FREE) as server:
        yield server


@pytest.fixture
def errors(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "stderr").open("w+b") as file:
        yield file


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that servers may load."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    return folder


opened: list[ForkedProcess] = []


@pytest.fixture(autouse=True)
def all_is_closed() -> Iterator[None]:
    yield
    while opened:
        program = opened.pop()
        for pipe in (program.stdin, program.stdout):
            if pipe is not None:
                pipe.close()
        program.wait(60)


def forked(server: ForkServer, errors: IO[bytes], *arguments: str) -> ForkedProcess:
    program = server.start_program([*PROGRAM, *arguments], stderr=errors)
    assert program is not None
    opened.append(program)
    return program


def said(program: ForkedProcess) -> str:
    """All that it writes, once it has ended."""
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.close()
    with program.stdout:
        text = program.stdout.read().decode()
    program.wait()
    return text


def executed(*arguments: str) -> str:
    pipe = subprocess.PIPE
    # The environment as Python knows it: pytest loads readline, which sets COLUMNS and LINES behind its back.
    with subprocess.Popen(
        [*PROGRAM, *arguments], env=os.environ, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        return process.communicate()[0].decode()


def eventually(seen: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not seen():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_forked_program_is_what_an_exec_makes_of_it(server: ForkServer, errors: IO[bytes]) -> None:
    ours, theirs = json.loads(said(forked(server, errors, "describe", "x y"))), json.loads(executed("describe", "x y"))
    files = ours.pop("standard files"), theirs.pop("standard files")
    assert files[0][:2] == files[1][:2] == ["pipe", "pipe"]
    assert set(ours.pop("environment").items()) ^ set(theirs.pop("environment").items()) == set()
    assert {name: value for name, value in ours.items() if theirs[name] != value} == {}
    assert ours.keys() == theirs.keys()
    assert ours["descriptors"] == [0, 1, 2]


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
def test_signals_that_are_ignored_meanwhile_are_ignored_in_it(
    server: ForkServer, errors: IO[bytes], ignored: signal.Signals
) -> None:
    # A shell without job control ignores SIGINT in what it starts in the background, such as a run of all tests.
    before = signal.signal(ignored, signal.SIG_DFL)
    try:
        usual = json.loads(said(forked(server, errors, "describe")))["state"]["SigIgn"]
        signal.signal(ignored, signal.SIG_IGN)
        ours, theirs = json.loads(said(forked(server, errors, "describe"))), json.loads(executed("describe"))
        signal.signal(ignored, signal.SIG_DFL)
        assert ours["state"]["SigIgn"] == theirs["state"]["SigIgn"] != usual
        assert json.loads(said(forked(server, errors, "describe")))["state"]["SigIgn"] == usual
    finally:
        signal.signal(ignored, before)


@pytest.mark.parametrize(
    ("what", "code"),
    [(("exit", "0"), 0), (("exit", "75"), 75), (("raise", "no luck"), 1), (("signal", "11"), -11), (("nothing",), 0)],
)
def test_it_ends_with_its_own_code_and_the_server_goes_on(
    server: ForkServer, errors: IO[bytes], what: tuple[str, ...], code: int
) -> None:
    program = forked(server, errors, *what)
    pid = server.pid
    assert program.wait() == program.poll() == program.returncode == code
    assert not Path(f"/proc/{program.pid}").exists(), "a zombie is left"
    assert json.loads(said(forked(server, errors, "describe")))["arguments"] == ["describe"]
    assert server.pid == pid
    errors.seek(0)
    lines = errors.read().decode().splitlines()
    assert lines[-1:] == (["ValueError: no luck"] if what[0] == "raise" else [])


def test_two_at_once_share_nothing(server: ForkServer, errors: IO[bytes]) -> None:
    first = forked(server, errors, "wait")
    assert first.stdout is not None
    assert int(first.stdout.readline()) == first.pid
    assert json.loads(said(forked(server, errors, "describe")))["descriptors"] == [0, 1, 2]
    assert first.poll() is None
    assert said(first) == "bye\n"


def test_random_numbers_are_those_of_each_program(errors: IO[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    # With two, NumPy's library of matrix products has a thread of its own, which it ends before a fork.
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    told: list[str] = []
    with ForkServer(("numpy", "random", "secrets"), tell=told.append, free_variables=FREE) as server:
        drawn = [json.loads(said(forked(server, errors, "random"))) for _ in range(2)]
    assert told == []
    assert not set(map(str, drawn[0][:3])) & set(map(str, drawn[1][:3]))
    assert drawn[0][3] == drawn[1][3] == 1


@contextmanager
def soft_limit(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def blocked(number: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(name, value)
        yield


@contextmanager
def folder(path: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(path)
        yield


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        (lambda: variable("OMP_NUM_THREADS", "3"), "the environment differs in OMP_NUM_THREADS"),
        (lambda: variable("GOMP_SPINCOUNT", "3"), "the environment differs in GOMP_SPINCOUNT"),
        (lambda: variable("HF_HOME", "/nowhere"), "the environment differs in HF_HOME"),
        (lambda: variable("LUTHIER_FORK_TEST", "1"), "the environment differs in LUTHIER_FORK_TEST"),
        (lambda: soft_limit(resource.RLIMIT_STACK, 4 << 20), "inherits differs in RLIMIT_STACK"),
        (lambda: umask(0o057), "inherits differs in Umask"),
        (lambda: blocked(signal.SIGUSR2), "inherits differs in SigBlk"),
        (lambda: folder("/"), "inherits differs in folder"),
    ],
)
def test_what_a_fork_cannot_give_is_executed(
    server: ForkServer, told: list[str], errors: IO[bytes], changed: Callable[[], Any], word: str
) -> None:
    forked(server, errors, "exit", "0").wait()
    with changed():
        assert server.start_program([*PROGRAM, "exit", "0"], stderr=errors) is None
    assert len(told) == 1
    assert word in told[0]
    assert forked(server, errors, "exit", "0").wait() == 0


def test_free_variables_may_differ(told: list[str], errors: IO[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with ForkServer((), tell=told.append, free_variables=(*FREE, "LUTHIER_FORK_TEST")) as server:
        for value in ("1", "2"):
            monkeypatch.setenv("LUTHIER_FORK_TEST", value)
            seen = json.loads(said(forked(server, errors, "describe")))
            assert seen["environment"]["LUTHIER_FORK_TEST"] == value
            assert f"LUTHIER_FORK_TEST={value}" in seen["environment of C"]
    assert told == []


def test_a_variable_that_every_program_sets_for_itself_is_no_difference(
    server: ForkServer, errors: IO[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    seen = json.loads(said(forked(server, errors, "describe")))["environment"]
    assert "GOMP_SPINCOUNT" not in seen


@pytest.mark.parametrize(
    "command", [[sys.executable, "-c", "pass"], ["/bin/true"], [sys.executable, "-P", "-m", "json"], [sys.executable]]
)
def test_other_commands_are_executed(
    server: ForkServer, told: list[str], errors: IO[bytes], command: list[str]
) -> None:
    assert server.start_program(command, stderr=errors) is None
    assert "the command is not `python" in told[0]


def test_with_a_thread_nothing_is_forked(module_folder: Path, told: list[str], errors: IO[bytes]) -> None:
    (module_folder / "with_thread.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    with ForkServer(("with_thread",), tell=told.append, free_variables=FREE) as server:
        for _ in range(2):
            assert server.start_program([*PROGRAM, "exit", "0"], stderr=errors) is None
        assert server.pid is None
    assert len(told) == 1, "said once, and not tried again"
    assert "2 threads run (" in told[0]


def test_an_open_device_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "_DEVICES", ("/dev/zero",))
    assert fork_server.open_device() is None
    with Path("/dev/zero").open("rb"):
        assert fork_server.open_device() == "/dev/zero"


def test_a_library_that_cannot_be_loaded_is_said_once(told: list[str], errors: IO[bytes]) -> None:
    with ForkServer(("no_such_library",), tell=told.append, free_variables=FREE) as server:
        for _ in range(2):
            assert server.start_program([*PROGRAM, "exit", "0"], stderr=errors) is None
    assert len(told) == 1
    assert "No module named 'no_such_library'" in told[0]


def test_a_changed_file_is_not_forked(module_folder: Path, told: list[str], errors: IO[bytes]) -> None:
    library = module_folder / "a_library.py"
    library.write_text("")
    with ForkServer(("a_library",), tell=told.append, free_variables=FREE) as server:
        forked(server, errors, "exit", "0").wait()
        os.utime(library, (1, 1))
        assert server.start_program([*PROGRAM, "exit", "0"], stderr=errors) is None
    assert f"{library} has changed" in told[0]


def test_what_transformers_found_out_about_its_own_files_is_persistent_for_the_next_server(
    module_folder: Path, tmp_path: Path, told: list[str], errors: IO[bytes]
) -> None:
    (module_folder / "transformers" / "utils").mkdir(parents=True)
    (module_folder / "transformers" / "models").mkdir()
    (module_folder / "transformers" / "__init__.py").write_text(
        "from pathlib import Path\nfrom transformers.utils.import_utils import define_import_structure\n"
        "define_import_structure(Path(__file__).parent / 'models')\n"
    )
    (module_folder / "transformers" / "utils" / "__init__.py").touch()
    (module_folder / "transformers" / "utils" / "import_utils.py").write_text(
        "def define_import_structure(module_path, prefix=None):\n    return {frozenset(): {'models.a': {'A'}}}\n"
    )
    kept = tmp_path / "kept"
    with ForkServer(("transformers",), tell=told.append, imports_folder=kept, free_variables=FREE) as server:
        assert forked(server, errors, "exit", "0").wait() == 0
    assert json.loads((kept / "transformers.json").read_bytes())["structure"] == [[[], {"models.a": ["A"]}]]


def test_whoever_gave_up_waiting_finds_nothing_started_later(
    module_folder: Path, tmp_path: Path, told: list[str], errors: IO[bytes]
) -> None:
    (module_folder / "slow_library.py").write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)\n"
    )
    mark = tmp_path / "mark"
    with ForkServer(("slow_library",), tell=told.append, free_variables=FREE) as server:
        assert server.start_program([*PROGRAM, "touch", str(mark)], stderr=errors, wait_seconds=0.1) is None
        assert "no fork server within" in told[0]
        (tmp_path / "go").touch()
        forked(server, errors, "exit", "0").wait()
        assert not mark.exists()
        forked(server, errors, "touch", str(mark)).wait()
        assert mark.exists()


def _slow(folder: Path, name: str, gate: Path) -> None:
    """A module that is loaded once a file is there."""
    (folder / f"{name}.py").write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n"
    )


def test_what_waits_is_forked_between_two_modules_with_what_is_loaded_by_then(
    module_folder: Path, tmp_path: Path, told: list[str], errors: IO[bytes]
) -> None:
    gates = [tmp_path / "first", tmp_path / "second"]
    for name, gate in zip(("slow_first", "slow_second"), gates, strict=True):
        _slow(module_folder, name, gate)

    def waits() -> bool:
        gates[0].touch()
        return False

    modules = ("slow_first", "slow_second")
    with ForkServer(modules, tell=told.append, free_variables=FREE, patience_seconds=300) as server:
        program = server.start_program([*PROGRAM, "exit", "3"], stderr=errors, stop_requested=waits)
        assert program is not None
        opened.append(program)
        gates[1].touch()  # it would load the second one itself where it needed it; the server loads it behind it
        assert program.wait(120) == 3
        assert forked(server, errors, "exit", "4").wait(120) == 4
    assert told == []


def test_a_server_that_turns_out_unfit_after_an_answer_is_not_started_again(
    module_folder: Path, tmp_path: Path, told: list[str], errors: IO[bytes]
) -> None:
    _slow(module_folder, "slow_first", tmp_path / "first")
    (module_folder / "wrong_second.py").write_text("raise ValueError('no such device')\n")

    def waits() -> bool:
        (tmp_path / "first").touch()
        return False

    modules = ("slow_first", "wrong_second")
    with ForkServer(modules, tell=told.append, free_variables=FREE, patience_seconds=300) as server:
        program = server.start_program([*PROGRAM, "exit", "3"], stderr=errors, stop_requested=waits)
        assert program is not None
        opened.append(program)
        # Its fork server is gone meanwhile, so that nobody knows its exit code.
        program.wait(120)
        assert eventually(lambda: server.pid is None)
        for _ in range(2):
            assert server.start_program([*PROGRAM, "exit", "0"], stderr=errors) is None
    assert told == ["there is no fork server, so each program loads its libraries itself: ValueError: no such device"]


def test_who_waits_for_it_hears_a_stop(module_folder: Path, tmp_path: Path, told: list[str], errors: IO[bytes]) -> None:
    _slow(module_folder, "slow_library", tmp_path / "go")
    mark = tmp_path / "mark"
    with ForkServer(("slow_library",), tell=told.append, free_variables=FREE, patience_seconds=300) as server:
        command = [*PROGRAM, "touch", str(mark)]
        with pytest.raises(NotStartedError):
            server.start_program(command, stderr=errors, stop_requested=lambda: True)
        (tmp_path / "go").touch()
        assert forked(server, errors, "exit", "0").wait(120) == 0
    assert not mark.exists()
    assert told == []


def test_a_killed_server_is_started_again_and_its_programs_go_on(
    server: ForkServer, told: list[str], errors: IO[bytes]
) -> None:
    program = forked(server, errors, "wait")
    assert program.stdout is not None
    assert int(program.stdout.readline()) == program.pid
    first = server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: server.pid is None)
    assert program.poll() is None
    assert forked(server, errors, "exit", "3").wait() == 3
    assert server.pid not in (None, first)
    assert "the fork server ended" in told[0]
    assert said(program) == "bye\n"
    assert program.returncode == -signal.SIGKILL, "nobody knows its code"


def test_a_server_that_dies_over_a_request_is_no_reason_to_start_it_twice(
    server: ForkServer, errors: IO[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked(server, errors, "exit", "0").wait()
    gc.collect()  # what tests before have left open must not be closed meanwhile
    before = {path.name for path in Path("/proc/self/fd").iterdir()}

    def kill_first(*_: object) -> None:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        raise BrokenPipeError

    monkeypatch.setattr(fork_client, "send", kill_first)
    with pytest.raises(BrokenPipeError):
        server.start_program([*PROGRAM, "touch", str(tmp_path / "mark")], stderr=errors)
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == before
    assert eventually(lambda: server.pid is None)
    monkeypatch.undo()
    assert forked(server, errors, "exit", "0").wait() == 0
    assert not (tmp_path / "mark").exists()


def test_it_ends_with_its_owner_even_one_that_is_killed(tmp_path: Path) -> None:
    owner = f"""
import sys
from luthier.core.child_process.fork_client import ForkServer
server = ForkServer(("json",), tell=print)
with open({str(tmp_path / "log")!r}, "wb") as log:
    program = server.start_program({[*PROGRAM, "wait"]!r}, stderr=log)
print(server.pid, int(program.stdout.readline()), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert all(runs(pid) for pid in nonempty(pids))
        process.kill()
    # The program reads its input to the end, which comes with the death of its owner.
    assert eventually(lambda: not any(map(runs, pids)))


def test_closed_it_ends(told: list[str], errors: IO[bytes]) -> None:
    with ForkServer((), tell=told.append, free_variables=FREE) as server:
        forked(server, errors, "exit", "0").wait()
        pid = server.pid
        assert pid is not None
    assert not runs(pid)
    assert told == []
