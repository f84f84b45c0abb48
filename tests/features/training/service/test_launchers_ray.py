"""A run on Ray Train: equal to other ways of two processes, also when a worker is killed on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from luthier.core.errors import RequestError
from luthier.core.events import StepDone
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.launchers import local
from luthier.features.training.launchers.here import silent_hooks, train_worker
from luthier.features.training.launchers.ray import RayLauncher
from luthier.ml.training.distributed import World
from luthier.ml.training.ledger import Entry, Ledger
from luthier.platform.home.context import Context
from luthier.testing.world import in_world

MakeRecipe = Callable[..., Path]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra `ray`)")


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Path:
    return make_recipe(
        data={"train": "train.jsonl"},
        training={
            "epochs": 20, "global_batch_size": 8, "learning_rate": 0.001, "precision": "float32", "num_threads": 2,
            "checkpoint_every_steps": 5,
        },
    )  # fmt: skip


def undisturbed(world: World, prepared: Prepared, folder: Path) -> None:
    train_worker(prepared, silent_hooks(folder), world)


def kill_a_worker(driver: psutil.Process, context: Context, after_step: int) -> None:
    """Kill one training worker of the driver's own Ray, once the run is so far."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and driver.is_running():
        runs = context.runs.list()
        if runs and runs[0].step >= after_step:
            for process in driver.children(recursive=True):
                if process.name().startswith("ray::") and "RayTrainWorker" in " ".join(process.cmdline()):
                    process.kill()
                    return
        time.sleep(0.02)


@needs_ray
@pytest.mark.drill
def test_a_run_on_ray_gives_what_two_processes_give_also_after_a_kill(
    context: Context, recipe: Path, tmp_path: Path
) -> None:
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert [e.error for e in in_world(2, undisturbed, prepared, tmp_path / "whole")] == ["", ""]
    command = [sys.executable, "-m", "luthier", "train", str(recipe), "--on", "ray", "--devices", "2", "--json"]
    environment = os.environ | {"LUTHIER_HOME": str(context.home)}
    with (tmp_path / "err").open("wb") as err:
        driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=err)
        killer = threading.Thread(target=kill_a_worker, args=(psutil.Process(driver.pid), context, 20))
        killer.start()
        out, _ = driver.communicate(timeout=280)
        killer.join()
    document = json.loads(out)
    assert document["status"] == "succeeded", (tmp_path / "err").read_text(encoding="utf-8")[-3000:]
    steps = [e.step for e in context.runs.events(document["run_id"]) if isinstance(e, StepDone)]
    assert steps == list(range(1, 101))
    ours = Path(document["adapter_path"]) / "adapter_model.safetensors"
    assert ours.read_bytes() == (tmp_path / "whole" / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("spent", "unbilled"), [(5.0, 100.0), (65.0, 0.0)])
def test_a_start_of_lost_workers_bills_no_second_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spent: float, unbilled: float
) -> None:
    """Ray gives workers that it starts again the same job; what the start before has spent is in the ledger."""
    monkeypatch.setattr(local.time, "time", lambda: 1100.0)
    ledger = Ledger(tmp_path)
    ledger.append(Entry(seconds=spent))
    ledger.close()
    job = {"began": 1000.0, "seconds_before": 5.0}
    assert local._unbilled_seconds(job, tmp_path) == unbilled
    assert local._unbilled_seconds({"began": 1000.0}, tmp_path) == 100.0, "each start has a job of its own"


def test_without_ray_it_says_what_to_install(context: Context, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.train", "ray.train.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    plan = prepare(context, load_recipe(recipe), base_dir=recipe.parent).plan
    with pytest.raises(RequestError, match=r"--on ray without Ray[\s\S]*luthier\[ray\]"):
        RayLauncher(2).check(plan)


def test_a_batch_that_the_workers_do_not_divide_is_refused(context: Context, recipe: Path) -> None:
    plan = prepare(context, load_recipe(recipe), base_dir=recipe.parent).plan
    with pytest.raises(RequestError, match="global_batch_size 8 on 3 devices"):
        RayLauncher(3).check(plan)
