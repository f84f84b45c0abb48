"""What is asked over the wire is in the log, by the id that the client got, as the project's policy says."""

from __future__ import annotations

import asyncio
import threading

import openai
import pytest
from fastapi import Request

from luthier.core.access import Caller
from luthier.core.records.traffic import Exchange, TrafficPolicy
from luthier.core.stream import Served
from luthier.features.serving.api import pooling
from luthier.features.serving.models import Routed
from luthier.features.traffic import log as traffic_log
from luthier.features.traffic import service as traffic
from luthier.features.traffic.policy import set_traffic_policy, user_digest, user_key
from luthier.platform.home.context import Context
from luthier.testing.servers import wait_for

QUESTION = [{"role": "user", "content": "Write to anna.lee@firm.de about case 7."}]


@pytest.fixture
def home(served: tuple[Context, str], monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr(traffic_log, "_KNOWN_SECONDS", 0.0)
    set_traffic_policy(served[0], Caller(), TrafficPolicy())
    return served[0]


def kept(home: Context, exchange_id: str) -> Exchange:
    home.traffic_recorder.log.flush()
    return traffic.exchange(home, "default", exchange_id)


def newest(home: Context, model: str) -> Exchange:
    home.traffic_recorder.log.flush()
    found = traffic.exchanges(home, "default", model=model)
    return traffic.exchange(home, "default", found["exchange_id"][-1])


def model_of(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_an_answer_is_kept_without_its_words_unless_somebody_wants_them(home: Context, client: openai.OpenAI) -> None:
    model = model_of(client)
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=4, user="anna", temperature=0)
    one = kept(home, answer.id)
    assert (one.model, one.target, one.status, one.error_code) == (model, model, 200, "")
    assert one.finish_reason == answer.choices[0].finish_reason
    assert answer.usage is not None
    assert (one.num_prompt_tokens, one.num_new_tokens) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert one.first_token_seconds is not None
    assert 0 < one.first_token_seconds <= one.seconds < 120
    assert not one.has_text
    assert one.user_digest == user_digest(user_key(home, "default"), "anna")


def test_words_are_masked_before_they_are_written(home: Context, client: openai.OpenAI) -> None:
    set_traffic_policy(home, Caller(), TrafficPolicy(keep="full"))
    answer = client.chat.completions.create(model=model_of(client), messages=QUESTION, max_tokens=4, temperature=0)
    one = kept(home, answer.id)
    assert one.messages == ({"role": "user", "content": "Write to person1@example.com about case 7."},)
    assert one.num_masked == 1
    assert one.answer == answer.choices[0].message.content
    files = home.settings.traffic_folder.rglob("*.*")
    assert not any(b"anna.lee" in path.read_bytes() for path in files if path.is_file())


def test_a_stream_and_a_completion_are_kept_too(home: Context, client: openai.OpenAI) -> None:
    set_traffic_policy(home, Caller(), TrafficPolicy(keep="full", mask_personal_data=False))
    model = model_of(client)
    stream = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=4, temperature=0, stream=True)
    chunks = list(stream)
    one = kept(home, chunks[0].id)
    assert one.answer == "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert one.messages is not None
    assert "anna.lee@firm.de" in one.messages[0]["content"]
    made = client.completions.create(model=model, prompt=["One", "Two"], max_tokens=2, temperature=0)
    one = kept(home, made.id)
    assert one.messages == ({"role": "user", "content": "One"},)
    assert one.answer == made.choices[0].text
    assert made.usage is not None
    assert one.num_prompt_tokens == made.usage.prompt_tokens
    by_ids = client.completions.create(model=model, prompt=[5, 6, 7], max_tokens=2)
    assert not kept(home, by_ids.id).has_text


def test_vectors_are_kept_without_words(home: Context, client: openai.OpenAI) -> None:
    set_traffic_policy(home, Caller(), TrafficPolicy(keep="full"))
    model = model_of(client)
    made = client.embeddings.create(model=model, input="a text")
    one = newest(home, model)
    assert one.exchange_id.startswith("embd-")
    assert (one.num_prompt_tokens, one.status, one.has_text) == (made.usage.prompt_tokens, 200, False)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="none-embeds", input="a text")
    assert newest(home, "none-embeds").status == 404


