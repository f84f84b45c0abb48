"""How fast this machine multiplies matrices: measured when a home first needs it, and kept there.

The precision of a run follows from it. Measured by each process, a busy moment could give two equal runs two
precisions, and so other bytes.
"""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.digest import sha256_document
from luthier.core.errors import StorageFullError

if TYPE_CHECKING:
    from luthier.plan.hardware import Hardware, Rates
    from luthier.service.context import Context

_FORMAT = 1
_WAIT_SECONDS = 120.0


def hardware_of(context: Context) -> Hardware:
    """This machine, with the rates that this home keeps of it; they are measured (a second) where it keeps none.

    Processes that need them at the same time wait for the first. Raises ConflictError where that takes minutes.
    """
    return hardware_in(context.settings.rates_folder)


def hardware_in(rates_folder: Path) -> Hardware:
    """The same for a process that has nothing of the home but where it keeps rates."""
    from luthier.plan.hardware import rates, with_rates
    from luthier.store.file_lock import file_lock

    place = _place(rates_folder)
    found = _kept(place)
    if found is None:
        with file_lock(place.with_suffix(".lock"), what="the measuring of this machine", timeout_seconds=_WAIT_SECONDS):
            found = _kept(place)
            if found is None:
                found = rates()
                _keep(place, found)
    return with_rates(found)


def measure_again(context: Context) -> tuple[Hardware, Hardware | None]:
    """This machine as this process measured it, which is kept from now on; and with the rates that were kept before."""
    from luthier.plan.hardware import rates, with_rates

    place = _place(context.settings.rates_folder)
    before = _kept(place)
    _keep(place, rates())
    return with_rates(rates()), with_rates(before) if before is not None else None


def _place(rates_folder: Path) -> Path:
    """The file of this machine: rates hold for its processor and accelerators, its threads, and this torch."""
    return rates_folder / f"{sha256_document(_key())[:24]}.json"


def _key() -> dict[str, Any]:
    import torch

    from luthier.plan import hardware

    return {
        "processor": hardware.cpu_name(),
        "num_cores": hardware.num_usable_cores(),
        "num_threads": torch.get_num_threads(),
        "accelerators": hardware.accelerators(),
        "torch": version("torch"),
    }


def _kept(place: Path) -> Rates | None:
    """What a file holds; None where it is not there, is damaged, or is of another format: then it is measured anew."""
    from luthier.plan.hardware import Rates

    try:
        document = json.loads(place.read_text(encoding="utf-8"))
        return Rates.model_validate(document["gflops"]) if document["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(place: Path, found: Rates) -> None:
    from luthier.reporting.page import replace_text

    place.parent.mkdir(parents=True, exist_ok=True)
    document = {"format": _FORMAT, "machine": _key(), "gflops": found.model_dump(mode="json")}
    with suppress(StorageFullError):  # it can be measured again; what fills the disk is told of elsewhere
        replace_text(place, json.dumps(document, indent=1) + "\n")
