"""Log-probabilities of whole completions under the model as it is before its first step: computed once, and kept.

That model is the reference of DPO, IPO and KTO. Every method begins as the base itself (an adapter that adds nothing, a
factor of 1), except for prompt tuning, which begins with a prompt of random tokens: what it begins with is the
reference. So no second model is ever in memory, and no adapter is switched off and on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from luthier.core.dataset import TokenisedExample, common_beginning
from luthier.core.ports import Progress
from luthier.ml.charts.page import replace_bytes
from luthier.ml.training.log_probabilities import summed_by_row

if TYPE_CHECKING:
    from luthier.ml.training.model import TrainableModel
    from luthier.ml.training.objective_protocol import Unit

FILE_NAME: Final = "reference.safetensors"
_KEY_BYTES: Final = 16


def key_of(row: TokenisedExample) -> bytes:
    """16 bytes that represent a row's tokens and mask, whatever its id."""
    digest = hashlib.blake2b(memoryview(row.input_ids).cast("B"), digest_size=_KEY_BYTES)
    digest.update(row.loss_mask)
    return digest.digest()


class Reference:
    """The sums of log-probabilities of rows, by what the rows hold."""

    def __init__(self, sums: Mapping[bytes, float]) -> None:
        self._sums = sums

    def of(self, rows: Sequence[TokenisedExample], like: Tensor) -> Tensor:
        """The summed log-probabilities of rows in nats, [rows], on the device and in the precision of `like`."""
        return torch.tensor([self._sums[key_of(row)] for row in rows], dtype=like.dtype, device=like.device)


def reference_of(model: TrainableModel, units: Sequence[Unit], folder: Path, progress: Progress) -> Reference:
    """The reference of all rows of these units: read where `folder` holds it whole, else computed and written there."""
    keys = dict.fromkeys(key_of(row) for unit in units for row in unit)
    found = _read(folder / FILE_NAME, list(keys))
    if found is None:
        found = _compute(model, units, progress)
        _write(folder / FILE_NAME, {key: found[key] for key in keys})
        # Read back, so that the first process sees the very numbers that a resumed one will.
        found = _read(folder / FILE_NAME, list(keys)) or found
    return Reference(found)


@torch.no_grad()
def summed_log_probabilities(model: TrainableModel, units: Sequence[Unit]) -> Tensor:
    """What the model gives to the learned tokens of each row of a few units, together: [rows], in nats."""
    from luthier.ml.training.model import collate
    from luthier.ml.training.objective_protocol import rows_of

    batch = collate(rows_of(units), model.pad_id, model.device, prefix_lengths=shared_prefix_tokens(model, units))
    return summed_by_row(model.log_probabilities(batch), batch.learned)


def shared_prefix_tokens(model: TrainableModel, units: Sequence[Unit]) -> tuple[int, ...]:
    """The prefixes that the rows of each unit share, where the plan asks for it and the model can; else none."""
    if not model.shares_prefix or len(units[0]) == 1:
        return ()
    own = tuple(common_beginning(unit) for unit in units)
    return own if any(own) else ()


def cut(model: TrainableModel, units: Sequence[Unit]) -> Iterator[list[int]]:
    """Indices of the units in micro-batches of about the plan's size, the longest first; computed forward only."""
    lengths = [max(row.num_tokens for row in unit) for unit in units]
    current: list[int] = []
    for index in sorted(range(len(units)), key=lambda i: (-lengths[i], i)):
        # The first is the longest: what all rows of the micro-batch are padded to.
        size = lengths[current[0]] if current else lengths[index]
        if current and (len(current) + 1) * len(units[index]) * size > model.micro_batch_tokens:
            yield current
            current = []
        current.append(index)
    if current:
        yield current


def _compute(model: TrainableModel, units: Sequence[Unit], progress: Progress) -> dict[bytes, float]:
    found: dict[bytes, float] = {}
    was_training = model.module.training
    model.module.eval()
    with progress.task("Reference log-probabilities", len(units), "examples") as bar:
        for indices in cut(model, units):
            chosen = [units[i] for i in indices]
            sums = summed_log_probabilities(model, chosen).tolist()
            rows = (row for unit in chosen for row in unit)
            found.update((key_of(row), value) for row, value in zip(rows, sums, strict=True))
            bar.advance(len(indices))
    model.module.train(was_training)
    return found


def _write(path: Path, sums: Mapping[bytes, float]) -> None:
    keys = torch.frombuffer(bytearray(b"".join(sums)), dtype=torch.uint8).view(-1, _KEY_BYTES)
    # float64 holds fp32 and fp64 sums to the bit.
    values = torch.tensor(list(sums.values()), dtype=torch.float64)
    digest = _digest(keys, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, save({"keys": keys, "log_probabilities": values}, {"sha256": digest}))


def _read(path: Path, wanted: Sequence[bytes]) -> dict[bytes, float] | None:
    """The sums of just these rows; None where the file is not there, is damaged, or is about other rows."""
    try:
        with safe_open(path, framework="pt") as file:
            keys, values = file.get_tensor("keys"), file.get_tensor("log_probabilities")
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError, KeyError):
        return None
    if digest != _digest(keys, values):
        return None
    packed = keys.numpy().tobytes()
    names = [packed[i : i + _KEY_BYTES] for i in range(0, len(packed), _KEY_BYTES)]
    return dict(zip(names, values.tolist(), strict=True)) if names == list(wanted) else None


def _digest(keys: Tensor, values: Tensor) -> str:
    return hashlib.sha256(keys.numpy().tobytes() + values.numpy().tobytes()).hexdigest()
