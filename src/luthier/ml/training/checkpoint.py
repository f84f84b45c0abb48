"""Checkpoints that can be trusted: whole or not there, checked by digest, the last few and the best kept.

    checkpoints/step-00000040/
        weights.safetensors     fp32 masters of what is trained
        moments.safetensors     Adam's moments
        method.safetensors      what method and average of the weights remember beside them, where they do
        state.json              step, sums, early stopping: all that resume needs beside the plan
        manifest.json           digest of each file; written last

A checkpoint is written into a hidden folder, every file and the folder are fsynced, then renamed. After a kill at any
moment there is either a whole checkpoint or rubbish with a dot in front, which the next save sweeps away.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from luthier.core.digest import sha256_file
from luthier.core.errors import CheckpointError, StorageFullError
from luthier.core.frozen_model import FrozenModel
from luthier.core.library_errors import library_reason
from luthier.core.system.disk_full import is_disk_full
from luthier.core.system.durable import sync
from luthier.ml.training.early_stopping import EarlyStopping
from luthier.ml.training.tensor_file import save_file

_PREFIX = "step-"
_MANIFEST = "manifest.json"
_METHOD = "method.safetensors"


class LoopState(FrozenModel):
    """What the loop has counted so far. Sums are exact floats: JSON keeps every bit of a double.

    Attributes:
        loss_sum, loss_weight: of all steps so far; their quotient is the mean loss.
        window_*: since the last validation.
        seconds: wall time of all steps.
    """

    plan_hash: str
    step: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_examples: int = 0
    window_loss_sum: float = 0.0
    window_loss_weight: float = 0.0
    seconds: float = 0.0
    early_stopping: EarlyStopping


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as it was read, every digest checked.

    Attributes:
        path: its folder.
        state: the counters of the loop.
        weights: fp32 masters by parameter name.
        moments: the optimizer's state by `part.name`.
        method: what method and weight average keep beside them; may be empty.
    """

    path: Path
    state: LoopState
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    method: Mapping[str, Tensor]


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of a step's checkpoint in the folder of a run's checkpoints."""
    return folder / f"{_PREFIX}{step:08d}"


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, num_kept: int) -> None:
        self.folder, self.num_kept = folder, num_kept

    def save(
        self,
        state: LoopState,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        method: Mapping[str, Tensor] | None = None,
    ) -> tuple[Path, int]:
        """Write one checkpoint; returns its folder and size in bytes. Saving a step again replaces it.

        Raises:
            StorageFullError: the disk has no room; the checkpoints before stay as they were.
        """
        tensors = {"weights.safetensors": weights, "moments.safetensors": moments}
        if method:
            tensors[_METHOD] = method
        self.folder.mkdir(parents=True, exist_ok=True)
        # Hidden folders are what a killed save or deletion left behind; nothing reads them.
        for rubbish in self.folder.glob(".*"):
            shutil.rmtree(rubbish)
        final = self._path(state.step)
        partial = self.folder / f".{final.name}"
        try:
            num_bytes = _write(partial, state, tensors)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not is_disk_full(error):
                raise
            free = shutil.disk_usage(self.folder).free
            raise StorageFullError(
                f"no room for the checkpoint of step {state.step} in {self.folder} ({free:,} bytes free)",
                expected=f"about {sum(t.nbytes for part in tensors.values() for t in part.values()):,} bytes",
                do="free some disk space and resume the run: nothing before this step is lost",
            ) from error
        # A rename cannot replace a folder that is not empty.
        if final.exists():
            final.rename(self.folder / f".old-{final.name}")
        partial.rename(final)
        # The rename must be on the disk before older checkpoints are deleted.
        sync(self.folder)
        self._prune()
        return final, num_bytes

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, oldest first, trusted or not."""
        if not self.folder.is_dir():
            return []
        names = [p.name.removeprefix(_PREFIX) for p in self.folder.glob(f"{_PREFIX}*")]
        return sorted(int(name) for name in names if name.isdigit())

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint (None where the run has none yet), and a message for each broken one skipped.

        Raises:
            CheckpointError: there are checkpoints but all of them are broken.
        """
        broken: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.load(step), broken
            except CheckpointError as error:
                broken.append(error.came)
        if broken:
            raise CheckpointError(
                f"all checkpoints in {self.folder} are damaged: {'; '.join(broken)}",
                expected="at least one whose files match their digests",
                do="check the disk, then start the run again from its recipe",
            )
        return None, broken

    def load(self, step: int) -> Checkpoint:
        """Read one checkpoint and check every file against its manifest.

        Raises:
            CheckpointError: a file is missing, or does not match its digest.
        """
        path = self._path(step)
        damage = _damage(path)
        if damage:
            raise CheckpointError(
                f"checkpoint {path.name} is damaged: {damage}",
                expected="files that match their digests in manifest.json",
                do="resume the run: the newest whole checkpoint is used",
            )
        state = LoopState.model_validate_json((path / "state.json").read_text(encoding="utf-8"))
        method = path / _METHOD
        return Checkpoint(
            path,
            state,
            weights=load_file(path / "weights.safetensors"),
            moments=load_file(path / "moments.safetensors"),
            method=load_file(method) if method.is_file() else {},
        )

    def _path(self, step: int) -> Path:
        return checkpoint_path(self.folder, step)

    def _best_of(self, step: int) -> int | None:
        """The best step that a checkpoint points to, or None where it cannot be read."""
        try:
            document = json.loads((self._path(step) / "state.json").read_text(encoding="utf-8"))
            return int(document["early_stopping"]["best_step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _prune(self) -> None:
        """Keep the last few, and the best that each of these points to: a fall-back finds its best, too."""
        steps = self.steps()
        last = steps[-self.num_kept :]
        kept = {*last, *(self._best_of(step) for step in last)}
        for step in steps:
            if step not in kept:
                # Renamed first: a kill during rmtree must not leave a half-deleted folder under a checkpoint's name.
                doomed = self.folder / f".old-{self._path(step).name}"
                self._path(step).rename(doomed)
                shutil.rmtree(doomed)
        for rubbish in self.folder.glob(".old-*"):
            shutil.rmtree(rubbish)


def _write(folder: Path, state: LoopState, tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    folder.mkdir()
    try:
        for name, found in tensors.items():
            save_file(found, folder / name)
    except Exception as error:
        if "No space left" in str(error):  # safetensors wraps the system's error in one of its own
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    (folder / "state.json").write_text(state.model_dump_json(indent=2), encoding="utf-8")
    files = sorted(folder.iterdir())
    sizes = {file.name: file.stat().st_size for file in files}
    manifest = {file.name: {"sha256": sha256_file(file), "num_bytes": sizes[file.name]} for file in files}
    for file in files:
        sync(file)
    # The manifest comes last, after all other files are synced: a folder that has one is whole.
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    sync(folder / _MANIFEST)
    sync(folder)
    return sum(sizes.values())


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, as text, or None."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        # The three files that a resume reads are checked even where a damaged manifest does not list them.
        for name in sorted({"weights.safetensors", "moments.safetensors", "state.json"} | set(manifest)):
            file = path / name
            if file.stat().st_size != manifest[name]["num_bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {manifest[name]['num_bytes']}"
            if sha256_file(file) != manifest[name]["sha256"]:
                return f"the content of {name} does not match its digest"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError) as error:
        return f"{_MANIFEST} cannot be read ({library_reason(error)})"
    return None
