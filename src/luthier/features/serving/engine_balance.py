"""Which of a model's two engines answers a request: the faster one at the load of the moment.

A model with a proved GGUF copy has two engines (`engine_choice.py`): llama.cpp, mostly the faster one for a few
answers at once, and its own, mostly the faster one for many. Both were timed alone and with a crowd (`EngineRates`).
Load is the number of answers that both have under way, the request's own among them; its peak of the last seconds
counts, since answers that began together end together, and the next ones come a moment later. The engine changes only
where the other one is faster by a tenth, since at loads between each change would cost more than it wins; in a burst
after a pause, where a change costs nothing, any difference is enough.

A request stays with the engine that began to write; before that it may move (`open_request`). An engine that is not
in memory is loaded in the background, without unloading anything, while the other one answers. One that has failed is
tried again after a pause, which doubles.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from luthier.core.engine_rates import speeds_at
from luthier.core.errors import RequestError, UnsupportedError
from luthier.core.stream import LoadedModel, Served, TextRequest, features_of

PickReason = Literal["only", "load", "moved", "feature", "pinned", "loading", "memory", "failed"]
"""Why an engine answers: it is the only one, the faster one at this load, or at that of requests that came before this
one had begun, the only one for a feature of the request, named by the request, or in the place of one that is being
loaded, does not fit into memory, or has failed."""

Unavailable = Literal["memory", "failed"]
"""Why an engine cannot answer now."""

PEAK_SECONDS: Final = 5.0
_MARGIN: Final = 1.1
_BURST_SECONDS: Final = 0.2
_FIRST_PAUSE_SECONDS: Final = 5.0
_MAX_PAUSE_SECONDS: Final = 300.0
_MOST_DOUBLINGS: Final = 20
_ROOM_SECONDS: Final = 30.0
_ECHOES: Final = "transformers"
_OPENING_SECONDS: Final = 30.0
"""Then it is asked again: a request that is cancelled may have been all that an engine was to be loaded for."""

_FEATURES: Final = {
    "logprobs": "logprobs or echo",
    "penalties": "frequency_penalty or presence_penalty",
    "thought_before_json": "a schema or a forced call after a thought",
}


@dataclass(frozen=True, slots=True)
class EnginePick:
    """The engine of one request.

    Attributes:
        served: The model as that engine loads it.
        reason: Why this engine.
        pair: Identifies a model's two engines; None where there is one.
        is_fallback: Whether it is the one of the model's own files, of two.
        other: The model for the other engine, where that may answer the same request; else None.
        loads: The model for the engine that is to be loaded in the background; None where none is.
        num_bytes: Memory of the engine that is not taken, as far as it was measured; else 0.
        variant: The adapter, whichever engine applies it; empty for the base.
        gathers: Whether it is the first one after a pause and its engine depends on how many come with it, so that it
            is worth a few milliseconds to find out. An engine that has begun for it would compete with the other one.
    """

    served: Served
    reason: PickReason
    pair: tuple[str, str] | None = None
    is_fallback: bool = False
    other: Served | None = None
    loads: Served | None = None
    num_bytes: int = 0
    variant: str = ""
    gathers: bool = False


@dataclass(slots=True)
class _Side:
    """One of two engines.

    Attributes:
        served: A model that it has answered for, to recognise it by.
        num_answers: Under way.
        is_loaded: Whether it was in memory when the last request came.
        opening_until: Until when it is taken to be loading; 0 where it was not asked to, or has said how that went.
        num_failures: Since its last answer.
        retry_at: When it may be tried again after a failure.
        room_at: When it may be tried again after there was no room for it.
    """

    served: Served
    num_answers: int = 0
    is_loaded: bool = False
    opening_until: float = 0.0
    num_failures: int = 0
    retry_at: float = 0.0
    room_at: float = 0.0

    def fail(self, now: float) -> None:
        """Count a failure, and pause for twice as long as after the one before."""
        self.num_failures += 1
        # The exponent is bounded: a factor of 2 ** 1024 is no float any more, and a server runs for weeks.
        doublings = min(self.num_failures - 1, _MOST_DOUBLINGS)
        self.retry_at = now + min(_MAX_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**doublings)


@dataclass(slots=True)
class _Pair:
    """Two engines of one model and of the adapters over it.

    Attributes:
        sides: By whether it is the fallback.
        variants: Requests under way, by adapter.
        peaks: Loads of the last seconds with their times and the models that were asked, the largest first: each is
            larger than all after it.
        takes_fallback: What the load said last.
        burst_until: Until when requests are taken to have come together after a pause.
    """

    sides: dict[bool, _Side]
    variants: Counter[str] = field(default_factory=Counter)
    peaks: deque[tuple[float, int, int]] = field(default_factory=deque)
    takes_fallback: bool = False
    burst_until: float = 0.0

    @property
    def num_answers(self) -> int:
        return sum(side.num_answers for side in self.sides.values())

    def note(self, now: float, num_answers: int) -> None:
        """A load that there is now."""
        # A monotonic queue: a load below a later one can never be the peak again, so each is added and removed once.
        while self.peaks and self.peaks[-1][1] <= num_answers:
            self.peaks.pop()
        self.peaks.append((now, num_answers, len(self.variants)))

    def peak(self, now: float) -> tuple[int, int]:
        """The largest load of the last seconds: answers at once, and the models that they came from."""
        # The first is the largest; behind it come smaller ones that are younger.
        while self.peaks and self.peaks[0][0] < now - PEAK_SECONDS:
            self.peaks.popleft()
        earlier = self.peaks[0][1:] if self.peaks else (0, 0)
        return max(earlier, (self.num_answers, len(self.variants)))


class EngineBalance:
    """Picks engines and counts what they have under way. Thread-safe. clock: seconds, monotonic."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self._num_requests: Counter[tuple[str, PickReason]] = Counter()

    @property
    def num_requests(self) -> dict[tuple[str, PickReason], int]:
        """Requests by engine and reason, since this process began."""
        with self._lock:
            return dict(self._num_requests)

    def pick(
        self,
        served: Served,
        requests: Sequence[TextRequest],
        loaded: Sequence[LoadedModel],
        engine: str | None = None,
    ) -> EnginePick:
        """The engine for the prompts of one request, which all go to the same one.

        Args:
            served: The model, with its fallback and rates.
            requests: The prompts.
            loaded: What is in memory.
            engine: The name of the engine that the request asks for; None or `auto` for any.

        Raises:
            RequestError: The engine that is asked for does not run this model, or not such a request.
            UnsupportedError: The prompts are to be returned, and no engine of this model does that.
        """
        asked = None if engine == "auto" else engine
        # Outside of the lock: it reads nothing that changes.
        must = _side_for(served, requests, asked)
        with self._lock:
            if served.fallback is None:
                found = EnginePick(served, "only" if asked is None else "pinned")
            else:
                found = self._of_two(served, served.fallback, requests, loaded, must, is_asked=asked is not None)
            _refuse_echo(found.served, requests)
            self._num_requests[found.served.engine, found.reason] += 1
            return found

    def _of_two(
        self,
        served: Served,
        fallback: Served,
        requests: Sequence[TextRequest],
        loaded: Sequence[LoadedModel],
        must: bool | None,
        *,
        is_asked: bool,
    ) -> EnginePick:
        key = _pair_of(served)
        models = {False: served, True: fallback}
        pair = self._pairs.setdefault(key, _Pair({side: _Side(model) for side, model in models.items()}))
        for is_fallback, side in pair.sides.items():
            side.served = models[is_fallback]
            side.is_loaded = _is_loaded(side.served, loaded)
            side.opening_until = 0.0 if side.is_loaded else side.opening_until
        variant = fallback.adapter_path or ""
        is_first = not pair.peak(self._clock())[0]
        choice = _Choice(must, "pinned" if is_asked else "feature") if must is not None else None
        if choice is None:
            if is_first:
                pair.burst_until = self._clock() + _BURST_SECONDS
            best = self._best(pair, served, sum(request.num_choices for request in requests), variant)
            choice = _available(pair, best, self._clock(), is_by_load=bool(served.rates))
        taken, other = pair.sides[choice.is_fallback], pair.sides[not choice.is_fallback]
        # Several prompts are one answer, with one fingerprint: none of them moves alone.
        can_move = must is None and len(requests) == 1
        opening_until = self._clock() + _OPENING_SECONDS
        taken.opening_until = 0.0 if taken.is_loaded else opening_until
        if choice.loads_other:
            other.opening_until = opening_until
        return EnginePick(
            taken.served,
            choice.reason,
            key,
            choice.is_fallback,
            other=other.served if can_move else None,
            loads=other.served if choice.loads_other else None,
            num_bytes=_measured_bytes(served, is_fallback=not choice.is_fallback),
            variant=variant,
            gathers=is_first and can_move and any(rates.winner is None for rates in served.rates),
        )

    def _best(self, pair: _Pair, served: Served, num_new: int, variant: str) -> bool:
        """Whether the fallback is the faster one with these answers beside those under way."""
        # The peak of the last seconds: between two waves of requests the load is 0, and must not change the engine.
        now = (pair.num_answers + num_new, len({*pair.variants, variant}))
        num_answers, num_variants = max(now, pair.peak(self._clock()))
        speeds = speeds_at(served.rates, num_answers, num_variants)
        if speeds is None:
            return False
        copy, own = speeds
        # With a margin (hysteresis): near equal speeds the choice would flip all the time. In a burst after a pause
        # next to nothing has begun, and a change costs nothing.
        margin = 1.0 if self._clock() <= pair.burst_until else _MARGIN
        if pair.takes_fallback:
            pair.takes_fallback = copy <= margin * own
        else:
            pair.takes_fallback = own > margin * copy
        return pair.takes_fallback

    def enter(self, pick: EnginePick, num_answers: int) -> None:
        """Count the answers of a prompt that begins."""
        with self._lock:
            if pick.pair is not None and (pair := self._pairs.get(pick.pair)) is not None:
                pair.sides[pick.is_fallback].num_answers += num_answers
                pair.variants[pick.variant] += 1
                pair.note(self._clock(), pair.num_answers)

    def leave(self, pick: EnginePick, num_answers: int) -> None:
        """Count them no longer: they have ended, however that was."""
        with self._lock:
            if pick.pair is not None and (pair := self._pairs.get(pick.pair)) is not None:
                # Until now there were so many: the peak of a load that began long ago.
                pair.note(self._clock(), pair.num_answers)
                pair.sides[pick.is_fallback].num_answers -= num_answers
                pair.variants[pick.variant] -= 1
                if not pair.variants[pick.variant]:
                    del pair.variants[pick.variant]

    def note_answer(self, pick: EnginePick) -> None:
        """An engine has completed an answer: earlier failures count no longer."""
        with self._lock:
            if pick.pair is not None and (pair := self._pairs.get(pick.pair)) is not None:
                side = pair.sides[pick.is_fallback]
                side.num_failures, side.retry_at = 0, 0.0

    def note_unavailable(self, engine: Served, why: Unavailable) -> None:
        """An engine could not be loaded beside others (`memory`), or has failed."""
        with self._lock:
            now = self._clock()
            for pair in self._pairs.values():
                for side in pair.sides.values():
                    # All pairs with this engine: several adapters over one base share its process and its memory.
                    if LoadedModel(served=engine).answers(side.served):
                        side.opening_until = 0.0
                        if why == "failed":
                            side.fail(now)
                        else:
                            side.room_at = now + _ROOM_SECONDS

    def note_end(self, *, is_crash: bool) -> None:
        """The process with all engines has ended.

        Of a crash, the engine is taken for the cause that had answers under way; where both had, the copy's: what runs
        outside of Python can end a process, and without it less memory is needed.
        """
        with self._lock:
            now = self._clock()
            for pair in self._pairs.values():
                sides = (pair.sides[False], pair.sides[True])
                # The copy comes first in `sides`, so it is the one that is blamed where both were at work.
                busy = [side for side in sides if side.num_answers or side.opening_until > now]
                if is_crash and busy:
                    busy[0].fail(now)
                for side in pair.sides.values():
                    side.opening_until = 0.0

    def note_moved(self, pick: EnginePick) -> None:
        """Count a request that has moved."""
        with self._lock:
            self._num_requests[pick.served.engine, pick.reason] += 1

    def follow(self, waiting: EnginePick, found: EnginePick) -> EnginePick | None:
        """Where a request that has not begun goes, as a later one goes to another engine; None where it stays."""
        if waiting.other is None or waiting.is_fallback == found.is_fallback:
            return None
        return EnginePick(waiting.other, "moved", waiting.pair, found.is_fallback, variant=waiting.variant)

    def after_failure(self, pick: EnginePick) -> EnginePick | None:
        """Where a request goes whose engine has failed before it began; None where no other may answer it.

        To the other engine, or to its own once more where the other one has failed as well.
        """
        with self._lock:
            if pick.other is None or pick.pair is None or (pair := self._pairs.get(pick.pair)) is None:
                return None
            pair.sides[pick.is_fallback].opening_until = 0.0
            moves = pair.sides[not pick.is_fallback].retry_at <= self._clock()
            is_fallback = pick.is_fallback != moves
            served = pick.other if moves else pick.served
            return EnginePick(served, "failed", pick.pair, is_fallback, variant=pick.variant)


