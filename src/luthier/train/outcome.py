"""Write what was trained, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from luthier.train.model import TrainableModel


def save_outcome(model: TrainableModel, base_path: Path, run_folder: Path) -> tuple[Path, str]:
    """Save the trained weights as `adapter/` (or `model/` after full fine-tuning) under the run's folder.

    The weights are written in the precision that the model was run and validated in: what is judged is what was
    trained, to the bit. Written beside and renamed, so that the folder is whole whenever it is there. Returns its path
    and the digest of the weights.
    """
    final = run_folder / model.method.outcome_name
    partial = run_folder / f".{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    digest = model.method.save(model.module, base_path, partial)
    for file in partial.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return final, digest
