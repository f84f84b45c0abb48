"""A run trained by the workers of Ray Train; this process is the driver, holds the run, judges and reports."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from luthier.core.plan import Plan
from luthier.core.ports import EventSink
from luthier.core.run import TrainResult
from luthier.features.planning.service import Prepared
from luthier.features.training.launchers import child as launcher_child
from luthier.features.training.launchers.messages import Answers
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import stop_signals

if TYPE_CHECKING:
    from typing import Any

    from luthier.ml.training.budget import Meter


class RayLauncher:
    """Trains a run by `num_processes` workers of a Ray cluster; a `launchers.here.Launcher`.

    The run's folder, the rows and a local base model must lie where all nodes see them, under the same paths: a lost
    worker may come back on another node.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self.flags = f" --on ray --devices {num_processes}"

    def check(self, plan: Plan) -> None:
        """Raise RequestError without Ray, and for a batch that cannot be shared out evenly."""
        from luthier.ml.training.distributed import refuse_unequal_shares
        from luthier.ml.training.ray_train import require_ray

        refuse_unequal_shares(plan.training.global_batch_size, self.num_processes)
        require_ray()

    def train(
        self,
        context: Context,
        run_id: str,
        prepared: Prepared,
        meter: Meter,
        emit: EventSink,
        lock: int,  # noqa: ARG002
    ) -> TrainResult:
        """Train to the end of the plan or to a request to stop.

        Raises:
            LuthierError: What a worker found wrong with the run: another try would end in the same way.
            WorkError: Workers were lost too often.
        """
        from luthier.ml.training.ray_train import fit

        plan, folder = prepared.plan, context.settings.run_folder(run_id)
        job = {
            "home": str(context.home),
            "run_id": run_id,
            "began": time.time(),
            "plan": plan.model_dump(mode="json"),
            "storage": str(folder / "ray"),
        }
        # Rank 0 keeps the ledger on its node meanwhile; `take_up` reads what it has added.
        meter.close()
        with context.progress.task("training", plan.training.num_steps, "step") as bar:
            answers = Answers(emit, bar)

            def take(document: dict[str, Any]) -> None:
                answers.take(document)
                # Raised in the driver, inside `fit`, so that Ray ends the other workers instead of retrying them.
                if answers.error is not None:
                    raise answers.error

            fit(
                launcher_child.work,
                job,
                num_workers=self.num_processes,
                on_gpus=plan.training.device == "cuda",
                cpus_per_worker=max(1, plan.training.num_threads // self.num_processes),
                take=take,
                listening=stop_signals,
            )
        assert answers.result is not None
        meter.take_up()
        meter.refused_by = answers.refused_by  # type: ignore[assignment]
        return answers.result
