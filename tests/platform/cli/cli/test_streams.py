"""Work goes on where no one can read its progress any more; only an answer needs a reader."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_TASK = """
import os
from luthier.platform.cli.console import stderr_console
from luthier.platform.cli.progress import make_progress

with make_progress().task("Training", 2, "step") as task:
    os.read(0, 1)  # until nobody reads stderr
    task.note("loss 1.5")
    task.advance(2)
    stderr_console().print("a warning")
stderr_console().print("Error: the last word")
print("saved")
"""


@pytest.mark.parametrize("place", ["pipe", "terminal"])
def test_work_goes_on_without_a_reader_of_its_progress(place: str) -> None:
    """As `luthier train recipe.yaml 2>&1 | tee log` at Ctrl-C, or in a terminal that is closed."""
    reader, writer = os.pipe() if place == "pipe" else os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", _TASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer, text=True
    ) as process:
        os.close(writer)
        os.read(reader, 1)  # the task has begun
        os.close(reader)
        out, _ = process.communicate("x")
    assert (out, process.returncode) == ("saved\n", 0)


def test_the_last_word_reaches_a_reader() -> None:
    done = subprocess.run([sys.executable, "-c", _TASK], input="x", capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[0] == "Training: 0/2 steps (0%)"
    assert "a warning" in done.stderr.splitlines()
    assert done.stderr.splitlines()[-1] == "Error: the last word"
