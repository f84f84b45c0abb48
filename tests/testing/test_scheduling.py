"""Tests are shared out to processes as pytest-xdist does it, and as fast with many of them."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.fixtures.scheduling import Indexed, Scheduling
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

FILES = 40


class Node:
    """A process that is given tests by their places."""

    def __init__(self, name: str) -> None:
        self.gateway, self.shutting_down = SimpleNamespace(id=name), False
        self.waiting: list[int] = []
        self.given: list[list[int]] = []

    def send_runtest_some(self, places: list[int]) -> None:
        self.given.append(places)
        self.waiting += places

    def shutdown(self) -> None:
        self.shutting_down = True


def shared_out(kind: type[LoadFileScheduling], folder: Path, names: list[str], seed: int) -> list[list[list[int]]]:
    """The places of tests that each of two processes is given, in order, where they end in an order by chance."""
    values = {"tx": ["popen"] * 2}
    config: Any = SimpleNamespace(
        option=SimpleNamespace(loadscopereorder=False), rootpath=folder, getvalue=values.get, getoption=values.get
    )
    found = kind(config, Producer("tests", enabled=False))
    nodes = [Node("gw0"), Node("gw1")]
    for node in nodes:
        found.add_node(node)
    for node in nodes:
        found.add_node_collection(node, names)
    found.schedule()
    draw = random.Random(seed)
    while busy := [node for node in nodes if node.waiting]:
        node = draw.choice(busy)
        found.mark_test_complete(node, node.waiting.pop(0))
    assert found.tests_finished
    return [node.given for node in nodes]


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    draw = random.Random(3)
    for number in range(FILES):
        (tmp_path / f"test_{number}.py").write_text("import in_world" if number % 9 == 4 else "", encoding="utf-8")
    return [f"test_{file}.py::test_{n}" for file in range(FILES) for n in range(draw.choice((1, 2, 3, 17)))]


@pytest.mark.parametrize("seed", range(4))
def test_without_ranks_each_process_is_given_what_xdist_gives_it(
    names: list[str], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = shared_out(LoadFileScheduling, tmp_path, names, seed)
    monkeypatch.setattr(Scheduling, "_have_ranks", lambda _, name: False)
    assert shared_out(Scheduling, tmp_path, names, seed) == expected
    assert sorted(place for node in expected for part in node for place in part) == list(range(len(names)))


def test_files_with_ranks_go_to_one_process_together(names: list[str], tmp_path: Path) -> None:
    given = shared_out(Scheduling, tmp_path, names, 0)
    with_ranks = [n for n, name in enumerate(names) if int(name.partition(".")[0].removeprefix("test_")) % 9 == 4]
    assert with_ranks in [part for node in given for part in node]


def test_a_name_that_is_not_in_the_list_has_no_place() -> None:
    found = Indexed(["a", "b"])
    assert (found.index("b"), found == ["a", "b"]) == (1, True)
    with pytest.raises(ValueError, match="c is not in the list"):
        found.index("c")
