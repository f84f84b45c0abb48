"""Knowledge distillation by logits, and the stored hidden states of the teacher.

At each learned token the student learns the teacher's distribution. The teacher runs once, before training; training
steps read its stored states.

    teacher/
        head.safetensors          [vocabulary, width]: states times this matrix are exactly the teacher's logits;
                              includes their scale and soft cap, if any
        part-00000.safetensors    [learned tokens of some rows, width], row after row
        manifest.json             the teacher, the rows, and the digest of each file; updated with each part

A hidden state is smaller than its logits by the factor vocabulary / width, so storing all states is cheap where storing
all logits is not. Parts are written atomically and are valid once the manifest lists them: a kill costs at most one
part. Rows are looked up by their tokens and loss mask, so equal rows are stored once.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import StorageFullError, WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_bytes, sha256_document, sha256_file
from luthier.core.plan import ObjectivePlan, TeacherPlan
from luthier.core.ports import Progress
from luthier.core.system.files import replace_bytes, replace_text
from luthier.ml.inference.models.forward import PLAIN, ScaledHead
from luthier.ml.training.losses.divergence import Mixing
from luthier.ml.training.objective_protocol import NO_TOOLS, Losses, PlainObjective, Tools, Unit, rows_of

if TYPE_CHECKING:
    from luthier.ml.inference.transformers_engine import TransformersEngine
    from luthier.ml.training.model import MicroBatch, TrainableModel

FOLDER: Final = "teacher"
PART_BYTES: Final = 32 << 20
_MANIFEST: Final = "manifest.json"
_HEAD: Final = "head.safetensors"
_BYTES: Final = {"float32": 4, "bfloat16": 2}


class _File(FrozenModel):
    name: str
    sha256: str
    num_bytes: int


class _Manifest(FrozenModel):
    identity: str
    files: tuple[_File, ...] = ()


class States(Protocol):
    """What a loss needs of a teacher: its head, the scale and cap of its logits, and the states of rows."""

    head: Tensor
    scaled: ScaledHead

    def of(self, rows: Sequence[TokenisedExample]) -> Tensor:
        """[learned tokens of all rows, width], row after row."""
        ...


def row_key(row: TokenisedExample) -> bytes:
    """The key of a row's states: a digest of its tokens and loss mask."""
    found = hashlib.blake2b(row.input_ids.tobytes(), digest_size=16)
    # The mask as well: it decides which states are stored, and the same tokens may be learned in other parts.
    found.update(row.loss_mask)
    return found.digest()


def states_bytes(teacher: TeacherPlan, num_learned_tokens: int) -> int:
    """Bytes on disk of that many states plus the head."""
    return (num_learned_tokens + teacher.vocabulary_size) * teacher.hidden_size * _BYTES[teacher.precision]


def ask_teacher(
    folder: Path,
    teacher: TeacherPlan,
    rows: Iterable[TokenisedExample],
    open_engine: Callable[[], TransformersEngine],
    progress: Progress,
    *,
    part_bytes: int | None = None,
) -> list[str]:
    """Ensure that the states of all rows are in `folder`; returns messages about earlier files that could not be used.

    The teacher is loaded only if something is missing, and closed at the end.

    Args:
        folder: where the states are stored.
        teacher: of the plan.
        rows: all rows of which states are needed; equal ones are computed once.
        open_engine: loads the teacher; called only if states are missing.
        progress: shows the work.
        part_bytes: bytes of states per file, the most that a kill costs; None is 32 MiB.

    Raises:
        StorageFullError: the disk has no room; existing files are kept.
    """
    parts = _parts(_unique(rows), teacher, part_bytes)
    # The division into parts is a function of rows and teacher alone: a second call finds the files of the first.
    identity = _identity(teacher, parts)
    kept, messages = _stored_files(folder, identity)
    wanted = [_HEAD, *(_part_name(number) for number in range(len(parts)))]
    # In the order of `wanted`, so that the manifest lists files as a later attempt expects them.
    missing = [name for name in wanted if name not in kept]
    if not missing:
        return messages
    num_learned = sum(row.num_trained_tokens for part in parts for row in part)
    _refuse_without_room(folder, states_bytes(teacher, num_learned) - sum(file.num_bytes for file in kept.values()))
    folder.mkdir(parents=True, exist_ok=True)
    engine = open_engine()
    try:
        num_rows = sum(map(len, parts))
        num_done = sum(len(part) for number, part in enumerate(parts) if _part_name(number) in kept)
        with progress.task("Asking the teacher", num_rows, "rows", done=num_done) as task:
            for name in missing:
                if name == _HEAD:
                    tensors = {"head": engine.head(), **_numbers(engine.scaled_head())}
                else:
                    # wanted begins with the head, so part i is at place i + 1: [learned tokens of the part, width].
                    tensors = {"states": torch.cat(engine.hidden_states(parts[wanted.index(name) - 1], task))}
                kept[name] = _write(folder / name, tensors)
                files = tuple(kept[name] for name in wanted if name in kept)
                # After each file, so that a kill loses at most the part that was being computed.
                replace_text(folder / _MANIFEST, _Manifest(identity=identity, files=files).model_dump_json(indent=1))
    finally:
        engine.close()
    return messages


