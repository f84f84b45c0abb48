"""A run whose processes somebody else starts: torchrun, or srun on Slurm, on one machine or many.

Each process is `luthier train RECIPE`. Rank 0 plans, holds the run, judges and reports; the others get the plan from it
and need only the base model and the rows, at the same place. One launch is one run: started again under the same
launch id, rank 0 finds its run and goes on with it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.digest import sha256_document
from luthier.core.errors import RequestError
from luthier.core.plan import Plan
from luthier.core.ports import EventSink
from luthier.core.run import TrainResult
from luthier.core.system.durable import sync
from luthier.features.planning.service import Prepared, prepare_share
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.cost import Quote
    from luthier.core.recipe import Recipe
    from luthier.features.training.launchers.here import Launcher
    from luthier.features.training.service import ShowPlan, TrainOutcome
    from luthier.ml.training.budget import Meter

LAUNCH_ID: Final = "LUTHIER_LAUNCH_ID"


def external_world_size() -> int:
    """How many processes the launcher has started; 1 where there is none."""
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdigit() else 1


def is_first() -> bool:
    """Whether this process speaks for all of them."""
    return os.environ.get("RANK", "0") == "0"


def launch_id() -> str | None:
    """The name of this launch, the same when it is started again: LUTHIER_LAUNCH_ID, or torchrun's --rdzv-id."""
    name = os.environ.get(LAUNCH_ID) or os.environ.get("TORCHELASTIC_RUN_ID", "none")
    # torchrun sets TORCHELASTIC_RUN_ID to "none" where no --rdzv-id is given.
    return None if name == "none" else name


class ExternalLauncher:
    """Trains a run by the processes that the launcher has started; a `launchers.here.Launcher` for rank 0."""

    flags = ""

    def __init__(self) -> None:
        self.num_processes = external_world_size()

    def check(self, plan: Plan) -> None:
        """Raise RequestError for a batch that cannot be shared out evenly."""
        from luthier.ml.training.distributed import refuse_unequal_shares

        refuse_unequal_shares(plan.training.global_batch_size, self.num_processes)

    def train(
        self,
        context: Context,
        run_id: str,
        prepared: Prepared,
        meter: Meter,
        emit: EventSink,
        lock: int,  # noqa: ARG002
    ) -> TrainResult:
        """Give the plan to the others and train with them."""
        from luthier.features.training.launchers.here import Hooks, train_worker
        from luthier.ml.training.distributed import joined

        device, timeout = prepared.plan.training.device, context.settings.collective_timeout_seconds
        with joined(device, timeout_seconds=timeout) as world:
            document = {"run_id": run_id, "plan": prepared.plan.model_dump(mode="json")}
            # The others wait for it in `train_as_follower`: both sides must make the same collective calls in the same
            # order.
            world.broadcast_text(json.dumps(document))
            hooks = Hooks(context.settings.run_folder(run_id), emit, context.progress, meter)
            return train_worker(prepared, hooks, world)


def train_as_follower(context: Context) -> None:
    """Train as one of the ranks for which rank 0 reports.

    Raises:
        ConflictError: The model or the rows of this machine are not those of the plan.
        PeerLostError: Another process was lost.
        DivergedError: The loss or a gradient is no number.
    """
    import torch

    from luthier.features.training.launchers.here import silent_hooks, train_worker
    from luthier.ml.training.distributed import joined

    # The plan, which names the device, only arrives over the group that is joined here.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with joined(device, timeout_seconds=context.settings.collective_timeout_seconds) as world:
        # Only rank 0's text counts; the argument of the others is ignored.
        document = json.loads(world.broadcast_text(""))
        folder = context.settings.run_folder(document["run_id"])
        prepared = prepare_share(context, Plan.model_validate(document["plan"]))
        train_worker(prepared, silent_hooks(folder), world)


def train(
    context: Context,
    recipe: Recipe,
    *,
    base_dir: Path,
    prices: Path | None = None,
    show_plan: ShowPlan | None = None,
    launcher: Launcher | None = None,
) -> TrainOutcome:
    """`training.service.train`, with its arguments; goes on with the run that this launch has begun before.

    Raises:
        RequestError: A launch without a name starts again; or what is wrong with recipe, rows or launcher.
        ConflictError: The model or rows of the run have changed, or another process holds it.
        DivergedError: The loss or a gradient is no number.
        StorageFullError: The disk is full.
    """
    from luthier.features.training import service as training

    _refuse_nameless_restart()
    file = _file(context)
    if file is not None and file.is_file():
        return training.resume(context, file.read_text(encoding="ascii"), prices=prices, launcher=launcher)

    def note(run_id: str, plan: Plan, quote: Quote | str) -> None:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and renamed: a kill must not leave half of an id, by which the run could not be found.
            partial = file.with_name(f".{file.name}")
            partial.write_text(run_id, encoding="ascii")
            # The bytes before the name: after a power cut the file would else be there, and empty.
            sync(partial)
            partial.replace(file)
            sync(file.parent)
        if show_plan is not None:
            show_plan(run_id, plan, quote)

    return training.train(context, recipe, base_dir=base_dir, prices=prices, show_plan=note, launcher=launcher)


def _refuse_nameless_restart() -> None:
    """A launch without a name that starts again would start its run again."""
    if launch_id() is None and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        raise RequestError(
            "torchrun has started this launch again, and the launch has no name to find its run by",
            expected=f"a name that stays: torchrun --rdzv-id NAME, or {LAUNCH_ID} in the environment",
            do="go on with `luthier train --resume RUN` under torchrun (see `luthier runs list`)",
        )


def _file(context: Context) -> Path | None:
    name = launch_id()
    return None if name is None else context.home / "launches" / sha256_document(name)[:16]
