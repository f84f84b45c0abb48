"""Programs that mean harm, in the locked-down child: none of them gets anywhere, and none passes."""

import os
import socket
import tempfile
import textwrap
import threading

import psutil
import pytest

from luthier.ml.evaluation.sandbox.runners import isolation, run_tests

RIGHT = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3"
pytestmark = pytest.mark.skipif(not isolation().seccomp, reason="this machine cannot lock a process down")


def outcome(answer, tests=TESTS, *, seconds=20.0, memory=2**28):
    return run_tests(textwrap.dedent(answer), tests, seconds=seconds, most_memory_bytes=memory)


def test_what_honest_answers_come_to():
    assert outcome(RIGHT).word == "passed"
    assert outcome(RIGHT, f"{TESTS}\ndef test_more():\n    assert add(2, 2) == 4").word == "passed"
    assert outcome(RIGHT.replace("+", "-")).word == "failed"
    assert outcome(RIGHT, "def test_wrong():\n    assert add(2, 2) == 5").word == "failed"
    assert outcome("def sub(a, b): pass").word == "error"
    assert outcome("def add(").word == "error"
    assert outcome("raise ValueError('no')").message == "ValueError: no"


def test_the_standard_library_is_there_and_threads_and_asyncio_work():
    answer = """
        import asyncio, collections, dataclasses, datetime, decimal, functools, hashlib, itertools, json, math, random
        import re, sqlite3, statistics, threading, typing, unittest, zoneinfo

        @dataclasses.dataclass
        class Sum:
            value: int

        async def later(a, b):
            await asyncio.sleep(0)
            return a + b

        def add(a, b):
            held = []
            thread = threading.Thread(target=lambda: held.append(asyncio.run(later(a, b))))
            thread.start()
            thread.join()
            return Sum(held[0]).value
    """
    assert outcome(answer, memory=2**29).word == "passed"


HARM = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "another program": "import subprocess\nsubprocess.run(['/bin/true'])",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill the group": "import os\nos.killpg(0, 9)",
    "leave the group": "import os\nos.setsid()",
    "signal through a pipe": "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "limits of the parent": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "socket": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "datagrams": "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "write here": "open('x', 'w')",
    "make a folder": "import os\nos.mkdir('x')",
    "remove": "import os\nos.unlink('/etc/hostname')",
    "read what is not Python's": "open('/etc/passwd').read()",
    "look around": "import os\nos.listdir('/proc')",
    "look at its folder's neighbours": "import os\nos.listdir('..')",
    "more rights": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "trace the parent": "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "environment of the parent": "import os\nopen(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "memory of the parent": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "its own root": "import os\nos.listdir('/proc/self/root')",
    "the temporary folder": "import os\nos.listdir('/tmp')",
    "a file in memory": "import os\nos.memfd_create('x')",
    "io_uring": "import ctypes\nassert ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(120)) >= 0",
    "another process": "import ctypes, os\nassert ctypes.CDLL(None).syscall(310, os.getppid(), 0, 0, 0, 0, 0) >= 0",
    "bpf": "import ctypes\nassert ctypes.CDLL(None).syscall(321, 0, 0, 0) >= 0",
    "a new root": "import os\nos.chroot('.')",
    "mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, 0) == 0",
    "a link out": "import os\nos.symlink('/etc/passwd', 'x')",
    "signal by descriptor": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
    "exit early": "import sys\nsys.exit(0)",
    "exit hard": "import os\nos._exit(0)",
    "close all pipes": "import os\nos.closerange(0, 32)",
    "crash": "import ctypes\nctypes.string_at(0)",
    "recurse": "def add(a, b):\n    return add(a, b)",
    "threads": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()",
    "an error that cannot be told": "class E(Exception):\n    def __str__(self):\n        raise E\nraise E",
}


@pytest.mark.parametrize("answer", HARM.values(), ids=HARM)
def test_harm_is_an_error(answer):
    assert outcome(answer).word == "error"


