"""One of several processes that train a run on this machine; `local_fleet` starts them and listens.

    python -m luthier.features.training.launchers.child JOB_FILE ANSWER_FD

The job file holds one JSON document: `home`, `run_id`, `plan`, `began` (seconds since the epoch; time is paid from then
on). Who this process is stands in the environment, as torchrun would set it. Answers are lines of JSON on the
descriptor: rank 0 writes {"event": ...} as the loop emits them and at the end {"result": ..., "refused_by": ...}; any
rank may write {"error": ...}, what Luthier raises on purpose. All else that is printed goes to a log.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, PeerLostError
from luthier.core.events import Event
from luthier.platform.processes.stop_signals import stop_signals

ERROR_EXIT_CODE = 3
"""Of a process that said what is wrong: another try would end the same way."""


def main(job_file: str, answer_descriptor: str) -> int:
    """Train one share; returns the exit code."""
    from luthier.core.system.kernel_cache import keep_few_kernels
    from luthier.core.system.threads import wait_briefly

    wait_briefly()
    keep_few_kernels()
    answer = _writer(int(answer_descriptor))
    try:
        with stop_signals() as stop_requested:
            work(json.loads(Path(job_file).read_text(encoding="utf-8")), answer, _or_orphaned(stop_requested))
    except PeerLostError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except LuthierError as error:
        answer({"error": error.as_json()})
        return ERROR_EXIT_CODE
    return 0


def work(job: dict[str, Any], answer: Callable[[dict[str, Any]], None], stop: Callable[[], str | None]) -> None:
    """One process's part of a job, in the world that it finds itself in; raises what `launcher.train_worker` raises."""
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
        if not world.is_first:
            train_worker(prepare_share(context, plan), silent_hooks(folder, stop), world)
            return
        with metered(folder, plan, seconds_before=max(0.0, time.time() - job["began"])) as meter:
            hooks = Hooks(folder, emit, SilentProgress(), meter, stop)
            result = train_worker(prepare_share(context, plan), hooks, world)
            refused_by = meter.refused_by
    answer({"result": result.model_dump(mode="json"), "refused_by": refused_by})


def _writer(descriptor: int) -> Callable[[dict[str, Any]], None]:
    def write(document: dict[str, Any]) -> None:
        content = json.dumps(document).encode() + b"\n"
        with suppress(BrokenPipeError):  # nobody listens any more: the wish to stop says so, after this step
            while content:
                content = content[os.write(descriptor, content) :]

    return write


def _or_orphaned(stop_requested: Callable[[], str | None]) -> Callable[[], str | None]:
    """The wish to stop, also when whoever started this process has gone: nobody would listen any more."""
    parent = os.getppid()
    return lambda: stop_requested() or (None if os.getppid() == parent else "the process that started it has gone")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
