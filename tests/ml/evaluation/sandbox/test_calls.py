"""The seccomp program, run by a small interpreter of ours, on both machines that it is made for."""

import struct

import pytest

from luthier.core.errors import RequestError
from luthier.ml.evaluation.sandbox import runners
from luthier.ml.evaluation.sandbox.process import filter_program

ALLOWED, KILLED, NOT_PERMITTED, NOT_THERE = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Names of calls by machine, as the kernel's own tables number them.
NUMBERS = {
    "x86_64": {"read": 0, "openat": 257, "clone": 56, "clone3": 435, "socket": 41, "kill": 62, "execve": 59},
    "aarch64": {"read": 63, "openat": 56, "clone": 220, "clone3": 435, "socket": 198, "kill": 129, "execve": 221},
}
MORE = {
    "x86_64": {"socketpair": 53, "prlimit64": 302, "fcntl": 72, "unlinkat": 263, "io_uring_setup": 425, "ptrace": 101},
    "aarch64": {"socketpair": 199, "prlimit64": 261, "fcntl": 25, "unlinkat": 35, "io_uring_setup": 425, "ptrace": 117},
}


def verdict(machine, number, *arguments, architecture=None):
    """What the program returns, by the rules of classic BPF: struct seccomp_data in, one 32-bit word out."""
    data = struct.pack("=iIQ6Q", number, architecture or ARCHITECTURE[machine], 0, *[*arguments, *[0] * 6][:6])
    program = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    place = held = 0
    while True:
        operation, if_true, if_false, constant = program[place]
        place += 1
        if operation == 0x20:
            (held,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x54:
            held &= constant
        elif operation == 0x15:
            place += if_true if held == constant else if_false
        elif operation == 0x35:
            place += if_true if held >= constant else if_false
        else:
            assert operation == 0x06
            return constant


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_what_a_call_comes_to(machine):
    calls = NUMBERS[machine] | MORE[machine]
    for name, arguments, expected in (
        ("read", (), ALLOWED),
        ("openat", (0, 0, 0), ALLOWED),
        ("openat", (0, 0, 0o2000000), ALLOWED),  # O_CLOEXEC
        ("openat", (0, 0, 0o1), NOT_PERMITTED),
        ("openat", (0, 0, 0o2), NOT_PERMITTED),
        ("openat", (0, 0, 0o100), NOT_PERMITTED),
        ("openat", (0, 0, 0o1000), NOT_PERMITTED),
        ("openat", (0, 0, 0o20200000), NOT_PERMITTED),  # O_TMPFILE
        ("clone", (0x3D0F00,), ALLOWED),  # a thread, as the C library starts one
        ("clone", (17,), NOT_PERMITTED),  # fork
        ("clone3", (), NOT_THERE),
        ("prlimit64", (0,), ALLOWED),
        ("prlimit64", (1,), NOT_PERMITTED),
        ("fcntl", (0, 1), ALLOWED),
        ("fcntl", (0, 8), NOT_PERMITTED),  # F_SETOWN
        ("socketpair", (1, 1), ALLOWED),
        ("socketpair", (1, 0o2000001), ALLOWED),  # SOCK_CLOEXEC
        ("socketpair", (1, 2), NOT_PERMITTED),
        ("socketpair", (2, 1), NOT_PERMITTED),
        *((name, (), NOT_PERMITTED) for name in ("socket", "kill", "execve", "unlinkat", "io_uring_setup", "ptrace")),
    ):
        assert verdict(machine, calls[name], *arguments) == expected, (name, arguments)


def test_calls_by_another_table_pass_nowhere():
    assert verdict("x86_64", 0, architecture=ARCHITECTURE["aarch64"]) == KILLED
    assert verdict("x86_64", 0x40000000) == NOT_PERMITTED  # x32
    assert filter_program("riscv64") is None


def test_without_a_filter_no_code_is_run(monkeypatch):
    monkeypatch.setattr(runners, "isolation", lambda: runners.Isolation(False, True, True))
    with pytest.raises(RequestError, match="cannot lock a process down"):
        runners.run_tests("x = 1", "assert x", seconds=5, most_memory_bytes=2**28)


def test_what_is_in_force_is_said():
    assert "may read what the user may read" in runners.Isolation(True, False, False).sentence
    assert "no socket (by seccomp)" in runners.Isolation(True, True, False).sentence
    assert "an empty network namespace" in runners.Isolation(True, True, True).sentence
