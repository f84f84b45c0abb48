"""Rates of a machine, kept with the home, so that a busy moment does not decide about the bytes of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.results.cost import MachineLoad
from luthier.core.system.files import file_lock
from luthier.features.doctor.service import examine
from luthier.ml.planning import hardware
from luthier.ml.planning.hardware import Benchmark, Rates
from luthier.platform.home import hardware_benchmark
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of, measure_again

QUIET, BUSY = Rates(float32=100.0, bfloat16=400.0), Rates(float32=100.0, bfloat16=90.0)


def says(monkeypatch: pytest.MonkeyPatch, rates: Rates, *, busy_cores: float = 0.0) -> None:
    found = Benchmark(rates=rates, memory_gb_per_second=20.0, busy_cores=busy_cores)
    monkeypatch.setattr(hardware, "benchmark", lambda: found)
    monkeypatch.setattr(hardware, "run_benchmark", lambda: found)
    monkeypatch.setattr(hardware, "busy_cores", lambda: busy_cores)


def age(path: Path, seconds: float) -> None:
    """As if it had been written so long ago."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def kept(context: Context) -> Path:
    (found,) = context.settings.rates_folder.glob("*.json")
    return found


def test_what_was_measured_first_holds_for_every_process(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, QUIET)
    assert hardware_of(context).precision == "bfloat16"
    says(monkeypatch, BUSY)
    assert hardware_of(context).precision == "bfloat16"
    assert hardware_of(context).bfloat16_gflops == 400.0
    document = json.loads(kept(context).read_text())
    assert document["gflops"] == {"float32": 100.0, "bfloat16": 400.0}
    assert document["machine"]["processor"] == hardware.cpu_name()


def test_another_home_and_other_threads_are_measured_for_themselves(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, QUIET)
    hardware_of(context)
    says(monkeypatch, BUSY)
    with Context.open(tmp_path / "other") as other:
        assert hardware_of(other).precision == "float32"
    monkeypatch.setattr(hardware_benchmark, "_key", lambda: {"num_threads": 64})
    assert hardware_of(context).precision == "float32"


def test_a_disturbed_measurement_is_repeated_once_the_machine_is_quieter(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(hardware_benchmark.time, "monotonic", lambda: clock[0])
    says(monkeypatch, BUSY, busy_cores=1.8)
    assert hardware_of(context).precision == "float32"
    says(monkeypatch, QUIET)
    assert hardware_of(context).precision == "float32"  # a minute has not gone by
    age(kept(context), 61)
    says(monkeypatch, QUIET, busy_cores=1.7)
    assert hardware_of(context).precision == "float32"  # hardly quieter
    says(monkeypatch, QUIET, busy_cores=0.4)
    assert hardware_of(context).precision == "float32"  # it looks once a minute
    clock[0] += 61
    assert hardware_of(context).precision == "bfloat16"
    assert json.loads(kept(context).read_text())["busy_cores"] == 0.4
    # what is kept never becomes worse by itself
    age(kept(context), 61)
    clock[0] += 61
    says(monkeypatch, BUSY, busy_cores=2.0)
    assert hardware_of(context).precision == "bfloat16"


def test_a_quiet_measurement_is_never_repeated_by_itself(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, QUIET)
    hardware_of(context)
    age(kept(context), 10**6)
    says(monkeypatch, BUSY)
    assert hardware_of(context).bfloat16_gflops == 400.0


def test_one_plan_is_quoted_the_same_whatever_else_runs(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, QUIET)
    first = hardware_of(context)
    for busy in (0.5, 1.0, 2.0):
        says(monkeypatch, BUSY, busy_cores=busy)
        age(kept(context), 61)
        again = hardware_of(context)
        assert (again.bfloat16_gflops, again.memory_gb_per_second) == (first.bfloat16_gflops, 20.0)


def test_the_load_is_measured_at_most_twice_a_minute(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, QUIET)
    measured: list[Rates] = []

    def load(rates: Rates) -> MachineLoad:
        measured.append(rates)
        return MachineLoad(busy_cores=1.0, num_cores=2, slowdown=3.0)

    monkeypatch.setattr(hardware, "present_load", load)
    monkeypatch.setattr(hardware_benchmark.time, "monotonic", lambda: 3000.0)
    assert hardware_benchmark.load_of(context) == hardware_benchmark.load_of(context)
    assert measured == [QUIET]
    monkeypatch.setattr(hardware_benchmark.time, "monotonic", lambda: 3031.0)
    assert hardware_benchmark.load_of(context).slowdown == 3.0
    assert len(measured) == 2


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"format": 0}', '{"format": 1, "gflops": {"float32": 1, "bfloat16": 2}}',
               '{"format": 2, "gflops": {"float32": -1}}'],
)  # fmt: skip
def test_a_damaged_file_is_measured_again(context: Context, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    says(monkeypatch, QUIET)
    hardware_of(context)
    kept(context).write_text(damage)
    says(monkeypatch, BUSY)
    assert hardware_of(context).precision == "float32"
    assert json.loads(kept(context).read_text())["gflops"]["bfloat16"] == 90.0


def test_doctor_measures_again_and_tells_what_changes(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, BUSY)
    assert not [w for w in examine(context).warnings if "planned" in w.message]
    says(monkeypatch, QUIET)
    (warning,) = (w for w in examine(context).warnings if "planned" in w.message)
    assert warning.message.startswith("runs are planned with bfloat16 from now on (matrix products on ")
    assert "until now float32 (" in warning.message
    assert "precision: float32" in warning.do
    assert hardware_of(context).precision == "bfloat16"
    now, before, busy_cores = measure_again(context)
    assert busy_cores == 0
    assert before is not None
    assert now.precision == before.precision == "bfloat16"


def test_who_comes_while_it_is_measured_waits_for_what_comes_out(context: Context) -> None:
    hardware_of(context)
    place = kept(context)
    first = place.read_text()
    place.unlink()
    code = "from luthier.platform.home.context import Context\n" + (
        "from luthier.platform.home.hardware_benchmark import hardware_of\n"
        "with Context.open() as context:\n    print(hardware_of(context).bfloat16_gflops)"
    )
    environment = os.environ | {"LUTHIER_HOME": str(context.home)}
    with file_lock(place.with_suffix(".lock"), what="a test", timeout_seconds=5):
        child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        changed = json.loads(first) | {"gflops": {"float32": 1.0, "bfloat16": 4242.0}}
        place.write_text(json.dumps(changed))
    told, _ = child.communicate(timeout=120)
    assert told.strip() == "4242.0"
