from __future__ import annotations

from pathlib import Path

import pytest
from tests.clock import Clock

from luthier.core.errors import WorkError
from luthier.core.stream import Failed, LoadedModel, Served, TextRequest
from luthier.features.serving import inference_client
from luthier.features.serving.crash_pauses import CrashPauses
from luthier.features.serving.inference_client import Event, InferenceClient
from luthier.platform.home.settings import Settings

BAD = Served(path="/bad", sha256="bad")
GOOD = Served(path="/good", sha256="good")
REQUEST = TextRequest(text="Why?", max_new_tokens=4)


def test_the_first_end_is_no_reason_to_wait_and_each_further_one_doubles_the_pause() -> None:
    clock = Clock()
    pauses = CrashPauses(clock=clock)
    pauses.check(BAD)
    pauses.note_end([BAD, BAD])
    pauses.check(BAD)
    for num, seconds in enumerate((5, 10, 20, 40, 80, 160, 300, 300), 2):
        pauses.note_end([BAD])
        with pytest.raises(WorkError, match=rf"(?s)ended {num} times in a row while it loaded /bad.*in {seconds} s"):
            pauses.check(BAD)
        pauses.check(GOOD)
        clock.now += seconds
        pauses.check(BAD)


def test_a_model_that_was_loaded_begins_anew() -> None:
    pauses = CrashPauses(clock=Clock())
    for _ in range(3):
        pauses.note_end([BAD, GOOD])
    pauses.note_loaded([LoadedModel(served=GOOD)])
    pauses.check(GOOD)
    pauses.note_end([GOOD])
    pauses.check(GOOD)
    with pytest.raises(WorkError):
        pauses.check(BAD)


def test_many_models_are_not_persistent_for_ever() -> None:
    pauses = CrashPauses(clock=Clock())
    for num in range(1000):
        pauses.note_end([Served(path=f"/{num}", sha256=str(num))])
    assert len(pauses._known) == 256


def test_a_model_that_ends_the_process_while_it_loads_does_not_end_the_answers_of_others_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_client._Child, "_live", lambda _: None)
    client = InferenceClient(Settings(home=tmp_path))
    heard: list[Event] = []

    def crash() -> None:
        child = client._child
        assert child is not None
        child.hear({"loaded": [LoadedModel(served=GOOD).model_dump(mode="json")]})
        child.end()()

    for _ in range(2):
        client.ask(GOOD, REQUEST, heard.append)
        client.ask(BAD, REQUEST, heard.append)
        crash()
    assert [type(one) for one in heard] == [Failed] * 4
    client.ask(GOOD, REQUEST, heard.append)
    with pytest.raises(WorkError, match="2 times in a row while it loaded /bad"):
        client.ask(BAD, REQUEST, heard.append)
    assert client.num_under_way == 1
