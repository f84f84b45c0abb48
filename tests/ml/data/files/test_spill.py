"""Working data beyond a budget of memory: the same values, in files that go with it."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import StorageFullError
from luthier.core.system.machine_memory import memory_bytes
from luthier.ml.data.files.spill import MEMORY_SHARE, Spill, Spool


@given(
    parts=st.lists(
        st.lists(st.integers(0, 2**40), max_size=20).filter(lambda values: len(values) % 2 == 0), max_size=8
    ),
    budget=st.integers(0, 400),
    width=st.sampled_from([None, 2]),
)
def test_a_spool_gives_back_what_it_was_given(
    parts: list[list[int]], budget: int, width: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spill = Spill(budget, tmp_path_factory.mktemp("spill"))
    spool = Spool(spill, np.uint64, width)
    for part in parts:
        spool.append(np.array(part, dtype=np.uint64), share_done=0.5)
        assert spill.held_bytes <= budget
    made = spool.array()
    values = [value for part in parts for value in part]
    assert made.shape == ((len(values),) if width is None else (len(values) // 2, 2))
    assert made.reshape(-1).tolist() == values
    assert (spill.written_bytes > 0) == (8 * len(values) > budget)
    del made
    if spill.held_bytes:  # by a circle; otherwise each example would walk over all objects of the session
        gc.collect()
    assert spill.held_bytes == 0


def test_the_folder_goes_with_its_work_and_what_a_killed_process_left_goes_first(tmp_path: Path) -> None:
    left = tmp_path / "luthier-spill-0123456789abcdef"
    left.mkdir()
    (left / "1").write_bytes(b"rows")
    others = tmp_path / "luthier-spill-of-somebody"
    others.mkdir()
    spill = Spill(0, tmp_path)
    assert left.is_dir(), "nothing is touched before there is something to write"
    spill.new_file().write_bytes(b"more")
    (folder,) = {path for path in tmp_path.iterdir() if path != others}
    assert [path.name for path in folder.iterdir()] == ["1"]
    del spill
    gc.collect()
    assert list(tmp_path.iterdir()) == [others]


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=3 << 30))
    spill = Spill(1_000, tmp_path)
    spool = Spool(spill, np.uint64)
    spool.append(np.zeros(100, dtype=np.uint64), share_done=1e-7)
    with pytest.raises(StorageFullError, match=r"about 16 GB do not fit into .*3 GiB free") as caught:
        spool.append(np.zeros(100, dtype=np.uint64), share_done=1e-7)
    assert "LUTHIER_SCRATCH" in caught.value.do
    assert "LUTHIER_DATA_MEMORY_BYTES" in caught.value.do
    assert list(tmp_path.iterdir()) == []


def test_the_budget_is_a_share_of_what_is_available() -> None:
    total, available = memory_bytes()
    assert 0 < available <= total
    assert 0 < Spill().memory_bytes <= MEMORY_SHARE * total
