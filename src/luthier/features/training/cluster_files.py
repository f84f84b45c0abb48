"""Job files for systems that start processes on many machines: Slurm, SkyPilot, Ray on Kubernetes.

Each file carries a launch id of its own. Submitting the same file again goes on with the run that it began; a new file
is a new run.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import yaml

from luthier.core.errors import RequestError
from luthier.core.ids import new_id
from luthier.features.training.external import LAUNCH_ID

System = Literal["slurm", "skypilot", "ray"]
SYSTEMS: Final[tuple[System, ...]] = ("slurm", "skypilot", "ray")
_NOT_INSTALLED: Final = "luthier is not installed on this node: write the file again with --setup COMMAND"


@dataclass(frozen=True, slots=True)
class Launch:
    """What a job file starts: `luthier train` on several machines.

    Attributes:
        recipe: Where the recipe lies for the nodes.
        num_nodes: Machines.
        devices_per_node: Processes on each.
        hours: After which the job is ended.
        on_gpus: A GPU for each process; else cores.
        cpus_per_device: Cores for each process.
        setup: Commands that make `luthier` available on a node; None only checks that it is.
        home: Where rank 0 keeps the run; None is the node's own.
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
        """A name that every system takes: lower-case letters, digits and dashes."""
        return re.sub(r"[^a-z0-9]+", "-", f"luthier-{self.recipe.stem}".lower()).strip("-")[:50]

    @property
    def num_devices(self) -> int:
        """Processes on all machines together."""
        return self.num_nodes * self.devices_per_node


def launch_file(system: System, launch: Launch, *, launch_id: str | None = None) -> str:
    """The text of the job file. launch_id: None makes a new one. Raises RequestError for what the system cannot do."""
    for name, value in (("--nodes", launch.num_nodes), ("--devices", launch.devices_per_node)):
        if value < 1:
            raise RequestError(f"{name} {value}", expected="1 or more", do="correct it")
    if not launch.hours > 0:
        raise RequestError(f"--hours {launch.hours:g}", expected="more than 0", do="correct it")
    # By this id all processes, and a job submitted again, find the same run.
    made = launch_id or new_id("launch")
    return {"slurm": _slurm, "skypilot": _skypilot, "ray": _ray}[system](launch, made)


def _slurm(launch: Launch, launch_id: str) -> str:
    # Slurm reads a time of 0 as no limit, so it is at least one minute.
    minutes = max(1, round(launch.hours * 60))
    gpus = f"#SBATCH --gpus-per-node={launch.devices_per_node}\n" if launch.on_gpus else ""
    home = f"export LUTHIER_HOME={shlex.quote(launch.home)}\n" if launch.home else ""
    return f"""\
#!/usr/bin/env bash
# Written by `luthier launch slurm`. Submit it with sbatch; submitted again it goes on with the same run.
# The home, the recipe, its rows and a local base model must lie where all nodes see them.
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
        "# Where nodes may be taken away, let LUTHIER_HOME lie on a volume that stays.\n"
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
    """Texts of several lines as blocks, as a person would write them."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)


def _yaml(document: dict[str, object]) -> str:
    plain = json.loads(json.dumps(document))  # no anchors: the same list twice is written twice
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, width=1000)
