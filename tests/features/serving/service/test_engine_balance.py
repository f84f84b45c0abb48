"""Which of a model's two engines answers: by load, with what is in memory, and after failures."""

from __future__ import annotations

from typing import Any

import pytest
from tests.clock import Clock
from tests.vacuous import nonempty

from luthier.core.engine_rates import EngineRates, EngineSpeed
from luthier.core.errors import RequestError
from luthier.core.stream import LoadedModel, Served, TextRequest
from luthier.features.serving.engine_balance import PEAK_SECONDS, EngineBalance, EnginePick

OWN = Served(path="/model", sha256="a" * 64)
# 15 + 4 (n - 1) against 30 - 3/7 (n - 1): equal at 4.4 answers, a tenth apart at 3.7 and 5.2.
RATES = EngineRates(
    engine=EngineSpeed(alone=30, crowd=27, num_bytes=700),
    fallback=EngineSpeed(alone=15, crowd=43, num_bytes=300),
)
COPY = Served(
    engine="llama_cpp", path="/copy/model.gguf", sha256="b", fallback=OWN, hands_over=("logprobs",), rates=(RATES,)
)
BOTH = (LoadedModel(served=COPY), LoadedModel(served=OWN))
ALONE, LIKELIHOODS = TextRequest(text="a"), TextRequest(text="a", num_top=0)


