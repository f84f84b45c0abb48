"""A worker of a study: trains one trial after the other up to its rung, in a child process of `workers`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.child_process.channel import Channel
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import stop_signals

if TYPE_CHECKING:
    from luthier.features.planning.training_data import TrainingDataLoader

_PATIENCE_SECONDS: Final = 60.0
_TELL_SECONDS: Final = 0.5


def train_trials(document: dict[str, Any], channel: Channel) -> None:
    """Train a trial a request, until there are no more; stops in good order after SIGTERM.

    Args:
        document: `home`. A request has `trial`, `rung`, `steps` (on which rungs lie), `machine_share`, `finished` (the
            curves of other trials) and `plan`; its result has `trial` and `seconds`.
        channel: of the child process. Events are {"step": ...} while it trains.
    """
    from luthier.core.system.kernel_cache import keep_few_kernels
    from luthier.features.planning.training_data import TrainingDataLoader

    keep_few_kernels()
    # Taken before anything slow: a parent that dies later changes it, one that died earlier cannot be noticed.
    parent = os.getppid()
    home = Path(document["home"])
    with Context.open(home, database_patience_seconds=_PATIENCE_SECONDS) as context, stop_signals() as signalled:

        def stop_requested() -> str | None:  # where the kernel does not end this process with its parent
            return signalled() or (None if os.getppid() == parent else "the process that started it has gone")

        data_loader = TrainingDataLoader()
        channel.serve(lambda task: _carry_out(context, task, data_loader, channel, stop_requested))


def _carry_out(
    context: Context,
    task: dict[str, Any],
    data_loader: TrainingDataLoader,
    channel: Channel,
    stop_requested: Callable[[], str | None],
) -> dict[str, Any]:
    """Train one trial; what is to be answered."""
    from luthier.core.plan import Plan
    from luthier.core.workflows.study import Trial
    from luthier.features.planning.service import prepare_again
    from luthier.features.studies.trials import Priced, train_to
    from luthier.ml.search.extrapolation import Finished

    told = 0.0

    def tell(step: int) -> None:
        nonlocal told
        # Steps of small models take milliseconds: the parent only needs enough for its progress bar.
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            channel.emit({"step": step})

    plan = Plan.model_validate(task["plan"])
    prepared = replace(prepare_again(context, plan, data_loader=data_loader), held_out=None)
    priced = Priced(prepared, 0.0, tuple(task["steps"]), True, task["machine_share"])
    began, trial = time.perf_counter(), Trial.model_validate(task["trial"])
    finished = Finished(tuple(tuple((share, loss) for share, loss in curve) for curve in task["finished"]))
    trained = train_to(
        context, trial, task["rung"], priced, stop_requested=stop_requested, tell_step=tell, finished=finished
    )
    return {"trial": trained.model_dump(mode="json"), "seconds": time.perf_counter() - began}
