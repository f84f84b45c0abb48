"""What a teacher said is kept once, whole or not at all, and read again exactly."""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.ml.training.architectures import VOCABULARY, make
from tests.ml.training.conftest import random_examples
from transformers import AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import StorageFullError, WorkError
from luthier.core.plan import Plan, TeacherPlan
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models.forward import PLAIN
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objectives import distillation
from luthier.ml.training.objectives.distillation import MadeUpStates, TeacherStates, ask_teacher, states_bytes
from luthier.testing.tiny import make_tiny_model

ONE_PART = 16 * 48 * 4
"""Bytes of the states of 16 tokens."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherPlan:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "teacher", hidden=48, layers=3, seed=5)
    return TeacherPlan(
        name="teacher",
        path=str(folder),
        sha256="3" * 64,
        precision="float32",
        num_parameters=1,
        hidden_size=48,
        vocabulary_size=384,
        context_length_tokens=512,
    )


class Opening:
    """Opens the teacher, counts how often, and fails at a given row as a kill would."""

    def __init__(self, teacher: TeacherPlan, fails_after_rows: int | None = None) -> None:
        self.teacher, self.left, self.count, self.num_asks = teacher, fails_after_rows, 0, 0

    def __call__(self) -> TransformersEngine:
        self.count += 1
        engine = TransformersEngine.open(self.teacher.path, dtype="float32")
        ask = engine.hidden_states

        def counted(examples, task):  # type: ignore[no-untyped-def]
            self.num_asks += 1
            if self.left is not None:
                self.left -= len(examples)
                if self.left < 0:
                    raise KeyboardInterrupt
            return ask(examples, task)

        engine.hidden_states = counted  # type: ignore[method-assign]
        return engine


def ask(folder: Path, teacher: TeacherPlan, rows: list[TokenisedExample], opening: Opening) -> list[str]:
    return ask_teacher(folder, teacher, rows, opening, SilentProgress(), part_bytes=ONE_PART)


def read(folder: Path, teacher: TeacherPlan, rows: list[TokenisedExample]) -> TeacherStates:
    return TeacherStates(folder, teacher, rows, "cpu", part_bytes=ONE_PART)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_states_times_head_are_the_teachers_own_logits(tmp_path: Path, teacher: TeacherPlan) -> None:
    rows = random_examples(9, seed=1)
    ask(tmp_path / "t", teacher, rows, Opening(teacher))
    states = read(tmp_path / "t", teacher, rows)
    model = AutoModelForCausalLM.from_pretrained(teacher.path, dtype=torch.float32)
    for row in reversed(rows):
        logits = model(torch.tensor([list(row.input_ids)])).logits[0]
        learned = torch.tensor([i - 1 for i, mask in enumerate(row.loss_mask) if mask])
        torch.testing.assert_close(states.of([row]) @ states.head.t(), logits[learned], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma2, caps", "cohere"])
def test_a_teacher_that_scales_or_caps_its_logits_is_kept_with_what_it_does(
    tmp_path: Path, teacher: TeacherPlan, name: str
) -> None:
    model = make(name)
    model.save_pretrained(str(tmp_path / "model"))
    for file in Path(teacher.path).iterdir():
        if "tokenizer" in file.name or file.suffix == ".jinja":
            shutil.copyfile(file, tmp_path / "model" / file.name)
    found = teacher.model_copy(
        update={"path": str(tmp_path / "model"), "hidden_size": model.config.hidden_size, "vocabulary_size": VOCABULARY}
    )
    rows = [
        replace(row, input_ids=array("i", (token % VOCABULARY for token in row.input_ids)))
        for row in random_examples(4, seed=1)
    ]
    ask(tmp_path / "t", found, rows, Opening(found))
    states = read(tmp_path / "t", found, rows)
    assert states.scaled != PLAIN
    for row in rows:
        logits = model(torch.tensor([list(row.input_ids)])).logits[0].detach()
        learned = torch.tensor([i - 1 for i, mask in enumerate(row.loss_mask) if mask])
        ours = states.scaled.of(states.of([row]) @ states.head.t())
        torch.testing.assert_close(ours, logits[learned], rtol=1e-4, atol=1e-4)


def test_rows_come_in_the_order_of_a_micro_batch(
    tmp_path: Path, teacher: TeacherPlan, make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    rows = random_examples(6, seed=2)
    ask(tmp_path / "t", teacher, rows, Opening(teacher))
    states = read(tmp_path / "t", teacher, rows)
    batch = collate([rows[4], rows[0]], 0, "cpu")
    both = states.of([rows[4], rows[0]])
    assert len(both) == batch.num_trained_tokens
    torch.testing.assert_close(both, torch.cat((states.of([rows[4]]), states.of([rows[0]]))), rtol=0, atol=0)


def test_killed_at_any_part_it_ends_with_the_same_bytes_and_asks_nothing_twice(
    tmp_path: Path, teacher: TeacherPlan
) -> None:
    rows = random_examples(12, seed=3)
    ask(tmp_path / "whole", teacher, rows, whole := Opening(teacher))
    for num_rows in (0, 3, 7):
        folder = tmp_path / f"cut-{num_rows}"
        with pytest.raises(KeyboardInterrupt):
            ask(folder, teacher, rows, Opening(teacher, num_rows))
        (folder / ".part-00009.safetensors.tmp").write_bytes(b"half of a part")
        before = {name for name in contents(folder) if name.startswith("part")}
        again = Opening(teacher)
        ask(folder, teacher, rows, again)
        (folder / ".part-00009.safetensors.tmp").unlink()
        assert contents(folder) == contents(tmp_path / "whole")
        assert again.num_asks == len(list(folder.glob("part-*"))) - len(before)
    assert whole.count == 1
    ask(tmp_path / "whole", teacher, rows, whole)
    assert whole.count == 1


def test_a_damaged_part_is_asked_again_and_told_of(tmp_path: Path, teacher: TeacherPlan) -> None:
    rows = random_examples(12, seed=3)
    folder = tmp_path / "t"
    ask(folder, teacher, rows, Opening(teacher))
    good = contents(folder)
    path = folder / "part-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(WorkError, match="holds 5 of 6 files"):
        read(folder, teacher, rows)
    assert "part-00001.safetensors is missing or damaged" in ask(folder, teacher, rows, Opening(teacher))[0]
    assert contents(folder) == good


def test_states_of_another_teacher_or_of_other_rows_are_not_taken(tmp_path: Path, teacher: TeacherPlan) -> None:
    rows = random_examples(5, seed=4)
    ask(tmp_path / "t", teacher, rows, Opening(teacher))
    for other, others in ((teacher.model_copy(update={"sha256": "4" * 64}), rows), (teacher, rows[1:])):
        with pytest.raises(WorkError, match="of the teacher's states"):
            read(tmp_path / "t", other, others)
    moved = teacher.model_copy(update={"name": "elsewhere", "path": "elsewhere"})
    assert len(read(tmp_path / "t", moved, rows).of(rows)) == sum(row.num_trained_tokens for row in rows)
    messages = ask(tmp_path / "t", teacher, rows[1:], Opening(teacher))
    assert "of another teacher or other rows" in messages[0]
    (tmp_path / "t" / "manifest.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in ask(tmp_path / "t", teacher, rows[1:], Opening(teacher))[0]


def test_equal_rows_are_kept_once_and_masks_tell_rows_apart(tmp_path: Path, teacher: TeacherPlan) -> None:
    row = TokenisedExample("a", array("i", [5, 6, 7, 8]), bytes([0, 1, 1, 1]))
    copy, half = replace(row, id="b"), replace(row, id="c", loss_mask=bytes([0, 0, 0, 1]))
    ask(tmp_path / "t", teacher, [row, copy, half], Opening(teacher))
    states = read(tmp_path / "t", teacher, [row, copy, half])
    assert torch.equal(states.of([row]), states.of([copy]))
    assert torch.equal(states.of([half]), states.of([row])[2:])
    manifest = json.loads((tmp_path / "t" / "manifest.json").read_text(encoding="utf-8"))
    sizes = [file["num_bytes"] for file in manifest["files"]]
    assert sum(sizes) == pytest.approx(states_bytes(teacher, 4), abs=512)


def test_a_full_disk_is_told_before_anything_is_asked(
    tmp_path: Path, teacher: TeacherPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = Opening(teacher)
    monkeypatch.setattr(
        distillation.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5, "total": 100, "used": 95})
    )
    with pytest.raises(StorageFullError, match="5 bytes are free"):
        ask(tmp_path / "t", teacher, random_examples(3, seed=1), opening)
    assert opening.count == 0


def test_made_up_states_have_the_shape_of_real_ones(teacher: TeacherPlan) -> None:
    rows = random_examples(3, seed=1)
    made = MadeUpStates(teacher.model_copy(update={"precision": "bfloat16"}), "cpu")
    assert made.of(rows).shape == (sum(row.num_trained_tokens for row in rows), 48)
    assert made.head.shape == (384, 48)
    assert made.of(rows).dtype == made.head.dtype == torch.bfloat16
