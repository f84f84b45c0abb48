"""The checkpoints of a run of several processes: rank 0 alone reads and writes the folder, the others ask rank 0.

So the nodes need no folder in common, and a checkpoint does not depend on the number of processes: a run resumes with
any number. What is read goes out one tensor at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.ml.training.checkpoint import Checkpoint, LoopState
from luthier.ml.training.distributed import World
from luthier.ml.training.sharding import like, whole
from luthier.ml.training.tensor_file import in_file_order


class CheckpointFolder(Protocol):
    """What `checkpoint.CheckpointStore` does."""

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
    """A folder of checkpoints as every rank may use it; called by all of them at the same points.

    Errors are raised on rank 0, where the folder is; the others end when it does.

    Args:
        patterns: the trained weights by name. Where they are spread over the ranks, what is saved is gathered and what
            is loaded is spread likewise, one tensor at a time.
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
        """Write one checkpoint; folder and bytes are rank 0's, the others get an empty answer."""
        if self.world.is_first:
            return self.folder.save(state, weights, moments, method)
        for part in (weights, moments, method or {}):
            for name in in_file_order(part):
                whole(part[name])
        return Path(), 0

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, the same on all ranks, and a message for each broken one skipped."""
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
    """Rank 0's tensors by name. Each look at one is a broadcast: all ranks look at the same ones in the same order."""

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
        # a moment bears its weight's name behind its own, first.NAME, and so does an average
        return like(tensor, self.patterns.get(name) if name in self.patterns else self.patterns.get(_behind(name)))

    def __contains__(self, name: object) -> bool:
        return name in self.forms

    def __iter__(self) -> Iterator[str]:
        return iter(self.forms)

    def __len__(self) -> int:
        return len(self.forms)


def _behind(name: str) -> str:
    return name.partition(".")[2]


def _form(tensor: Tensor) -> tuple[str, list[int]]:
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
