"""Runs whose processes are started by torchrun, Slurm, SkyPilot or Ray on Kubernetes, and job files for these.

Each process is `luthier train RECIPE`. Rank 0 plans, owns the run, evaluates and reports; the others get the plan from
it and need only the base model and the rows, at the same path. One launch is one run: restarted with the same launch
id, rank 0 finds its run and resumes it. Each job file has a unique launch id: submitting it again resumes its run; a
new file is a new run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import yaml

from luthier.core.errors import RequestError
from luthier.core.ids import new_id, sha256_document
from luthier.core.plan import Plan
from luthier.core.ports import EventSink
from luthier.core.run import TrainResult
from luthier.core.system.files import sync
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
    """The number of processes started by the launcher; 1 without one."""
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdigit() else 1


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
        from luthier.features.training.launchers.here import Hooks, train_worker
        from luthier.ml.training.distributed import joined

        device, timeout = prepared.plan.training.device, context.settings.collective_timeout_seconds
        with joined(device, timeout_seconds=timeout) as world:
            document = {"run_id": run_id, "plan": prepared.plan.model_dump(mode="json")}
            # The other ranks wait for it in `train_as_follower`: both sides must make the same collective calls in the
            # same order.
            world.broadcast_text(json.dumps(document))
            hooks = Hooks(context.settings.run_folder(run_id), emit, context.progress, meter)
            return train_worker(prepared, hooks, world)


def train_as_follower(context: Context) -> None:
    """Train as a rank other than 0.

    Raises:
        ConflictError: the model or the rows of this machine differ from the plan.
        PeerLostError: another process was lost.
        DivergedError: The loss or a gradient is not a number.
    """
    from luthier.features.training.launchers.here import silent_hooks, train_worker
    from luthier.ml.inference.accelerator import device_type
    from luthier.ml.training.distributed import joined

    # The plan, which names the device, arrives over the process group that is joined here.
    with joined(device_type(), timeout_seconds=context.settings.collective_timeout_seconds) as world:
        # Only rank 0's text is used; the argument of the others is ignored.
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
    """`training.service.train`, with its arguments; resumes the run that this launch has begun before.

    Raises:
        RequestError: a launch without an id restarts; or recipe, rows or launcher are wrong.
        ConflictError: the model or rows of the run have changed, or another process holds it.
        DivergedError: The loss or a gradient is not a number.
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
            # Written to a temporary file and renamed: a kill must not leave half an id, with which the run could not be
            # found.
            partial = file.with_name(f".{file.name}")
            partial.write_text(run_id, encoding="ascii")
            # Synced before the rename: otherwise the file could exist and be empty after a power cut.
            sync(partial)
            partial.replace(file)
            sync(file.parent)
        if show_plan is not None:
            show_plan(run_id, plan, quote)

    return training.train(context, recipe, base_dir=base_dir, prices=prices, show_plan=note, launcher=launcher)


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


System = Literal["slurm", "skypilot", "ray"]
SYSTEMS: Final[tuple[System, ...]] = ("slurm", "skypilot", "ray")
_NOT_INSTALLED: Final = "luthier is not installed on this node: write the file again with --setup COMMAND"


@dataclass(frozen=True, slots=True)
class Launch:
    """The content of a job file: `luthier train` on several machines.

    Attributes:
        recipe: Path of the recipe on the nodes.
        num_nodes: Number of machines.
        devices_per_node: Processes per machine.
        hours: Time limit of the job.
        on_gpus: Whether each process gets a GPU, rather than cores.
        cpus_per_device: Cores for each process.
        setup: Commands that make `luthier` available on a node; None only checks for it.
        home: Home for the run on rank 0; None uses the node's own.
        accelerator: SkyPilot's name of the GPU.
        image: Of the container, for Ray.
    """

    recipe: Path
    num_nodes: int = 1
    devices_per_node: int = 1
    hours: float = 24.0
    on_gpus: bool = True
    cpus_per_device: int = 4
    setup: str | None = None
    home: str | None = None
    accelerator: str = "A100-80GB"
    image: str | None = None

    @property
    def name(self) -> str:
        """A name valid on every system: lower-case letters, digits and dashes."""
        return re.sub(r"[^a-z0-9]+", "-", f"luthier-{self.recipe.stem}".lower()).strip("-")[:50]

    @property
    def num_devices(self) -> int:
        """Total number of processes."""
        return self.num_nodes * self.devices_per_node


def launch_file(system: System, launch: Launch, *, launch_id: str | None = None) -> str:
    """The text of the job file. launch_id: None creates one. Raises RequestError for unsupported options."""
    for name, value in (("--nodes", launch.num_nodes), ("--devices", launch.devices_per_node)):
        if value < 1:
            raise RequestError(f"{name} {value}", expected="1 or more", do="correct it")
    if not launch.hours > 0:
        raise RequestError(f"--hours {launch.hours:g}", expected="more than 0", do="correct it")
    # With this id all processes, and a resubmitted job, find the same run.
    made = launch_id or new_id("launch")
    return {"slurm": _slurm, "skypilot": _skypilot, "ray": _ray}[system](launch, made)


