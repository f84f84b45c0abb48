"""A worker of a study: trains one trial after the other up to its rung; `study_workers` starts it and listens.

    python -m luthier.features.studies.child HOME PARENT ANSWER_FD

On stdin one line of JSON a task: `trial`, `rung`, `steps` (on which rungs lie), `machine_share`, `plan`. Answers are
lines of JSON on the descriptor: {"step": ...} while it trains, then {"trial": ..., "seconds": ...} or {"error": ...}.
It dies with PARENT, the process that has started it, and stops in good order after SIGTERM.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import LuthierError
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import stop_signals

if TYPE_CHECKING:
    from luthier.features.planning.training_data import TrainingDataLoader

_PATIENCE_SECONDS: Final = 60.0
_TELL_SECONDS: Final = 0.5


def main(home: str, parent: int, answer_descriptor: int) -> None:
    """Do tasks until there are no more."""
    from luthier.core.system.kernel_cache import keep_few_kernels
    from luthier.core.system.parent_death import end_with
    from luthier.core.system.threads import wait_briefly
    from luthier.features.planning.training_data import TrainingDataLoader

    end_with(parent)
    wait_briefly()
    keep_few_kernels()
    os.set_inheritable(answer_descriptor, False)

    def answer(document: dict[str, Any]) -> None:
        content = json.dumps(document).encode() + b"\n"
        with suppress(BrokenPipeError):  # nobody listens any more: the wish to stop says so, after this step
            while content:
                content = content[os.write(answer_descriptor, content) :]

    with Context.open(Path(home), database_patience_seconds=_PATIENCE_SECONDS) as context, stop_signals() as signalled:

        def stop_requested() -> str | None:
            return signalled() or (None if os.getppid() == parent else "the process that started it has gone")

        data_loader = TrainingDataLoader()
        for line in sys.stdin.buffer:
            answer(_carry_out(context, json.loads(line), data_loader, answer, stop_requested))


def _carry_out(
    context: Context,
    task: dict[str, Any],
    data_loader: TrainingDataLoader,
    answer: Callable[[dict[str, Any]], None],
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
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            answer({"step": step})

    try:
        plan = Plan.model_validate(task["plan"])
        prepared = replace(prepare_again(context, plan, data_loader=data_loader), held_out=None)
        priced = Priced(prepared, 0.0, tuple(task["steps"]), True, task["machine_share"])
        began, trial = time.perf_counter(), Trial.model_validate(task["trial"])
        finished = Finished(tuple(tuple((share, loss) for share, loss in curve) for curve in task["finished"]))
        trained = train_to(
            context, trial, task["rung"], priced, stop_requested=stop_requested, tell_step=tell, finished=finished
        )
    except LuthierError as error:
        return {"error": error.as_json()}
    return {"trial": trained.model_dump(mode="json"), "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
