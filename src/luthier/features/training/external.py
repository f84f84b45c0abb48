"""Runs whose processes are started by torchrun, Slurm, SkyPilot or Ray on Kubernetes (`job_files` writes their files).

Each process is `luthier train RECIPE`. Rank 0 plans, owns the run, evaluates and reports; the others get the plan from
it and need only the base model and the rows, at the same path. One launch is one run: restarted with the same launch
id, rank 0 finds its run and resumes it. Each job file has a unique launch id: submitting it again resumes its run; a
new file is a new run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import sha256_document
from luthier.core.plan import Plan
from luthier.core.ports import EventSink
from luthier.core.registry import STORED
from luthier.core.run import TrainResult
from luthier.core.system.files import replace_text
from luthier.features.planning.service import Prepared, prepare_share
from luthier.features.training.checkpoint_uploads.session import LAUNCH_ID, launched_elsewhere, remember_launch
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.recipe import Recipe
    from luthier.core.results.cost import Quote
    from luthier.features.training.launchers.here import Launcher
    from luthier.features.training.service import ShowPlan, TrainOutcome
    from luthier.ml.training.budget import Meter


def external_world_size() -> int:
    """The number of processes started by the launcher; 1 without one."""
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdigit() else 1


def num_machines() -> int:
    """The machines of these processes; 1 without a launcher."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return -(-external_world_size() // max(1, int(text) if text.isdigit() else 1))


def is_first() -> bool:
    """Whether this process is rank 0."""
    return os.environ.get("RANK", "0") == "0"


def launch_id() -> str | None:
    """The id of this launch, stable across restarts: LUTHIER_LAUNCH_ID, or torchrun's --rdzv-id."""
    name = os.environ.get(LAUNCH_ID) or os.environ.get("TORCHELASTIC_RUN_ID", "none")
    # torchrun sets TORCHELASTIC_RUN_ID to "none" without --rdzv-id.
    return None if name == "none" else name


class ExternalLauncher:
    """Trains a run with the processes of an external launcher; a `launchers.here.Launcher` for rank 0."""

    flags = ""

    def __init__(self) -> None:
        self.num_processes = external_world_size()

    def check(self, plan: Plan) -> None:
        """Raise RequestError for a batch that cannot be divided evenly."""
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
        """Send the plan to the other ranks and train with them."""
        from luthier.features.planning.judges import replies_of
        from luthier.features.training.launchers.here import Hooks, train_worker
        from luthier.ml.training.distributed import joined

        device, timeout = prepared.plan.training.device, context.settings.collective_timeout_seconds
        with joined(device, timeout_seconds=timeout) as world:
            document = {"run_id": run_id, "plan": prepared.plan.model_dump(mode="json")}
            # The other ranks wait for it in `train_as_follower`: both sides must make the same collective calls in the
            # same order.
            world.broadcast_text(json.dumps(document))
            folder = context.settings.run_folder(run_id)
            hooks = Hooks(folder, emit, context.progress, meter, replies=replies_of(context))
            return train_worker(prepared, hooks, world)


def train_as_follower(context: Context) -> None:
    """Train as a rank other than 0.

    Raises:
        ConflictError: the model or the rows of this machine differ from the plan.
        PeerLostError: another process was lost.
        DivergedError: The loss or a gradient is not a number.
    """
    from luthier.features.planning.judges import replies_of
    from luthier.features.training.launchers.here import silent_hooks, train_worker
    from luthier.ml.inference.accelerator import device_type
    from luthier.ml.training.distributed import joined

    # The plan, which names the device, arrives over the process group that is joined here.
    with joined(device_type(), timeout_seconds=context.settings.collective_timeout_seconds) as world:
        # Only rank 0's text is used; the argument of the others is ignored.
        document = json.loads(world.broadcast_text(""))
        if "ended" in document:
            return
        folder = context.settings.run_folder(document["run_id"])
        prepared = prepare_share(context, Plan.model_validate(document["plan"], context=STORED))
        train_worker(prepared, silent_hooks(folder, replies=replies_of(context)), world)


def train(
    context: Context,
    recipe: Recipe,
    *,
    base_dir: Path,
    prices: Path | None = None,
    show_plan: ShowPlan | None = None,
    launcher: Launcher | None = None,
) -> TrainOutcome:
    """`training.service.train`, which resumes the run that this launch has begun before.

    Caps that the recipe has now, and did not have when the run began, replace those of the run.

    Args:
        context: the home.
        recipe: what to train.
        base_dir: where paths of the recipe count from.
        prices: a file of prices; None for those of the home.
        show_plan: gets the plan before the training begins.
        launcher: the processes that train; None for those of this launch.

    Raises:
        RequestError: a launch without an id restarts; or recipe, rows or launcher are wrong.
        ConflictError: the model or rows of the run have changed, or another process holds it.
        DivergedError: the loss or a gradient is not a number.
        StorageFullError: the disk is full.
    """
    from luthier.features.training import service as training

    _refuse_nameless_restart()
    file, name = _file(context), launch_id()
    known = file.read_text(encoding="ascii") if file is not None and file.is_file() else None
    if known is None and name is not None:
        # This machine may not be the one that began: the uploads know which run it was.
        known = launched_elsewhere(context, name)
    if known is not None:
        _remember(file, known)
        try:
            # A file that was submitted again with other caps: these hold from now on.
            return training.resume(context, known, prices=prices, launcher=launcher, launch_budget=recipe.budget)
        except ConflictError:
            if not _has_ended(context, known):
                raise
            return _ended_before(context, known)

    def note(run_id: str, plan: Plan, quote: Quote | str) -> None:
        _remember(file, run_id)
        if name is not None:
            remember_launch(context, name, run_id)
        if show_plan is not None:
            show_plan(run_id, plan, quote)

    return training.train(context, recipe, base_dir=base_dir, prices=prices, show_plan=note, launcher=launcher)


def _has_ended(context: Context, run_id: str) -> bool:
    try:
        return context.runs.get(run_id).status == "succeeded"
    except NotFoundError:  # another machine is training it, and nothing of it was fetched
        return False


def _ended_before(context: Context, run_id: str) -> TrainOutcome:
    """The outcome of a run that an earlier start of this launch has finished; the other ranks end, too."""
    from luthier.features.training.service import TrainOutcome

    if external_world_size() > 1:
        from luthier.ml.inference.accelerator import device_type
        from luthier.ml.training.distributed import joined

        # As the others join in `train_as_follower`.
        with joined(device_type(), timeout_seconds=context.settings.collective_timeout_seconds) as world:
            world.broadcast_text(json.dumps({"ended": run_id}))
    record = context.runs.get(run_id)
    evaluation = None if record.evaluation_id is None else context.evaluations.get(record.evaluation_id)
    note = f"run {run_id} of this launch has ended before: nothing was trained now"
    return TrainOutcome(record, context.runs.plan(run_id), evaluation, (note,))


def _remember(file: Path | None, run_id: str) -> None:
    """Keep the id of the run that a launch has begun, where the launch has a name."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: with half an id the run could not be found.
    replace_text(file, run_id)


def _refuse_nameless_restart() -> None:
    """Reject the restart of a launch without an id, which would start its run again."""
    if launch_id() is None and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        raise RequestError(
            "torchrun has started this launch again, and the launch has no name to find its run by",
            expected=f"a name that stays: torchrun --rdzv-id NAME, or {LAUNCH_ID} in the environment",
            do="resume with `luthier train --resume RUN` under torchrun (see `luthier runs list`)",
        )


def _file(context: Context) -> Path | None:
    name = launch_id()
    return None if name is None else context.home / "launches" / sha256_document(name)[:16]
