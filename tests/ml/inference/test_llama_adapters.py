"""Adapters of llama.cpp that do not load: found, refused by name, and tried again when that may help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError, RequestError, WorkError
from luthier.ml.inference.llama_cpp.adapters import Adapters


class Server:
    def __init__(self, adapters: Sequence[Path]) -> None:
        self.adapters, self.is_open = list(adapters), True

    def close(self) -> None:
        self.is_open = False


class Opened:
    """Opens servers that fail with some adapters, and never two at a time."""

    def __init__(self, *broken: Path, base_fails: bool = False) -> None:
        self.broken, self.base_fails = set(broken), base_fails
        self.tried: list[list[Path]] = []
        self.made: list[Server] = []

    def __call__(self, adapters: Sequence[Path]) -> Any:
        assert not any(server.is_open for server in self.made)
        self.tried.append(list(adapters))
        if self.base_fails or self.broken & set(adapters):
            names = ", ".join(path.name for path in adapters)
            raise WorkError(f"cannot load with {names}", expected="whole files", do="export them again")
        self.made.append(Server(adapters))
        return self.made[-1]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{name}.gguf" for name in "abcd"]
    for path in made:
        path.write_bytes(b"x")
    return made


def with_all(files: Sequence[Path], clock: Callable[[], float] = lambda: 0.0) -> Adapters:
    adapters = Adapters(clock)
    for path in files:
        adapters.add(path.stem, path)
    return adapters


@pytest.mark.parametrize("broken", [(0,), (1,), (3,), (0, 2), (1, 3), (0, 1, 2, 3)])
def test_all_that_load_are_there_and_each_of_the_others_is_refused_by_name(
    files: list[Path], broken: tuple[int, ...]
) -> None:
    opened, adapters = Opened(*(files[place] for place in broken)), with_all(files)
    server: Any = adapters.open(opened)
    good = [path for place, path in enumerate(files) if place not in broken]
    assert (server.adapters, server.is_open, adapters.paths) == (good, True, good)
    for path in nonempty(files):
        if path in good:
            assert adapters.path(path.stem) == path
        else:
            with pytest.raises(WorkError, match=f"adapter '{path.stem}' is not loaded: cannot load") as refused:
                adapters.path(path.stem)
            assert path.name in refused.value.do


def test_a_single_late_one_costs_one_failure_and_one_server(files: list[Path]) -> None:
    opened, adapters = Opened(files[2]), with_all(files[:3])
    server: Any = adapters.open(opened, before=files[:2])
    assert opened.tried == [files[:3], files[:2]]
    assert server.adapters == files[:2]


def test_what_has_loaded_before_is_not_at_fault(files: list[Path]) -> None:
    adapters = with_all(files[:2])
    with pytest.raises(WorkError, match="cannot load"):
        adapters.open(Opened(base_fails=True), before=files[:2])
    # Nor is a late one where nothing opens: it is tried again with the next server.
    with pytest.raises(WorkError, match="cannot load"):
        adapters.open(Opened(base_fails=True), before=files[:1])
    assert adapters.paths == files[:2]


def test_it_is_tried_again_when_asked_for_after_a_change_or_ten_minutes(files: list[Path]) -> None:
    now = [0.0]
    adapters = with_all(files[:2], lambda: now[0])
    adapters.open(Opened(files[1]))
    adapters.remove("b")
    adapters.add("b", files[1])
    now[0] = 599.0
    with pytest.raises(WorkError, match="'b'"):
        adapters.path("b")
    now[0] = 600.0
    assert adapters.paths == files[:1], "no request for the others opens a server for it"
    assert adapters.path("b") == files[1]
    assert adapters.paths == files[:2]
    adapters.open(Opened(files[1]))
    files[1].write_bytes(b"longer")
    assert adapters.path("b") == files[1]


def test_a_name_belongs_to_one_file(files: list[Path]) -> None:
    adapters = with_all(files[:1])
    adapters.add("a", files[0])
    with pytest.raises(ConflictError, match=r"adapter 'a' from .*b\.gguf, and from .*a\.gguf before"):
        adapters.add("a", files[1])
    adapters.remove("a")
    with pytest.raises(RequestError, match="'a'"):
        adapters.path("a")


def test_a_file_that_was_written_again_is_another_version_and_alone_at_fault_where_it_does_not_load(
    files: list[Path],
) -> None:
    adapters = with_all(files[:2])
    server: Any = adapters.open(Opened())
    before = adapters.version
    adapters.add("a#2", files[0])
    assert adapters.version == before, "it is the same file"
    files[0].write_bytes(b"other")
    adapters.add("a#3", files[0])
    assert adapters.version > before
    opened = Opened(files[0])
    again: Any = adapters.open(opened, server.adapters, before)
    assert (again.adapters, opened.tried) == (files[1:2], [files[:2], files[1:2]])
    with pytest.raises(WorkError, match="adapter 'a#3' is not loaded"):
        adapters.path("a#3")
    assert adapters.path("b") == files[1]
