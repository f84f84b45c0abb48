"""A file that cannot be sent to a store: the error says why, whatever kind of place it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from luthier.core.errors import StoppedError, StorageFullError
from luthier.core.system.artifact_transfer import copy_to, open_root


def test_a_full_disk_behind_a_file_address_is_reported_as_that(tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"x" * 100)
    files, place = open_root(f"file://{tmp_path}/store")
    Path(place).mkdir()

    def full() -> str | None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageFullError, match="no room for artifacts at the store"):
        copy_to(files, source, f"{place}/a", "the store", stop_requested=full)


@pytest.mark.parametrize("address", ["file://{}/store", "memory://store"])
def test_a_copy_that_is_to_stop_ends_between_two_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("luthier.core.system.artifact_transfer.WRITE_BYTES", 10)
    source = tmp_path / "weights"
    source.write_bytes(b"x" * 100)
    files, place = open_root(address.format(tmp_path))
    files.makedirs(place, exist_ok=True)
    answers = iter([None, None, "cancelled"])
    with pytest.raises(StoppedError, match="cancelled"):
        copy_to(files, source, f"{place}/a", "the store", stop_requested=lambda: next(answers))
    assert next(answers, "all were asked for") == "all were asked for"
    assert not files.exists(f"{place}/a") or files.size(f"{place}/a") == 20
    copy_to(files, source, f"{place}/a", "the store")
    assert files.cat_file(f"{place}/a") == b"x" * 100
