"""Job files are what their systems read, and the Slurm script does what it says when its commands are played."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from luthier.core.errors import RequestError
from luthier.features.training.external import Launch, launch_file

LAUNCH = Launch(
    recipe=Path("/data/my rows/Recipe One.yaml"), num_nodes=2, devices_per_node=4, hours=1.5, home="/shared/it's"
)


def played(folder: Path, script: str, exit_codes: list[int]) -> tuple[int, list[str]]:
    """Run the script with `srun`, `scontrol` and `luthier` replaced; how it ended, and what each `luthier` was told."""
    commands = {
        "scontrol": "printf 'node7\\nnode8\\n'",
        "srun": 'shift; SLURM_PROCID=5 SLURM_LOCALID=1 exec "$@"',
        "luthier": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $LUTHIER_HOME '
        '$LUTHIER_LAUNCH_ID|$*" >> told; set -- $(cat codes); echo "${@:2}" > codes; exit "$1"',
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / "codes").write_text(" ".join(map(str, exit_codes)), encoding="utf-8")
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "20001", "SLURM_CPUS_PER_TASK": "4",
    }  # fmt: skip
    ended = subprocess.run(["bash", "-c", script], env=environment, cwd=folder, capture_output=True, timeout=60)
    return ended.returncode, (folder / "told").read_text(encoding="utf-8").splitlines()


def test_slurm_starts_every_process_with_its_place(tmp_path: Path) -> None:
    script = launch_file("slurm", LAUNCH, launch_id="launch-1")
    options = [line.split("#SBATCH ")[1] for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=01:30:00", "--requeue"} <= set(options)
    code, told = played(tmp_path, script, [0])
    assert code == 0
    assert told == ["5 1 8 4 node7 20001 /shared/it's launch-1|train /data/my rows/Recipe One.yaml"]


@pytest.mark.parametrize(
    ("codes", "ends", "starts"),
    [([2], 2, 1), ([1], 1, 1), ([75, 137, 0], 0, 3), ([137, 2], 2, 2), ([75, 75, 75, 75, 0], 75, 4)],
)
def test_slurm_starts_again_only_what_a_new_start_can_mend(
    tmp_path: Path, codes: list[int], ends: int, starts: int
) -> None:
    code, told = played(tmp_path, launch_file("slurm", LAUNCH), codes)
    assert (code, len(told)) == (ends, starts)
    assert len(set(told)) == 1, "the same launch each time: rank 0 finds its run"


def test_slurm_without_luthier_says_what_to_do(tmp_path: Path) -> None:
    ended = subprocess.run(
        ["/bin/bash", "-c", launch_file("slurm", LAUNCH)], env={"PATH": "/nowhere"}, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "--setup COMMAND" in ended.stderr


def test_setup_takes_the_place_of_that_question(tmp_path: Path) -> None:
    script = launch_file("slurm", Launch(recipe=Path("r.yaml"), setup="source /opt/luthier/bin/activate"))
    assert "source /opt/luthier/bin/activate\n" in script
    assert "command -v luthier" not in script


def test_cores_instead_of_gpus() -> None:
    cores = Launch(recipe=Path("r.yaml"), num_nodes=3, devices_per_node=2, on_gpus=False, cpus_per_device=8, image="i")
    assert "gpus" not in launch_file("slurm", cores)
    assert yaml.safe_load(launch_file("skypilot", cores))["resources"] == {"cpus": "16+"}
    groups = yaml.safe_load(launch_file("ray", cores))["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert groups[0]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": 16}


def test_skypilot_reads_a_task_of_shell_that_parses() -> None:
    task = yaml.safe_load(launch_file("skypilot", LAUNCH, launch_id="launch-1"))
    assert (task["num_nodes"], task["resources"]) == (2, {"accelerators": "A100-80GB:4"})
    assert (task["workdir"], task["envs"]) == ("/data/my rows", {"LUTHIER_HOME": "/shared/it's"})
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n", "-c", task[part]], capture_output=True).returncode == 0
    assert "export LUTHIER_LAUNCH_ID=launch-1\n" in task["run"]
    assert "--nproc-per-node 4" in task["run"]
    assert task["run"].endswith("luthier train 'Recipe One.yaml'\n")


def test_ray_reads_a_job_of_as_many_workers_as_asked() -> None:
    job = yaml.safe_load(launch_file("ray", Launch(**{**vars_of(LAUNCH), "image": "mine:1"}), launch_id="launch-1"))
    assert (job["apiVersion"], job["kind"], job["metadata"]["name"]) == ("ray.io/v1", "RayJob", "luthier-recipe-one")
    assert job["spec"]["entrypoint"] == "luthier train '/data/my rows/Recipe One.yaml' --on ray --devices 8"
    assert job["spec"]["activeDeadlineSeconds"] == 5400
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 2
    (container,) = group["template"]["spec"]["containers"]
    assert container["image"] == "mine:1"
    assert container["resources"]["limits"] == {"cpu": 16, "nvidia.com/gpu": 4}
    assert {"name": "LUTHIER_LAUNCH_ID", "value": "launch-1"} in container["env"]


def vars_of(launch: Launch) -> dict[str, object]:
    return {name: getattr(launch, name) for name in Launch.__dataclass_fields__}


@pytest.mark.parametrize(
    ("launch", "came"),
    [
        (Launch(recipe=Path("r"), num_nodes=0), "--nodes 0"),
        (Launch(recipe=Path("r"), devices_per_node=-1), "--devices -1"),
        (Launch(recipe=Path("r"), hours=float("nan")), "--hours nan"),
    ],
)
def test_what_no_system_can_start_is_refused(launch: Launch, came: str) -> None:
    with pytest.raises(RequestError, match=came):
        launch_file("slurm", launch)


def test_ray_without_an_image_is_refused() -> None:
    with pytest.raises(RequestError, match="a Ray job without --image"):
        launch_file("ray", LAUNCH)
