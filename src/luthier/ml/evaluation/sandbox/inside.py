"""Permanently restricts the calling process. Runs inside the child: standard library only.

Sources: Linux man-pages prctl(2), seccomp(2), unshare(2), getrlimit(2); Linux kernel documentation, "Landlock:
unprivileged access control".
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import struct
import sys
from pathlib import Path
from typing import Any

_SET_NO_NEW_PRIVS, _SET_SECCOMP, _SECCOMP_FILTER, _SET_DEATH_SIGNAL, _SIGKILL = 38, 22, 2, 1, 9
_NEW_USER, _NEW_NETWORK, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _VERSION_FLAG, _PATH_BENEATH = 444, 445, 446, 1, 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
# Number of file rights per Landlock version; from 4 on it has two network rights, from 6 two scopes.
_NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NUM_RIGHTS_NOW = 16
# Without types: mypy judges other systems, too, on which this is never run.
_os: Any = os
_limits: Any = resource


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def lock(policy: dict[str, Any]) -> dict[str, bool]:
    """Drop all privileges outside the policy, and report the active restrictions.

    Args:
        policy: `limits` (name of a resource limit -> value), `readable` (paths), `root` (a folder for chroot, after all
            imports; None for none), `filter` (hex of a seccomp program, empty if there is none for this machine).

    Returns:
        For each restriction whether it is active. A restriction that the kernel rejects does not raise.
    """
    for name, value in policy["limits"].items():
        kind = getattr(_limits, name)
        most = _limits.getrlimit(kind)[1]
        # A hard limit can only be lowered.
        value = value if most == _limits.RLIM_INFINITY else min(value, most)
        try:
            _limits.setrlimit(kind, (value, value))
        except ValueError:  # macOS, which has no limit of address space
            if sys.platform.startswith("linux"):
                raise
    try:
        kernel = ctypes.CDLL(None, use_errno=True)
        # The kernel kills this process when its parent dies without closing it.
        kernel.prctl(_SET_DEATH_SIGNAL, _SIGKILL, 0, 0, 0)
        # Namespaces before the filter, which blocks unshare; no_new_privs allows an unprivileged process to load a
        # filter.
        has_namespace = kernel.unshare(_NEW_USER | _NEW_NETWORK | _NEW_IPC) == 0
        kernel.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        files = _restrict_files(kernel, policy["readable"])
        # The filter comes last: it blocks the system calls of the other restrictions.
        has_root = _change_root(policy["root"])
        seccomp = _filter(kernel, policy["filter"])
        return {"network_namespace": has_namespace, "landlock": files, "root": has_root, "seccomp": seccomp}
    except (AttributeError, OSError):  # no Linux
        return {"network_namespace": False, "landlock": False, "root": False, "seccomp": False}


def _filter(kernel: ctypes.CDLL, hexadecimal: str) -> bool:
    code = bytes.fromhex(hexadecimal)
    # struct sock_fprog: number of instructions of 8 bytes, pointer to them. `code` must live until the call returns.
    program = _Program(len(code) // 8, code)
    refused: int = kernel.prctl(_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(program), 0, 0) if code else 1
    return refused == 0


def _change_root(folder: str | None) -> bool:
    """chroot to the folder: allowed in an own user namespace, and by Landlock."""
    if folder is None:
        return False
    try:
        _os.chroot(folder)
        os.chdir("/")
    except OSError:
        return False
    return True


def _restrict_files(kernel: ctypes.CDLL, readable: list[str]) -> bool:
    # With the version flag the call creates no rule set and returns the newest supported version.
    version = kernel.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    if version < 1:
        return False
    # All rights of this version are handled, so each is denied unless a rule below grants it.
    rights = (1 << _NUM_RIGHTS.get(version, _NUM_RIGHTS_NOW)) - 1
    attributes = struct.pack("=QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    # An older kernel rejects a struct that is longer than its own.
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = kernel.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    for path in readable:
        if not Path(path).exists():
            continue
        place = os.open(path, _os.O_PATH | _os.O_CLOEXEC)
        is_folder = stat.S_ISDIR(os.fstat(place).st_mode)
        # The kernel rejects folder rights on a regular file.
        allowed = _READ_FILE | ((_READ_DIR | _EXECUTE) if is_folder else 0)
        kernel.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    refused: int = kernel.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return refused == 0
