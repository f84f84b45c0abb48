"""What a machine can do."""

from __future__ import annotations

import json
import platform

from luthier.core.system.facility_list import FACILITIES
from luthier.features.doctor.service import examine, find_obstacles
from luthier.ml.evaluation.sandbox.runners import isolation
from luthier.ml.planning.hardware import Hardware
from luthier.platform.home.context import Context

GIB = 1 << 30
GOOD = Hardware(
    cpu_name="a processor",
    num_cores=2,
    num_threads=2,
    memory_bytes=16 * GIB,
    memory_available_bytes=12 * GIB,
    device="cpu",
    accelerators=(),
    float32_gflops=100.0,
    bfloat16_gflops=400.0,
    memory_gb_per_second=20.0,
    precision="bfloat16",
    why="measured",
)


def test_this_machine_is_measured(context: Context) -> None:
    found = examine(context)
    document = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert document["precision"] in ("float32", "bfloat16")
    assert document["float32_gflops"] > 0
    assert document["home"] == str(context.home)
    assert document["disk_free_bytes"] > 0
    assert document["sandbox"] == isolation().holds
    assert "bubblewrap" in document["sandbox"]
    assert document["facilities"] == {one.name: one.is_here() for one in FACILITIES}
    assert document["facilities"]["file locks"] is True
    assert platform.system() in document["system"]
    assert document["accelerator_software"] == "" if document["device"] == "cpu" else document["accelerator_software"]
    assert set(document["versions"]) == {"python", "luthier", "torch", "transformers", "peft"}


def test_nothing_in_the_way_nothing_said() -> None:
    assert find_obstacles(GOOD, disk_free_bytes=50 * GIB) == []


def test_each_obstacle_is_named_with_what_to_do() -> None:
    poor = GOOD.model_copy(update={"memory_available_bytes": GIB, "num_threads": 1})
    memory, disk, threads = find_obstacles(poor, disk_free_bytes=GIB // 2)
    assert memory.message == "1 GiB of 16 GiB memory are free"
    assert disk.message == "512 MiB are free on the disk of the home"
    assert "--home" in disk.do
    assert threads.message == "torch uses 1 thread, there are 2 cores"
