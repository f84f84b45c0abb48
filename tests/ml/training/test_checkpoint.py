"""Checkpoints are whole or not there; damage is found; the best is never pruned."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from luthier.core.errors import CheckpointError, StorageFullError
from luthier.ml.training import checkpoint as module
from luthier.ml.training.checkpoint import CheckpointStore, LoopState
from luthier.ml.training.fit import EarlyStopping

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3)}
MOMENTS = {"first.a": torch.ones(2, 3), "second.a": torch.full((2, 3), 0.1)}


def state(step: int, best_step: int = 0) -> LoopState:
    return LoopState(
        plan_hash="p", step=step, loss_sum=0.1 + step, early_stopping=EarlyStopping(patience=0, best_step=best_step)
    )


def save(store: CheckpointStore, step: int, best_step: int = 0) -> Path:
    return store.save(state(step, best_step), WEIGHTS, MOMENTS)[0]


def test_comes_back_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", 2)
    save(store, 3)
    found, broken = store.latest()
    assert found is not None
    assert broken == []
    assert found.state == state(3)
    assert torch.equal(found.weights["a"], WEIGHTS["a"])
    assert torch.equal(found.moments["second.a"], MOMENTS["second.a"])


def test_nothing_yet_is_no_error(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "c", 2).latest() == (None, [])


def test_keeps_the_last_few_and_the_best_each_of_them_points_to(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2)
    for step, best in [(10, 10), (20, 10), (30, 10), (40, 10)]:
        save(store, step, best)
    assert store.steps() == [10, 30, 40]
    save(store, 50, best_step=50)
    assert store.steps() == [10, 40, 50], "40 may still be fallen back to, and its best is 10"
    save(store, 60, best_step=50)
    assert store.steps() == [50, 60]


@pytest.mark.parametrize("name", ["weights.safetensors", "moments.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_one_is_found_and_the_one_before_used(tmp_path: Path, name: str, damage: str) -> None:
    store = CheckpointStore(tmp_path, 3)
    save(store, 1)
    file = save(store, 2) / name
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes(flipped if damage == "flip" else content[:-1])
    found, broken = store.latest()
    assert found is not None
    assert found.state.step == 1
    assert len(broken) == 1
    assert "step-00000002 is damaged" in broken[0]


def test_one_that_is_written_after_a_fallback_is_kept(tmp_path: Path) -> None:
    """The run goes on from step 10, and a damaged step 20 does not count as the last one."""
    store = CheckpointStore(tmp_path, 1)
    save(store, 10, best_step=10)
    (save(store, 20, best_step=10) / "weights.safetensors").write_bytes(b"damaged")
    save(store, 15, best_step=15)
    found, broken = store.latest()
    assert found is not None
    assert (found.state.step, broken) == (15, [])


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 3)
    (save(store, 1) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"all checkpoints .* state\.json is missing"):
        store.latest()


def test_a_half_written_one_is_invisible_and_swept_away(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 3)
    (tmp_path / ".step-00000009").mkdir()
    (tmp_path / ".step-00000009" / "weights.safetensors").write_bytes(b"half")
    assert store.steps() == []
    assert store.latest() == (None, []), "without its manifest it is not whole"
    save(store, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_kill_while_a_step_is_replaced_loses_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, rename = CheckpointStore(tmp_path, 1), Path.rename
    save(store, 1)

    def dies(path: Path, target: Path) -> Path:
        if path.name.startswith(".step-"):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            store.save(state(1), {"a": torch.zeros(2, 3)}, MOMENTS)
    assert store.steps() == [], "the old one has given up its name, and the new one has not got it"
    found, broken = CheckpointStore(tmp_path, 1).latest()
    assert found is not None
    assert (found.state, broken) == (state(1), [])
    assert not found.weights["a"].any(), "the new one"
    save(store, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


def test_a_file_that_a_file_manager_has_put_there_ends_no_training(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    (tmp_path / ".DS_Store").write_bytes(b"how its window looks")
    save(store, 1)
    save(store, 2)
    assert store.steps() == [2]
    found, _ = store.latest()
    assert found is not None
    assert found.state.step == 2


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), real(fd)))
    store = CheckpointStore(tmp_path, 3)
    folder = save(store, 1)
    names = [Path(p).name for p in synced]
    assert names[-3:] == ["manifest.json", ".step-00000001", tmp_path.name]
    assert set(names[:-3]) == {"weights.safetensors", "moments.safetensors", "state.json"}
    assert set(json.loads((folder / "manifest.json").read_text())) == set(names[:-3])


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2)
    save(store, 1)
    store.save(state(1), {"a": torch.zeros(2, 3)}, MOMENTS)
    assert not store.load(1).weights["a"].any()
    assert store.steps() == [1]


def test_no_room_is_said_so_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, 2)
    save(store, 1)

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"some of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(StorageFullError, match=r"no room for the checkpoint of step 2[\s\S]*resume the run"):
        save(store, 2)
    assert store.steps() == [1]
    assert not list(tmp_path.glob(".*"))
    found, _ = store.latest()
    assert found is not None
    assert found.state.step == 1
