"""A program that leaves its memory to the system ends like any other: exit code, output, threads, exit functions."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, threading
from luthier.core.system.process_setup import run_to_end

class Kept:
    def __del__(self):
        print("taken down")

kept = Kept()
atexit.register(print, "exit function")
gate = threading.Event()
thread = threading.Thread(target=lambda: (gate.wait(60), print("thread")))
daemon = threading.Thread(target=threading.Event().wait, daemon=True)

def main():
    thread.start()
    daemon.start()
    print("main")
    threading.Timer(0.01, gate.set).start()
    ENDING

run_to_end(main)
"""


@pytest.mark.parametrize(
    ("ending", "code", "error"),
    [
        ("return 7", 0, ""),
        ("sys.exit(75)", 75, ""),
        ("sys.exit('no luck')", 1, "no luck"),
        ("raise ValueError('no luck')", 1, "ValueError: no luck"),
        ("sys.stderr.close()", 0, ""),
    ],
)
def test_threads_exit_functions_output_and_exit_code_are_those_of_any_program(
    ending: str, code: int, error: str
) -> None:
    command = [sys.executable, "-c", PROGRAM.replace("ENDING", ending)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines() == ["main", "thread", "exit function"], "and nothing is taken down"
    assert ended.returncode == code
    assert ended.stderr.splitlines()[-1:] == ([error] if error else [])
