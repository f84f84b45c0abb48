"""The desk of the process that answers, with engines that write what a test tells them to."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.errors import LuthierError, OverlongError, WorkError, error_from
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import KeyedEvent, Prepared, StreamEngine
from luthier.core.stream import (
    Decoding,
    Ended,
    Failed,
    LoadedModel,
    Piece,
    Served,
    Started,
    StreamEvent,
    TextRequest,
)
from luthier.core.system import machine_memory
from luthier.features.serving import engine_thread
from luthier.features.serving.engine_process import Scheduler
from luthier.features.serving.engine_thread import TurnLock
from luthier.features.serving.memory_budget import MemoryBudget, read_budget, vllm_share


class FakeEngine:
    """Writes the name of the model and of the adapter; as long as `World.hold` says so, nothing."""

    def __init__(self, served: Served, world: World) -> None:
        self.name, self.world = Path(served.path).name, world
        world.engines.append(self)
        self.asks: dict[Hashable, str | None] = {}
        self.adapters: dict[str, str] = {}
        self.has_closed = False

    @property
    def keys(self) -> set[Hashable]:
        return set(self.asks)

    @property
    def num_bytes(self) -> int:
        return self.world.sizes.get(self.name, 1) + 20 * len(self.adapters)

    def load_adapter(self, name: str, path: str) -> None:
        self.world.log.append(f"load {Path(name).name}")
        self.adapters[name] = path

    def unload_adapter(self, name: str) -> None:
        assert name not in self.asks.values()
        self.world.log.append(f"unload {Path(name).name}")
        del self.adapters[name]

    def ask(self, key: Hashable, request: TextRequest, adapter: str | None) -> bool:
        if request.text == "wrong":
            raise WorkError("came", expected="expected", do="do")
        if self.world.num_polls_before:  # as an engine that has not cleared away yet what has ended
            return False
        if self.world.num_rows is not None and len(self.asks) >= self.world.num_rows:
            return False
        self.asks[key] = adapter
        return True

    def cancel(self, key: Hashable) -> None:
        self.asks.pop(key, None)

    def poll(self, wait_seconds: float) -> list[KeyedEvent]:
        assert not self.has_closed
        self.world.num_polls_before = max(0, self.world.num_polls_before - 1)
        if self.name in self.world.broken:
            raise ValueError("out of order")
        if self.name in self.world.hold:
            time.sleep(min(wait_seconds, 0.002))
            return []
        told: list[KeyedEvent] = []
        for key, adapter in self.asks.items():
            told += [(key, Started(num_prompt_tokens=1)), (key, Piece(text=f"{self.name}:{Path(adapter or '').name}"))]
            told += [(key, Ended(reason="stop", num_new_tokens=1))]
        self.asks.clear()
        return told

    def close(self) -> None:
        self.has_closed = True
        self.world.log.append(f"close {self.name}")


class DescribedFake(FakeEngine):
    """Says how it writes."""

    @property
    def decoding(self) -> Decoding:
        return Decoding(path="by_row", description=f"as {self.name} does")


class PreparingFake(FakeEngine):
    """Makes requests ready: a text that begins with "slow" as soon as the test lets it."""

    def prepare(self, request: TextRequest | PoolingRequest) -> Prepared:
        assert isinstance(request, TextRequest)
        if (request.text or "").startswith("slow"):
            self.world.begun.put(request.text or "")
            assert self.world.let_prepare.wait(60)
        if request.text == "long":
            raise OverlongError("long", expected="short", do="do", num_tokens=1000, most_tokens=300)
        return request

    def admit(
        self, key: Hashable, prepared: Prepared, adapter: str | None, *, owner: str | None, may_exceed: bool
    ) -> bool:
        self.world.admitted.append((str(owner), may_exceed))
        if may_exceed and len(self.asks) <= (self.world.num_rows or 0):
            self.asks[key] = adapter
            return True
        return self.ask(key, prepared, adapter)


class RestingFake(FakeEngine):
    """Rests where nothing is written."""

    def rest(self) -> None:
        assert not self.asks
        self.world.num_rests += 1


class SharingFake(FakeEngine):
    """Leaves cores to other engines."""

    def share(self, num_cores: float) -> None:
        pass


class CountingFake(PreparingFake):
    """Counts the tokens of a prompt: a character each."""

    def num_prompt_tokens(self, prepared: Prepared) -> int:
        return len(prepared.text)


class World:
    """A desk at work, and all that is heard from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[str] = []
        self.hold: set[str] = set()
        self.broken: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.num_rows: int | None = None
        self.num_polls_before = 0
        self.gates: dict[str, threading.Event] = {}
        self.prepares = self.counts = False
        self.let_prepare = threading.Event()
        self.begun: queue.Queue[str] = queue.Queue()
        self.admitted: list[tuple[str, bool]] = []
        self.failures: dict[str, Failed] = {}
        self.told: queue.Queue[tuple[str, StreamEvent]] = queue.Queue()
        self.loaded: list[tuple[LoadedModel, ...]] = []
        self.unavailable: list[tuple[str, str]] = []
        self.declined: list[str] = []
        self.describes = self.rests = False
        self.num_rests = 0
        self.texts: dict[str, str] = {}
        self.errors: dict[str, LuthierError] = {}
        self.num_asked = 0
        self.engines: list[FakeEngine] = []
        self.scheduler: Scheduler

    def open_desk(self, *, most_models: int = 2, memory_bytes: int = 1000, budget: MemoryBudget | None = None) -> None:
        def tell(told: Any) -> None:
            for one in told:
                self.told.put(one)

        self.scheduler = Scheduler(
            tell,
            most_models=most_models,
            memory_bytes=memory_bytes,
            precision=lambda: "float32",
            open_engine=self.open_engine,
            tell_loaded=self.loaded.append,
            tell_unavailable=lambda model, why: self.unavailable.append((Path(model.path).name, why)),
            tell_declined=self.declined.append,
        )
        if budget is not None:
            self.scheduler.budget = budget
        threading.Thread(target=self.scheduler.work, daemon=True).start()

    def open_engine(self, served: Served) -> StreamEngine:
        name = Path(served.path).name
        if name in self.gates:
            assert self.gates[name].wait(60)
        self.log.append(f"open {name}")
        if self.describes:
            return DescribedFake(served, self)
        if self.rests:
            return RestingFake(served, self)
        if self.counts:
            return CountingFake(served, self)
        return PreparingFake(served, self) if self.prepares else FakeEngine(served, self)

    def num_begun(self, name: str) -> int:
        """Requests that the engine of a model has begun and not ended."""
        return sum(len(engine.asks) for engine in self.engines if engine.name == name)

    def model(self, name: str, adapter: str | None = None) -> Served:
        """`fake`: no other engine is asked whether an adapter can share its base."""
        file = self.folder / name
        file.write_bytes(b"0" * self.sizes.get(name, 1))
        # A file that is written again is another adapter.
        if adapter is not None and not (self.folder / adapter).exists():
            (self.folder / adapter).write_bytes(b"0" * 10)
        return Served(engine="fake", path=str(file), sha256="", adapter_path=adapter and str(self.folder / adapter))

    def copy(self, name: str) -> Served:
        """A copy that replaces the model of that name."""
        return self.model(f"{name}-copy").model_copy(update={"fallback": self.model(name)})

    def load(self, model: Served, num_bytes: int = 0) -> None:
        self.scheduler.hear({"load": model.model_dump(mode="json"), "num_bytes": num_bytes})

    def ask(
        self,
        name: str | Served,
        adapter: str | None = None,
        *,
        text: str = "a",
        owner: str | None = None,
        only_loaded: bool = False,
    ) -> str:
        self.num_asked += 1
        served = self.model(name, adapter) if isinstance(name, str) else name
        key = f"{Path(served.path).name}{self.num_asked}"
        request = TextRequest(text=text).model_dump(mode="json")
        model = served.model_dump(mode="json")
        more = {"only_loaded": True} if only_loaded else {}
        self.scheduler.hear({"ask": key, "owner": owner, "model": model, "request": request} | more)
        return key

    def until(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < deadline, (self.log, self.texts, self.errors)
            try:
                key, event = self.told.get(timeout=0.01)
            except queue.Empty:
                continue
            if isinstance(event, Piece):
                self.texts[key] = event.text
            elif isinstance(event, Failed):
                self.errors[key], self.failures[key] = error_from(event.error), event

    def answered(self, *keys: str) -> list[str]:
        self.until(lambda: all(key in self.texts for key in keys))
        return [self.texts[key] for key in keys]

    def failed(self, key: str) -> LuthierError:
        self.until(lambda: key in self.errors)
        return self.errors[key]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.let_prepare.set()
    for gate in made.gates.values():
        gate.set()


def test_adapters_of_one_base_share_its_engine(world: World) -> None:
    world.open_desk()
    keys = [world.ask("a", "one"), world.ask("a"), world.ask("a", "two"), world.ask("a", "one")]
    assert world.answered(*keys) == ["a:one", "a:", "a:two", "a:one"]
    assert sorted(world.log) == ["load one", "load two", "open a"]


def test_an_adapter_that_was_written_again_answers_with_what_is_in_its_folder(world: World) -> None:
    """Answers that are being written keep the weights they began with."""
    world.open_desk()
    folder = world.folder / "one"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    served = world.model("a").model_copy(update={"adapter_path": str(folder)})
    assert world.answered(world.ask(served)) == ["a:one"]
    world.hold.add("a")
    before = world.ask(served)
    world.until(lambda: world.num_begun("a") == 1)
    (folder / "adapter_config.json").write_text("{ }")
    after = world.ask(served)
    world.until(lambda: world.num_begun("a") == 2)
    world.hold.clear()
    assert world.answered(before, after) == ["a:one", "a:one#2"]
    assert world.log == ["open a", "load one", "load one#2"]


def test_an_engine_over_files_that_were_written_again_makes_room_before_the_next_is_opened(world: World) -> None:
    """vLLM takes nearly all memory of a GPU: a second one beside it could not be opened."""
    world.open_desk(most_models=9)
    before = world.model("a")
    assert world.answered(world.ask(before), world.ask("b")) == ["a:", "b:"]
    world.hold.add("a")
    held = world.ask(before)
    world.until(lambda: world.num_begun("a") == 1)
    later = world.ask(before.model_copy(update={"sha256": "another"}))
    assert world.answered(world.ask("b")) == ["b:"]
    assert world.log == ["open a", "open b"], "an answer that is being written keeps the weights it began with"
    world.hold.clear()
    assert world.answered(held, later) == ["a:", "a:"]
    assert world.log == ["open a", "open b", "close a", "open a"]


def test_a_request_for_a_loaded_model_alone_loads_none(world: World) -> None:
    world.open_desk(most_models=1)
    early = world.ask("a", only_loaded=True)
    world.until(lambda: world.declined == [early])
    assert world.log == []
    assert world.answered(world.ask("a"), world.ask("a", "one", only_loaded=True)) == ["a:", "a:one"]
    world.answered(world.ask("b"))
    late = world.ask("a", only_loaded=True)
    world.until(lambda: world.declined == [early, late])
    assert world.log == ["open a", "load one", "close a", "open b"]


def test_a_request_for_a_loaded_model_alone_brings_none_back(world: World) -> None:
    world.open_desk(most_models=1)
    world.answered(world.ask("a"))
    world.hold.add("a")
    busy = world.ask("a")
    world.until(lambda: busy in world.scheduler._thread_of_request)
    # The model is busy, and takes nothing new since another one needs its place.
    other = world.ask("b")
    late = world.ask("a", only_loaded=True)
    world.until(lambda: world.declined == [late])
    world.hold.clear()
    assert world.answered(busy, other) == ["a:", "b:"]
    assert world.log == ["open a", "close a", "open b"]


def test_a_model_that_is_being_loaded_holds_up_no_other(world: World) -> None:
    world.gates["slow"] = threading.Event()
    world.open_desk()
    slow, gone = world.ask("slow"), world.ask("slow")
    assert world.answered(world.ask("fast"), world.ask("fast")) == ["fast:", "fast:"]
    world.scheduler.hear({"cancel": gone})
    world.until(lambda: gone not in world.scheduler._thread_of_request)
    assert slow not in world.texts
    world.gates["slow"].set()
    assert world.answered(slow) == ["slow:"]
    world.answered(world.ask("slow"))
    assert gone not in world.texts


def test_which_models_are_loaded_is_said_when_it_changes(world: World) -> None:
    world.describes = True
    world.open_desk(most_models=1)
    world.answered(world.ask("a", "one"), world.ask("a"))
    world.until(lambda: len(world.loaded) == 1)
    world.answered(world.ask("b"))
    world.until(lambda: [Path(one.served.path).name for one in world.loaded[-1]] == ["b"])
    (first,), (last,) = world.loaded[0], world.loaded[-1]
    assert first.decoding == Decoding(path="by_row", description="as a does")
    assert first.answers(world.model("a"))
    assert first.answers(world.model("a", "one"))
    assert not first.answers(world.model("b"))
    assert not first.answers(world.model("a").model_copy(update={"quantisation": "nf4"}))
    assert last.answers(world.model("b"))
    assert len(world.loaded) <= 3  # a, perhaps none, b: nothing is said that has not changed


def test_a_model_that_does_not_say_how_it_writes_is_loaded_all_the_same(world: World) -> None:
    world.open_desk()
    world.answered(world.ask("a"))
    world.until(lambda: len(world.loaded) == 1)
    assert [one.decoding for one in world.loaded[0]] == [None]


def test_the_longest_unused_model_goes(world: World) -> None:
    world.open_desk(most_models=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        world.answered(world.ask(name))
    assert world.log == ["open a", "open b", "close b", "open c", "close c", "open b"]


def test_a_copy_beside_its_model_is_no_further_model(world: World) -> None:
    world.open_desk(most_models=2)
    world.answered(world.ask(world.copy("a")), world.ask("b"))
    world.load(world.model("a"))
    world.until(lambda: "open a" in world.log)
    world.answered(world.ask("a"), world.ask("b"), world.ask(world.copy("a")))
    assert [one for one in world.log if one.startswith("close")] == []
    assert world.unavailable == []
    # The third model takes the place of the one that was not asked for the longest time.
    world.answered(world.ask("c"))
    assert "open c" in world.log
    assert world.log.count("close a") + world.log.count("close b") + world.log.count("close a-copy") >= 1


def test_nothing_is_closed_for_what_is_loaded_in_the_background(world: World) -> None:
    world.sizes = {"a-copy": 400, "a": 400}
    world.open_desk(most_models=1, memory_bytes=1000)
    world.answered(world.ask(world.copy("a")))
    world.load(world.model("b"))
    world.until(lambda: world.unavailable == [("b", "memory")])
    world.load(world.model("a"), num_bytes=700)  # what it was measured to take, which its file does not show
    world.until(lambda: len(world.unavailable) == 2)
    world.load(world.model("a"), num_bytes=500)
    world.until(lambda: "open a" in world.log)
    world.load(world.model("a"))
    world.answered(world.ask("a"))
    assert world.log == ["open a-copy", "open a"]
    assert world.unavailable == [("b", "memory"), ("a", "memory")]


def test_an_engine_that_fails_is_unavailable_and_its_requests_may_go_to_another(world: World) -> None:
    world.open_desk()
    world.broken.add("a")
    key = world.ask("a")
    world.failed(key)
    assert world.failures[key].is_of_engine
    world.until(lambda: world.unavailable == [("a", "failed")])
    wrong = world.ask("b", text="wrong")
    world.failed(wrong)
    assert not world.failures[wrong].is_of_engine
    world.broken.clear()
    world.answered(world.ask("a"))
    assert world.unavailable == [("a", "failed")]


def test_an_engine_that_is_closed_for_another_has_not_failed(world: World) -> None:
    world.open_desk(most_models=1)
    world.answered(world.ask("a"))
    world.answered(world.ask("b"))
    world.until(lambda: [[Path(one.served.path).name for one in each] for each in world.loaded][-1:] == [["b"]])
    assert world.unavailable == []


def test_one_that_is_writing_is_waited_for_and_those_who_came_later_wait_too(world: World) -> None:
    world.open_desk(most_models=1)
    world.hold.add("a")
    first = world.ask("a")
    world.until(lambda: "open a" in world.log)
    other, later = world.ask("b"), world.ask("a")
    world.hold.clear()
    world.answered(first, other, later)
    assert world.log == ["open a", "close a", "open b", "close b", "open a"]


def test_an_ask_that_went_away_lets_the_others_stay(world: World) -> None:
    world.open_desk(most_models=1)
    world.hold.add("a")
    world.ask("a")
    world.until(lambda: "open a" in world.log)
    other = world.ask("b")
    world.scheduler.hear({"cancel": other})
    world.hold.clear()
    world.answered(world.ask("a"))
    assert world.log == ["open a"]


def test_models_are_held_within_the_memory_that_there_is(world: World) -> None:
    world.sizes = {"a": 400, "b": 400, "c": 400, "vast": 2000}
    world.open_desk(most_models=9, memory_bytes=1000)
    for name in ("a", "b", "c"):
        world.answered(world.ask(name))
    assert world.log == ["open a", "open b", "close a", "open c"]
    error = world.failed(world.ask("vast"))
    assert isinstance(error, WorkError)
    assert "LUTHIER_SERVING_MEMORY_BYTES" in str(error)
    world.answered(world.ask("b"))


def test_models_on_an_accelerator_and_beside_it_have_limits_of_their_own(world: World) -> None:
    world.sizes = {"a": 400, "b": 400, "c": 400, "file": 450, "vast": 600}
    world.open_desk(most_models=9, budget=MemoryBudget(host_bytes=500, device_bytes=1000))
    on_host = {name: world.model(name).model_copy(update={"engine": "llama_cpp"}) for name in ("file", "vast")}
    world.answered(world.ask(on_host["file"]), world.ask("a"), world.ask("b"))
    world.answered(world.ask("c"))
    assert world.log[3:] == ["close a", "open c"], "what the card lacks, nothing beside it can give"
    assert sorted(world.log[:3]) == ["open a", "open b", "open file"]
    assert "LUTHIER_SERVING_MEMORY_BYTES" in str(world.failed(world.ask(on_host["vast"])))


@pytest.mark.parametrize(("num_vllm", "log"), [(0, ["open a", "close a", "open b"]), (2, ["open a", "open b"])])
def test_two_vllm_divide_a_card_or_take_turns(world: World, num_vllm: int, log: list[str]) -> None:
    world.sizes = {"a": 10, "b": 10}
    world.open_desk(budget=read_budget(0, (1000,), num_vllm))
    for name in ("a", "b"):
        world.answered(world.ask(world.model(name).model_copy(update={"engine": "vllm"})))
    assert world.log == log


@pytest.mark.parametrize(
    ("num_vllm", "log"),
    [(0, ["open file", "open a", "close a", "open b"]), (2, ["open file", "open a", "open b"])],
)
def test_models_on_a_card_take_turns_also_under_a_limit_that_is_set(
    world: World, num_vllm: int, log: list[str]
) -> None:
    """Each reserves its part of the card, which the limit does not count; what is beside the card stays."""
    world.sizes = {"a": 10, "b": 10, "file": 10}
    world.open_desk(most_models=9, budget=read_budget(500, (1000,), num_vllm))
    world.answered(world.ask(world.model("file").model_copy(update={"engine": "llama_cpp"})))
    for name in ("a", "b"):
        world.answered(world.ask(world.model(name).model_copy(update={"engine": "vllm"})))
    assert world.log == log


def test_a_model_of_another_engine_takes_turns_with_vllm_and_one_alone_is_tried(world: World) -> None:
    world.sizes = {"a": 10, "b": 200, "large": 990}
    world.open_desk(most_models=9, budget=read_budget(2000, (1000,), 0))
    world.answered(world.ask(world.model("a").model_copy(update={"engine": "vllm"})))
    world.answered(world.ask("b"))
    world.answered(world.ask("large"))
    assert world.log == ["open a", "close a", "open b", "close b", "open large"]


def test_the_memory_of_an_accelerator_is_measured_there() -> None:
    half = machine_memory.memory_bytes()[0] // 2
    assert read_budget(0, (), 0) == MemoryBudget(half)
    assert read_budget(7, (), 0) == MemoryBudget(7)
    assert read_budget(7, (80,), 0) == MemoryBudget(7, None, 72, 72), "one limit that is set counts for all"
    assert read_budget(7, (80,), 2) == MemoryBudget(7, None, 36, 72)
    assert read_budget(0, (80, 40), 0) == MemoryBudget(half, 72, 72)
    assert read_budget(0, (80,), 2) == MemoryBudget(half, 72, 36)
    assert [vllm_share(num) for num in range(4)] == [None, None, 0.45, 0.3]
    assert 7 * (vllm_share(7) or 1) <= 0.9


def test_adapters_that_nobody_asks_go_first_and_those_in_use_stay(world: World) -> None:
    world.sizes = {"a": 40}
    world.open_desk(memory_bytes=100)
    world.answered(world.ask("a", "one"), world.ask("a", "two"), world.ask("a", "one"))
    world.answered(world.ask("a", "three"))
    world.until(lambda: "load three" in world.log)
    world.answered(world.ask("a", "four"))
    assert world.log[3:] == ["load three", "unload two", "load four"]
    world.hold.add("a")
    held = [world.ask("a", name) for name in ("one", "three", "four")]
    fifth = world.ask("a", "five")
    world.hold.clear()
    world.answered(*held, fifth)
    assert world.log[-1] == "load five"


def test_an_adapter_gets_the_memory_of_a_model_that_nobody_asks(world: World) -> None:
    world.sizes = {"a": 40, "b": 50}
    world.open_desk(memory_bytes=100)
    world.answered(world.ask("b"), world.ask("a"))
    world.answered(world.ask("a", "one"))
    assert world.log[2:] == ["close b", "load one"]


def test_an_adapter_gets_the_memory_of_a_model_that_was_asked_after_its_own(world: World) -> None:
    world.sizes = {"a": 40, "b": 50}
    world.gates["a"] = threading.Event()
    world.open_desk(memory_bytes=100)
    world.answered(world.ask("b"))
    waits = world.ask("a", "one")
    world.until(lambda: waits in world.scheduler._thread_of_request)
    # While `a` is being loaded, the other model is used once more.
    world.answered(world.ask("b"))
    world.gates["a"].set()
    assert world.answered(waits) == ["a:one"]
    assert world.log == ["open b", "open a", "close b", "load one"]


def test_no_more_models_are_closed_for_an_adapter_than_have_to_be(world: World) -> None:
    world.sizes = {"a": 30, "b": 30, "c": 30}
    world.open_desk(most_models=9, memory_bytes=100)
    for name in ("a", "b", "c"):
        world.answered(world.ask(name))
    assert world.answered(world.ask("c", "one")) == ["c:one"]
    assert world.answered(world.ask("b")) == ["b:"]
    assert world.log == ["open a", "open b", "open c", "close a", "load one"]


def test_an_adapter_that_can_never_be_held_is_refused(world: World) -> None:
    world.sizes = {"a": 95}
    world.open_desk(memory_bytes=100)
    assert "the adapter" in str(world.failed(world.ask("a", "one")))
    world.answered(world.ask("a"))


def test_an_engine_that_breaks_takes_only_its_own_asks_along(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.open_desk()
    world.hold.add("b")
    fine, wrong = world.ask("b"), world.ask("b", text="wrong")
    assert isinstance(world.failed(wrong), WorkError)
    world.broken.add("a")
    error = world.failed(world.ask("a"))
    assert "ValueError" in str(error)
    assert "out of order" in capfd.readouterr().err
    world.broken.clear()
    world.hold.clear()
    assert world.answered(world.ask("a"), fine) == ["a:", "b:"]


def test_asks_that_find_no_room_wait_for_it(world: World) -> None:
    world.num_rows = 2
    world.open_desk()
    keys = [world.ask("a") for _ in range(7)]
    assert world.answered(*keys) == ["a:"] * 7


def test_an_engine_without_vectors_says_so(world: World) -> None:
    world.open_desk()
    model = world.model("a").model_dump(mode="json")
    world.scheduler.hear({"ask": "e", "model": model, "pool": PoolingRequest(inputs=("a",)).model_dump(mode="json")})
    assert "engine fake" in str(world.failed("e"))


def test_what_cannot_be_read_ends_no_other(world: World) -> None:
    world.open_desk()
    bad = Served(path=str(world.folder), sha256="", adapter_path=str(world.folder / "none"), precision="float32")
    request = TextRequest(text="a").model_dump(mode="json")
    world.scheduler.hear({"ask": "bad", "model": bad.model_dump(mode="json"), "request": request})
    assert "adapter_config.json" in str(world.failed("bad"))
    world.answered(world.ask("a"))


def test_turns_go_round() -> None:
    turn_lock, order = TurnLock(), list[int]()

    def work(number: int) -> None:
        for _ in range(20):
            with turn_lock.one():
                # Until the others wait in line, as far as they have turns left, however slow the machine is.
                while turn_lock._next - turn_lock._now < 3 and turn_lock._next < 60:
                    time.sleep(0.0005)
                order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(order) == 60
    assert all(len(set(order[place : place + 3])) == 3 for place in range(58))


def test_an_ask_that_waits_is_asked_again_after_a_poll_though_nothing_is_written(world: World) -> None:
    world.num_polls_before = 2
    world.open_desk()
    assert world.answered(world.ask("a")) == ["a:"]


def test_a_prompt_that_takes_long_to_be_made_ready_holds_up_no_answer(world: World) -> None:
    world.prepares = True
    world.open_desk()
    slow = [world.ask("a", text=text, owner="much") for text in ("slow" + "w" * 40_000, "slow" + "w" * 50_000)]
    world.begun.get(timeout=60)
    assert world.answered(world.ask("a", owner="little"), world.ask("a", owner="much")) == ["a:", "a:"]
    assert not set(slow) & set(world.texts)
    world.let_prepare.set()
    assert world.answered(*slow) == ["a:", "a:"]


@pytest.mark.parametrize("counts", [True, False])
def test_a_prompt_is_counted_without_a_pass_where_the_engine_can(world: World, counts: bool) -> None:
    world.counts, world.prepares = counts, True
    world.open_desk()
    request = TextRequest(text="four", counts_tokens=True).model_dump(mode="json")
    world.scheduler.hear(
        {"ask": "k", "owner": "o", "model": world.model("a").model_dump(mode="json"), "request": request}
    )
    told = [world.told.get(timeout=60) for _ in range(2 if counts else 3)]
    assert {key for key, _ in told} == {"k"}
    events = [event for _, event in told]
    if counts:
        assert events == [Started(num_prompt_tokens=4), Ended(reason="length", num_new_tokens=0)]
    else:
        assert [event.kind for event in events] == ["started", "piece", "ended"]
    assert world.admitted == ([] if counts else [("o", False)])
    assert world.answered(world.ask("a")) == ["a:"]


def test_one_that_goes_away_while_it_is_made_ready_is_not_written(world: World) -> None:
    world.prepares = True
    world.open_desk()
    gone, stays = world.ask("a", text="slow 1", owner="one"), world.ask("a", text="slow 2", owner="two")
    world.begun.get(timeout=60)
    world.scheduler.hear({"cancel": gone})
    world.until(lambda: gone not in world.scheduler._thread_of_request)
    world.let_prepare.set()
    assert world.answered(stays) == ["a:"]
    world.answered(world.ask("a"))
    assert gone not in world.texts


def test_what_a_refused_prompt_took_is_told_with_the_failure(world: World) -> None:
    world.prepares = True
    world.open_desk()
    long = world.ask("a", text="long")
    assert isinstance(world.failed(long), OverlongError)
    assert (world.failures[long].num_refused_tokens, world.failures[long].num_contexts) == (1000, 4)


def test_keys_take_turns_and_a_newcomer_may_use_the_reserve(world: World) -> None:
    world.prepares, world.num_rows = True, 2
    world.open_desk()
    world.hold.add("a")
    many = [world.ask("a", owner="much") for _ in range(5)]
    world.until(lambda: world.admitted.count(("much", False)) > 3)
    new = world.ask("a", owner="little")
    world.until(lambda: ("little", True) in world.admitted)
    world.hold.clear()
    world.answered(*many, new)
    order = list(world.texts)
    assert order.index(new) < 3, "it is written with the first two of the other, not behind all five"


class SlowKey:
    """Stands still once where the thread of an engine hashes it, until the scheduler has changed the engines."""

    engine = "fake"

    def __init__(self) -> None:
        self.reader: threading.Thread | None = None
        self.is_read, self.has_changed = threading.Event(), threading.Event()

    def __hash__(self) -> int:
        if threading.current_thread() is self.reader and not self.is_read.is_set():
            self.is_read.set()
            # Times out where the change has to wait for the reader.
            self.has_changed.wait(0.3)
        return 1


def test_an_engine_may_count_memory_while_another_goes(world: World) -> None:
    scheduler = Scheduler(
        lambda _: None, most_models=2, memory_bytes=100, precision=lambda: "float32", open_engine=world.open_engine
    )
    engines: Any = scheduler._engine_threads
    key = SlowKey()
    asking: Any = SimpleNamespace(served=key, num_bytes=10, has_closed=False, is_idle=False, is_closing=False)
    other = SimpleNamespace(num_bytes=10, has_closed=False, is_idle=False, is_closing=False)
    engines[key], engines[SlowKey()] = asking, other
    engines[SlowKey()] = SimpleNamespace(num_bytes=20, has_closed=True, failure=None)
    answers: list[object] = []

    def count() -> None:
        try:
            answers.append(scheduler._has_room(asking, 80))
        except RuntimeError as error:
            answers.append(error)

    key.reader = threading.Thread(target=count)
    key.reader.start()
    assert key.is_read.wait(60)
    scheduler._sweep()
    key.has_changed.set()
    key.reader.join(60)
    assert answers == [False], "it counts the engines of one moment"
    assert list(engines.values()) == [asking, other]


def test_an_engine_without_requests_has_the_time_between_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "_REST_SECONDS", 0.001)
    world.rests = True
    world.open_desk()
    for num in (1, 2):
        assert world.answered(world.ask("a")) == ["a:"]
        world.until(lambda: world.num_rests >= 2 * num)  # noqa: B023 - called at once
    assert world.log == ["open a"]


def test_an_engine_whose_last_request_was_cancelled_leaves_its_cores_to_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no further step, so that other engines would have half of the cores for as long as it is open."""
    monkeypatch.setattr(world, "open_engine", lambda served: SharingFake(served, world))
    world.hold.add("a")
    world.open_desk()
    key = world.ask("a")
    writing = world.scheduler._engine_context.sharing._writing
    world.until(lambda: bool(writing))
    world.scheduler.hear({"cancel": key})
    world.until(lambda: not writing)