class TeacherStates:
    """The states written by `ask_teacher`, read row by row from memory-mapped files.

    Args:
        folder: where `ask_teacher` has written them.
        teacher: of the plan.
        rows: the rows that are read.
        device: where states are needed.
        part_bytes: bytes of states per file; None is 32 MiB.

    Raises:
        WorkError: they belong to another teacher or to other rows.
    """

    def __init__(
        self,
        folder: Path,
        teacher: TeacherPlan,
        rows: Iterable[TokenisedExample],
        device: str,
        *,
        part_bytes: int | None = None,
    ) -> None:
        parts = _parts(_unique(rows), teacher, part_bytes)
        kept, _ = _stored_files(folder, _identity(teacher, parts))
        if len(kept) != len(parts) + 1:
            raise WorkError(
                f"{folder} holds {len(kept)} of {len(parts) + 1} files of the teacher's states",
                expected="all of them, of this very teacher and these rows",
                do="resume the run: only what is missing is computed",
            )
        self._device = device
        with safe_open(folder / _HEAD, framework="pt") as file:
            self.head: Tensor = file.get_tensor("head").to(device)
            numbers = {name: float(file.get_tensor(name)) for name in file.keys() if name != "head"}  # noqa: SIM118
        self.scaled: ScaledHead = ScaledHead(**numbers)
        """The scale and cap that the teacher applies to the product of its states and its head."""
        self._slices: list[Any] = []
        self._files: list[Any] = []
        self._offsets: dict[bytes, tuple[int, int, int]] = {}
        for number, part in enumerate(parts):
            handle = safe_open(folder / _part_name(number), framework="pt")
            self._files.append(handle)
            # Read from the mapped file when it is indexed: states of a whole data set need not fit into memory.
            self._slices.append(handle.get_slice("states"))
            start = 0
            for row in part:
                end = start + row.num_trained_tokens
                self._offsets[row_key(row)] = (number, start, end)
                start = end

    def of(self, rows: Sequence[TokenisedExample]) -> Tensor:
        """[learned tokens of all rows, width], row after row."""
        found = []
        for row in rows:
            number, start, end = self._offsets[row_key(row)]
            found.append(self._slices[number][start:end])
        return torch.cat(found).to(self._device)


class MadeUpStates:
    """Random states of the right shape: for a probe, which measures only time and memory."""

    def __init__(self, teacher: TeacherPlan, device: str) -> None:
        self._device, self._width = device, teacher.hidden_size
        self._dtype = torch.float32 if teacher.precision == "float32" else torch.bfloat16
        self._draw = torch.Generator().manual_seed(0)
        self.head: Tensor = self._random(teacher.vocabulary_size)
        self.scaled: ScaledHead = PLAIN

    def of(self, rows: Sequence[TokenisedExample]) -> Tensor:
        """[learned tokens of all rows, width]."""
        return self._random(sum(row.num_trained_tokens for row in rows))

    def _random(self, count: int) -> Tensor:
        drawn = torch.randn(count, self._width, generator=self._draw)
        # Rows of norm about 1, so that logits have the size of a real model's.
        return drawn.mul_(self._width**-0.5).to(self._device, self._dtype)


def _numbers(scaled: ScaledHead) -> dict[str, Tensor]:
    """Scale and cap as tensors by name, only those that have an effect."""
    found = {name: getattr(scaled, name) for name in ("scale", "cap")}
    return {
        name: torch.tensor(value, dtype=torch.float64) for name, value in found.items() if value != getattr(PLAIN, name)
    }


