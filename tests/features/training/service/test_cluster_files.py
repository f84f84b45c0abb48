"""Job files are what their systems read, and the Slurm script does what it says when its commands are played."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from luthier.core.errors import RequestError
from luthier.features.training.job_files import INTERRUPTED, SYSTEMS, Launch, System, launch_file

SKYPILOT = json.loads(Path(__file__).with_name("skypilot_schema.json").read_text(encoding="utf-8"))
SPOT = Launch(
    recipe=Path("/data/Recipe One.yaml"), num_nodes=2, devices_per_node=8, is_spot=True, max_restarts=5,
    checkpoints="s3://bucket/runs", data=(("/data/rows", "s3://bucket/rows/"),), mounts=("/models/base",),
    budget_hours=10.0, budget_usd=100.0, budget_options=("--budget-usd", "100"), max_usd_per_hour=20.0,
    variables=(("AWS_ENDPOINT_URL", "https://objects.example.com"),), secrets=("AWS_SECRET_ACCESS_KEY",),
)  # fmt: skip
LAUNCH = Launch(
    recipe=Path("/data/my rows/Recipe One.yaml"), num_nodes=2, devices_per_node=4, hours=1.5, home="/shared/it's"
)


def played(folder: Path, script: str, exit_codes: list[int], *, luthier: str = "", restarts: int = 0) -> Any:
    """Run the script with `srun`, `scontrol` and `luthier` replaced; how it ended, and what each `luthier` was told.

    luthier: shell that it runs besides. restarts: how often Slurm has started the job again.
    """
    commands = {
        "scontrol": "echo \"$*\" >> control; printf 'node7\\nnode8\\n'",
        "srun": 'shift; SLURM_PROCID=5 SLURM_LOCALID=1 exec "$@"',
        "luthier": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $LUTHIER_HOME '
        f'$LUTHIER_LAUNCH_ID|$*" >> told\n{luthier}\nset -- $(cat codes); echo "${{@:2}}" > codes; exit "$1"',
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / "told").touch()  # a process that is ended at once has written nothing
    (folder / "codes").write_text(" ".join(map(str, exit_codes)), encoding="utf-8")
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "20001", "SLURM_CPUS_PER_TASK": "4", "SLURM_RESTART_COUNT": str(restarts),
    }  # fmt: skip
    ended = subprocess.run(["bash", "-c", script], env=environment, cwd=folder, capture_output=True, timeout=60)
    return ended.returncode, (folder / "told").read_text(encoding="utf-8").splitlines()


def test_slurm_starts_every_process_with_its_place(tmp_path: Path) -> None:
    script = launch_file("slurm", LAUNCH, launch_id="launch-1")
    options = [line.split("#SBATCH ")[1] for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=01:30:00", "--requeue"} <= set(options)
    code, told = played(tmp_path, script, [0])
    assert code == 0
    assert told == [
        "5 1 8 4 node7 20001 /shared/it's launch-1|train /data/my rows/Recipe One.yaml --interrupted-exit-code 85"
    ]


def test_slurm_lets_the_processes_of_a_node_share_its_cores(tmp_path: Path) -> None:
    """A process that were kept to its own four cores would divide these by the processes of its node once more."""
    script = launch_file("slurm", replace(LAUNCH, on_gpus=False))
    assert played(tmp_path, script, [0], luthier='echo "$SLURM_CPU_BIND $SRUN_CPUS_PER_TASK" > cores')[0] == 0
    assert (tmp_path / "cores").read_text() == "none 4\n"


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


def test_slurm_pauses_before_its_time_is_up_and_queues_the_job_again(tmp_path: Path) -> None:
    """Slurm signals the script, which passes it on; the run says by its exit code that it is not done."""
    # The grandparent is srun's stand-in, whose parent is the script.
    signalled = 'trap "exit 85" TERM; kill -USR1 "$(cat script)"; while :; do sleep 0.1; done'
    script = "echo $$ > script\n" + launch_file("slurm", LAUNCH)
    code, told = played(tmp_path, script, [0], luthier=signalled)
    assert (code, len(told)) == (0, 1)
    assert (tmp_path / "control").read_text().splitlines()[-1] == "requeue 20001"


def test_a_signal_before_the_step_has_a_number_pauses_it_all_the_same(tmp_path: Path) -> None:
    # Bash runs a trap for DEBUG before each command: the signal comes between the step's start and its number.
    early = 'trap \'if [ "$BASH_COMMAND" = "step=\\$!" ]; then kill -USR1 $$; fi\' DEBUG\n'
    script = early + launch_file("slurm", LAUNCH)
    code, _ = played(tmp_path, script, [0], luthier='trap "exit 85" TERM; while :; do sleep 0.1; done')
    assert code == 0
    assert (tmp_path / "control").read_text().splitlines()[-1] == "requeue 20001"


@pytest.mark.parametrize(("ending", "restarts"), [("exit 0", 0), ("exit 85", 3)])
def test_slurm_queues_nothing_again_that_is_done_or_was_queued_often_enough(
    tmp_path: Path, ending: str, restarts: int
) -> None:
    signalled = f'trap "{ending}" TERM; kill -USR1 "$(cat script)"; while :; do sleep 0.1; done'
    script = "echo $$ > script\n" + launch_file("slurm", LAUNCH)
    code, told = played(tmp_path, script, [0], luthier=signalled, restarts=restarts)
    assert (code, len(told)) == (int(ending.split()[1]), 1)
    assert "requeue" not in (tmp_path / "control").read_text()


def test_slurm_takes_its_data_from_a_store_and_its_time_from_the_budget() -> None:
    launch = replace(LAUNCH, hours=None, budget_hours=10.0, checkpoints="s3://b/c", data=(("/data/rows", "s3://b/r"),))
    script = launch_file("slurm", launch)
    assert "#SBATCH --time=11:30:00\n" in script  # a tenth more, and half an hour to set up
    assert "export LUTHIER_CHECKPOINTS=s3://b/c\n" in script
    assert f"--interrupted-exit-code {INTERRUPTED} --stage /data/rows=s3://b/r" in script
    assert "--time=24:00:00" in launch_file("slurm", replace(LAUNCH, hours=None))


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
    cores = Launch(recipe=Path("r.yaml"), num_nodes=3, devices_per_node=2, on_gpus=False, cpus_per_device=8)
    assert "gpus" not in launch_file("slurm", cores)
    assert yaml.safe_load(launch_file("skypilot", cores))["resources"]["cpus"] == "16+"
    groups = yaml.safe_load(launch_file("ray", replace(cores, image="i")))["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert groups[0]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": 16}
    assert groups[0]["replicas"] == 2


def test_skypilot_reads_a_task_of_shell_that_parses() -> None:
    task = yaml.safe_load(launch_file("skypilot", LAUNCH, launch_id="launch-1"))
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (2, "A100-80GB:4")
    assert (task["workdir"], task["envs"]) == ("/data/my rows", {"LUTHIER_HOME": "/shared/it's"})
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n", "-c", task[part]], capture_output=True).returncode == 0
    assert "export LUTHIER_LAUNCH_ID=launch-1\n" in task["run"]
    assert "--nproc-per-node 4" in task["run"]
    assert "luthier train 'Recipe One.yaml' || code=$?\n" in task["run"]


@pytest.mark.parametrize("launch", [LAUNCH, SPOT, Launch(recipe=Path("/r.yaml"), on_gpus=False)])
def test_skypilot_accepts_the_file_by_its_published_schema(launch: Launch) -> None:
    task = yaml.safe_load(launch_file("skypilot", launch))
    jsonschema.validate(task, SKYPILOT["task"])
    jsonschema.validate(task["resources"], SKYPILOT["resources"])
    stores = [mount for mount in task.get("file_mounts", {}).values() if isinstance(mount, dict)]
    assert len(stores) == len(launch.data)
    for store in stores:
        jsonschema.validate(store, SKYPILOT["storage"])
        assert store["mode"] in SKYPILOT["storage"]["properties"]["mode"]["case_insensitive_enum"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(task["resources"] | {"spot": True}, SKYPILOT["resources"])


def test_skypilot_on_spot_machines_has_data_limits_and_a_place_to_resume_from() -> None:
    text = launch_file("skypilot", SPOT, launch_id="launch-1")
    task = yaml.safe_load(text)
    assert task["resources"] == {
        "accelerators": "A100-80GB:8",
        "use_spot": True,
        "max_hourly_cost": 20.0,
        "job_recovery": {"max_restarts_on_errors": 5},
        "autostop": {"idle_minutes": 10, "down": True},
    }
    assert task["file_mounts"] == {
        "/models/base": "/models/base",
        "/data/rows": {"source": "s3://bucket/rows", "mode": "COPY"},
    }
    assert task["envs"]["LUTHIER_CHECKPOINTS"] == "s3://bucket/runs"
    assert task["envs"]["AWS_ENDPOINT_URL"] == "https://objects.example.com"
    assert task["secrets"] == {"AWS_SECRET_ACCESS_KEY": None}
    assert "sky jobs launch --secret AWS_SECRET_ACCESS_KEY FILE" in text
    # 100 USD at 20 USD an hour for each of 2 machines last 2.5 h: a tenth more, and half an hour to set up.
    assert "timeout --signal=TERM --kill-after=300 11700 torchrun" in task["run"]
    assert "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=290\n" in task["run"]
    assert "--max-restarts 5" in task["run"]
    assert "--budget-usd 100" in task["run"]


def test_skypilot_ends_quietly_when_the_time_is_up(tmp_path: Path) -> None:
    (tmp_path / "luthier").write_text("#!/bin/sh\nexit ${CODE}\n")
    (tmp_path / "luthier").chmod(0o755)
    run = yaml.safe_load(launch_file("skypilot", Launch(recipe=Path("/r.yaml"), hours=2)))["run"]
    assert "torchrun" not in run
    for code, ends in ((0, 0), (2, 2), (124, 0)):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CODE": str(code)}
        ended = subprocess.run(["bash", "-e", "-c", run], env=environment, capture_output=True, text=True)
        assert ended.returncode == ends
        assert ("start this file again" in ended.stderr) == (code == 124)


def test_ray_gets_the_place_of_its_checkpoints_and_starts_again() -> None:
    job = yaml.safe_load(launch_file("ray", replace(LAUNCH, image="i", checkpoints="s3://b/c", max_restarts=2)))
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert {"name": "LUTHIER_CHECKPOINTS", "value": "s3://b/c"} in group["template"]["spec"]["containers"][0]["env"]
    assert job["spec"]["backoffLimit"] == 2


def test_ray_reads_secrets_from_one_of_kubernetes() -> None:
    text = launch_file("ray", replace(LAUNCH, image="i", secrets=("KEY_ID", "SECRET_KEY")))
    make = "# kubectl create secret generic luthier-recipe-one-secrets "
    make += '--from-literal=KEY_ID="$KEY_ID" --from-literal=SECRET_KEY="$SECRET_KEY"\n'
    assert make in text
    cluster = yaml.safe_load(text)["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    for machine in (cluster["headGroupSpec"], group):
        (container,) = machine["template"]["spec"]["containers"]
        found = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"] if "valueFrom" in one}
        assert found == {name: {"name": "luthier-recipe-one-secrets", "key": name} for name in ("KEY_ID", "SECRET_KEY")}
    assert "kubectl create secret" not in launch_file("ray", replace(LAUNCH, image="i"))


def test_ray_says_that_the_head_alone_copies_data() -> None:
    text = launch_file("ray", replace(LAUNCH, image="i", data=(("/rows\nx", "s3://bucket/rows"),)))
    assert "# The head alone copies /rows\\nx, so that volume has to hold it.\n" in text
    assert "--stage" in yaml.safe_load(text)["spec"]["entrypoint"]
    assert "copies" not in launch_file("ray", replace(LAUNCH, image="i"))


def test_ray_reads_a_job_of_as_many_workers_as_asked() -> None:
    job = yaml.safe_load(launch_file("ray", Launch(**{**vars_of(LAUNCH), "image": "mine:1"}), launch_id="launch-1"))
    assert (job["apiVersion"], job["kind"], job["metadata"]["name"]) == ("ray.io/v1", "RayJob", "luthier-recipe-one")
    assert job["spec"]["entrypoint"] == "luthier train '/data/my rows/Recipe One.yaml' --on ray --devices 8"
    assert job["spec"]["activeDeadlineSeconds"] == 5400
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["replicas"] == 1, "beside the head, which plans and evaluates, and so has the same"
    for machine in (cluster["headGroupSpec"], group):
        (container,) = machine["template"]["spec"]["containers"]
        assert container["image"] == "mine:1"
        assert container["resources"]["limits"] == {"cpu": 16, "nvidia.com/gpu": 4}
        assert {"name": "LUTHIER_LAUNCH_ID", "value": "launch-1"} in container["env"]
    alone = yaml.safe_load(launch_file("ray", replace(LAUNCH, image="mine:1", num_nodes=1)))
    assert "workerGroupSpecs" not in alone["spec"]["rayClusterSpec"]


def vars_of(launch: Launch) -> dict[str, object]:
    return {name: getattr(launch, name) for name in Launch.__dataclass_fields__}


@pytest.mark.parametrize(
    ("launch", "came"),
    [
        (Launch(recipe=Path("r"), num_nodes=0), "--nodes 0"),
        (Launch(recipe=Path("r"), devices_per_node=-1), "--devices -1"),
        (Launch(recipe=Path("r"), hours=float("nan")), "--hours nan"),
        (Launch(recipe=Path("r"), max_restarts=-1), "--max-restarts -1"),
        (Launch(recipe=Path("r"), is_spot=True), "--spot for slurm"),
        (Launch(recipe=Path("r"), secrets=("KEY",)), "--secret for slurm"),
        (Launch(recipe=Path("r"), image="mine:1"), "--image for slurm"),
        (Launch(recipe=Path("r"), accelerator="H100"), "--accelerator H100 for slurm"),
        (Launch(recipe=Path("r"), data=(("rows", "bucket"),)), "'rows=bucket' is not a file to stage"),
    ],
)
def test_what_no_system_can_start_is_refused(launch: Launch, came: str) -> None:
    with pytest.raises(RequestError, match=came):
        launch_file("slurm", launch)


def test_spot_machines_without_a_place_for_checkpoints_are_refused() -> None:
    with pytest.raises(RequestError, match="--spot without --checkpoints") as caught:
        launch_file("skypilot", replace(SPOT, checkpoints=None))
    assert "--checkpoints s3://bucket/folder" in caught.value.do


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_password_gets_into_no_job_file(system: System) -> None:
    url = "sftp://me:secret-word@files.example/runs"
    for launch in (replace(SPOT, checkpoints=url), replace(SPOT, data=(("rows", url),))):
        with pytest.raises(RequestError, match=r"a place at files\.example with a password") as caught:
            launch_file(system, replace(launch, image="image:1"))
        assert "secret-word" not in str(caught.value)


def test_what_the_file_of_a_system_has_no_place_for_is_refused() -> None:
    with pytest.raises(RequestError, match="--setup for ray"):
        launch_file("ray", replace(LAUNCH, image="mine:1", setup="pip install luthier.whl"))
    with pytest.raises(RequestError, match="--accelerator H100 for skypilot with --cpu"):
        launch_file("skypilot", replace(LAUNCH, accelerator="H100", on_gpus=False))
    assert "H100:4" in launch_file("skypilot", replace(LAUNCH, accelerator="H100"))


def test_ray_without_an_image_is_refused() -> None:
    with pytest.raises(RequestError, match="a Ray job without --image"):
        launch_file("ray", LAUNCH)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("Recipe One", "luthier-recipe-one"),
        ("support_mails_gemma3_27b_it_lora_october", "luthier-support-mails-gemma3-27b-it-lora-octobe"),
        # Cut in the middle of two words: the dash between them would be the last character.
        ("support_mails_gemma3_27b_it_lora_rr_to_be", "luthier-support-mails-gemma3-27b-it-lora-rr-to"),
        ("正解", "luthier"),
    ],
)
def test_the_name_of_a_job_is_one_for_kubernetes_and_skypilot(stem: str, name: str) -> None:
    """KubeRay takes 47 characters, and both refuse a name that ends with a dash."""
    launch = replace(LAUNCH, recipe=Path(f"/data/{stem}.yaml"))
    assert (launch.name, len(name) <= 47) == (name, True)
