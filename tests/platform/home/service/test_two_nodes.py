"""A drill: two machines (network namespaces) train one run under torchrun; one is killed, then the network is cut.

    make drill

Needs root and the right to make network namespaces. The machines share no home: only rank 0 keeps the run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.core.events import StepDone
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.launchers.here import silent_hooks, train_worker
from luthier.ml.training.distributed import World
from luthier.platform.home.context import Context
from luthier.testing.world import in_world

MakeRecipe = Callable[..., Path]
NODES, ADDRESSES, LINKS = ("luthier-a", "luthier-b"), ("10.231.77.1", "10.231.77.2"), ("lut-a", "lut-b")
PEER_TIMEOUT_SECONDS, MAX_SECONDS = 40, 200


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[None]:
    """Two namespaces with a cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command `ip`")
    try:
        for node in NODES:
            ip("netns", "add", node)
        ip("link", "add", LINKS[0], "type", "veth", "peer", "name", LINKS[1])
        for node, link, address in zip(NODES, LINKS, ADDRESSES, strict=True):
            ip("link", "set", link, "netns", node)
            ip("-n", node, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", node, "link", "set", link, "up")
            ip("-n", node, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        remove()
        pytest.skip(f"this system makes no network namespaces: {error.stderr.decode().strip()}")
    yield
    remove()


def remove() -> None:
    for node in NODES:
        subprocess.run(["ip", "netns", "del", node], capture_output=True)


class Cluster:
    """Both machines, each running torchrun with one process."""

    def __init__(self, recipe: Path, homes: tuple[Path, Path], log: Path) -> None:
        self.recipe, self.homes, self.log = recipe, homes, log
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for rank, (node, home) in enumerate(zip(NODES, self.homes, strict=True)):
            command = [
                "ip", "netns", "exec", node, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                "--node-rank", str(rank), "--nproc-per-node", "1", "--max-restarts", "0",
                "--master-addr", ADDRESSES[0], "--master-port", "29411",
                "-m", "luthier", "train", str(self.recipe), "--home", str(home),
            ]  # fmt: skip
            environment = os.environ | {
                "LUTHIER_LAUNCH_ID": "drill", "LUTHIER_PEER_TIMEOUT_SECONDS": str(PEER_TIMEOUT_SECONDS),
                "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            with self.log.open("ab") as log:
                self.running.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )

    def kill(self, rank: int) -> None:
        """The machine is gone: everything on it at once."""
        pids = subprocess.run(["ip", "netns", "pids", NODES[rank]], capture_output=True, check=True).stdout.split()
        for pid in map(int, pids):
            os.kill(pid, signal.SIGKILL)

    def cut(self, is_cut: bool) -> None:
        ip("-n", NODES[1], "link", "set", LINKS[1], "down" if is_cut else "up")

    def ended(self) -> list[int]:
        """Exit codes, once both have ended."""
        codes = [process.wait(timeout=MAX_SECONDS) for process in self.running]
        self.running = []
        return codes

    def wait_for_step(self, context: Context, step: int) -> None:
        deadline = time.monotonic() + MAX_SECONDS
        while time.monotonic() < deadline:
            runs = context.runs.list()
            if runs and runs[0].step >= step:
                return
            assert all(process.poll() is None for process in self.running), self.log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.05)
        pytest.fail(f"step {step} was not reached in {MAX_SECONDS} s")


def undisturbed(world: World, prepared: Prepared, folder: Path) -> None:
    train_worker(prepared, silent_hooks(folder), world)


@pytest.mark.drill
@pytest.mark.usefixtures("nodes")
def test_a_killed_machine_and_a_cut_network_cost_nothing_but_time(
    context: Context, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(
        data={"train": "train.jsonl"},
        training={
            "epochs": 200, "global_batch_size": 8, "learning_rate": 0.001, "precision": "float32", "num_threads": 1,
            "checkpoint_every_steps": 20,
        },
    )  # fmt: skip
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert [e.error for e in in_world(2, undisturbed, prepared, tmp_path / "whole", timeout_seconds=120)] == ["", ""]

    cluster = Cluster(recipe, (context.home, tmp_path / "home-b"), tmp_path / "log")
    cluster.start()
    cluster.wait_for_step(context, 100)
    cluster.kill(1)
    assert 0 not in cluster.ended()

    cluster.start()
    cluster.wait_for_step(context, 300)
    cluster.cut(True)
    assert 0 not in cluster.ended()
    cluster.cut(False)

    cluster.start()
    assert cluster.ended() == [0, 0], cluster.log.read_text(encoding="utf-8")[-3000:]
    (record,) = context.runs.list()
    assert (record.status, record.step) == ("succeeded", 1000)
    steps = [e.step for e in context.runs.events(record.run_id) if isinstance(e, StepDone)]
    assert steps == list(range(1, 1001))
    ours = context.settings.run_folder(record.run_id) / "adapter" / "adapter_model.safetensors"
    assert ours.read_bytes() == (tmp_path / "whole" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert not list((tmp_path / "home-b").glob("runs/*/checkpoints")), "rank 1 keeps nothing"