def _slurm(launch: Launch, launch_id: str) -> str:
    # Slurm treats a time of 0 as unlimited, so it is at least one minute.
    minutes = max(1, round(launch.hours * 60))
    gpus = f"#SBATCH --gpus-per-node={launch.devices_per_node}\n" if launch.on_gpus else ""
    home = f"export LUTHIER_HOME={shlex.quote(launch.home)}\n" if launch.home else ""
    return f"""\
#!/usr/bin/env bash
# Written by `luthier launch slurm`. Submit it with sbatch; submitted again it continues the same run.
# The home, the recipe, its rows and a local base model must be where all nodes see them.
#SBATCH --job-name={launch.name}
#SBATCH --nodes={launch.num_nodes}
#SBATCH --ntasks-per-node={launch.devices_per_node}
{gpus}#SBATCH --cpus-per-task={launch.cpus_per_device}
#SBATCH --time={minutes // 60:02d}:{minutes % 60:02d}:00
#SBATCH --requeue
#SBATCH --signal=TERM@180
#SBATCH --output={launch.name}-%j.log
# TERM@180: three minutes before the time is up the run pauses, with a checkpoint.

set -u
{_setup(launch)}
export {LAUNCH_ID}={launch_id}
{home}export WORLD_SIZE="$SLURM_NTASKS" LOCAL_WORLD_SIZE={launch.devices_per_node}
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

for attempt in 1 2 3 4; do
    srun --kill-on-bad-exit=1 bash -c 'RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" exec "$@"' \\
        luthier luthier train {shlex.quote(str(launch.recipe))}
    code=$?
    # 75: a process lost the others; 128 and more: one was ended by a signal. All else would end the same way again.
    if [ "$code" -ne 75 ] && [ "$code" -lt 128 ]; then
        exit "$code"
    fi
    echo "attempt $attempt ended with exit code $code" >&2
done
exit "$code"
"""


def _skypilot(launch: Launch, launch_id: str) -> str:
    run = f"""\
export {LAUNCH_ID}={launch_id}
torchrun --nnodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK" \\
    --nproc-per-node {launch.devices_per_node} --max-restarts 3 --no-python \\
    --master-addr "$(echo "$SKYPILOT_NODE_IPS" | head -n 1)" --master-port 29400 \\
    luthier train {shlex.quote(launch.recipe.name)}
"""
    document: dict[str, object] = {
        "name": launch.name,
        "workdir": str(launch.recipe.parent),
        "num_nodes": launch.num_nodes,
        "resources": {"accelerators": f"{launch.accelerator}:{launch.devices_per_node}"}
        if launch.on_gpus
        else {"cpus": f"{launch.cpus_per_device * launch.devices_per_node}+"},
        "envs": {"LUTHIER_HOME": launch.home or "~/.luthier"},
        "setup": _setup(launch) + "\n",
        "run": run,
    }
    head = (
        "# Written by `luthier launch skypilot`. Start it with: sky launch FILE\n"
        "# The recipe's folder goes to every node; name rows and base model by paths inside it, or by catalogue name.\n"
        "# Where nodes may be taken away, let LUTHIER_HOME be on a volume that stays.\n"
    )
    return head + _yaml(document)


def _ray(launch: Launch, launch_id: str) -> str:
    if launch.image is None:
        raise RequestError(
            "a Ray job without --image",
            expected="a container image that holds luthier with its extra `ray`, for head and workers",
            do="write for example: --image registry.example/luthier:1",
        )
    # One pod holds all devices of its machine.
    limits: dict[str, int] = {"cpu": launch.cpus_per_device * launch.devices_per_node}
    if launch.on_gpus:
        limits["nvidia.com/gpu"] = launch.devices_per_node
    environment = [
        {"name": LAUNCH_ID, "value": launch_id},
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        *([{"name": "LUTHIER_HOME", "value": launch.home}] if launch.home else []),
    ]

    def pod(name: str, resources: dict[str, int]) -> dict[str, object]:
        container = {
            "name": name,
            "image": launch.image,
            "env": environment,
            "resources": {"requests": resources, "limits": resources},
        }
        return {"spec": {"containers": [container]}}

    document: dict[str, object] = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": launch.name},
        "spec": {
            "entrypoint": shlex.join(
                ["luthier", "train", str(launch.recipe), "--on", "ray", "--devices", str(launch.num_devices)]
            ),
            "shutdownAfterJobFinishes": True,
            "activeDeadlineSeconds": round(launch.hours * 3600),
            "rayClusterSpec": {
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": pod("ray-head", {"cpu": 2})},
                "workerGroupSpecs": [
                    {
                        "groupName": "trainers",
                        "replicas": launch.num_nodes,
                        "minReplicas": launch.num_nodes,
                        "maxReplicas": launch.num_nodes,
                        "rayStartParams": {},
                        "template": pod("ray-worker", limits),
                    }
                ],
            },
        },
    }
    head = (
        "# Written by `luthier launch ray`, for KubeRay. Start it with: kubectl create -f FILE\n"
        "# Head and workers must see the recipe, its rows and LUTHIER_HOME at the same paths: add a shared volume.\n"
    )
    return head + _yaml(document)


def _setup(launch: Launch) -> str:
    if launch.setup is not None:
        return launch.setup
    return f"command -v luthier >/dev/null || {{ echo {shlex.quote(_NOT_INSTALLED)} >&2; exit 1; }}"


class _Dumper(yaml.SafeDumper):
    """Writes multi-line texts as blocks."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)


def _yaml(document: dict[str, object]) -> str:
    plain = json.loads(json.dumps(document))  # no anchors: the same list twice is written twice
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, width=1000)
