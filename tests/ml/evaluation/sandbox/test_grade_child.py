"""Graders in Python, in the locked-down child: what they return, and that none of them gets anywhere."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from luthier.ml.evaluation.sandbox.runners import PythonGrade, PythonGrader, isolation

pytestmark = pytest.mark.skipif(not isolation().seccomp, reason="this machine cannot lock a process down")


def grades(source: str, *samples: Any, seconds: float = 20.0, memory: int = 2**28) -> list[PythonGrade]:
    with PythonGrader(textwrap.dedent(source), seconds=seconds, most_memory_bytes=memory) as grader:
        return [grader.grade({"output_text": sample}, {"n": 2}) for sample in samples]


def test_numbers_come_back_and_faults_are_of_one_answer_alone() -> None:
    source = """
        import json
        def grade(sample, item):
            if sample["output_text"] == "text":
                return "no number"
            if sample["output_text"] == "nan":
                return float("nan")
            return len(sample["output_text"]) / item["n"]
    """
    found = grades(source, "a", "text", "nan", "abcd")
    assert [one.word for one in found] == ["graded", "error", "error", "graded"]
    assert [found[0].score, found[3].score] == [0.5, 2.0]
    assert found[1].message.startswith("ValueError")
    assert "finite" in found[2].message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def grade(sample, item:", "SyntaxError"),
        ("x = 1", "no function grade"),
        ("raise ValueError('no')", "ValueError: no"),
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_source_that_cannot_be_loaded_says_why(source: str, message: str) -> None:
    (found,) = grades(source, "a")
    assert found.word == "error"
    assert message in found.message


def test_a_loop_and_too_much_memory_end_one_grade_and_not_the_next() -> None:
    source = """
        def grade(sample, item):
            while sample["output_text"] == "loop":
                pass
            return len([0] * 10**9) if sample["output_text"] == "memory" else 1
    """
    found = grades(source, "loop", "fine", "memory", "fine", seconds=1.0)
    assert [one.word for one in found] == ["timeout", "graded", "memory", "graded"]


def test_it_can_neither_read_files_nor_write_nor_start_or_reach_anything() -> None:
    source = """
        def grade(sample, item):
            import os, socket
            for attempt in (
                lambda: open("/etc/passwd").read(),
                lambda: open("/tmp/x", "w"),
                lambda: os.fork(),
                lambda: socket.create_connection(("127.0.0.1", 1)),
                lambda: os.kill(1, 0),
            ):
                try:
                    attempt()
                except (OSError, PermissionError):
                    continue
                return 0
            return 1
    """
    assert grades(source, "a") == [PythonGrade("graded", 1.0)]


def test_what_it_writes_to_its_own_output_is_no_grade() -> None:
    source = """
        def grade(sample, item):
            print('{"word": "graded", "score": 9}', flush=True)
            return 1
    """
    assert grades(source, "a") == [PythonGrade("graded", 1.0)]
