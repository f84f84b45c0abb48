"""A program for fork servers: `python -m tests.core.child_process.program WHAT [ARGUMENT]`."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from luthier.core.child_process.fork_server import inherited_state


def describe() -> dict[str, Any]:
    """All that an exec would have settled, as far as a program can see it."""
    main = sys.modules["__main__"]
    listed = list(Path("/proc/self/fd").iterdir())  # among them that of the listing itself
    descriptors = sorted(int(path.name) for path in listed if path.exists())
    return {
        "arguments": sys.argv[1:],
        "command": sys.orig_argv,
        "shown command": Path("/proc/self/cmdline").read_bytes().decode().rstrip("\0").split("\0"),
        "main": [__name__, main.__file__, main.__spec__ and main.__spec__.name, main.__package__],
        "flags": [str(sys.flags), sys.warnoptions, sys._xoptions],
        "path": sys.path,
        "environment": dict(os.environ),
        "environment of C": os.popen("env -0 | sort -z").read(),
        "signals": {number: str(signal.getsignal(number)) for number in range(1, signal.NSIG)},
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "descriptors": descriptors,
        "standard files": [Path(f"/proc/self/fd/{number}").readlink().name.split(":")[0] for number in range(3)],
        "buffering": [sys.stdout.line_buffering, sys.stderr.line_buffering],
        "session": os.getsid(0) == os.getpid() == os.getpgid(0),
        "state": inherited_state(),
        "garbage": [gc.isenabled(), gc.get_threshold()],
        "threads": [threading.active_count(), threading.current_thread() is threading.main_thread()],
        "input": sys.stdin.read(),
    }


def say(text: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(what: str, argument: str = "") -> None:
    """Do what the first argument says."""
    if what == "describe":
        say(json.dumps(describe()))
    elif what == "exit":
        sys.exit(int(argument))
    elif what == "raise":
        raise ValueError(argument)
    elif what == "signal":
        os.kill(os.getpid(), int(argument))
    elif what == "wait":
        say(str(os.getpid()))
        sys.stdin.read()
        say("bye")
    elif what == "random":
        import random
        import secrets

        import numpy as np

        product = np.eye(64) @ np.ones(64)
        say(json.dumps([random.random(), secrets.token_hex(4), np.random.random(), int(product.max())]))
    elif what == "touch":
        Path(argument).touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
