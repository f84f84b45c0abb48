"""One of several processes that train a run on this machine: a child process of `local`, or a worker of `ray`.

The environment says which process this is, as torchrun would set it. Rank 0 answers {"event": ...} as the loop
emits them and at the end {"result": ..., "refused_by": ...}. All else that is printed goes to a log.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.core.child_process.channel import Channel
from luthier.core.errors import PeerLostError
from luthier.core.events import Event
from luthier.platform.processes.stop_signals import stop_signals


def train_share(document: dict[str, Any], channel: Channel) -> None:
    """Train one share of a run in a child process; its answers are the events of the channel.

    Args:
        document: `home`, `run_id`, `plan`, `began` (seconds since the epoch; time is paid from then on).
        channel: of the child process.

    Raises:
        LuthierError: what is wrong with the run: another try would end the same way.
        SystemExit: another process of the run was lost, which is no error of this one.
    """
    from luthier.core.system.kernel_cache import keep_few_kernels

    keep_few_kernels()
    try:
        with stop_signals() as stop_requested:
            work(document, channel.emit, _or_orphaned(stop_requested))
    except PeerLostError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from error


def work(job: dict[str, Any], answer: Callable[[dict[str, Any]], None], stop: Callable[[], str | None]) -> None:
    """One process's share of a job, in the process group that the environment names.

    Args:
        job: `home`, `run_id`, `plan`, `began` (seconds since 1970; time is billed from then on).
        answer: Takes the messages of rank 0: events, and at the end the result.
        stop: Why training is to stop now; None where it may go on.

    Raises:
        DivergedError: The loss or a gradient is no number.
        ConflictError: The model or the rows of this machine are not those of the plan.
        PeerLostError: Another process of the group was lost.
    """
    from luthier.core.plan import Plan
    from luthier.core.ports import SilentProgress
    from luthier.features.planning.budgets import metered
    from luthier.features.planning.service import prepare_share
    from luthier.features.training.launchers.here import Hooks, silent_hooks, train_worker
    from luthier.ml.training.distributed import joined
    from luthier.platform.home.context import Context

    plan = Plan.model_validate(job["plan"])

    def emit(event: Event) -> None:
        answer({"event": event.model_dump(mode="json")})

    with (
        Context.open(Path(job["home"])) as context,
        joined(plan.training.device, timeout_seconds=context.settings.collective_timeout_seconds) as world,
    ):
        folder = context.settings.run_folder(job["run_id"])
        # Only rank 0 keeps the ledger and reports: two writers would bill the same seconds twice.
        if not world.is_first:
            train_worker(prepare_share(context, plan), silent_hooks(folder, stop), world)
            return
        with metered(folder, plan, seconds_before=max(0.0, time.time() - job["began"])) as meter:
            hooks = Hooks(folder, emit, SilentProgress(), meter, stop)
            result = train_worker(prepare_share(context, plan), hooks, world)
            refused_by = meter.refused_by
    # After `metered` has closed the ledger: the parent takes it up as soon as it has the result.
    answer({"result": result.model_dump(mode="json"), "refused_by": refused_by})


def _or_orphaned(stop_requested: Callable[[], str | None]) -> Callable[[], str | None]:
    """The wish to stop, also when whoever started this process has gone: nobody would listen any more."""
    # A process whose parent dies is adopted by another one, so its parent id changes.
    parent = os.getppid()
    return lambda: stop_requested() or (None if os.getppid() == parent else "the process that started it has gone")
