"""A real process that answers with a tiny model."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.echo_engine import answering

from luthier.core.access import Caller
from luthier.core.errors import BusyError, NotFoundError, OverlongError, RequestError, WorkError
from luthier.core.ports import SilentProgress
from luthier.core.stream import Ended, Failed, Piece, Sampling, Served, Started, TextRequest
from luthier.features.serving import service as serving
from luthier.features.serving.inference_client import Event
from luthier.features.serving.models import Routed
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.testing.tiny import make_tiny_model

ME = Caller()
QUESTION = [{"role": "user", "content": "Which wood is used for the front?"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    home = tmp_path_factory.mktemp("serving") / "home"
    with Context.open(home):
        for model in (tiny_model, make_tiny_model(home.parent / "patient", context_length_tokens=1 << 16)):
            sources.pull(str(model), home, SilentProgress())
    return home


def open_context(home: Path, **settings: Any) -> Context:
    values = {"serving_threads": 1} | settings
    return Context(Settings(home=home, **values), SilentProgress())


@pytest.fixture(scope="module")
def shared(home: Path) -> Iterator[Context]:
    with open_context(home) as opened:
        yield opened


@pytest.fixture(scope="module")
def narrow(home: Path) -> Iterator[Context]:
    """Holds one model and takes three asks."""
    with open_context(home, max_loaded_models=1, serving_queue=3) as opened:
        yield opened


def request(text: str = "The front is made of", **wishes: Any) -> TextRequest:
    return TextRequest(text=text, **({"max_new_tokens": 8, "sampling": Sampling(temperature=0)} | wishes))


class Asking:
    """One ask, heard from the thread of the test."""

    def __init__(self, context: Context, model: object, *requests: TextRequest) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        asked = requests or (request(),)
        num_choices = sum(one.num_choices for one in asked)
        self.answer = serving.Answer([serving.Choice() for _ in range(num_choices)], num_prompts=len(asked))
        self.cancel, answering = serving.ask(context, ME, str(model), asked, self.events.put)
        self.fingerprint = answering.fingerprint

    def until(self, is_it: Callable[[Event], bool]) -> Event:
        while True:
            event = self.events.get(timeout=120)
            self.answer.hear(event)
            if is_it(event):
                return event

    def end(self) -> serving.Answer:
        while not self.answer.has_ended:
            self.until(lambda _: True)
        return self.answer


def endless() -> TextRequest:
    """Asks the model `patient` for what takes minutes: its end tokens are never drawn."""
    without_end = Sampling(temperature=2.0, seed=3, logit_bias=((0, -1000.0), (2, -1000.0)))
    return request("a", max_new_tokens=60_000, sampling=without_end)


def test_an_answer_is_that_of_the_engine(shared: Context, tiny_model: Path) -> None:
    from luthier.core.conversation import Conversation, Message
    from luthier.core.ports import Prompt
    from luthier.ml.inference.transformers_engine import TransformersEngine

    written = serving.answer(shared, ME, "tiny", QUESTION, max_tokens=12)
    talk = Conversation(messages=tuple(Message.model_validate(message) for message in QUESTION))
    engine = TransformersEngine.open(str(tiny_model), dtype="float32")
    assert written == engine.generate([Prompt(conversation=talk, max_new_tokens=12)], SilentProgress())[0].text


def test_the_precision_of_a_base_follows_from_what_the_home_keeps_of_this_machine(shared: Context) -> None:
    """So a server that starts beside other work answers as it did before."""
    serving.answer(shared, ME, "tiny", QUESTION, max_tokens=1)
    kept = [json.loads(file.read_text()) for file in shared.settings.rates_folder.glob("*.json")]
    assert [one["machine"]["num_threads"] for one in kept] == [1]


def test_several_prompts_are_one_answer_with_choices_counted_through(shared: Context) -> None:
    both = Asking(shared, "tiny", request("The front", num_choices=2), request("Maple")).end()
    alone = Asking(shared, "tiny", request("Maple")).end()
    assert both.choices[2].text == alone.choices[0].text
    assert both.choices[0].text == both.choices[1].text
    assert both.num_prompt_tokens > alone.num_prompt_tokens


def test_what_is_wrong_with_a_request_is_the_error_that_the_engine_raised(shared: Context) -> None:
    assert isinstance(Asking(shared, "tiny", request("word " * 600)).end().error, OverlongError)
    with pytest.raises(RequestError, match="empty"):
        raise Asking(shared, "tiny", request("")).end().error or AssertionError
    with pytest.raises(NotFoundError, match="does not exist"):
        serving.answer(shared, ME, "gpt-4o", QUESTION, max_tokens=1)
    with pytest.raises(NotFoundError, match="luthier models pull smollm2-135m-instruct"):
        serving.answer(shared, ME, "smollm2-135m-instruct", QUESTION, max_tokens=1)


def test_after_a_crash_what_was_under_way_fails_and_the_next_ask_is_answered(shared: Context) -> None:
    before = Asking(shared, "tiny").end().choices[0].text
    asking = Asking(shared, "patient", endless())
    asking.until(lambda event: isinstance(event, Piece))
    pid = shared.inference_client.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert isinstance(asking.end().error, WorkError)
    assert Asking(shared, "tiny").end().choices[0].text == before
    assert shared.inference_client.pid not in (None, pid)


def test_a_cancelled_ask_makes_room_for_the_next(narrow: Context) -> None:
    first = Asking(narrow, "patient", endless())
    first.until(lambda event: isinstance(event, Piece))
    second = Asking(narrow, "patient", endless())
    third = Asking(narrow, "patient", endless())
    with pytest.raises(BusyError, match="3 requests are in progress"):
        Asking(narrow, "tiny")
    for one in (third, first, second):
        one.cancel()
    assert Asking(narrow, "tiny").end().error is None
    first.cancel()
    num_heard = first.events.qsize()
    Asking(narrow, "tiny").end()
    assert first.events.qsize() == num_heard


def test_more_models_than_places_are_answered_one_after_the_other(narrow: Context, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    sources.pull(str(other), narrow.home, SilentProgress())
    first = Asking(narrow, "tiny", request(max_new_tokens=60))
    second, third = Asking(narrow, "other"), Asking(narrow, "tiny")
    texts = [asking.end().choices[0].text for asking in (first, second, third)]
    assert first.fingerprint == third.fingerprint != second.fingerprint
    assert texts[0].startswith(texts[2])
    assert texts[1] != texts[2]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_lets_go_when_nobody_asks_and_closing_ends_what_is_under_way(home: Path) -> None:
    context = open_context(home, serving_idle_seconds=0.2)
    asking = Asking(context, "tiny")
    asking.until(lambda event: isinstance(event, Started))
    idle = context.inference_client.pid  # now: once the answer has ended, it may end at any moment
    assert idle is not None
    asking.end()
    wait_until(lambda: not is_alive(idle))
    assert context.inference_client.pid is None
    asking = Asking(context, "patient", endless())
    asking.until(lambda event: isinstance(event, Started))
    pid = context.inference_client.pid
    assert pid is not None
    context.close()
    assert not is_alive(pid)
    assert isinstance(asking.end().error, WorkError)
    with pytest.raises(WorkError, match="shutting down"):
        Asking(context, "tiny")


def test_it_dies_with_its_parent_and_loads_no_torch_there(home: Path) -> None:
    script = f"""