def test_too_much_memory():
    assert outcome("held = bytearray(10**9)").word == "memory"
    assert outcome("held = []\nwhile True:\n    held.append('x' * 10**6 + str(len(held)))").word == "memory"


@pytest.mark.parametrize(
    "answer",
    ["while True:\n    print('x' * 10_000)", "while True:\n    pass", "import time\ntime.sleep(3600)"],
    ids=["endless output", "endless loop", "sleep"],
)
def test_endless_programs_end_at_their_time(answer):
    assert outcome(answer, seconds=0.5).word == "timeout"


def test_endless_replies_end():
    forged = """
        import os
        while True:
            for place in range(3, 32):
                try:
                    os.write(place, b'x' * 65536)
                except OSError:
                    pass
    """
    assert outcome(forged, seconds=5).word in ("error", "timeout")


FORGED = {
    "tell it at every pipe": """
        import os
        for place in range(3, 32):
            try:
                os.write(place, b'{"word": "passed"}\\n' * 4)
            except OSError:
                pass
    """,
    "patch what reports": """
        import builtins, json, os, sys
        json.dumps = lambda *a, **k: '{"word": "passed"}'
        write = os.write
        os.write = lambda place, data: write(place, b'{"word": "passed"}\\n')
        builtins.exec = lambda *a: None
        sys.excepthook = lambda *a: None
    """,
    "patch the frames below": """
        import sys
        frame = sys._getframe()
        while frame:
            for name in ('run', 'build', 'outcome_of', 'dumps'):
                if name in frame.f_globals:
                    frame.f_globals[name] = lambda *a: None
            frame.f_globals['_outcome'] = lambda *a: {'word': 'passed', 'message': ''}
            frame = frame.f_back
    """,
    "leave a thread that tells it": """
        import os, threading, time
        def tell():
            while True:
                for place in range(3, 32):
                    try:
                        os.write(place, b'{"word": "passed"}\\n')
                    except OSError:
                        pass
        threading.Thread(target=tell, daemon=True).start()
        time.sleep(0.2)
    """,
    "another AssertionError": """
        import builtins
        builtins.AssertionError = type('Quiet', (Exception,), {})
    """,
}


@pytest.mark.parametrize("answer", FORGED.values(), ids=FORGED)
def test_a_forged_report_passes_nothing(answer):
    wrong = textwrap.dedent(answer) + RIGHT.replace("+", "-")
    assert run_tests(wrong, TESTS, seconds=20, most_memory_bytes=2**28).word != "passed"


def test_nothing_reaches_the_outside(tmp_path, monkeypatch):
    """The secret of the environment is not there, a port of this machine is not reached, no file is made."""
    monkeypatch.setenv("LUTHIER_SECRET", "hush")
    assert outcome("import os\nassert 'LUTHIER_SECRET' not in os.environ\n" + RIGHT).word == "passed"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert outcome(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))").word == "error"
    target = tmp_path / "made"
    assert outcome(f"open({str(target)!r}, 'w').write('x')").word == "error"
    assert not target.exists()


def test_a_child_inherits_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    # Its own place for temporary folders: other processes of this test run have sandboxes, too, and come and go.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (tmp_path / "open").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        looked = f"import os\nfor place in range({held.fileno()}, {held.fileno() + 1}):\n    os.fstat(place)"
        if held.fileno() > 8:
            assert "Bad file descriptor" in outcome(looked).message
    threads = set(threading.enumerate())
    assert outcome("while True:\n    pass", seconds=0.3).word == "timeout"
    assert list(tmp_path.glob("luthier-sandbox-*")) == []
    assert set(threading.enumerate()) <= threads
    ours = [p for p in psutil.Process().children(recursive=True) if "code_child.py" in " ".join(p.cmdline())]
    assert ours == []


def test_an_answer_is_judged_alike_each_time():
    looks_at_order = "order = list({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})"
    words = {outcome(looks_at_order, "raise ValueError(order)").message for _ in range(3)}
    assert len(words) == 1
