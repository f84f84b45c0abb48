"""Engines of one process that write at the same time have half of the cores each."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from luthier.core.system import free_cores
from luthier.core.system.free_cores import FreeCores
from luthier.features.serving.core_sharing import CoreSharing


class Engine:
    """With answers to write, or without."""

    def __init__(self) -> None:
        self.keys: set[Hashable] = {"one"}


class Copy(Engine):
    """llama.cpp, which has threads of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cores = FreeCores(4, is_sampled=False)

    def share(self, num_cores: float) -> None:
        self.cores.reserve(num_cores)

    @property
    def num_threads(self) -> int:
        """After two quiet samples."""
        for _ in range(10):
            self.cores.note(0.0)
        return self.cores.count


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What torch was given, last."""
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 4)
    return []


def step(sharing: CoreSharing, name: str, engine: Engine) -> None:
    sharing.before_step(name, engine)  # type: ignore[arg-type]
    sharing.after_step(engine)  # type: ignore[arg-type]


def test_alone_each_has_all_cores_and_together_half_of_them(threads: list[int]) -> None:
    sharing, own, copy = CoreSharing(lambda: 4, threads.append), Engine(), Copy()
    step(sharing, "transformers", own)
    assert threads == [4]
    step(sharing, "llama_cpp", copy)
    assert copy.num_threads == 2
    step(sharing, "transformers", own)
    assert threads == [4, 2]
    copy.keys.clear()
    step(sharing, "llama_cpp", copy)
    step(sharing, "transformers", own)
    assert threads == [4, 2, 4]
    assert copy.num_threads == 4, "one that writes nothing is ready to write with all"
    copy.keys.add("two")
    own.keys.clear()
    step(sharing, "transformers", own)
    step(sharing, "llama_cpp", copy)
    assert copy.num_threads == 4


def test_engines_that_take_turns_are_one_and_every_engine_has_a_thread(threads: list[int]) -> None:
    sharing, first, second, copy = CoreSharing(lambda: 1, threads.append), Engine(), Engine(), Copy()
    step(sharing, "transformers", first)
    step(sharing, "transformers", second)
    step(sharing, "llama_cpp", copy)
    step(sharing, "transformers", first)
    assert threads == [1, 1, 1]
    assert copy.num_threads == 3
    sharing.leave(first)  # type: ignore[arg-type]
    step(sharing, "llama_cpp", copy)
    assert copy.num_threads == 3
    sharing.leave(second)  # type: ignore[arg-type]
    step(sharing, "llama_cpp", copy)
    assert copy.num_threads == 4


def test_an_engine_with_a_process_of_its_own_takes_no_cores_of_this_one(threads: list[int]) -> None:
    sharing, own, elsewhere = CoreSharing(lambda: 4, threads.append), Engine(), Engine()
    step(sharing, "vllm", elsewhere)
    step(sharing, "transformers", own)
    assert threads == [4]