class Desk:
    """A balance with requests under way."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.balance = EngineBalance(clock=self.clock)
        self.loaded: tuple[LoadedModel, ...] = BOTH
        self.under_way: list[EnginePick] = []

    def pick(self, served: Served = COPY, request: TextRequest = ALONE, engine: str | None = None) -> EnginePick:
        return self.balance.pick(served, [request], self.loaded, engine)

    def begin(self, served: Served = COPY, **asked: Any) -> EnginePick:
        made = self.pick(served, **asked)
        self.balance.enter(made, 1)
        self.under_way.append(made)
        return made

    def end(self, num: int) -> None:
        for _ in range(num):
            made = self.under_way.pop(0)
            self.balance.note_answer(made)
            self.balance.leave(made, 1)

    def engines(self, num: int, served: Served = COPY) -> list[str]:
        return [self.begin(served).served.engine for _ in range(num)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_few_answers_come_from_the_copy_and_many_from_the_own_engine(desk: Desk) -> None:
    first = desk.engines(1)
    desk.clock.now += 1.0
    # With a tenth as margin the sixth answer is the first one that is worth the change.
    assert first + desk.engines(7) == ["llama_cpp"] * 5 + ["transformers"] * 3
    assert {one.reason for one in nonempty(desk.under_way)} == {"load"}
    assert desk.balance.num_requests == {("llama_cpp", "load"): 5, ("transformers", "load"): 3}


def test_in_a_burst_after_a_pause_the_faster_engine_needs_no_margin(desk: Desk) -> None:
    assert desk.engines(8) == ["llama_cpp"] * 4 + ["transformers"] * 4
    desk.end(8)
    desk.clock.now += PEAK_SECONDS + 1
    assert desk.engines(8) == ["llama_cpp"] * 4 + ["transformers"] * 4


def test_the_first_request_after_a_pause_waits_for_those_that_come_with_it(desk: Desk) -> None:
    assert desk.begin().gathers
    assert not desk.begin().gathers
    desk.end(2)
    assert not desk.pick().gathers, "a load that was there a moment ago says enough"
    desk.clock.now += PEAK_SECONDS + 1
    assert desk.pick().gathers


def test_nothing_waits_where_more_requests_would_not_change_the_engine(desk: Desk) -> None:
    faster = EngineRates(engine=EngineSpeed(alone=30, crowd=60), fallback=RATES.fallback)
    assert not desk.pick(COPY.model_copy(update={"rates": (faster,)})).gathers
    assert not desk.pick(OWN).gathers
    assert not desk.pick(request=LIKELIHOODS).gathers
    assert not desk.pick(engine="llama_cpp").gathers


def test_a_load_between_changes_nothing(desk: Desk) -> None:
    desk.engines(8)
    desk.end(4)
    desk.clock.now += 2 * PEAK_SECONDS
    # Five answers: within the margin, in which six and five before came from different engines.
    assert desk.pick().served.engine == "transformers"
    desk.end(2)
    desk.clock.now += 2 * PEAK_SECONDS
    assert desk.pick().served.engine == "llama_cpp"


def test_answers_that_end_together_are_a_load_for_a_while(desk: Desk) -> None:
    """Clients that ask again at once must not begin each round with the engine for a single answer."""
    desk.engines(8)
    desk.clock.now += 60  # they took long
    desk.end(8)
    assert desk.pick().served.engine == "transformers"
    desk.clock.now += PEAK_SECONDS + 1
    assert desk.pick().served.engine == "llama_cpp"


def test_choices_of_a_request_are_answers_of_the_load(desk: Desk) -> None:
    assert desk.pick(request=TextRequest(text="a", num_choices=8)).served.engine == "transformers"


def test_all_prompts_of_a_request_count_and_go_to_one_engine(desk: Desk) -> None:
    assert desk.balance.pick(COPY, [ALONE] * 8, BOTH).served.engine == "transformers"


def test_adapters_over_one_base_are_one_load_by_the_rates_of_their_number(desk: Desk) -> None:
    slow_in_turn = RATES.model_copy(update={"num_variants": 2, "engine": EngineSpeed(alone=30, crowd=16)})
    copies = [
        COPY.model_copy(
            update={
                "adapter_path": f"/copy/{name}",
                "fallback": OWN.model_copy(update={"adapter_path": f"/runs/{name}"}),
                "rates": (RATES, slow_in_turn),
            }
        )
        for name in "ab"
    ]
    assert desk.engines(4, copies[0]) == ["llama_cpp"] * 4
    # 30 - 2 (n - 1) is passed by a tenth from four answers on: with another adapter beside them the change pays.
    assert desk.begin(copies[1]).served.engine == "transformers"
    assert desk.under_way[-1].served.adapter_path == "/runs/b"


def test_the_second_wave_of_answers_by_several_adapters_goes_by_the_adapters_of_the_first(desk: Desk) -> None:
    # In turn, llama.cpp answers eight adapters as fast as one; four at once were timed with those eight.
    in_turn = EngineRates(
        num_variants=8, engine=EngineSpeed(alone=30, crowd=30), fallback=EngineSpeed(alone=20, crowd=76)
    )
    alike = EngineRates(engine=EngineSpeed(alone=30, crowd=90), fallback=EngineSpeed(alone=20, crowd=76))
    copies = [
        COPY.model_copy(
            update={
                "adapter_path": f"/copy/{number}",
                "fallback": OWN.model_copy(update={"adapter_path": f"/runs/{number}"}),
                "rates": (alike, in_turn),
            }
        )
        for number in range(4)
    ]
    assert desk.engines(4, copies[0]) == ["llama_cpp"] * 4, "answers of one adapter are computed together"
    desk.end(4)
    desk.clock.now += PEAK_SECONDS + 1
    assert [desk.begin(one).served.engine for one in copies] == [
        "llama_cpp",
        "llama_cpp",
        "transformers",
        "transformers",
    ]
    desk.end(4)
    assert [desk.begin(one).served.engine for one in copies] == ["transformers"] * 4


@pytest.mark.parametrize(("engine", "request_"), [(None, LIKELIHOODS), ("transformers", ALONE)])
def test_a_feature_and_a_pin_decide_whatever_the_load_is(desk: Desk, engine: str | None, request_: TextRequest) -> None:
    made = desk.pick(request=request_, engine=engine)
    assert (made.served, made.is_fallback, made.other) == (OWN, True, None)
    assert made.reason == ("feature" if engine is None else "pinned")


def test_a_pinned_copy_answers_a_crowd(desk: Desk) -> None:
    desk.engines(8)
    assert desk.pick(engine="llama_cpp").served == COPY
    assert desk.pick(engine="auto").served == OWN


def test_an_engine_that_cannot_answer_is_refused_by_name(desk: Desk) -> None:
    with pytest.raises(RequestError, match="'vllm' for a model that runs with llama_cpp or transformers"):
        desk.pick(engine="vllm")
    with pytest.raises(RequestError, match="'llama_cpp' for a request with logprobs"):
        desk.pick(request=LIKELIHOODS, engine="llama_cpp")
    with pytest.raises(RequestError, match="'llama_cpp' for a model that runs with transformers"):
        desk.pick(OWN, engine="llama_cpp")
    assert desk.pick(OWN, engine="transformers").reason == "pinned"
    assert desk.pick(OWN).reason == "only"


def test_the_faster_one_is_loaded_in_the_background_once(desk: Desk) -> None:
    desk.loaded = BOTH[:1]
    made = [desk.begin() for _ in range(8)]
    assert [one.served.engine for one in made] == ["llama_cpp"] * 8
    assert [one.reason for one in made] == ["load"] * 4 + ["loading"] * 4
    assert [one.loads for one in made] == [None] * 4 + [OWN] + [None] * 3
    assert made[4].num_bytes == 300
    desk.loaded = BOTH
    assert desk.pick().served == OWN


def test_loading_that_was_never_heard_of_again_is_asked_for_again(desk: Desk) -> None:
    desk.loaded = BOTH[:1]
    desk.engines(6)
    assert desk.pick().loads is None
    desk.clock.now += 31
    assert desk.pick().loads == OWN


def test_a_cold_burst_goes_to_the_engine_that_loads_already(desk: Desk) -> None:
    desk.loaded = ()
    made = [desk.begin() for _ in range(8)]
    assert {one.served.engine for one in nonempty(made)} == {"llama_cpp"}
    assert [one.loads for one in made if one.loads] == [OWN]


def test_no_room_for_both_leaves_the_one_that_is_there(desk: Desk) -> None:
    desk.loaded = BOTH[:1]
    desk.engines(6)
    desk.balance.note_unavailable(OWN.model_copy(update={"precision": "float32"}), "memory")
    made = desk.pick()
    assert (made.served, made.reason, made.loads) == (COPY, "memory", None)
    desk.clock.now += 31  # another model may have gone
    assert desk.pick().loads == OWN


def test_an_engine_that_fails_is_tried_again_after_a_pause_that_doubles(desk: Desk) -> None:
    desk.pick()
    for pause in (5, 10, 20):
        desk.loaded = BOTH[1:]
        desk.balance.note_unavailable(COPY, "failed")
        made = desk.pick()
        assert (made.served, made.reason, made.loads) == (OWN, "failed", None)
        desk.clock.now += pause - 0.5
        assert desk.pick().reason == "failed"
        desk.clock.now += 1
        assert desk.pick().loads == COPY
    desk.loaded = BOTH
    desk.begin()
    desk.end(1)  # an answer: earlier failures count no longer
    desk.loaded = BOTH[1:]
    desk.balance.note_unavailable(COPY, "failed")
    desk.clock.now += 5.5
    assert desk.pick().loads == COPY


def test_an_engine_that_has_failed_for_days_is_still_tried_every_five_minutes(desk: Desk) -> None:
    desk.begin()
    for _ in range(1200):
        desk.balance.note_unavailable(COPY, "failed")
    desk.clock.now += 299.0
    assert desk.pick().reason == "failed"
    desk.clock.now += 2.0
    assert desk.pick().reason != "failed"


def test_two_engines_that_have_failed_are_both_tried(desk: Desk) -> None:
    desk.loaded = ()
    desk.pick()
    for model in (COPY, OWN):
        desk.balance.note_unavailable(model, "failed")
    assert desk.pick().served == COPY


def test_a_request_that_has_not_begun_goes_to_the_other_engine_once(desk: Desk) -> None:
    made = desk.begin()
    desk.balance.note_unavailable(COPY, "failed")
    moved = desk.balance.after_failure(made)
    assert moved is not None
    assert (moved.served, moved.is_fallback, moved.reason, moved.other) == (OWN, True, "failed", None)
    assert desk.balance.after_failure(moved) is None


def test_a_crash_is_put_down_to_the_engine_that_was_busy(desk: Desk) -> None:
    made = [desk.begin() for _ in range(6)]
    desk.balance.note_end(is_crash=True)
    desk.loaded = ()
    # Both were busy: the copy's is taken for the cause, so that what waited for the other one waits for it again.
    moved = [desk.balance.after_failure(one) for one in (made[0], made[5])]
    assert [one.served for one in moved if one] == [OWN, OWN]
    assert desk.pick().served == OWN


def test_a_process_that_ends_in_peace_has_not_failed(desk: Desk) -> None:
    desk.begin()
    desk.end(1)
    desk.balance.note_end(is_crash=False)
    desk.loaded = ()
    assert desk.pick().served == COPY


def test_a_copy_that_is_faster_at_any_load_answers_all_but_waits_for_nothing(desk: Desk) -> None:
    copy = COPY.model_copy(update={"rates": ()})
    desk.loaded = BOTH[1:]
    made = [desk.begin(copy) for _ in range(12)]
    assert {one.served.engine for one in nonempty(made)} == {"llama_cpp"}
    assert {one.reason for one in made} == {"only"}
    assert {one.loads for one in made} == {None}
    desk.balance.note_unavailable(copy, "failed")
    assert desk.pick(copy).served == OWN