import sys, time
from luthier.core.access import Caller
from luthier.features.serving import service as serving
from luthier.platform.home.context import Context
from pathlib import Path
context = Context.open(Path({str(home)!r}))
serving.answer(context, Caller(), 'tiny', {QUESTION!r}, max_tokens=2)
print(context.inference_client.pid, "torch" in sys.modules, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as lines:
        pid, has_torch = lines.readline().split()
        assert has_torch == "False"
        assert is_alive(int(pid))
        parent.kill()
        parent.wait()
        wait_until(lambda: not is_alive(int(pid)))


def test_an_answer_takes_in_events_in_any_order() -> None:
    heard = serving.Answer([serving.Choice(), serving.Choice()])
    for event in (
        Started(num_prompt_tokens=3),
        Piece(choice=1, text="b", num_new_tokens=1),
        Piece(choice=0, text="a", num_new_tokens=2),
        Ended(choice=1, reason="stop", num_new_tokens=1),
    ):
        heard.hear(event)
        assert not heard.has_ended
    assert (heard.num_prompt_tokens, heard.num_new_tokens) == (3, 3)
    heard.hear(Failed(error=WorkError("came", expected="expected", do="do").as_json()))
    assert heard.has_ended
    assert str(heard.error) == str(WorkError("came", expected="expected", do="do"))


def test_a_prompt_that_is_counted_at_the_end_is_counted_once_a_prompt() -> None:
    heard = serving.Answer([serving.Choice() for _ in range(4)], num_prompts=2)
    for number, tokens in enumerate((3, 3, 5, 5)):
        heard.hear(Ended(choice=number, reason="stop", num_new_tokens=2, num_prompt_tokens=tokens))
    assert (heard.num_prompt_tokens, heard.num_new_tokens) == (8, 8)


def test_the_prompts_of_each_project_are_a_scope_of_their_own(tmp_path: Path) -> None:
    with open_context(tmp_path) as context:
        engine = answering(context)
        routed = Routed("m", "m", Served(path=str(tmp_path), sha256="0" * 64))
        for caller in (ME, Caller(project_id="proj-2")):
            serving.ask(context, caller, routed, [request()], lambda _: None)
    asked = [one for one in engine.asked if isinstance(one, TextRequest)]
    assert [one.cache_scope for one in asked] == ["default", "proj-2"]
