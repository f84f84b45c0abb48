"""Job files for Slurm, SkyPilot and Ray on Kubernetes: what to train, with its data, its limits, and how it resumes."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import yaml

from luthier.core.errors import RequestError
from luthier.core.ids import new_id
from luthier.features.training.checkpoint_uploads.bucket import FROM_ARTIFACTS
from luthier.features.training.checkpoint_uploads.session import LAUNCH_ID
from luthier.features.training.staging import parse_staged

System = Literal["slurm", "skypilot", "ray"]
SYSTEMS: Final[tuple[System, ...]] = ("slurm", "skypilot", "ray")
INTERRUPTED: Final = 85
"""The exit code of a run that was paused by a signal, in the Slurm script."""
_NOT_INSTALLED: Final = "luthier is not installed on this node: write the file again with --setup COMMAND"
_DEFAULT_HOURS: Final = 24.0
_ACCELERATOR: Final = "A100-80GB"
_MAX_NAME: Final = 47
"""Characters that KubeRay takes for the name of a job."""
_BUDGET_MARGIN: Final = 1.1
_SETUP_HOURS: Final = 0.5
"""Beside what a budget counts, a job installs, downloads and waits."""
_PAUSE_SECONDS: Final = 300
"""Before its time is up a run pauses: a step, a checkpoint and an upload take that long at most."""
_UPLOAD_WAIT_SECONDS: Final = 240
IDLE_MINUTES: Final = 10
"""After which a cluster without a job is ended."""


@dataclass(frozen=True, slots=True)
class Launch:
    """The content of a job file: `luthier train` on several machines.

    Attributes:
        recipe: Path of the recipe on the nodes.
        num_nodes: Number of machines.
        devices_per_node: Processes per machine.
        hours: Time limit of the job; None derives it from the budget.
        on_gpus: Whether each process gets a GPU, rather than cores.
        cpus_per_device: Cores for each process.
        setup: Commands that make `luthier` available on a node; None only checks for it.
        home: Home for the run on rank 0; None uses the node's own.
        accelerator: SkyPilot's name of the GPU.
        image: Of the container, for Ray.
        checkpoints: Where checkpoints are uploaded to, such as `s3://bucket/folder`; None uploads none.
        data: Files and folders that the nodes copy from a store, as (path, URL).
        mounts: Local files and folders that SkyPilot copies to the nodes, at the same paths.
        is_spot: Whether SkyPilot takes machines that may be taken away.
        max_restarts: How often a job that failed or ran out of time is started again.
        budget_hours: The run's budget in hours, and `budget_usd` that in money; None for none.
        budget_options: Options of `luthier train` with the budget of this launch.
        max_usd_per_hour: The highest price of a machine, for SkyPilot.
        variables: Names and values of further environment variables.
        secrets: Names of environment variables whose values are given when the job is started; for Ray, the keys of a
            Kubernetes secret.
    """

    recipe: Path
    num_nodes: int = 1
    devices_per_node: int = 1
    hours: float | None = None
    on_gpus: bool = True
    cpus_per_device: int = 4
    setup: str | None = None
    home: str | None = None
    accelerator: str = _ACCELERATOR
    image: str | None = None
    checkpoints: str | None = None
    data: tuple[tuple[str, str], ...] = ()
    mounts: tuple[str, ...] = ()
    is_spot: bool = False
    max_restarts: int = 3
    budget_hours: float | None = None
    budget_usd: float | None = None
    budget_options: tuple[str, ...] = ()
    max_usd_per_hour: float | None = None
    variables: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A name valid on every system: lower-case letters, digits and dashes, the last one none."""
        return re.sub(r"[^a-z0-9]+", "-", f"luthier-{self.recipe.stem}".lower())[:_MAX_NAME].strip("-")

    @property
    def num_devices(self) -> int:
        """Total number of processes."""
        return self.num_nodes * self.devices_per_node

    @property
    def limit_hours(self) -> float:
        """The time limit: as asked, otherwise what the budget allows and some for setting up, otherwise a day."""
        if self.hours is not None:
            return self.hours
        limits = [] if self.budget_hours is None else [self.budget_hours]
        if self.budget_usd is not None and self.max_usd_per_hour is not None:
            limits.append(self.budget_usd / (self.max_usd_per_hour * self.num_nodes))
        return _DEFAULT_HOURS if not limits else min(limits) * _BUDGET_MARGIN + _SETUP_HOURS

    def environment(self) -> dict[str, str]:
        """Variables that the processes get besides those of their system."""
        found = {} if self.home is None else {"LUTHIER_HOME": self.home}
        if self.checkpoints is not None:
            # A spot machine and a job at its limit have minutes, not the ten that a run waits otherwise.
            found |= {
                "LUTHIER_CHECKPOINTS": self.checkpoints,
                "LUTHIER_UPLOAD_WAIT_SECONDS": str(_UPLOAD_WAIT_SECONDS),
            }
        return found | dict(self.variables)

    def command(self, recipe: str, *options: str, stages: bool = True) -> str:
        """`luthier train` with the options of this launch, as shell."""
        staged = [part for path, url in self.data for part in ("--stage", f"{path}={url}")] if stages else []
        return shlex.join(["luthier", "train", recipe, *options, *staged, *self.budget_options])


