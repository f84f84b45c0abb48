"""The control groups of Linux that this process is in: where its limits of memory and processor time are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def control_groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """The groups that this process is in, up to the roots, each with whether it is one of the first version.

    A group has at most what each group above it has. In a container its own group is the root that it sees. Folders
    that do not exist are among them.

    Args:
        controller: As the first version names it: `memory`, `cpu`.
    """
    yield _ROOT, False
    yield _ROOT / controller, True
    try:
        lines = _OWN.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or nothing of /proc
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_first = controller in controllers.split(",")
        if (number != "0" and not is_first) or ".." in path:  # above what a container sees
            continue
        # Controllers that are mounted together (`cpu,cpuacct`) have a link each.
        root = _ROOT / controller if is_first else _ROOT
        own = root / path.strip("/")
        for folder in (own, *own.parents):
            if folder == root or root not in folder.parents:
                break
            yield folder, is_first
