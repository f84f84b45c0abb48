"""Stored responses by the unmodified client: continued, read, listed, deleted, of other projects, and expired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.records.traffic import TrafficPolicy
from luthier.features.traffic import stored_responses as stored
from luthier.features.traffic.files import forget_user
from luthier.features.traffic.policy import set_traffic_policy
from luthier.platform.db.tables import stored_responses
from luthier.platform.home.context import Context

ServedHome = tuple[Context, str]


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    def create(text: Any = "Which wood?", **wishes: Any) -> Any:
        given: dict[str, Any] = {"model": "tiny", "input": text, "max_output_tokens": 4, "extra_body": {"seed": 7}}
        return client.responses.create(**given | wishes)

    return create


def not_found(call: Callable[[], Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        call()
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


def test_a_conversation_is_continued_by_the_id_of_a_response(client: openai.OpenAI, ask: Callable[..., Any]) -> None:
    first = ask(instructions="Be short.")
    second = ask("And the front?", previous_response_id=first.id)
    third = ask("And the back?", previous_response_id=second.id, instructions="Be long.", temperature=0)
    conversation: list[Any] = [
        {"role": "user", "content": "Which wood?"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And the front?"},
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "And the back?"},
    ]
    alone = ask(conversation, instructions="Be long.", temperature=0, store=False)
    assert (third.output_text, third.usage.input_tokens) == (alone.output_text, alone.usage.input_tokens)
    assert (third.previous_response_id, third.store, alone.store) == (second.id, True, False)
    found = client.responses.retrieve(third.id)
    assert found.model_dump() == third.model_dump()
    # In the middle of a chain as well: it is a tree, not a list.
    other = ask("And the sides?", previous_response_id=first.id)
    assert other.usage.input_tokens < third.usage.input_tokens
    counted = client.responses.input_tokens.count(
        model="tiny", input="And the back?", previous_response_id=second.id, instructions="Be long."
    )
    assert counted.input_tokens == third.usage.input_tokens


def test_items_of_stored_answers_are_referred_to_by_their_ids(
    client: openai.OpenAI, ask: Callable[..., Any], make_client: Callable[..., openai.OpenAI], served: ServedHome
) -> None:
    first = ask()
    question, again = {"role": "user", "content": "Which wood?"}, {"role": "user", "content": "And the front?"}
    for reference in ({"type": "item_reference", "id": first.output[0].id}, {"id": first.output[0].id}):
        referring: list[Any] = [question, reference, again]
        second, plain = ask(referring), ask("And the front?", previous_response_id=first.id)
        assert (second.output_text, second.usage.input_tokens) == (plain.output_text, plain.usage.input_tokens)
    counted = client.responses.input_tokens.count(model="tiny", input=referring)
    assert counted.input_tokens == second.usage.input_tokens
    listed = client.responses.input_items.list(second.id, order="asc").data
    assert [one.type for one in listed] == ["message"] * 3
    assert listed[1].id == first.output[0].id
    context, _ = served
    if "answers" not in {project.name for project in context.access.projects()}:
        context.access.add_project("proj-answers", "answers")
    other, unstored = make_client(project="answers"), ask(store=False)
    with pytest.raises(openai.NotFoundError) as caught:
        other.responses.create(model="tiny", input=referring)
    assert (caught.value.param, caught.value.code) == ("input.1.id", "item_not_found")
    for lost in (unstored.output[0].id, "msg_none", first.output[0].id[:-1] + "f"):
        with pytest.raises(openai.NotFoundError):
            ask([question, {"type": "item_reference", "id": lost}, again])
    with pytest.raises(openai.BadRequestError, match="Duplicate item") as twice:
        ask([*referring, reference, again])
    assert twice.value.param == "input.3.id"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        ask(referring)
    assert ask("And the back?", previous_response_id=second.id).usage.input_tokens > second.usage.input_tokens


def test_a_stream_is_stored_whole(client: openai.OpenAI, ask: Callable[..., Any]) -> None:
    events = list(ask(stream=True))
    final = events[-1].response
    assert client.responses.retrieve(final.id).output == final.output
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert added == [item.id for item in final.output]


def test_the_items_of_a_request_are_listed(client: openai.OpenAI, ask: Callable[..., Any]) -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_own"}
    items = [
        {"role": "user", "content": "Q"},
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "done"},
        {"role": "user", "content": "R"},
    ]
    made = ask(items)
    listed = client.responses.input_items.list(made.id, order="asc", limit=3)
    assert [one.type for one in listed.data] == ["message", "function_call", "function_call_output"]
    assert listed.data[1].id == "fc_own"
    every = list(client.responses.input_items.list(made.id, limit=3))
    assert [one.type for one in every] == ["message", "function_call_output", "function_call", "message"]
    assert len({one.id for one in every}) == 4
    assert every[0].content[0].text == "R"  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError):
        client.responses.input_items.list(made.id, after="msg_none")
    included = client.responses.input_items.list(made.id, include=["message.output_text.logprobs"])
    assert len(included.data) == 4
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.input_items.list(made.id, include=["file_search_call.everything"])  # type: ignore[list-item]
    assert "include" in (caught.value.param or "")
    hosted: Any = client.responses.input_items.with_raw_response.list(made.id, include=["file_search_call.results"])
    assert hosted.headers["x-luthier-warning"].endswith("add: file_search_call.results")
    assert len(hosted.parse().data) == 4


def test_a_deleted_response_is_gone_and_so_is_what_continued_it(
    client: openai.OpenAI, ask: Callable[..., Any], served: ServedHome
) -> None:
    context, _ = served
    first = ask()
    second = ask(previous_response_id=first.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    not_found(lambda: ask(previous_response_id=first.id))
    # What it says is not read by way of the one behind it.
    not_found(lambda: ask(previous_response_id=second.id))
    assert client.responses.retrieve(second.id).id == second.id
    assert [one.action for one in context.audit_log.about("default", first.id, limit=9)] == ["stored_response.deleted"]


def test_a_response_ends_with_its_request_so_that_it_cannot_be_cancelled(
    client: openai.OpenAI, ask: Callable[..., Any]
) -> None:
    made = ask()
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_none")
    for wishes in ({"stream": True}, {"starting_after": 3}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.retrieve(made.id, **wishes)  # type: ignore[call-overload]
        assert caught.value.param == next(iter(wishes))


def test_another_project_and_wrong_scopes(
    make_client: Callable[..., openai.OpenAI], served: ServedHome, ask: Callable[..., Any]
) -> None:
    context, _ = served
    made = ask()
    if "answers" not in {project.name for project in context.access.projects()}:
        context.access.add_project("proj-answers", "answers")
    other = make_client(project="answers")
    for call in nonempty(
        [other.responses.retrieve, other.responses.delete, other.responses.cancel, other.responses.input_items.list]
    ):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    not_found(lambda: other.responses.create(model="tiny", input="x", previous_response_id=made.id))
    asker, reader, trainer = make_client("infer"), make_client("read"), make_client("train")
    assert asker.responses.retrieve(made.id).id == reader.responses.retrieve(made.id).id == made.id
    with pytest.raises(openai.PermissionDeniedError):
        trainer.responses.retrieve(made.id)
    with pytest.raises(openai.PermissionDeniedError):
        reader.responses.delete(made.id)
    set_traffic_policy(context, Caller(project_id="proj-answers"), TrafficPolicy(keep="off"))
    with pytest.raises(openai.BadRequestError) as caught:
        other.responses.create(model="tiny", input="x", store=True)
    assert (caught.value.param, caught.value.code) == ("store", "unsupported_value")
    # Without a wish the answer says that it is not stored.
    unstored = other.responses.create(model="tiny", input="x", max_output_tokens=2)
    assert unstored.model_extra is not None
    assert unstored.model_extra["store"] is False
    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(unstored.id)


def test_a_user_is_forgotten_and_old_ones_expire(
    client: openai.OpenAI, served: ServedHome, ask: Callable[..., Any]
) -> None:
    context, _ = served
    theirs, kept, old = ask(user="anna@example.com"), ask(user="ben@example.com"), ask()
    behind = ask(previous_response_id=old.id)
    assert forget_user(context, Caller(), "anna@example.com").num_stored_responses == 1
    with context.database.write() as connection:
        table = stored_responses
        connection.execute(table.update().where(table.c.response_id == old.id).values(created_at=1.0))
    # Expired, and not swept yet.
    for one in (theirs, old):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(one.id)
        not_found(lambda one=one: ask(previous_response_id=one.id))  # type: ignore[misc]
    not_found(lambda: ask(previous_response_id=behind.id))
    stored.sweep_stored_responses(context)
    with context.database.read() as connection:
        left = set(connection.execute(table.select().with_only_columns(table.c.response_id)).scalars())
    assert {kept.id, behind.id} <= left
    assert not {old.id, theirs.id} & left


def test_a_chain_has_an_end(served: ServedHome, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_CHAIN", 2)
    first = ask()
    second = ask(previous_response_id=first.id)
    not_found(lambda: ask(previous_response_id=second.id))


def test_a_chain_has_a_size(served: ServedHome, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    context, _ = served
    first = ask()
    second = ask(previous_response_id=first.id)
    sizes = [context.stored_responses.num_characters("default", [one.id]) for one in (first, second)]
    monkeypatch.setattr(stored, "MAX_CHAIN_CHARACTERS", sum(sizes))
    assert context.stored_responses.num_characters("other", [first.id]) == 0
    third = ask(previous_response_id=second.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(previous_response_id=third.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "conversation_too_large")
