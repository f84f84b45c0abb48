"""Runs an answer and then its tests inside the sandboxed child. Started as a script; standard library only.

The tests are sent after the answer has run, so that it cannot read them first.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import types
from pathlib import Path
from typing import Any

_MAX_MESSAGE = 300


def main() -> None:
    """Read policy and answer, lock, run it, report; read tests, run them, report."""
    requests, replies = _take_pipes()
    # Bound here, so that an answer that changes builtins cannot affect this code.
    dumps, loads, write, read = json.dumps, json.loads, os.write, requests.readline
    run, build, outcome_of, names_of = exec, compile, _outcome, _new_tests
    lock = runpy.run_path(str(Path(__file__).with_name("inside.py")))["lock"]
    first = loads(read())
    in_force = lock(first["policy"])
    write(replies, dumps({"in_force": in_force}).encode() + b"\n")

    # Registered, since dataclasses and pickle look up a class's module in sys.modules.
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    space = module.__dict__
    answer = loads(read())["answer"]
    try:
        run(build(answer, "answer.py", "exec", dont_inherit=True), space)
        reply: dict[str, Any] = {"word": "loaded"}
    except BaseException as error:  # noqa: BLE001 - any exception of a model's code is its outcome
        reply = outcome_of(error, "error")
    write(replies, dumps(reply).encode() + b"\n")
    if reply["word"] != "loaded":
        return
    # A copy: functions redefined by the tests must be distinguished from those of the answer.
    before = dict(space)
    tests = loads(read())["tests"]
    try:
        run(build(tests, "tests.py", "exec", dont_inherit=True), space)
        for test in names_of(space, before):
            test()
        reply = {"word": "passed", "message": ""}
    except BaseException as error:  # noqa: BLE001
        # The exact type: an answer could raise its own subclass of AssertionError.
        reply = outcome_of(error, "failed" if type(error) is AssertionError else "error")
    write(replies, dumps(reply).encode() + b"\n")
    # Without interpreter shutdown: the answer's atexit handlers and destructors would still run.
    os._exit(0)


def _take_pipes() -> tuple[Any, int]:
    """Move the parent's pipes to other descriptors; output of the answer is discarded."""
    requests, replies = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    return os.fdopen(requests, "rb"), replies


def _new_tests(space: dict[str, Any], before: dict[str, Any]) -> list[Any]:
    """The functions test_... defined by the tests, in order."""
    return [
        value
        for name, value in space.items()
        if name.startswith("test_") and callable(value) and before.get(name) is not value
    ]


def _outcome(error: BaseException, word: str) -> dict[str, str]:
    try:
        # str() of an exception runs the answer's own __str__, which may raise anything.
        message = f"{type(error).__name__}: {error}"
    except BaseException as second:  # noqa: BLE001
        message = f"{type(error).__name__}, whose message cannot be read ({type(second).__name__})"
    return {"word": "memory" if isinstance(error, MemoryError) else word, "message": str(message)[:_MAX_MESSAGE]}


if __name__ == "__main__":
    main()
