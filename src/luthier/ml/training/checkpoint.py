"""Verified checkpoints of one or several processes, and the saved model; both are written atomically.

    checkpoints/step-00000040/
        weights.safetensors     fp32 masters of what is trained
        moments.safetensors     Adam's moments
        method.safetensors      state of the method and of the weight average, where they have any
        state.json              step, sums, early stopping: everything else that a resume needs
        manifest.json           digest of each file; written last

A checkpoint is written into a hidden folder, every file and the folder are fsynced, then renamed. A kill at any moment
leaves either a complete checkpoint, which a resume names where it has no name yet, or a hidden partial folder, which
the next save removes. The last few checkpoints and the best one are kept.

In a run of several processes only rank 0 reads and writes the folder, so the nodes need no shared file system and a run
resumes with any number of processes. Tensors are broadcast one at a time. Safetensors files are written one tensor at a
time as well, with the same bytes as the library `safetensors` writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from luthier.core.data_stream import StreamPosition
from luthier.core.errors import CheckpointError, StorageFullError, library_reason
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_document, sha256_file
from luthier.core.system.files import is_disk_full, sync
from luthier.ml.inference.models.task_head import save_task_head
from luthier.ml.training.distributed import World
from luthier.ml.training.fit import EarlyStopping
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.sharding import like, whole

# The library's own order of dtypes; the last one comes first in a file.
_TYPES: Final = (
    (torch.bool, "BOOL"), (torch.uint8, "U8"), (torch.int8, "I8"), (torch.int16, "I16"), (torch.float16, "F16"),
    (torch.bfloat16, "BF16"), (torch.int32, "I32"), (torch.float32, "F32"), (torch.float64, "F64"),
    (torch.int64, "I64"),
)  # fmt: skip
_NAMES: Final = dict(_TYPES)
_RANKS: Final = {dtype: rank for rank, (dtype, _) in enumerate(_TYPES)}


def in_file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names in file order, which is also the order in which all ranks gather sharded tensors."""
    return sorted(tensors, key=lambda name: (-_RANKS[tensors[name].dtype], name))


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name. Sharded tensors are gathered, a collective that the other ranks must join."""
    names, header, offset = in_file_order(tensors), {}, 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            # One tensor at a time: with sharding this gathers it from all ranks.
            there = whole(tensors[name]).detach().cpu().contiguous()
            file.write(there.reshape(-1).view(torch.uint8).numpy().data)


_PREFIX, _MANIFEST, _METHOD = "step-", "manifest.json", "method.safetensors"


class LoopState(FrozenModel):
    """The counters of the training loop. Sums are exact floats: JSON keeps every bit of a double.

    Attributes:
        plan_hash: of the plan; a checkpoint resumes only under the same one.
        step: optimizer steps that are done.
        num_tokens: tokens of all steps, without padding.
        num_trained_tokens: of these, tokens with loss mask 1.
        num_examples: rows of all steps.
        early_stopping: the state of early stopping after the last validation.
        loss_sum, loss_weight: of all steps so far, summed over their units; the quotient is the mean loss.
        plain_loss_sum, plain_loss_weight: the same of the task's rows, without regularisation; None: not kept before.
        window_loss_sum, window_loss_weight: as the plain ones, of the steps since the last validation.
        seconds: wall time of all steps.
        stream: where the rows of the next step are, of rows that are streamed.
        versions: of the libraries that have computed the last step, by name; empty where they were not noted.
    """

    plan_hash: str
    step: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    plain_loss_sum: float | None = None
    plain_loss_weight: float = 0.0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_examples: int = 0
    window_loss_sum: float = 0.0
    window_loss_weight: float = 0.0
    seconds: float = 0.0
    early_stopping: EarlyStopping
    stream: StreamPosition | None = None
    versions: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint with all digests verified.

    Attributes:
        path: its folder.
        state: the counters of the loop.
        weights: fp32 masters by parameter name.
        moments: the optimizer's state by `part.name`.
        method: state of the method and of the weight average; may be empty.
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
        """Write one checkpoint and return its folder and size in bytes. Saving a step again replaces it.

        Args:
            state: counters of the loop; its step names the folder.
            weights: fp32 masters by parameter name.
            moments: the optimizer's state by `part.name`.
            method: state of the method and of the weight average.

        Raises:
            StorageFullError: the disk has no room; earlier checkpoints are unchanged.
        """
        tensors = {"weights.safetensors": weights, "moments.safetensors": moments}
        if method:
            tensors[_METHOD] = method
        self.folder.mkdir(parents=True, exist_ok=True)
        # Hidden folders are what a killed save or deletion left behind; nothing reads them.
        _remove_leftovers(self.folder, ".*")
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
        self._prune(state.step)
        return final, num_bytes

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first, verified or not."""
        if not self.folder.is_dir():
            return []
        names = [p.name.removeprefix(_PREFIX) for p in self.folder.glob(f"{_PREFIX}*")]
        return sorted(int(name) for name in names if name.isdigit())

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest intact checkpoint (None if there is none yet), and a message for each damaged one skipped.

        Raises:
            CheckpointError: checkpoints exist but all of them are damaged.
        """
        self._name_what_is_whole()
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
                do="resume the run: the newest complete checkpoint is used",
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
        """The best step that a checkpoint refers to, or None if it cannot be read."""
        try:
            document = json.loads((self._path(step) / "state.json").read_text(encoding="utf-8"))
            return int(document["early_stopping"]["best_step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _prune(self, newest: int) -> None:
        """Keep the last few and the best step that each of them refers to, so that a fallback also finds its best.

        Later steps than the newest were damaged, or the run would have gone on from there.
        """
        steps = self.steps()
        last = [step for step in steps if step <= newest][-self.num_kept :]
        kept = {*last, *(self._best_of(step) for step in last)}
        for step in steps:
            if step not in kept:
                # Renamed first: a kill during rmtree must not leave a half-deleted folder under a checkpoint's name.
                self._path(step).rename(self.folder / f".old-{self._path(step).name}")
        _remove_leftovers(self.folder, ".old-*")

    def _name_what_is_whole(self) -> None:
        """Give a checkpoint the name that a kill has kept from it: its manifest, written last, proves it whole."""
        for partial in self.folder.glob(f".{_PREFIX}*"):
            final = self.folder / partial.name.removeprefix(".")
            if not final.exists() and _damage(partial) is None:
                partial.rename(final)


def _remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove hidden folders. What cannot be removed, such as a file of a file manager, stays and ends no training."""
    for leftover in folder.glob(pattern):
        shutil.rmtree(leftover, ignore_errors=True)


