"""Runs a grader's own function `grade(sample, item)` inside the sandboxed child. Started as a script.

Standard library only. The child serves one grader; it answers one pair of answer and row after the other.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import sys
import types
from pathlib import Path
from typing import Any


def main() -> None:
    """Read policy and source, lock, run the source, report; then grade what comes, a line each."""
    # Both before the restrictions: afterwards no file can be opened.
    shared = runpy.run_path(str(Path(__file__).with_name("code_child.py")))
    lock = runpy.run_path(str(Path(__file__).with_name("inside.py")))["lock"]
    requests, replies = shared["_take_pipes"]()
    # Bound here, so that a grader that changes builtins cannot affect this code.
    dumps, loads, write, read, outcome_of = json.dumps, json.loads, os.write, requests.readline, shared["_outcome"]
    run, build, number, is_finite = exec, compile, float, math.isfinite
    in_force = lock(loads(read())["policy"])
    write(replies, dumps({"in_force": in_force}).encode() + b"\n")

    module = types.ModuleType("grader")
    sys.modules["grader"] = module
    source = loads(read())["source"]
    reply: dict[str, Any] = {"word": "loaded"}
    try:
        run(build(source, "grader.py", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:  # noqa: BLE001 - any exception of a grader's code is its outcome
        reply = outcome_of(error, "error")
    grade = module.__dict__.get("grade")
    if reply["word"] == "loaded" and not callable(grade):
        reply = {"word": "error", "message": "it defines no function grade(sample, item)"}
    write(replies, dumps(reply).encode() + b"\n")
    while reply["word"] == "loaded" and (line := read()):
        asked = loads(line)
        try:
            score = number(grade(asked["sample"], asked["item"]))  # type: ignore[misc]
            graded = {"word": "graded", "score": score}
            if not is_finite(score):
                graded = {"word": "error", "message": f"it returned {score}, which is not a finite number"}
        except BaseException as error:  # noqa: BLE001
            graded = outcome_of(error, "error")
        write(replies, dumps(graded).encode() + b"\n")


if __name__ == "__main__":
    main()
