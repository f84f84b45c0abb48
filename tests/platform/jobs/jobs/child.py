"""Stands for a training: counts steps into a file until 40, goes on where it was, ends in good order on SIGTERM.

    python child.py FOLDER COUNTER MODE

MODE: plain; slow (each step takes a moment); crash (dies at step 10 of its first attempt); poison (dies at once); held
(does not take the last step in its first attempt: whatever is to disturb it comes in time, on however slow a machine);
stubborn (held, and does not hear SIGTERM); wrong (says that the request is wrong); full (no room on the disk in its
first attempt); waiting (its first attempt finds that something elsewhere goes on).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from luthier.platform.processes.process import NOT_NOW, Outcome, write_outcome

STEPS = 40
SLOW_SECONDS = 0.03
"""Of a step where something is to happen in the middle of a job that does not wait for it."""
HELD_SECONDS = 0.005
"""Of a step of a job that waits for what is to happen."""


def main(folder: Path, counter: Path, mode: str) -> None:
    wish: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else lambda *_: wish.append(1))
    if mode == "wrong":
        error = {"type": "DataError", "came": "row 3 is empty", "expected": "text", "do": "fill it"}
        write_outcome(folder, Outcome(status="failed", error=error))
        return
    if mode == "full" and folder.name == "attempt-0001":
        sys.exit(NOT_NOW)
    if mode == "waiting" and folder.name == "attempt-0001":
        write_outcome(folder, Outcome(status="waiting", rest_seconds=30.0))
        return
    with (folder / "pid").open("w") as file:
        file.write(str(os.getpid()))
    while (done := int(counter.read_text()) if counter.exists() else 0) < STEPS:
        if mode == "poison" or (mode == "crash" and done == 10 and folder.name == "attempt-0001"):
            os.write(1, b"out of luck\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        if wish:
            write_outcome(folder, Outcome(status="paused"))
            return
        if mode != "plain":
            time.sleep(SLOW_SECONDS if mode == "slow" else HELD_SECONDS)
        if mode in ("held", "stubborn") and done == STEPS - 1 and folder.name == "attempt-0001":
            continue
        partial = counter.with_suffix(".new")
        partial.write_text(str(done + 1))
        partial.rename(counter)
    write_outcome(folder, Outcome(status="succeeded"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
