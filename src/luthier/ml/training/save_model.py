"""Write what was trained, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from luthier.core.system.durable import sync
from luthier.ml.training.model import TrainableModel

SNAPSHOTS: Final = "snapshots"
_PREFIX: Final = "step-"


def save_model(model: TrainableModel, base_path: Path, run_folder: Path) -> tuple[Path, str]:
    """Save the trained weights as `adapter/` (or `model/` after full fine-tuning) under the run's folder.

    The weights are written in the precision that the model was run and validated in: what is judged is what was
    trained, to the bit. Written beside and renamed, so that the folder is whole whenever it is there.

    Returns:
        Its path and the digest of the weights.
    """
    final = run_folder / model.method.folder_name
    return final, _write(model, base_path, final)


class Snapshots:
    """What a run was after its last few epochs: `snapshots/step-NNNNNNNN/`, each as `save_model` would write it.

    Args:
        base_path: of the base model.
        num_kept: how many of the newest are kept.
    """

    def __init__(self, base_path: Path, run_folder: Path, num_kept: int) -> None:
        self.base_path, self.folder, self.num_kept = base_path, run_folder / SNAPSHOTS, num_kept

    def save(self, model: TrainableModel, step: int) -> Path:
        """Write what the model is now, and delete the oldest; returns the folder.

        One that is there stays untouched: a run that does a step over again makes the same bytes, and somebody may be
        reading them. One that is older than all that are kept is not written again.
        """
        final = self.folder / f"{_PREFIX}{step:08d}"
        kept = self._all()
        if final not in kept and len([path for path in kept if path.name > final.name]) < self.num_kept:
            _write(model, self.base_path, final)
        for path in self._all()[: -self.num_kept]:
            # Renamed first: a kill during rmtree must not leave half a snapshot under its name.
            doomed = path.with_name(f".old-{path.name}")
            path.rename(doomed)
        for rubbish in self.folder.glob(".old-*"):
            shutil.rmtree(rubbish)
        return final

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_PREFIX}*"))


def _write(model: TrainableModel, base_path: Path, final: Path) -> str:
    """Save the weights into a folder, and return their digest."""
    partial = final.with_name(f".{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    digest = model.method.save(model.module, base_path, partial)
    for file in partial.iterdir():
        sync(file)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return digest
