"""Long answers do not keep short ones from being written beside them: where memory is short, they are batches apart."""

import pytest
import torch
from tests.vacuous import nonempty

from luthier.core.stream import TextRequest
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.stream_contract import GREEDY, Heard, write_all


@pytest.fixture(scope="module")
def engine(tiny):
    return TransformersEngine.open(str(tiny), dtype="float32")


def request(text, num_new):
    return TextRequest(text=text, max_new_tokens=num_new, sampling=GREEDY)


LONG = request("The front of a violin is made of spruce. " * 4, 60)
SHORT = {number: request(text, 16) for number, text in enumerate(("Maple", "a", "Which wood?"))}


def length_of(engine, asked):
    return len(engine.template.encode(asked.text)[0]) + asked.max_new_tokens


def alone(engine, asked):
    return write_all(StreamingEngine(engine), {"a": asked}).texts["a", 0]


def groups_of(streaming):
    return sorted(sorted(str(streaming._rows[row].key) for row in group.batch.rows) for group in streaming._groups)


def test_short_requests_do_not_wait_for_the_end_of_a_long_one(engine):
    """Padded to the long one, four rows would take four times its memory."""
    lengths = [length_of(engine, asked) for asked in (LONG, *SHORT.values())]
    most = sum(lengths) + 3 * max(lengths[1:])
    assert most < 4 * lengths[0]
    streaming, heard = StreamingEngine(engine, batch_tokens=most), Heard()
    assert streaming.ask("long", LONG, None)
    heard.hear(streaming, 0)
    for number, asked in SHORT.items():
        assert streaming.ask(number, asked, None)
    ends = []
    while streaming.keys:
        before = set(heard.ends)
        heard.hear(streaming, 0)
        ends += [key for key, _ in set(heard.ends) - before]
        widths = [group.batch.mask.shape for group in streaming._groups]
        assert sum(rows * width for rows, width in widths) <= most + 64 * 4, "with the room of a layout"
    assert ends[-1] == "long" or heard.ends["long", 0].reason == "stop"
    for key, asked in {"long": LONG, **SHORT}.items():
        assert heard.texts[key, 0] == alone(engine, asked)


def test_rows_that_were_together_part_when_more_come_and_meet_when_there_is_room_again(engine):
    short = request("Maple", 40)
    long_length, short_length = length_of(engine, LONG), length_of(engine, short)
    # Two rows fit together, three only where the long one is apart.
    most = max(2 * long_length, long_length + 3 * short_length)
    assert most < 3 * long_length
    streaming, heard = StreamingEngine(engine, batch_tokens=most), Heard()
    assert streaming.ask("long", LONG, None)
    assert streaming.ask("a", short, None)
    heard.hear(streaming, 0)
    assert groups_of(streaming) == [["a", "long"]]
    assert streaming.ask("b", short, None)
    heard.hear(streaming, 0)
    assert groups_of(streaming) == [["a", "b"], ["long"]]
    width = next(group.batch.mask.shape[1] for group in streaming._groups if len(group.batch.rows) == 2)
    assert width < length_of(engine, LONG) - LONG.max_new_tokens, "the columns of the long row have gone"
    streaming.cancel("b")
    heard.hear(streaming, 0)
    assert groups_of(streaming) == [["a", "long"]]
    while streaming.keys:
        heard.hear(streaming, 0)
    assert heard.texts["long", 0] == alone(engine, LONG)
    assert heard.texts["a", 0] == alone(engine, short)


def test_no_row_is_padded_beyond_memory_whatever_comes(engine):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        sizes = torch.randint(1, 50, (12, 2)).tolist()
    requests = {number: request("violin " * words, new) for number, (words, new) in enumerate(sizes)}
    streaming = StreamingEngine(engine, batch_tokens=400)
    heard = write_all(streaming, requests)
    assert len(heard.ends) == 12
    for number, asked in nonempty(requests.items()):
        assert heard.texts[number, 0] == alone(engine, asked)