def _unique(rows: Iterable[TokenisedExample]) -> list[TokenisedExample]:
    # A dict keeps the first order: rows that occur twice are asked for once.
    return list({row_key(row): row for row in rows}.values())


def _parts(
    rows: Sequence[TokenisedExample], teacher: TeacherPlan, part_bytes: int | None
) -> list[list[TokenisedExample]]:
    """The rows in order, split where their states fill a part."""
    most = max(1, (part_bytes or PART_BYTES) // (teacher.hidden_size * _BYTES[teacher.precision]))
    parts: list[list[TokenisedExample]] = []
    size = most  # the first row opens a part
    for row in rows:
        if size >= most:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += row.num_trained_tokens
    return parts


def _part_name(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def _identity(teacher: TeacherPlan, parts: Sequence[Sequence[TokenisedExample]]) -> str:
    """A digest of everything that determines the content of the files."""
    rows = hashlib.sha256()
    for part in parts:
        rows.update(len(part).to_bytes(8, "big"))
        for row in part:
            rows.update(row_key(row))
    # its input is the tokens of the rows, regardless of its own chat template
    unasked = {"name", "path", "adapter_path", "template_options", "opted_turns", "learn_reasoning"}
    who = teacher.model_dump(mode="json", exclude=unasked)
    return sha256_document({"teacher": who, "rows": rows.hexdigest()})


def _stored_files(folder: Path, identity: str) -> tuple[dict[str, _File], list[str]]:
    """The intact files of this identity by name, and messages about the others."""
    try:
        manifest = _Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
    except FileNotFoundError:
        return {}, []
    except ValidationError:
        return {}, [f"{folder / _MANIFEST} cannot be read: the teacher is run again"]
    if manifest.identity != identity:
        return {}, [f"{folder} holds states of another teacher or other rows: the teacher is run again"]
    kept, messages = {}, []
    for file in manifest.files:
        path = folder / file.name
        if path.is_file() and path.stat().st_size == file.num_bytes and sha256_file(path) == file.sha256:
            kept[file.name] = file
        else:
            messages.append(f"{path} is missing or damaged: the teacher is run again")
    return kept, messages


def _write(path: Path, tensors: Mapping[str, Tensor]) -> _File:
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    replace_bytes(path, content)
    return _File(name=path.name, sha256=sha256_bytes(content), num_bytes=len(content))


def _refuse_without_room(folder: Path, num_bytes: int) -> None:
    """Fail now rather than after an hour of computing."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise StorageFullError(
            f"{free:,} bytes are free in {there}",
            expected=f"{num_bytes:,} bytes for the teacher's states",
            do="free some disk space and resume the run; fewer rows or a smaller teacher need less",
        )


class Distillation(PlainObjective):
    """Learn a teacher's distribution in addition to the answers. A unit is one example."""

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        super().__init__(plan, tools)
        self._states: States | None = None
        self._mixing = Mixing(
            plan.divergence or "forward_kl",
            plan.temperature or 1.0,
            0.5 if plan.alpha is None else plan.alpha,
            plan.teacher_share or 0.5,
        )

    @property
    def teacher(self) -> TeacherPlan:
        """The teacher whose distribution is learned."""
        if self.plan.teacher is None:
            raise ValueError("a plan of distillation without a teacher")
        return self.plan.teacher

    def prepare(
        self,
        model: TrainableModel,
        units: Sequence[Unit],
        folder: Path,
        progress: Progress,  # noqa: ARG002
    ) -> None:
        """Open the teacher's states, which were computed before the model was loaded."""
        self._states = TeacherStates(folder / FOLDER, self.teacher, rows_of(units), model.device)

    def rehearse(self, model: TrainableModel, states: States | None = None) -> None:
        """Use these states, or random ones, for a probe."""
        self._states = states or MadeUpStates(self.teacher, model.device)

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """Cross-entropy and divergence in nats, mixed by alpha; the measures list each separately."""
        if self._states is None:
            raise ValueError("a step of distillation before the teacher's states were computed")
        states = self._states.of(rows_of(units))
        rows = model.logit_rows(batch)
        total, entropy, divergence, correct = rows.distillation_sum(
            batch.targets, states, self._states.head, self._mixing, self._states.scaled
        )
        return Losses(total, {"token_accuracy": correct, "cross_entropy": entropy, "divergence": divergence})
