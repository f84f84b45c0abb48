"""A function run by several processes in one process group, as torchrun would start them, for tests.

The processes are forked from one server that has loaded torch and the loop already, so each costs a fraction of a
second; they meet on the loopback and compute with one thread.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from luthier.ml.training.distributed import ALONE, joined

_PRELOADED = ["luthier.ml.training.loop", "luthier.testing.tiny"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How one process ended.

    Attributes:
        exit_code: negative for a signal.
        value: what the function returned.
        error: the traceback; empty where there was none.
    """

    exit_code: int | None
    value: Any = None
    error: str = ""


def in_world(
    size: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 60.0, joins: bool = True
) -> tuple[Ended, ...]:
    """Call `function(world, *arguments)` in `size` processes and wait for all; function and arguments are pickled.

    Args:
        size: The number of processes.
        function: Called in each of them; it must be importable.
        arguments: Its further arguments.
        timeout_seconds: How long a rank waits for the others, and this process for all of them.
        joins: Whether processes join the process group first. If not, the function gets `ALONE` and may join the world
            that the environment names.

    Returns:
        How each process ended, by rank.
    """
    context: Any = multiprocessing.get_context("forkserver")
    # Loaded once in the server: each rank is forked from it and skips seconds of imports.
    context.set_forkserver_preload(_PRELOADED)
    # Port 0 and a store in this process: no port can be taken by another program between choice and use.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    started = []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        place = (rank, size, store.port, timeout_seconds if joins else None)
        process = context.Process(target=_one, args=(theirs, place, function, arguments))
        process.start()
        # Without this copy of the writing end, a rank that dies shows as EOF instead of a wait until the time is up.
        theirs.close()
        started.append((process, ours))
    ended = []
    for process, ours in started:
        value, error = None, "it ended without an answer"
        try:
            if ours.poll(timeout_seconds):
                value, error = ours.recv()
        except EOFError:
            pass
        process.join(timeout_seconds)
        if process.is_alive():
            process.kill()
            process.join()
        ended.append(Ended(process.exitcode, value, error))
    return tuple(ended)


def _one(
    answer: Connection,
    place: tuple[int, int, int, float | None],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    rank, size, port, timeout_seconds = place
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    # Ranks share the cores of one machine.
    torch.set_num_threads(1)
    try:
        if timeout_seconds is None:
            answer.send((function(ALONE, *arguments), ""))
            return
        with joined("cpu", timeout_seconds=timeout_seconds) as world:
            answer.send((function(world, *arguments), ""))
    except Exception:  # noqa: BLE001 - any failure must reach the test
        answer.send((None, f"rank {rank}: {traceback.format_exc()}"))
