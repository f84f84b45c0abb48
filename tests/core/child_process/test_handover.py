"""Children of a system where none inherits open files: their channels and streams go over the loopback."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.core.child_process import handover
from luthier.core.child_process.handover import ChildOutput, Handover, connect, open_output
from luthier.core.child_process.process import ChildEndedError, ChildProcess, run_child
from luthier.core.system import facilities
from luthier.ml.data.files.read_parquet import read_parquet
from luthier.ml.data.files.source import open_source

HERE = "tests.core.child_process.children"


@pytest.fixture
def nothing_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facilities, "inherits_descriptors", lambda: False)


@pytest.fixture
def started(nothing_is_inherited: None) -> Iterator[Handover]:
    """A handover whose child is this process."""
    made = Handover()
    yield made
    made.close()


@pytest.mark.usefixtures("nothing_is_inherited")
def test_events_results_and_requests_go_the_same_way() -> None:
    events: list[object] = []
    assert facilities.inheritable(3) == ()
    assert run_child(f"{HERE}:double", 2, on_event=events.append) == 4
    assert events == [{"at": 0}, {"at": 1}]
    with ChildProcess(f"{HERE}:answer", None) as child:
        assert [child.request(number)[1] for number in range(3)] == [0, 1, 2]


@pytest.mark.usefixtures("nothing_is_inherited")
def test_the_child_passes_no_secret_on() -> None:
    assert run_child(f"{HERE}:environment", [handover.CREDENTIAL]) == [None]


@pytest.mark.usefixtures("nothing_is_inherited")
def test_a_child_that_dies_before_it_connects_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChildEndedError, match="exit code 1"):
        run_child(f"{HERE}:double", 2)


def test_who_does_not_know_the_secret_is_not_taken_for_the_child(started: Handover) -> None:
    address = ("127.0.0.1", int(started.argument[1:]))
    with (
        socket.create_connection(address) as other,
        socket.create_connection(address) as silent,
    ):
        other.sendall(b"0" * len(started.secret))
        silent.shutdown(socket.SHUT_WR)
        theirs = connect(started.argument, started.secret)
        ours = started.connected(lambda: True)
        with ours, theirs:
            theirs.sendall(b"hello")
            assert ours.recv(5) == b"hello"
        assert other.recv(1) == b""
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, by the system
        socket.create_connection(address, timeout=5)


def test_a_handover_of_no_child_leaves_nothing_open(started: Handover) -> None:
    with started.connected(lambda: False) as ours:
        assert ours.recv(1) == b""


@pytest.mark.parametrize("is_inherited", [True, False])
def test_a_stream_ends_with_its_writer(is_inherited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facilities, "inherits_descriptors", lambda: is_inherited)
    output = ChildOutput()
    assert len(output.pass_fds) == is_inherited
    document = [str(os.dup(output.pass_fds[0])), ""] if is_inherited else output.document
    with open_output(document) as writing, output.opened(lambda: True) as reading:
        writing.write(b"rows")
        writing.close()
        assert reading.read() == b"rows"
    unused = ChildOutput()
    unused.close()


@pytest.mark.usefixtures("nothing_is_inherited")
def test_rows_of_parquet_come_over_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), path)
    assert [row.fields for row in read_parquet(open_source(path))] == [{"text": text} for text in "abc"]


def test_a_child_over_its_memory_ends_where_no_call_limits_it() -> None:
    with pytest.raises(MemoryError):
        run_child(f"{HERE}:grow", 256 << 20)