def launch_file(system: System, launch: Launch, *, launch_id: str | None = None) -> str:
    """The text of the job file. Raises RequestError for unsupported options.

    Args:
        system: The scheduler.
        launch: What is run, and on how many machines.
        launch_id: None creates one.
    """
    _check(system, launch)
    # With this id all processes, and a resubmitted job, find the same run.
    made = launch_id or new_id("launch")
    return {"slurm": _slurm, "skypilot": _skypilot, "ray": _ray}[system](launch, made)


def _check(system: System, launch: Launch) -> None:
    for name, value, least in (
        ("--nodes", launch.num_nodes, 1),
        ("--devices", launch.devices_per_node, 1),
        ("--max-restarts", launch.max_restarts, 0),
    ):
        if value < least:
            raise RequestError(f"{name} {value}", expected=f"{least} or more", do="correct it")
    for name, amount in (("--hours", launch.hours), ("--max-usd-per-hour", launch.max_usd_per_hour)):
        if amount is not None and not (amount > 0 and math.isfinite(amount)):
            raise RequestError(f"{name} {amount:g}", expected="a finite number above 0", do="correct it")
    for path, url in launch.data:
        parse_staged(f"{path}={url}")
    for name, url in (("--checkpoints", launch.checkpoints or ""), *(("--data", url) for _, url in launch.data)):
        if urlsplit(url).password is not None:
            raise RequestError(
                f"{name} names a place at {urlsplit(url).hostname} with a password",
                expected="a URL without credentials: a job file is stored, shown and shared",
                do="take it out, and give nodes the credentials in their environment (skypilot, ray: --secret NAME)",
            )
    if launch.secrets and system == "slurm":
        raise RequestError(
            f"--secret for {system}",
            expected="skypilot or ray: jobs of Slurm have the environment of sbatch",
            do="leave --secret out, and set the variable where sbatch is called",
        )
    only_sky = {"--spot": launch.is_spot, "--max-usd-per-hour": launch.max_usd_per_hour}
    for name, given in only_sky.items():
        if given and system != "skypilot":
            raise RequestError(
                f"{name} for {system}",
                expected="skypilot, which rents the machines",
                do=f"leave {name} out, or write: luthier launch skypilot",
            )
    # Slurm's jobs have the environment of sbatch, and LUTHIER_ARTIFACTS with it.
    if launch.checkpoints == FROM_ARTIFACTS and system != "slurm":
        raise RequestError(
            f"checkpoints of a job go to `{FROM_ARTIFACTS}`, which a node does not know",
            expected="a place that every node reaches: a URL, or a folder on a shared disk",
            do="write for example: --checkpoints s3://bucket/folder",
        )
    if launch.is_spot and launch.checkpoints is None:
        raise RequestError(
            "--spot without --checkpoints: the disk of a machine that is taken away is lost",
            expected="object storage from which the next machine resumes",
            do="write for example: --checkpoints s3://bucket/folder",
        )
    _refuse_left_out(system, launch)


def _refuse_left_out(system: System, launch: Launch) -> None:
    """Refuse what the file of a system has no place for: it would be left out without a word."""
    if launch.image is not None and system != "ray":
        raise RequestError(
            f"--image for {system}",
            expected="ray, whose head and workers are containers",
            do="leave --image out, or write: luthier launch ray",
        )
    if launch.setup is not None and system == "ray":
        raise RequestError(
            "--setup for ray",
            expected="an image that holds what a job needs",
            do="leave --setup out, and install it in the image",
        )
    if launch.accelerator != _ACCELERATOR and (system != "skypilot" or not launch.on_gpus):
        raise RequestError(
            f"--accelerator {launch.accelerator} for {system}" + ("" if launch.on_gpus else " with --cpu"),
            expected="skypilot with GPUs: elsewhere the machines are there already",
            do="leave --accelerator out",
        )


