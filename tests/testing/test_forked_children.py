"""What tests start is forked from the session's fork server, and is what an exec makes of it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from tests.clock import wait_until
from tests.fixtures import forked_children
from tests.fixtures.forked_children import FORKED, TEMPLATE, SessionForkServer, environment_kept
from tests.fixtures.forked_command import shell_folder
from tests.vacuous import nonempty

from luthier.core.child_process import process
from luthier.core.child_process.process import ChildProcess, run_child
from luthier.core.import_string import import_string
from luthier.core.system.process_setup import keep_few_kernels, keep_products_exact, wait_briefly
from luthier.testing.servers import running_server

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork servers are Linux's own")
SAY = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv[1:], "name": __name__, "folder": os.getcwd(), "path": sys.path,
    "environment": dict(os.environ), "stdin": sys.stdin.read(), "torch": "torch" in sys.modules,
}))
sys.stderr.write("said")
sys.exit(3)
"""
CHILD = "tests.core.child_process.children"


@pytest.fixture
def server(fork_server: SessionForkServer) -> SessionForkServer:
    """The fork server once it has loaded its libraries, on however slow a machine."""
    for _ in range(20):
        fork_server.told.clear()
        with fork_server.script("pass") as script:
            code = script.wait(600)
        if code == 0 and not fork_server.told:
            return fork_server
    pytest.fail(f"it forks nothing: {fork_server.told}")


def test_libraries_are_loaded_and_nothing_stands_against_a_fork(server: SessionForkServer) -> None:
    with server.script(SAY) as script:
        out, _ = script.communicate()
    assert json.loads(out)["torch"]
    assert server.told == []


