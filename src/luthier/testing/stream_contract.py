"""The contract of every streaming engine, as tests that its author inherits.

    class TestMyEngine(StreamEngineContract):
        @pytest.fixture
        def stream_engine(self) -> Iterator[StreamEngine]:
            engine = MyEngine(...)
            yield engine
            engine.close()

        @pytest.fixture
        def adapters(self) -> list[str]:
            return [...]  # paths of two adapters for its base, under which it writes other texts; [] where it has none

A test gets its own engine, or one without open requests.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.core.ports import StreamEngine
from luthier.core.stream import Ended, Failed, Piece, Sampling, Started, TextRequest
from luthier.testing.engine_contract import QUESTIONS

GREEDY: Final = Sampling(temperature=0)
_WAIT_SECONDS: Final = 0.2
_MOST_SECONDS: Final = 120.0


def question(text: str, *, max_new_tokens: int = 8, sampling: Sampling = GREEDY, num_choices: int = 1) -> TextRequest:
    """A request with one user turn."""
    return TextRequest(
        conversation=Conversation(messages=(Message(role="user", content=text),)),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        num_choices=num_choices,
    )


class Heard:
    """Events of an engine, by request and choice. Checks that events come in an order that they may come in."""

    def __init__(self) -> None:
        self.texts: dict[tuple[Hashable, int], str] = defaultdict(str)
        self.pieces: dict[tuple[Hashable, int], list[Piece]] = defaultdict(list)
        self.ends: dict[tuple[Hashable, int], Ended] = {}
        self.started: dict[Hashable, Started] = {}
        self.failures: dict[Hashable, Failed] = {}

    def hear(self, engine: StreamEngine, wait_seconds: float = _WAIT_SECONDS) -> None:
        """Poll the engine once."""
        for key, event in engine.poll(wait_seconds):
            assert key not in self.failures, f"{event} after the failure of {key!r}"
            if isinstance(event, Started):
                assert key not in self.started, f"{key!r} has started twice"
                self.started[key] = event
            elif isinstance(event, Failed):
                self.failures[key] = event
            else:
                assert isinstance(event, Piece | Ended)
                assert key in self.started, f"{event} before {key!r} has started"
                place = (key, event.choice)
                assert place not in self.ends, f"{event} after the end of {place}"
                if isinstance(event, Piece):
                    self.texts[place] += event.text
                    self.pieces[place].append(event)
                else:
                    self.ends[place] = event


def write_all(
    engine: StreamEngine, requests: Mapping[Hashable, TextRequest], adapters: Mapping[Hashable, str] | None = None
) -> Heard:
    """Ask everything as soon as there is room, and listen until all has ended or failed."""
    heard, waiting = Heard(), list(requests)
    until = time.monotonic() + _MOST_SECONDS
    while waiting or engine.keys:
        assert time.monotonic() < until, f"no end of {engine.keys}, {len(waiting)} waiting"
        # Asked in order: an engine without room is asked again after the next poll.
        while waiting and engine.ask(waiting[0], requests[waiting[0]], (adapters or {}).get(waiting[0])):
            waiting.pop(0)
        heard.hear(engine)
    # Events of the last answer may still be in the queue when its key has gone.
    heard.hear(engine, 0)
    return heard


def listen(engine: StreamEngine, heard: Heard, until: Callable[[], bool]) -> None:
    """Listen until something is so."""
    end = time.monotonic() + _MOST_SECONDS
    while not until():
        assert time.monotonic() < end, "it never came to be so"
        heard.hear(engine)


class StreamEngineContract:
    """Text out, piece by piece, for many at once."""

    @pytest.fixture
    def adapters(self) -> Sequence[str]:
        """None, where the engine has none."""
        return []

    def test_it_implements_the_protocol_and_starts_idle(self, stream_engine: StreamEngine) -> None:
        """An open engine is idle and knows what it weighs."""
        assert isinstance(stream_engine, StreamEngine)
        assert stream_engine.keys == set()
        assert stream_engine.num_bytes >= 0
        assert stream_engine.poll(0) == []

    def test_pieces_make_the_answer_and_counts_are_reported(self, stream_engine: StreamEngine) -> None:
        """Counts grow and end at what `Ended` says; `length` means that the limit was reached."""
        heard = write_all(stream_engine, {n: question(q, max_new_tokens=3 + n) for n, q in enumerate(QUESTIONS)})
        assert heard.failures == {}
        for number in range(len(QUESTIONS)):
            ended, pieces = heard.ends[number, 0], heard.pieces[number, 0]
            assert heard.started[number].num_prompt_tokens > 0 or (ended.num_prompt_tokens or 0) > 0
            counts = [piece.num_new_tokens for piece in pieces]
            assert counts == sorted(counts)
            assert ended.num_new_tokens >= max(counts, default=0)
            assert ended.num_new_tokens <= 3 + number
            if ended.reason == "length":
                assert ended.num_new_tokens == 3 + number

    def test_greedy_text_is_the_same_alone_and_in_company(self, stream_engine: StreamEngine) -> None:
        """Each ask gets its own answer, whoever else is asking."""
        requests: dict[Hashable, TextRequest] = {number: question(text) for number, text in enumerate(QUESTIONS)}
        together = write_all(stream_engine, requests)
        backwards = write_all(stream_engine, dict(reversed(requests.items())))
        for number, request in requests.items():
            alone = write_all(stream_engine, {number: request})
            assert alone.texts[number, 0] == together.texts[number, 0] == backwards.texts[number, 0]
            ends = [one.ends[number, 0] for one in (alone, together, backwards)]
            # How much of a prompt was known depends on what came before it.
            assert len({end.model_copy(update={"num_cached_tokens": 0}) for end in ends}) == 1

    def test_a_seed_repeats_what_was_drawn_and_choices_differ(self, stream_engine: StreamEngine) -> None:
        """Choice number N draws as an ask with the seed N higher would."""
        warm = question(QUESTIONS[0], sampling=Sampling(temperature=1.5, seed=11), num_choices=3, max_new_tokens=12)
        first, again = write_all(stream_engine, {"a": warm}), write_all(stream_engine, {"a": warm})
        texts = [first.texts["a", choice] for choice in range(3)]
        assert texts == [again.texts["a", choice] for choice in range(3)]
        assert len(set(texts)) > 1
        # Choice 2 of seed 11 draws as seed 13: choices are numbered from 0.
        third = warm.model_copy(update={"num_choices": 1, "sampling": Sampling(temperature=1.5, seed=13)})
        assert write_all(stream_engine, {"b": third}).texts["b", 0] == texts[2]

    def test_a_stop_text_ends_an_answer_before_it(self, stream_engine: StreamEngine) -> None:
        """Neither the stop text nor anything after it is returned."""
        whole = write_all(stream_engine, {"a": question(QUESTIONS[0], max_new_tokens=12)}).texts["a", 0]
        assert len(whole) > 4, "the engine under test must write something to this question"
        stop = whole[3:5]
        asked = question(QUESTIONS[0], max_new_tokens=12).model_copy(update={"stop": (stop, "never written")})
        heard = write_all(stream_engine, {"a": asked})
        assert heard.texts["a", 0] == whole[: whole.index(stop)]
        assert heard.ends["a", 0].reason == "stop"

    def test_a_cancelled_ask_says_nothing_more_and_makes_room(self, stream_engine: StreamEngine) -> None:
        """What is under way besides is not disturbed."""
        wanted = write_all(stream_engine, {"b": question(QUESTIONS[1])}).texts["b", 0]
        heard = Heard()
        assert stream_engine.ask("a", question(QUESTIONS[0], max_new_tokens=300), None)
        assert stream_engine.ask("b", question(QUESTIONS[1]), None)
        listen(stream_engine, heard, lambda: "a" in heard.started)
        # One that computes in another process may have ended before it could be cancelled.
        had_ended = ("a", 0) in heard.ends
        stream_engine.cancel("a")
        assert "a" not in stream_engine.keys
        before = len(heard.pieces["a", 0])
        listen(stream_engine, heard, lambda: not stream_engine.keys)
        assert len(heard.pieces["a", 0]) == before
        assert (("a", 0) in heard.ends) == had_ended
        assert heard.texts["b", 0] == wanted
        stream_engine.cancel("never asked")
        assert write_all(stream_engine, {"a": question(QUESTIONS[1])}).texts["a", 0] == wanted

    def test_more_requests_than_slots_are_all_answered(self, stream_engine: StreamEngine) -> None:
        """What has no room now has it later, and nothing is lost."""
        requests: dict[Hashable, TextRequest] = {n: question(QUESTIONS[n % 5], max_new_tokens=3) for n in range(40)}
        heard = write_all(stream_engine, requests)
        assert {key for key, _ in heard.ends} == set(range(40))
        assert heard.failures == {}

    def test_a_request_that_cannot_be_written_hurts_no_other(self, stream_engine: StreamEngine) -> None:
        """It is refused when asked, or fails alone."""
        wanted = write_all(stream_engine, {"b": question(QUESTIONS[1])}).texts["b", 0]
        heard = Heard()
        assert stream_engine.ask("b", question(QUESTIONS[1]), None)
        refused = False
        try:
            stream_engine.ask("a", TextRequest(text="word " * 20_000, max_new_tokens=4), None)
        except RequestError:
            refused = True
        listen(stream_engine, heard, lambda: not stream_engine.keys)
        assert refused or "a" in heard.failures
        assert heard.texts["b", 0] == wanted

    def test_an_unknown_adapter_is_refused(self, stream_engine: StreamEngine) -> None:
        """It is never taken for the base."""
        with pytest.raises(RequestError, match="nobody"):
            stream_engine.ask("a", question(QUESTIONS[0]), "nobody")
        assert stream_engine.keys == set()

    def test_adapters_do_not_leak(self, stream_engine: StreamEngine, adapters: Sequence[str]) -> None:
        """Each ask is answered by its own adapter or by the base, in any company and in any order."""
        if not adapters:
            pytest.skip("this engine has no adapters")
        systems = [None, "first", "second"]
        asked = question(QUESTIONS[0])
        base = write_all(stream_engine, {0: asked}).texts[0, 0]
        for name, path in zip(systems[1:], adapters, strict=True):
            assert name is not None
            stream_engine.load_adapter(name, path)
            # A second time: loading what is loaded must change nothing.
            stream_engine.load_adapter(name, path)
        alone = [base]
        for name in systems[1:]:
            alone.append(write_all(stream_engine, {0: asked}, {0: name or ""}).texts[0, 0])
        assert len(set(alone)) == 3, "the adapters under test must change this answer"
        assert write_all(stream_engine, {0: asked}).texts[0, 0] == base
        keys = range(12)
        by_key: dict[Hashable, str] = {n: name for n in keys if (name := systems[n % 3]) is not None}
        mixed = write_all(stream_engine, dict.fromkeys(keys, asked), by_key)
        assert [mixed.texts[n, 0] for n in keys] == [alone[n % 3] for n in keys]
        stream_engine.unload_adapter("first")
        with pytest.raises(RequestError, match="first"):
            stream_engine.ask("a", asked, "first")
        assert write_all(stream_engine, {0: asked}, {0: "second"}).texts[0, 0] == alone[2]

    def test_a_closed_engine_refuses(self, stream_engine: StreamEngine) -> None:
        """Closing twice does no harm, and closing while something is written neither."""
        assert stream_engine.ask("a", question(QUESTIONS[0], max_new_tokens=300), None)
        stream_engine.close()
        with pytest.raises(RequestError, match="closed"):
            stream_engine.ask("b", question(QUESTIONS[0]), None)
        stream_engine.close()