def _slurm(launch: Launch, launch_id: str) -> str:
    minutes = max(1, round(launch.limit_hours * 60))  # Slurm treats a time of 0 as unlimited
    gpus = f"#SBATCH --gpus-per-node={launch.devices_per_node}\n" if launch.on_gpus else ""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in launch.environment().items())
    train = launch.command(str(launch.recipe), "--interrupted-exit-code", str(INTERRUPTED))
    return f"""\
#!/usr/bin/env bash
# Written by `luthier launch slurm`. Submit it with sbatch; submitted again it continues the same run.
# {_where(launch)}
#SBATCH --job-name={launch.name}
#SBATCH --nodes={launch.num_nodes}
#SBATCH --ntasks-per-node={launch.devices_per_node}
{gpus}#SBATCH --cpus-per-task={launch.cpus_per_device}
#SBATCH --time={minutes // 60:02d}:{minutes % 60:02d}:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{_PAUSE_SECONDS}
#SBATCH --output={launch.name}-%j.log
# USR1@{_PAUSE_SECONDS}: so many seconds before its time is up the run pauses, and the job is queued again.

set -u
{_setup(launch)}
export {LAUNCH_ID}={launch_id}
{exports}export WORLD_SIZE="$SLURM_NTASKS" LOCAL_WORLD_SIZE={launch.devices_per_node}
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
# Each process sees the cores of all of them on its node, and takes its share of these.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" SLURM_CPU_BIND=none
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

step="" is_time_up=0
time_is_up() {{
    is_time_up=1
    [ -n "$step" ] && kill -TERM "$step" 2>/dev/null  # srun passes it on to every process
}}
trap time_is_up USR1

for attempt in $(seq 1 {launch.max_restarts + 1}); do
    srun --kill-on-bad-exit=1 bash -c 'RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" exec "$@"' \\
        luthier {train} &
    step=$!
    [ "$is_time_up" -eq 1 ] && time_is_up  # a signal before the step had a number has reached nothing
    wait "$step"
    code=$?
    # The signal ends `wait`, not the step.
    while [ "$code" -eq $((128 + $(kill -l USR1))) ]; do
        wait "$step"
        code=$?
    done
    # 75: a process lost the others; 128 and more: one was ended by a signal. All else would end the same way again.
    if [ "$is_time_up" -eq 1 ] || {{ [ "$code" -ne 75 ] && [ "$code" -lt 128 ]; }}; then
        break
    fi
    echo "attempt $attempt ended with exit code $code" >&2
done
# A run that has ended meanwhile, or whose budget is spent, is not queued again.
if [ "$is_time_up" -eq 1 ] && {{ [ "$code" -eq {INTERRUPTED} ] || [ "$code" -eq 75 ] || [ "$code" -ge 128 ]; }}; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {launch.max_restarts} ]; then
        echo "the time is up: the job is queued again and continues the run" >&2
        scontrol requeue "$SLURM_JOB_ID"
        exit 0
    fi
    echo "the time is up, and the job was queued again {launch.max_restarts} times: submit this file to continue" >&2
fi
exit "$code"
"""


