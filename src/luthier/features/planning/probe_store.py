"""What probes measured on this machine, kept in the home: one JSON file for each setting of machine and software."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.digest import sha256_document
from luthier.core.library_errors import first_line

if TYPE_CHECKING:
    from luthier.ml.planning.calibration import Measurement

_FORMAT = 1
_NUM_KEPT = 12
"""Older measurements give way: the machine of today is what counts, and a fit needs few."""


@dataclass(frozen=True, slots=True)
class ProbeKey:
    """What a measurement holds for, and for nothing else. device: its title, as `plan.devices` gives it."""

    device: str
    torch_version: str
    precision: str
    num_threads: int

    def as_json(self) -> dict[str, Any]:
        """The key as it stands in the file."""
        return {
            "device": self.device,
            "torch_version": self.torch_version,
            "precision": self.precision,
            "num_threads": self.num_threads,
        }


class UnreadableProbeError(ValueError):
    """A file of measurements that is damaged, or not about the key it is named by."""


class ProbeStore:
    """The measurements of one home. Files appear whole or not at all; the last writer wins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: ProbeKey) -> Path:
        """Where the measurements of a key lie."""
        return self.folder / f"{sha256_document(key.as_json())[:24]}.json"

    def read(self, key: ProbeKey) -> tuple[Measurement, ...]:
        """The measurements of a key, oldest first; none where no probe has run. Raises UnreadableProbeError."""
        path = self.path(key)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableProbeError(f"{path}: {error}") from error
        return _parsed(text, key, path)

    def add(self, key: ProbeKey, measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
        """Keep new measurements, each in place of an older one of the same workload; returns all that are kept.

        What cannot be read is replaced. Raises StorageFullError.
        """
        from luthier.ml.charts.page import replace_text

        try:
            before = self.read(key)
        except UnreadableProbeError:
            before = ()
        new = [m.workload for m in measurements]
        # No lock: two probes at once may lose one measurement, which the next probe makes again.
        kept = [*(m for m in before if m.workload not in new), *measurements][-_NUM_KEPT:]
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {"format": _FORMAT, "key": key.as_json(), "measurements": _adapter().dump_python(kept, mode="json")}
        replace_text(self.path(key), json.dumps(document, indent=1) + "\n")
        return tuple(kept)


def _parsed(text: str, key: ProbeKey, path: Path) -> tuple[Measurement, ...]:
    from luthier.core.errors import RecipeError

    try:
        document = json.loads(text)
        if document["format"] != _FORMAT or document["key"] != key.as_json():
            raise UnreadableProbeError(f"{path} is of format {document['format']!r} and holds for {document['key']!r}")
        found = tuple(_adapter().validate_python(document["measurements"], strict=False))
    except UnreadableProbeError:
        raise
    except (ValueError, KeyError, TypeError, RecipeError) as error:
        raise UnreadableProbeError(f"{path}: {first_line(error)}") from error
    if not found or any(m.step_seconds <= 0 or m.peak_memory_bytes <= 0 for m in found):
        raise UnreadableProbeError(f"{path} holds no measurement above zero")
    return found


def _adapter() -> Any:
    from pydantic import TypeAdapter

    from luthier.ml.planning.calibration import Measurement

    return TypeAdapter(list[Measurement])
