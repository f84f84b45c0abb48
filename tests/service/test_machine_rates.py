"""Rates of a machine, kept with the home, so that a busy moment does not decide about the bytes of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.plan import hardware
from luthier.plan.hardware import Rates
from luthier.service import machine_rates
from luthier.service.context import Context
from luthier.service.doctor import examine
from luthier.service.machine_rates import hardware_of, measure_again
from luthier.store.file_lock import file_lock

QUIET, BUSY = Rates(float32=100.0, bfloat16=400.0), Rates(float32=100.0, bfloat16=90.0)


def says(monkeypatch: pytest.MonkeyPatch, rates: Rates) -> None:
    monkeypatch.setattr(hardware, "rates", lambda: rates)


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
    monkeypatch.setattr(machine_rates, "_key", lambda: {"num_threads": 64})
    assert hardware_of(context).precision == "float32"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 0}', '{"format": 1, "gflops": {"float32": -1}}'])
def test_a_damaged_file_is_measured_anew(context: Context, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
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
    now, before = measure_again(context)
    assert before is not None
    assert now.precision == before.precision == "bfloat16"


def test_who_comes_while_it_is_measured_waits_for_what_comes_out(context: Context) -> None:
    hardware_of(context)
    place = kept(context)
    first = place.read_text()
    place.unlink()
    code = "from luthier.service.context import Context\n" + (
        "from luthier.service.machine_rates import hardware_of\n"
        "with Context.open() as context:\n    print(hardware_of(context).bfloat16_gflops)"
    )
    environment = os.environ | {"LUTHIER_HOME": str(context.home)}
    with file_lock(place.with_suffix(".lock"), what="a test", timeout_seconds=5):
        child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        changed = json.loads(first) | {"gflops": {"float32": 1.0, "bfloat16": 4242.0}}
        place.write_text(json.dumps(changed))
    told, _ = child.communicate(timeout=120)
    assert told.strip() == "4242.0"