def _skypilot(launch: Launch, launch_id: str) -> str:
    patience = ""
    # Job files name a recipe by its folder, which SkyPilot copies to every node.
    if launch.num_devices == 1:
        train = launch.command(launch.recipe.name, stages=False)
    else:
        # torchrun gives its processes 30 seconds to pause unless asked for more, and is itself killed after these.
        patience = f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={_PAUSE_SECONDS - 10}\n"
        train = (
            f'torchrun --nnodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK" \\\n'
            f"    --nproc-per-node {launch.devices_per_node} --max-restarts {launch.max_restarts} --no-python \\\n"
            '    --master-addr "$(echo "$SKYPILOT_NODE_IPS" | head -n 1)" --master-port 29400 \\\n'
            f"    {launch.command(launch.recipe.name, stages=False)}"
        )
    seconds = max(60, round(launch.limit_hours * 3600))
    run = f"""\
export {LAUNCH_ID}={launch_id}
{patience}# The time limit of one start; what a run may cost over all of its starts is its budget.
code=0
timeout --signal=TERM --kill-after={_PAUSE_SECONDS} {seconds} {train} || code=$?
if [ "$code" -eq 124 ]; then
    echo "the time is up after {launch.limit_hours:.3g} h: the run is paused; start this file again to continue it" >&2
    exit 0
fi
exit "$code"
"""
    resources: dict[str, object] = (
        {"accelerators": f"{launch.accelerator}:{launch.devices_per_node}"}
        if launch.on_gpus
        else {"cpus": f"{launch.cpus_per_device * launch.devices_per_node}+"}
    )
    if launch.is_spot:
        resources["use_spot"] = True
    if launch.max_usd_per_hour is not None:
        resources["max_hourly_cost"] = launch.max_usd_per_hour
    if launch.max_restarts:
        # Machines that are taken away are always replaced; this is about the job itself.
        resources["job_recovery"] = {"max_restarts_on_errors": launch.max_restarts}
    resources["autostop"] = {"idle_minutes": IDLE_MINUTES, "down": True}
    mounts: dict[str, object] = {path: path for path in launch.mounts}
    mounts |= {path: {"source": url.rstrip("/"), "mode": "COPY"} for path, url in launch.data}
    document: dict[str, object] = {
        "name": launch.name,
        "workdir": str(launch.recipe.parent),
        "num_nodes": launch.num_nodes,
        "resources": resources,
        **({"file_mounts": mounts} if mounts else {}),
        "envs": {"LUTHIER_HOME": "~/.luthier"} | launch.environment(),
        **({"secrets": dict.fromkeys(launch.secrets)} if launch.secrets else {}),
        "setup": _setup(launch) + "\n",
        "run": run,
    }
    secrets = "".join(f" --secret {name}" for name in launch.secrets)
    head = (
        "# Written by `luthier launch skypilot`.\n"
        f"# As a managed job, which replaces machines that are taken away:  sky jobs launch{secrets} FILE\n"
        f"# On a cluster that ends {IDLE_MINUTES} minutes after its last job:  sky launch{secrets} -c NAME FILE\n"
        f"# {_where(launch)}\n"
    )
    return head + _yaml(document)


def _where(launch: Launch) -> str:
    """What a person has to know about where the run is."""
    if launch.checkpoints is None:
        return (
            "The home must be where it outlives the job and all nodes see it, and so must the recipe, its rows and a "
            "local base model."
        )
    return (
        "Checkpoints, weights and report are uploaded: `luthier runs fetch RUN --checkpoints URL` fetches them from "
        "anywhere."
    )


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
    variables = {LAUNCH_ID: launch_id, "RAY_USAGE_STATS_ENABLED": "0"} | launch.environment()
    environment: list[dict[str, object]] = [{"name": name, "value": value} for name, value in variables.items()]
    environment += [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": _secret_of(launch), "key": name}}}
        for name in launch.secrets
    ]

    def pod(name: str, resources: dict[str, int]) -> dict[str, object]:
        container = {
            "name": name,
            "image": launch.image,
            "env": environment,
            "resources": {"requests": resources, "limits": resources},
        }
        return {"spec": {"containers": [container]}}

    # The head plans and evaluates, so that it is one of the machines: what it has decides precision and device.
    cluster: dict[str, object] = {"headGroupSpec": {"rayStartParams": {}, "template": pod("ray-head", limits)}}
    if (num_others := launch.num_nodes - 1) > 0:
        others = {
            "groupName": "trainers",
            **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), num_others),
            "rayStartParams": {},
            "template": pod("ray-worker", limits),
        }
        cluster["workerGroupSpecs"] = [others]
    document: dict[str, object] = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": launch.name},
        "spec": {
            "entrypoint": launch.command(str(launch.recipe), "--on", "ray", "--devices", str(launch.num_devices)),
            "shutdownAfterJobFinishes": True,
            "activeDeadlineSeconds": round(launch.limit_hours * 3600),
            "backoffLimit": launch.max_restarts,
            "rayClusterSpec": cluster,
        },
    }
    return _ray_head(launch) + _yaml(document)


def _secret_of(launch: Launch) -> str:
    """The Kubernetes secret that holds the values of its secrets."""
    return f"{launch.name}-secrets"


def _ray_head(launch: Launch) -> str:
    """What a person has to do before the start."""
    head = (
        "# Written by `luthier launch ray`, for KubeRay. Start it with: kubectl create -f FILE\n"
        "# Head and workers must see the recipe, its rows and LUTHIER_HOME at the same paths: add a shared volume.\n"
    )
    if launch.secrets:
        literals = " ".join(f'--from-literal={name}="${name}"' for name in launch.secrets)
        head += "# The variables of --secret are read from a Kubernetes secret; make it once in the same namespace:\n"
        head += f"# kubectl create secret generic {_secret_of(launch)} {literals}\n"
    if launch.data:
        places = ", ".join(path for path, _ in launch.data)
        head += f"# The head alone copies {json.dumps(places)[1:-1]}, so that volume has to hold it.\n"
    return head


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
