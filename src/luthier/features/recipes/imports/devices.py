"""Devices that hold one copy of a model together: they share their rows, so that only copies multiply a batch."""

from __future__ import annotations

from math import prod
from typing import Final

from luthier.core.text.counted import counted
from luthier.features.recipes.imports.translation import Translation

NOTE: Final = "of devices that share rows: --devices is divided by it"


def put_shared_devices(t: Translation, *keys: str) -> None:
    """Count the copies of the model in place of devices, before the batch is translated.

    Args:
        t: The translation under way, whose devices become copies.
        keys: Their keys for the devices that a copy is divided over, each a factor.
    """
    sizes = {key: int(t.take(key, 1)) for key in keys}
    num_shared = prod(max(1, size) for size in sizes.values())
    given = [key for key, size in sizes.items() if size > 1]
    if num_shared > 1 and t.num_devices % num_shared and t.num_devices != 1:
        came = f"{counted(t.num_devices, 'device')}, and a copy of the model takes {num_shared:,}: name all of them"
        t.refuse(given[0], came, set_by="training.global_batch_size")
    note = f"{num_shared:,} devices share their rows: they are one factor of the batch" if given else "off"
    for key in keys:
        t.same(key, note)
    t.num_devices = max(1, t.num_devices // num_shared)
