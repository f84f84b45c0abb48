"""`luthier doctor`."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace

from luthier.core.system.extras import EXTRAS


def test_doctor(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    document = luthier("doctor", "--json").document
    assert document["home"] == str(home)
    assert document["num_cores"] >= 1
    assert set(document["extras"]) == set(EXTRAS)
    text = luthier("doctor").out
    for words in (
        "system",
        platform.release(),
        "processor",
        "precision",
        document["precision"],
        "free disk",
        str(home),
        "torch",
    ):
        assert words in text
    assert "torch" in text
    messages = [finding["message"] for finding in document["warnings"]]
    # how busy the machine is changes from one measurement to the next
    assert [one for one in messages if one not in text and not one.startswith("other processes used ")] == []


def test_what_a_machine_lacks_is_named() -> None:
    from luthier.features.doctor.cli import _accelerators, _system

    found = SimpleNamespace(
        system="Windows 11, AMD64",
        facilities={"file locks": True, "fork": False, "alarm": False},
        accelerator_software="ROCm 6.4",
        hardware=SimpleNamespace(accelerators=("AMD Instinct MI300X",), device="cuda"),
    )
    assert _system(found) == "Windows 11, AMD64; without fork, alarm (docs/platforms.md)"  # type: ignore[arg-type]
    assert _accelerators(found) == "AMD Instinct MI300X (cuda: ROCm 6.4)"  # type: ignore[arg-type]
