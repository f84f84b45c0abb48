"""Answers take the memory of what is written, not of their limits; those that have no room any more continue later."""

import pytest
from tests.vacuous import nonempty

from luthier.core.stream import Ended, Sampling, Started, TextRequest
from luthier.ml.inference import answer_room
from luthier.ml.inference.answer_room import AnswerRoom
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.stream_contract import GREEDY, write_all

WARM = Sampling(temperature=1.0, top_p=0.9, seed=5, frequency_penalty=0.5)
TEXTS = ("The front", "A luthier builds violins", "a", "Maple is harder.")


@pytest.fixture(scope="module")
def engine(tiny):
    return TransformersEngine.open(str(tiny), dtype="float32")


@pytest.fixture
def small_blocks(monkeypatch):
    """The contexts of tiny models hold few whole blocks."""
    monkeypatch.setattr(answer_room, "BLOCK_TOKENS", 8)


def request(text, num_new, **wishes):
    return TextRequest(text=text, max_new_tokens=num_new, **({"sampling": GREEDY} | wishes))


def alone(engine, asked):
    return write_all(StreamingEngine(engine), {"a": asked}).texts


def current_tokens(row):
    return row.num_tokens - row.max_new_tokens + row.num_new_tokens


def written(streaming):
    """Polls to the end: the events, and which requests were paused."""
    events, were_paused = [], set()
    while streaming.keys:
        events += streaming.poll(0)
        were_paused |= {one.key for one in streaming._paused}
        rows = list(streaming._rows.values())
        assert len(rows) < 2 or streaming._room.holds([current_tokens(row) for row in rows], 1.0)
    return events, were_paused


def until_paused(streaming):
    """Polls until one is paused: the events so far."""
    events = []
    while not streaming._paused:
        assert streaming.keys, "none was paused"
        events += streaming.poll(0)
    return events


def texts_of(events):
    found = {}
    for key, event in events:
        if not isinstance(event, Started | Ended):
            found[key, event.choice] = found.get((key, event.choice), "") + event.text
    return found


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_answers_that_outgrow_memory_are_paused_and_continue_as_if_alone(engine, small_blocks, sampling):
    streaming = StreamingEngine(engine, batch_tokens=100)
    requests = {number: request(text, 70, sampling=sampling) for number, text in enumerate(TEXTS)}
    # By their limits, one of them would fill the memory.
    assert [streaming.ask(number, asked, None) for number, asked in requests.items()] == [True] * 4
    events, were_paused = written(streaming)
    assert were_paused, "four of them do not fit at their end"
    starts = [key for key, event in events if isinstance(event, Started)]
    assert sorted(starts) == [0, 1, 2, 3], "each begins once"
    assert 0 not in were_paused, "the first one is never paused"
    found = texts_of(events)
    for number, asked in nonempty(requests.items()):
        assert found[number, 0] == alone(engine, asked)["a", 0]
    ends = {key: event for key, event in events if isinstance(event, Ended)}
    assert len(ends) == 4
    assert all(event.num_new_tokens <= 70 for event in ends.values())


def test_choices_and_token_ids_of_a_paused_request_are_whole(engine, small_blocks):
    asked = request("The front", 60, sampling=WARM, num_choices=3, returns_token_ids=True)
    streaming = StreamingEngine(engine, batch_tokens=80)
    assert streaming.ask("a", asked, None)
    events, were_paused = written(streaming)
    assert were_paused == {"a"}
    roomy = StreamingEngine(engine)
    assert roomy.ask("a", asked, None)
    expected, none_paused = written(roomy)
    assert not none_paused

    def ends(heard):
        return {event.choice: event for _, event in heard if isinstance(event, Ended)}

    assert len(ends(events)) == 3
    assert ends(events) == ends(expected)
    assert texts_of(events) == texts_of(expected)


def test_what_waits_for_room_is_cancelled_with_its_request(engine, small_blocks):
    streaming = StreamingEngine(engine, batch_tokens=100)
    for number, text in enumerate(TEXTS):
        assert streaming.ask(number, request(text, 70), None)
    events = until_paused(streaming)
    key = streaming._paused[0].key
    assert not streaming.ask("later", request("a", 5), None), "what was paused goes first"
    streaming.cancel(key)
    assert key not in streaming.keys
    later, _ = written(streaming)
    assert key not in {one for one, _ in later}
    assert {one for one, event in [*events, *later] if isinstance(event, Ended)} == {0, 1, 2, 3} - {key}


def test_the_owner_with_the_most_answers_makes_room(engine, small_blocks):
    streaming = StreamingEngine(engine, batch_tokens=100)
    for number in range(3):
        prepared = streaming.prepare(request(TEXTS[number], 70))
        assert streaming.admit(f"many {number}", prepared, None, owner="many")
    streaming.poll(0)
    assert streaming.admit("one", streaming.prepare(request(TEXTS[3], 70)), None, owner="one", may_exceed=True)
    until_paused(streaming)
    assert [one.key for one in streaming._paused] == ["many 2"]


def test_a_request_reserves_a_block_beyond_its_prompt_and_not_its_limit(engine):
    streaming = StreamingEngine(engine, batch_tokens=4096)
    admitted = [streaming.ask(number, request("a", 400), None) for number in range(20)]
    assert admitted == [True] * 16 + [False] * 4, "4,096 tokens are 16 blocks of 256; their limits would be ten answers"


def test_short_limits_and_long_rows_are_counted_as_they_are():
    room = AnswerRoom(max_rows=3, batch_tokens=100)
    assert room.has_place_for([20, 20, 60], 1.0)  # 60 alone, 20 and 20 together
    assert not room.has_place_for([20, 21, 60], 1.0)
    assert room.has_place_for([20, 21, 60], 1.25)
    assert not room.has_place_for([1, 1, 1, 1], 1.25)
    assert room.holds([1, 1, 1, 1], 1.0), "the number of answers is no matter of memory"