@pytest.mark.parametrize("while_it", ["routes", "waits"])
def test_vectors_that_are_cancelled_are_kept_as_gone(
    home: Context, monkeypatch: pytest.MonkeyPatch, while_it: str
) -> None:
    """The task of the request is cancelled, as when the server shuts down: its slot is free and its record there."""
    cancelled, begun, go_on = list[int](), threading.Event(), threading.Event()

    def route(*_: object) -> Routed:
        begun.set()
        assert go_on.wait(60)
        return Routed("gone-embeds", "gone-embeds", Served(path="nowhere", sha256=""))

    monkeypatch.setattr(pooling, "route", route)
    monkeypatch.setattr(pooling.serving, "ask_pooling", lambda *_: lambda: cancelled.append(1))

    async def never() -> dict[str, str]:
        await asyncio.sleep(3600)
        raise AssertionError

    async def ask() -> None:
        body = pooling.EmbeddingBody(model="gone-embeds", input="a text")
        request = Request({"type": "http", "headers": []}, receive=never)
        task = asyncio.create_task(pooling.create_embeddings(body, request, home, Caller()))
        await asyncio.to_thread(begun.wait, 60)
        if while_it == "waits":
            go_on.set()
            await asyncio.sleep(0.3)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    wait_for(lambda: bool(cancelled))  # while it is routed, the thread that routes stops it a moment later
    assert (newest(home, "gone-embeds").status, newest(home, "gone-embeds").error_code) == (499, "client_gone")


def test_what_failed_is_kept_with_why(home: Context, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none-such", messages=QUESTION)
    one = newest(home, "none-such")
    assert (one.status, one.error_code, one.first_token_seconds) == (404, "not_found", None)
    model = model_of(client)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "long " * 20_000}])
    assert (newest(home, model).status, newest(home, model).error_code) == (400, "overlong")


def test_who_goes_away_is_kept_as_gone(home: Context, client: openai.OpenAI) -> None:
    model = model_of(client)
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=400, stream=True, extra_body={"logit_bias": {"0": -100}}
    )
    first = next(iter(stream))
    stream.close()

    def statuses() -> list[int]:
        home.traffic_recorder.log.flush()
        found = traffic.exchanges(home, "default", model=model).filter(exchange_id=first.id)
        return list(found["status"])

    wait_for(lambda: bool(statuses()))
    assert statuses()[0] in (499, 200)  # 200 where the model was done before the server heard of it


def test_off_keeps_nothing(home: Context, client: openai.OpenAI) -> None:
    set_traffic_policy(home, Caller(), TrafficPolicy(keep="off"))
    before = traffic.exchanges(home, "default").height
    client.chat.completions.create(model=model_of(client), messages=QUESTION, max_tokens=2)
    home.traffic_recorder.log.flush()
    assert traffic.exchanges(home, "default").height == before


def test_an_answer_comes_though_the_log_cannot_write(
    home: Context, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("luthier.ml.drift.traffic.log.Spool.append", full)
    before = traffic.num_dropped(home, "default", 0.0, 4e9)
    answer = client.chat.completions.create(model=model_of(client), messages=QUESTION, max_tokens=2)
    assert answer.choices[0].finish_reason
    home.traffic_recorder.log.flush()
    assert traffic.num_dropped(home, "default", 0.0, 4e9) == before + 1


def test_an_answer_comes_though_the_log_itself_is_broken(
    home: Context, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home.traffic_recorder, "known", lambda _: 1 / 0)
    answer = client.chat.completions.create(model=model_of(client), messages=QUESTION, max_tokens=2)
    assert answer.choices[0].finish_reason
    monkeypatch.setattr("luthier.features.traffic.log.Spans.from_environment", lambda: 1 / 0)
    monkeypatch.delitem(home.__dict__, "traffic_recorder")
    answer = client.chat.completions.create(model=model_of(client), messages=QUESTION, max_tokens=2)
    assert answer.choices[0].finish_reason


def test_another_project_sees_none_of_it(home: Context, client: openai.OpenAI) -> None:
    home.access.add_project("others", "others")
    client.chat.completions.create(model=model_of(client), messages=QUESTION, max_tokens=2)
    home.traffic_recorder.log.flush()
    assert traffic.exchanges(home, "others").height == 0