def _write(folder: Path, state: LoopState, tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    folder.mkdir()
    for name, found in tensors.items():
        save_file(found, folder / name)
    (folder / "state.json").write_text(state.model_dump_json(indent=2), encoding="utf-8", newline="\n")
    files = sorted(folder.iterdir())
    sizes = {file.name: file.stat().st_size for file in files}
    manifest = {file.name: {"sha256": sha256_file(file), "num_bytes": sizes[file.name]} for file in files}
    for file in files:
        sync(file)
    # The manifest comes last, after all other files are synced: a folder that has one is complete.
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8", newline="\n")
    sync(folder / _MANIFEST)
    sync(folder)
    return sum(sizes.values())


def _damage(path: Path) -> str | None:
    """The defect of a checkpoint folder as text, or None."""
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


class CheckpointFolder(Protocol):
    """The interface of `checkpoint.CheckpointStore`."""

    def save(
        self,
        state: LoopState,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        method: Mapping[str, Tensor] | None = None,
    ) -> tuple[Path, int]: ...
    def latest(self) -> tuple[Checkpoint | None, list[str]]: ...
    def load(self, step: int) -> Checkpoint: ...


class SharedCheckpoints:
    """Access to a checkpoint folder from every rank; all ranks must make the same calls in the same order.

    Errors are raised on rank 0, which owns the folder; the other ranks end with it.

    Args:
        world: the ranks.
        folder: used by rank 0 alone.
        patterns: the trained weights by name. Where they are sharded, saving gathers and loading shards one tensor at a
            time.
    """

    def __init__(self, world: World, folder: CheckpointFolder, patterns: Mapping[str, Tensor]) -> None:
        self.world, self.folder, self.patterns = world, folder, patterns

    def save(
        self,
        state: LoopState,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        method: Mapping[str, Tensor] | None = None,
    ) -> tuple[Path, int]:
        """As `CheckpointStore.save`. Rank 0 gets the folder and its size in bytes, the others an empty result."""
        if self.world.is_first:
            return self.folder.save(state, weights, moments, method)
        for part in (weights, moments, method or {}):
            for name in in_file_order(part):
                whole(part[name])
        return Path(), 0

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest intact checkpoint, the same on all ranks, and a message for each damaged one skipped."""
        if self.world.size == 1:
            return self.folder.latest()
        found, broken = self.folder.latest() if self.world.is_first else (None, [])
        messages: list[str] = json.loads(self.world.broadcast_text(json.dumps(broken)))
        return self._given_out(found), messages

    def load(self, step: int) -> Checkpoint:
        """One checkpoint, the same on all ranks."""
        if self.world.size == 1:
            return self.folder.load(step)
        found = self._given_out(self.folder.load(step) if self.world.is_first else None)
        assert found is not None
        return found

    def _given_out(self, found: Checkpoint | None) -> Checkpoint | None:
        parts: dict[str, Mapping[str, Tensor]] = {}
        if found is not None:
            parts = {"weights": found.weights, "moments": found.moments, "method": found.method}
        document: dict[str, Any] | None = None
        if found is not None:
            document = {
                "path": str(found.path),
                "state": found.state.model_dump_json(),
                "parts": {part: {n: _form(t) for n, t in tensors.items()} for part, tensors in parts.items()},
            }
        document = json.loads(self.world.broadcast_text(json.dumps(document)))
        if document is None:
            return None
        weights, moments, method = (
            _FromFirst(self.world, document["parts"][part], parts.get(part, {}), self.patterns)
            for part in ("weights", "moments", "method")
        )
        state = LoopState.model_validate_json(document["state"])
        return Checkpoint(Path(document["path"]), state, weights=weights, moments=moments, method=dict(method))


class _FromFirst(Mapping[str, Tensor]):
    """Rank 0's tensors by name. Each access is a broadcast: all ranks must access the same keys in the same order."""

    def __init__(
        self,
        world: World,
        forms: Mapping[str, tuple[str, list[int]]],
        own: Mapping[str, Tensor],
        patterns: Mapping[str, Tensor],
    ) -> None:
        self.world, self.forms, self.own, self.patterns = world, forms, own, patterns

    def __getitem__(self, name: str) -> Tensor:
        dtype, shape = self.forms[name]
        tensor = self.own[name] if self.world.is_first else torch.empty(shape, dtype=getattr(torch, dtype))
        self.world.broadcast_tensors([tensor])
        # the key of a moment ends with the name of its weight (first.NAME), and so does that of an average
        return like(
            tensor, self.patterns.get(name) if name in self.patterns else self.patterns.get(name.partition(".")[2])
        )

    def __contains__(self, name: object) -> bool:
        return name in self.forms

    def __iter__(self) -> Iterator[str]:
        return iter(self.forms)

    def __len__(self) -> int:
        return len(self.forms)


def _form(tensor: Tensor) -> tuple[str, list[int]]:
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


SNAPSHOTS: Final = "snapshots"
IsUsed = Callable[[int], bool]


def save_model(model: TrainableModel, base_path: Path, run_folder: Path) -> tuple[Path, str]:
    """Save the trained weights as `adapter/` (or `model/` after full fine-tuning) under the run's folder.

    The weights are written in the precision in which the model was run and validated, so that evaluation sees the same
    bits. They are written to a temporary folder that is then renamed, so that the folder is always complete.

    Returns:
        Its path and the digest of the weights.
    """
    final = run_folder / model.method.folder_name
    return final, _write_model(model, base_path, final)


class Snapshots:
    """The models after the last few epochs: `snapshots/step-NNNNNNNN/`, each in the format of `save_model`.

    Args:
        base_path: path of the base model.
        run_folder: folder of the run.
        num_kept: how many of the newest snapshots are kept.
        is_used: whether the snapshot of a step is deployed: such a one is kept, too.
    """

    def __init__(self, base_path: Path, run_folder: Path, num_kept: int, is_used: IsUsed = lambda _: False) -> None:
        self.base_path, self.folder, self.num_kept, self._is_used = base_path, run_folder / SNAPSHOTS, num_kept, is_used

    def save(self, model: TrainableModel, step: int) -> Path:
        """Write a snapshot of the current model, delete the oldest, and return the new folder.

        An existing snapshot is left untouched: a repeated step produces the same bytes, and a reader may have them
        open. A snapshot older than all that are kept is not rewritten.
        """
        final = self.folder / f"{_PREFIX}{step:08d}"
        kept = list(self.folder.glob(f"{_PREFIX}*"))
        if final not in kept and len([path for path in kept if path.name > final.name]) < self.num_kept:
            _write_model(model, self.base_path, final)
        older = sorted(self.folder.glob(f"{_PREFIX}*"))[: -self.num_kept]
        for path in [one for one in older if not self._is_used(int(one.name.removeprefix(_PREFIX)))]:
            # Renamed first: a kill during rmtree must not leave half a snapshot under its name.
            path.rename(path.with_name(f".old-{path.name}"))
        _remove_leftovers(self.folder, ".old-*")
        return final


def _write_model(model: TrainableModel, base_path: Path, final: Path) -> str:
    """Save the weights into a folder and return their digest."""
    partial = final.with_name(f".{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with model.without_head_layer():
        digest = model.method.save(model.module, base_path, partial)
    if model.task_head is not None:
        save_task_head(partial, model.task_head, model.head_layer)
        # With several files the digest covers their names and digests, as for shards, so the head is included.
        weights = sorted(partial.glob("*.safetensors"))
        if model.head_layer is not None:
            digest = sha256_document({file.name: sha256_file(file) for file in weights})
    for file in partial.iterdir():
        sync(file)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return digest