@dataclass(frozen=True, slots=True)
class _Choice:
    """loads_other: whether the other engine is to be loaded in the background."""

    is_fallback: bool
    reason: PickReason
    loads_other: bool = False


def _available(pair: _Pair, best: bool, now: float, *, is_by_load: bool) -> _Choice:
    """The best engine where it can answer now; else the other one, with the reason."""
    first, second = pair.sides[best], pair.sides[not best]
    reason: PickReason = "load" if is_by_load else "only"
    if first.retry_at > now and second.retry_at <= now:
        return _Choice(not best, "failed")
    # A model whose copy is faster at any load does not wait for its own files, which only some requests need.
    if first.is_loaded or not is_by_load:
        return _Choice(best, reason)
    is_opening = first.opening_until > now
    # In a cold start all go to the engine that the first one waits for: more would have to find room for both.
    if not (second.is_loaded or (second.opening_until > now and not first.num_answers)):
        return _Choice(best, reason)
    if first.room_at > now:
        return _Choice(not best, "memory")
    return _Choice(not best, "loading", loads_other=not is_opening)


def _side_for(served: Served, requests: Sequence[TextRequest], asked: str | None) -> bool | None:
    """Whether the fallback must answer (True), or the other engine (False); None where either may."""
    models = [served] if served.fallback is None else [served, served.fallback]
    names = [one.engine for one in models]
    if asked is not None and asked not in names:
        raise RequestError(
            f"the engine {asked!r} for a model that runs with {' or '.join(names)}",
            expected=f"auto, {', '.join(names)}",
            do="leave the header x-luthier-engine out, or name one of these",
        )
    is_handed = served.for_requests(requests) is not served
    if asked is None or served.fallback is None:
        return True if is_handed else None
    if is_handed and asked == served.engine:
        needed = {one for request in requests for one in features_of(request)} & set(served.hands_over)
        raise RequestError(
            f"the engine {asked!r} for a request with {', '.join(_FEATURES[one] for one in sorted(needed))}",
            expected=f"auto or {served.fallback.engine}, which answers such requests",
            do="leave the header x-luthier-engine out, or name that engine",
        )
    return asked != served.engine


def _refuse_echo(served: Served, requests: Sequence[TextRequest]) -> None:
    if served.engine != _ECHOES and any(request.echo is not None for request in requests):
        raise UnsupportedError(
            f"echo, of a model that runs with the engine {served.engine}",
            expected=f"a model that runs with {_ECHOES}, which returns prompts with the likelihoods of their tokens",
            do="leave echo out, or ask a model of this server in the format of transformers",
            param="echo",
        )


def _pair_of(served: Served) -> tuple[str, str]:
    """The copy of the base, which its adapters share."""
    return served.path, served.sha256


def _is_loaded(served: Served, loaded: Sequence[LoadedModel]) -> bool:
    return any(one.answers(served) for one in loaded)


def _measured_bytes(served: Served, *, is_fallback: bool) -> int:
    sides = [one.fallback if is_fallback else one.engine for one in served.rates]
    return max((side.num_bytes for side in sides), default=0)