def test_a_script_is_what_an_exec_makes_of_it(server: SessionForkServer, tmp_path: Path) -> None:
    environment = os.environ | {"LUTHIER_HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    with server.script(SAY, "a b", 3, environment=environment) as script:
        out, errors = script.communicate()
        assert (script.returncode, errors) == (3, "said")
    command = [sys.executable, "-m", "tests.fixtures.run_code", SAY, "a b", "3"]
    executed = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    ours, theirs = json.loads(out), json.loads(executed.stdout)
    assert (ours.pop("torch"), theirs.pop("torch")) == (True, False)
    assert list(dict.fromkeys(ours.pop("path"))) == list(dict.fromkeys(theirs.pop("path")))
    assert ours == theirs
    assert server.told == []


def test_what_libraries_and_trainings_set_is_no_difference(server: SessionForkServer) -> None:
    for name in nonempty(("onnxruntime_genai", "polars", "sklearn", "torch._inductor.async_compile")):
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    for keep in (keep_products_exact, keep_few_kernels, wait_briefly):
        keep()
    with server.script("pass") as script:
        assert script.wait(600) == 0
    assert server.told == []


LOOK = """
import json, os
from luthier.features.planning import rehearsal
from luthier.ml.inference.models.templates import probe
print(json.dumps(["of a test" in probe._tried, rehearsal._known.get("of a test"), os.fsync.__name__]))
"""


def test_it_knows_what_this_process_has_found_and_does_not_wait_for_the_disk(server: SessionForkServer) -> None:
    from luthier.features.planning import rehearsal
    from luthier.ml.inference.models.templates import probe

    probe._tried.add("of a test")
    rehearsal._known["of a test"] = {"path": None}
    with server.script(LOOK) as script:
        out, _ = script.communicate()
    assert json.loads(out) == [True, {"path": None}, "no_fsync"]


def test_a_command_line_is_a_module(server: SessionForkServer) -> None:
    with server.module("luthier", "--version") as command:
        out, errors = command.communicate()
    assert (command.returncode, errors) == (0, "")
    assert version("luthier") in out
    with server.module("luthier", "no-such-command") as command:
        _, errors = command.communicate()
    assert command.returncode == 2
    assert "no-such-command" in errors


@pytest.fixture
def all_forked(server: SessionForkServer, monkeypatch: pytest.MonkeyPatch) -> SessionForkServer:
    """Children of this package's tests are forked, too."""
    functions = {f"{CHILD}:{name}" for name in ("answer", "double", "fail")}
    monkeypatch.setattr(forked_children, "FORKED", FORKED | functions)
    return server


def test_a_child_is_forked_and_speaks_as_an_executed_one(all_forked: SessionForkServer, tmp_path: Path) -> None:
    events: list[object] = []
    assert run_child(f"{CHILD}:double", 3, on_event=events.append) == 6
    assert events == [{"at": 0}, {"at": 1}, {"at": 2}]
    with ChildProcess(f"{CHILD}:answer", None, log=tmp_path / "log") as child:
        pid, _ = child.request(1)
        assert pid == child.pid
        assert psutil.Process(pid).ppid() == all_forked.pid
        assert os.getpgid(pid) == pid
    assert child.returncode == 0
    assert not psutil.pid_exists(pid)
    assert all_forked.told == []


@pytest.mark.parametrize("end", ["kill", "stop", "itself"])
def test_its_end_is_seen(all_forked: SessionForkServer, end: str) -> None:
    with ChildProcess(f"{CHILD}:fail", "late" if end != "itself" else "killed") as child:
        if end == "kill":
            child.kill()
        elif end == "stop":
            assert child.stop(30) == -signal.SIGTERM
        assert child.wait() == (-signal.SIGTERM if end == "stop" else -signal.SIGKILL)
    assert all_forked.told == []


def test_files_have_the_numbers_that_the_child_knows_them_by(server: SessionForkServer, tmp_path: Path) -> None:
    opened = [(tmp_path / str(number)).open("wb") for number in range(3)]
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        # Numbers of one another: none may be overwritten before it is copied.
        numbers = [file.fileno() for file in opened[1:] + opened[:1]]
        code = f"import os\nfor number in {numbers}: os.write(number, str(number).encode())"
        standard = dict.fromkeys((0, 1, 2), nothing.fileno())
        files = standard | {number: file.fileno() for number, file in zip(numbers, opened, strict=True)}
        command = [sys.executable, "-m", "tests.fixtures.run_code", code]
        program = server.fork(command, os.environ, files, is_child=False)
        assert program is not None, server.told
        assert program.wait(600) == 0
    for file, number in nonempty(zip(opened, numbers, strict=True)):
        file.close()
        assert Path(file.name).read_text() == str(number)


def test_a_child_with_variables_of_its_own_is_executed(all_forked: SessionForkServer) -> None:
    with ChildProcess(f"{CHILD}:answer", None, num_threads=3) as child:
        assert psutil.Process(child.request(1)[0]).ppid() == os.getpid()
    assert all("the environment differs in OMP_NUM_THREADS" in line for line in nonempty(all_forked.told))


def test_other_children_are_executed(server: SessionForkServer) -> None:
    with ChildProcess(f"{CHILD}:answer", None) as child:
        assert psutil.Process(child.request(1)[0]).ppid() == os.getpid()
    assert process.subprocess.PIPE == subprocess.PIPE
    assert server.told == []


def test_where_there_may_be_plug_ins_it_is_executed(
    all_forked: SessionForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with ChildProcess(f"{CHILD}:answer", None) as child:
        assert psutil.Process(child.request(1)[0]).ppid() == os.getpid()


def test_what_is_forked_exists() -> None:
    for name in nonempty(FORKED):
        assert callable(import_string(name))


def test_what_is_forked_dies_with_the_fork_server_of_a_session_that_is_killed(tmp_path: Path) -> None:
    code = """
import os, sys, time
from tests.fixtures.forked_children import SessionForkServer
os.environ.pop("TESTS_FORK_TEMPLATE", None)
server = SessionForkServer()
server._modules = ("json",)
script = server.script("import os, time; print(os.getppid(), flush=True); time.sleep(600)")
print(server.told, script.pid, script.stdout.readline().strip(), server.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        told, *pids = owner.stdout.readline().split()
        owner.kill()
    assert told == "[]"
    script, parent, forker = map(int, pids)
    assert parent == forker
    deadline = time.monotonic() + 60
    while any(_runs(pid) for pid in (script, forker)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


ASKING = f"""
import os, sys, time
from tests.fixtures import forked_children
from luthier.core.child_process.process import ChildProcess
forked_children.FORKED |= {{"{CHILD}:answer"}}
with ChildProcess("{CHILD}:answer", None) as child:
    print(os.getpid(), child.request(1)[0], flush=True)
    time.sleep(float(sys.argv[1]))
"""


def test_children_of_what_is_forked_are_forked_and_die_with_it(server: SessionForkServer) -> None:
    with server.script(ASKING, 0) as script:
        out, errors = script.communicate()
        assert (script.returncode, errors) == (0, "")
    assert not any(_runs(int(pid)) for pid in nonempty(out.split()))
    with server.script(ASKING, 600) as script:
        asker, child = map(int, script.stdout.readline().split())
        assert asker == script.pid
        assert {psutil.Process(pid).ppid() for pid in (asker, child)} == {server.pid}
        script.kill()
        wait_until(lambda: not _runs(child))
    assert server.told == []


def test_the_processes_of_a_server_are_forked_and_die_with_it(server: SessionForkServer, tmp_path: Path) -> None:
    others = {one.pid for one in psutil.Process(server.pid).children()}  # servers that other tests share
    with running_server(tmp_path / "home", popen=server.popen_text) as running:
        commands = {one.pid: one.cmdline() for one in psutil.Process(server.pid).children() if one.pid not in others}
        own = [pid for pid, words in commands.items() if "luthier.server.home" in words or "worker" in words]
        assert len(own) == 2, commands
        running.process.kill()
        wait_until(lambda: not any(map(_runs, own)))
    with running_server(tmp_path / "home", num_workers=0, popen=server.popen_text) as running:
        assert running.key is None, "it has the one that was made before"
        assert running.stop() == 0


def test_a_command_that_a_shell_finds_is_forked_wherever_it_is(server: SessionForkServer, tmp_path: Path) -> None:
    folder = shell_folder(tmp_path)
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "LUTHIER_HOME": "home"}
    script = "ODD=1 luthier runs list --json > list; luthier no-such-command 2> errors"
    ended = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == 2
    assert json.loads((tmp_path / "list").read_text()) == []
    assert "no-such-command" in (tmp_path / "errors").read_text()
    assert (tmp_path / "home").is_dir()


def test_what_a_test_leaves_in_the_environment_ends_with_it_and_keeps_nothing_from_being_forked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GONE_TESTED", "before")
    monkeypatch.setenv("CHANGED_TESTED", "before")
    monkeypatch.delenv("TORCH_WARM_POOL", raising=False)
    with environment_kept():
        os.environ |= {"CHANGED_TESTED": "after", "MLFLOW_TRACKING_URI": "http://host", "TORCH_WARM_POOL": "0"}
        del os.environ["GONE_TESTED"]
    assert (os.environ["GONE_TESTED"], os.environ["CHANGED_TESTED"]) == ("before", "before")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert os.environ.pop("TORCH_WARM_POOL") == "0", "what libraries set while they are loaded hinders no fork"


def test_a_server_of_a_session_is_forked_from_that_of_the_run_and_ends_with_its_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TEMPLATE, raising=False)
    of_run = SessionForkServer()
    of_run._modules = ("json",)
    with of_run:
        with of_run.script("pass") as script:  # it listens
            script.communicate()
        monkeypatch.setenv(TEMPLATE, of_run.address)
        # As a process of pytest-xdist has them; COLUMNS is of readline, which pytest loads in the one that starts it.
        for name in ("COLUMNS", "LINES", "PYTEST_XDIST_TESTRUNUID", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
            monkeypatch.setenv(name, "80")
        own = SessionForkServer()
        own._modules = ("json",)
        with own:
            with own.script("import os; print(os.getppid())") as script:
                out, errors = script.communicate()
            assert (int(out), errors) == (own.pid, "")
            pid = own.pid
            assert psutil.Process(pid).ppid() == of_run.pid
        assert pid is not None
        wait_until(lambda: not _runs(pid))
        assert of_run.told == own.told == []
