"""The ledger: nothing forgotten, whatever is cut off."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from luthier.core.errors import StorageFullError
from luthier.core.run import Spent
from luthier.ml.training import ledger as ledger_module
from luthier.ml.training.ledger import LEDGER, Entry, Ledger, Throughput


def written(folder: Path, *entries: Entry) -> Path:
    ledger = Ledger(folder)
    for entry in entries:
        ledger.append(entry)
    ledger.close()
    return folder / LEDGER


def test_the_last_line_counts_with_its_pace(tmp_path: Path) -> None:
    pace = Throughput().after_step(100, 0.1 + 0.2).after("checkpoint", 1.5)
    written(tmp_path, Entry(seconds=1.0), Entry(seconds=2.5, tokens=7, pace=pace))
    assert Ledger(tmp_path).last() == Entry(seconds=2.5, tokens=7, pace=pace)
    assert Ledger(tmp_path).last().settled() == Spent(seconds=2.5, tokens=7)


def test_what_was_under_way_counts_as_expected_and_is_told_apart(tmp_path: Path) -> None:
    written(tmp_path, Entry(seconds=10.0, tokens=100, doing="step", expected_seconds=2.0, expected_tokens=30))
    assert Ledger(tmp_path).last().settled() == Spent(seconds=12.0, tokens=130, interrupted_seconds=2.0)


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_torn_last_line_is_stepped_over_and_does_not_spoil_the_next(tmp_path: Path, kept: int) -> None:
    file = written(tmp_path, Entry(seconds=1.0), Entry(seconds=2.0))
    first, second = file.read_bytes().splitlines()
    file.write_bytes(first + b"\n" + second[:kept])
    assert Ledger(tmp_path).last().seconds == 1.0
    written(tmp_path, Entry(seconds=3.0))
    assert Ledger(tmp_path).last().seconds == 3.0


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"\x00" * 400, b"\xff\xfe\n", b'{"seconds": -1}\n', b'{"seconds": NaN}\n', b'{"days": 1}\n', b"[]\n"],
)
def test_rubbish_is_never_taken_for_an_entry(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / LEDGER).write_bytes(rubbish)
    assert Ledger(tmp_path).last() == Entry()


def test_a_long_ledger_is_cut_to_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_MAX_BYTES", 1000)
    file = written(tmp_path, *[Entry(seconds=float(n)) for n in range(50)])
    assert file.stat().st_size > 1000
    written(tmp_path, Entry(seconds=50.0))
    assert len(file.read_bytes().splitlines()) == 2
    assert Ledger(tmp_path).last().seconds == 50.0


def test_only_the_end_of_the_file_is_read(tmp_path: Path) -> None:
    written(tmp_path, *[Entry(seconds=float(n)) for n in range(500)])
    assert (tmp_path / LEDGER).stat().st_size > 1 << 15
    assert Ledger(tmp_path).last().seconds == 499.0


def test_no_room_is_said_in_three_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageFullError, match=r"no room to note[\s\S]*free some disk space"):
        Ledger(tmp_path).append(Entry())


def test_a_line_that_only_half_fits_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:5]))
    with pytest.raises(StorageFullError):
        Ledger(tmp_path).append(Entry())


def test_without_a_folder_nothing_is_kept() -> None:
    ledger = Ledger(None)
    ledger.append(Entry(seconds=1.0))
    ledger.close()
    assert (ledger.last(), ledger.is_persistent) == (Entry(), False)
