"""A server without anything that only Linux has: locks, inherited files, death with the parent, forks, limits.

The replacements take the place of all of them at once, in every process that the server starts (`sitecustomize`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.clock import wait_until

from luthier.features.recipes.service import load_recipe
from luthier.features.training import jobs
from luthier.features.training.service import train
from luthier.platform.home.context import Context
from luthier.testing.servers import running_server

ELSEWHERE = """
import errno, fcntl, signal
from types import SimpleNamespace
from luthier.core.system import facilities

def locking(descriptor, mode, num_bytes):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None

facilities._fcntl, facilities._msvcrt = None, SimpleNamespace(locking=locking, LK_NBLCK=2)
facilities.resource = None
for name in ("inherits_descriptors", "is_linux"):
    setattr(facilities, name, lambda: False)
for name in ("child_signal", "stacks_signal", "c_library"):
    setattr(facilities, name, lambda: None)
"""


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.drill
def test_it_trains_stops_goes_on_and_ends_with_its_supervisor(
    context: Context, make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    training = {"max_steps": 300, "global_batch_size": 8, "learning_rate": 0.01, "num_threads": 1}
    recipe = make_recipe(data={"train": "train.jsonl"}, training=training | {"checkpoint_every_steps": 5})
    plain = train(context, load_recipe(recipe), base_dir=recipe.parent).as_json()
    job = jobs.submit(context, load_recipe(recipe), base_dir=recipe.parent)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ELSEWHERE, encoding="utf-8")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "LUTHIER_FORK_SERVER": "1"}

    def step() -> int:
        found = [record.step for record in context.runs.list() if record.run_id == job.run_id]
        return found[0] if found else 0

    with running_server(context.home, environment=environment) as server:
        wait_until(lambda: step() >= 3)
        log = server.log
    between = context.jobs.get(job.job_id)
    assert (between.status, between.num_crashes) == ("queued", 0)
    assert 3 <= step() < 300
    assert "no fork server" in log.read_text(encoding="utf-8")
    with running_server(context.home, environment=environment) as server:
        wait_until(lambda: context.jobs.get(job.job_id).status == "succeeded")
        family = psutil.Process(server.process.pid).children(recursive=True)
        assert len(family) >= 2
        server.process.kill()
        wait_until(lambda: not any(lives(one) for one in family))
    result = context.runs.get(job.run_id).result
    assert result is not None
    assert result.adapter_sha256 == plain["adapter_sha256"]
