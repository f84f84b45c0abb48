"""The end of a run: judged with what is left of its budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import StoppedError
from luthier.core.evaluation import Evaluation
from luthier.core.run import TrainResult
from luthier.features.planning.budgets import stop_check
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import AGAIN, stop_signals

if TYPE_CHECKING:
    from luthier.features.planning.service import Prepared
    from luthier.ml.training.budget import Meter


def judge_within(
    context: Context, run_id: str, prepared: Prepared, result: TrainResult, meter: Meter
) -> tuple[Evaluation | None, TrainResult]:
    """Judge a trained run with what is left of its budget; the result is `paused` where that is not enough.

    Nobody knows beforehand how long judging takes, so it is stopped at the first batch of answers after the cap; from
    then on it is known to take at least that long.
    """
    from luthier.features.evaluations.service import judge_run
    from luthier.ml.training import memory

    reason = meter.refuses("judging")
    if reason is None:
        meter.begin("judging")
        # The peak of judging by itself: that of training would hide it.
        memory.forget_peaks(prepared.plan.training.device)
        try:
            with stop_signals(lambda: _judging_notice(run_id)) as stop_requested:
                evaluation = judge_run(context, run_id, prepared, result, stop=stop_check(meter, stop_requested))
        except StoppedError as error:
            reason = error.reason
        else:
            context.evaluations.save(evaluation)
            measured = {
                "judging_seconds": evaluation.seconds,
                "judging_peak_memory_bytes": memory.device_peak_memory_bytes(prepared.plan.training.device),
            }
            return evaluation, result.model_copy(update=measured)
    words = f"{reason}. The weights are trained and kept, but not judged"
    return None, result.model_copy(update={"status": "paused", "stopped_because": words})


def _judging_notice(run_id: str) -> str:
    return (
        "judging stops with the batch of answers under way; the weights are trained and kept, and `luthier train "
        f"--resume {run_id}` judges them. {AGAIN}"
    )
