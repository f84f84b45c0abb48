from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier.core.errors import ModelSourceError
from luthier.core.ports import SilentProgress
from luthier.core.system.download import Opened, RemoteFile, RemoteSource, download
from luthier.core.system.files import is_disk_full


def _source(file: RemoteFile) -> RemoteSource:
    return RemoteSource("c0ffee", (file,), lambda *_: None, lambda _: False, repo="org/tiny", failed=ModelSourceError)


def test_an_error_that_nothing_explains_is_passed_on_and_is_not_its_own_cause(tmp_path: Path) -> None:
    @contextmanager
    def open_at(start: int) -> Iterator[Opened]:
        raise OSError(5, "Input/output error")
        yield Opened(start, iter(()))

    file = RemoteFile("model.safetensors", 10, open_at)
    with SilentProgress().task("", 10, "bytes") as task, pytest.raises(OSError, match="Input/output") as caught:
        download(_source(file), file, tmp_path / "part", task)
    # Who follows the causes, as `is_disk_full` does, would not come to an end.
    assert caught.value.__cause__ is None
    assert not is_disk_full(caught.value)


def test_a_server_that_sends_without_end_is_stopped_at_the_size_that_it_stated(tmp_path: Path) -> None:
    sent = []

    def blocks() -> Iterator[bytes]:
        for number in range(1000):
            sent.append(number)
            yield b"x" * 6

    @contextmanager
    def open_at(start: int) -> Iterator[Opened]:
        yield Opened(start, blocks())

    file = RemoteFile("model.safetensors", 10, open_at)
    with (
        SilentProgress().task("", 10, "bytes") as task,
        pytest.raises(
            ModelSourceError, match=r"model.safetensors of org/tiny: the server sends more than the 10 bytes"
        ),
    ):
        download(_source(file), file, tmp_path / "part", task)
    assert sent == [0, 1]
    assert (tmp_path / "part").read_bytes() == b""
