"""Conversations by the unmodified client: made, read, listed, continued by responses, locked, and of other projects."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.records.traffic import TrafficPolicy
from luthier.features.traffic import conversation_store, conversations
from luthier.features.traffic.files import forget_user
from luthier.features.traffic.policy import set_traffic_policy
from luthier.platform.db import tables
from luthier.platform.home.context import Context

ServedHome = tuple[Context, str]
Ask = Callable[..., Any]
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "find_wood",
    "parameters": {
        "type": "object",
        "properties": {"part": {"enum": ["front"]}},
        "required": ["part"],
        "additionalProperties": False,
    },
}


def message(text: str, role: str = "user") -> Any:
    return {"type": "message", "role": role, "content": text}


@pytest.fixture
def ask(client: openai.OpenAI) -> Ask:
    def create(text: Any = "Which wood?", **wishes: Any) -> Any:
        given: dict[str, Any] = {"model": "tiny", "input": text, "max_output_tokens": 4, "extra_body": {"seed": 7}}
        return client.responses.create(**given | wishes)

    return create


def texts(client: openai.OpenAI, conversation_id: str) -> list[str]:
    """The texts of the messages of a conversation, oldest first."""
    listed = client.conversations.items.list(conversation_id, order="asc", limit=100)
    return [item.content[0].text for item in listed if item.type == "message"]  # type: ignore[union-attr]


def code_of(call: Callable[[], Any], kind: type[openai.APIStatusError]) -> tuple[str | None, str | None]:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.code, caught.value.param


def patient(ask: Ask, conversation_id: str) -> Any:
    """The answer to a request that waits until a stream, whose client has left, has ended."""
    for _ in range(200):
        try:
            return ask("And the back?", conversation=conversation_id)
        except openai.ConflictError:
            threading.Event().wait(0.05)
    raise AssertionError("the conversation stayed locked")


def test_a_conversation_is_made_labelled_and_deleted(client: openai.OpenAI, served: ServedHome) -> None:
    context, _ = served
    made = client.conversations.create(items=[message("Be short.", "system"), message("Hi")], metadata={"use": "a"})
    assert made.id.startswith("conv_")
    assert (made.object, made.metadata) == ("conversation", {"use": "a"})
    assert client.conversations.retrieve(made.id) == made
    assert texts(client, made.id) == ["Be short.", "Hi"]
    changed = client.conversations.update(made.id, metadata={"use": "b", "who": "me"})
    assert changed.metadata == client.conversations.retrieve(made.id).metadata == {"use": "b", "who": "me"}
    assert client.conversations.update(made.id, metadata=None).metadata == {}
    gone = client.conversations.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "conversation.deleted", True)
    items = client.conversations.items
    for call in nonempty(
        [
            lambda: client.conversations.retrieve(made.id),
            lambda: client.conversations.update(made.id, metadata={}),
            lambda: client.conversations.delete(made.id),
            lambda: items.list(made.id),
            lambda: items.create(made.id, items=[message("x")]),
            lambda: items.retrieve("msg_1", conversation_id=made.id),
            lambda: items.delete("msg_1", conversation_id=made.id),
        ]
    ):
        assert code_of(call, openai.NotFoundError) == ("conversation_not_found", None)
    assert [one.action for one in context.audit_log.about("default", made.id, limit=9)] == ["conversation.deleted"]
    with context.database.read() as connection:
        table = tables.conversation_items
        assert not connection.execute(table.select().where(table.c.conversation_id == made.id)).all()
    assert client.conversations.create().metadata == {}


def test_items_are_added_paged_read_and_deleted(client: openai.OpenAI) -> None:
    made = client.conversations.create(items=[])
    items = client.conversations.items
    assert items.list(made.id).data == []
    added = items.create(made.id, items=[message(f"m{number}") for number in range(20)])
    assert [one.type for one in added.data] == ["message"] * 20
    assert (added.first_id, added.last_id, added.has_more) == (added.data[0].id, added.data[-1].id, False)
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_own"}
    output = {"type": "function_call_output", "call_id": "c1", "output": "done"}
    items.create(made.id, items=[call, output], include=["message.output_text.logprobs"])  # type: ignore[list-item]
    first = items.list(made.id, limit=3)
    assert [one.type for one in first.data] == ["function_call_output", "function_call", "message"]
    assert (first.has_more, first.data[1].id) == (True, "fc_own")
    every = list(items.list(made.id, limit=3))
    assert len({one.id for one in every}) == len(every) == 22
    assert [one.id for one in items.list(made.id, order="asc", limit=7)] == [one.id for one in every[::-1]]
    found: Any = items.retrieve(added.data[4].id, conversation_id=made.id)
    assert (found.content[0].text, found.status, found.role) == ("m4", "completed", "user")
    assert items.delete(found.id, conversation_id=made.id).id == made.id
    assert len(texts(client, made.id)) == 19
    for call_again in (items.retrieve, items.delete):
        gone = lambda call_again=call_again: call_again(found.id, conversation_id=made.id)  # noqa: E731
        assert code_of(gone, openai.NotFoundError) == ("item_not_found", None)
    assert code_of(lambda: items.list(made.id, after="msg_none"), openai.BadRequestError) == ("invalid_value", "after")
    same: Any = [{"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}", "id": "fc_own"}]
    with pytest.raises(openai.BadRequestError, match="Duplicate item found with id 'fc_own'"):
        items.create(made.id, items=same)
    with pytest.raises(openai.BadRequestError, match="Duplicate item"):
        items.create(made.id, items=[{**message("x"), "id": "msg_a"}, {**message("y"), "id": "msg_a"}])


def test_what_a_conversation_cannot_hold_is_refused(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    made = client.conversations.create(items=[message("one"), message("two")])
    many = [message("x")] * 21
    assert code_of(lambda: client.conversations.create(items=many), openai.BadRequestError)[1] == "items"
    for wrong in nonempty([many, []]):
        add = lambda wrong=wrong: client.conversations.items.create(made.id, items=wrong)  # noqa: E731
        assert code_of(add, openai.BadRequestError)[1] == "items"
    image: Any = {"role": "user", "content": [{"type": "input_image", "image_url": "https://a/b.png"}]}
    kind = code_of(lambda: client.conversations.create(items=[message("x"), image]), openai.BadRequestError)
    assert kind == ("invalid_value", "items.1.content.0")
    referring: Any = [{"type": "item_reference", "id": "msg_none"}]
    lost = code_of(lambda: client.conversations.create(items=referring), openai.NotFoundError)
    assert lost == ("item_not_found", "items.0.id")
    monkeypatch.setattr(conversation_store, "MAX_ITEMS", 3)
    client.conversations.items.create(made.id, items=[message("three")])
    full = code_of(lambda: client.conversations.items.create(made.id, items=[message("four")]), openai.BadRequestError)
    assert full == ("conversation_too_large", "conversation")
    assert texts(client, made.id) == ["one", "two", "three"]
    # An id that no address could name is replaced.
    (odd,) = client.conversations.items.create(
        client.conversations.create().id, items=[{**message("x"), "id": "a/b"}]
    ).data
    assert odd.id.startswith("msg_")


def test_responses_are_written_behind_the_items_of_a_conversation(client: openai.OpenAI, ask: Ask) -> None:
    made = client.conversations.create(items=[message("Which wood?")])
    first = ask("And the front?", conversation=made.id, instructions="Be short.")
    second = ask([message("And the back?")], conversation={"id": made.id}, temperature=0, instructions="Be long.")
    assert first.conversation.id == second.conversation.id == made.id
    assert client.responses.retrieve(second.id).model_dump() == second.model_dump()
    before: list[Any] = [
        message("Which wood?"),
        message("And the front?"),
        message(first.output_text, "assistant"),
        message("And the back?"),
    ]
    alone = ask(before, temperature=0, instructions="Be long.", store=False)
    assert (second.output_text, second.usage.input_tokens) == (alone.output_text, alone.usage.input_tokens)
    said = [one["content"] for one in before]
    assert texts(client, made.id) == [*said, second.output_text]
    listed = [one.id for one in client.conversations.items.list(made.id)]
    assert listed[0] == second.output[0].id
    assert listed[1] == client.responses.input_items.list(second.id).data[0].id
    counted = client.responses.input_tokens.count(
        model="tiny", input="And the sides?", conversation=made.id, instructions="Be long."
    )
    assert counted.input_tokens > second.usage.input_tokens
    assert len(texts(client, made.id)) == 5
    # What the conversation has is refused, as it would come twice.
    with pytest.raises(openai.BadRequestError, match="Duplicate item"):
        ask([{"type": "item_reference", "id": first.output[0].id}, message("x")], conversation=made.id)
    # Without its stored responses it can still be continued; those that are not stored are added as well.
    client.responses.delete(first.id)
    unstored = ask("And the sides?", conversation=made.id, store=False)
    assert unstored.store is False
    assert texts(client, made.id)[-2:] == ["And the sides?", unstored.output_text]


def test_a_stream_is_added_when_it_is_whole(client: openai.OpenAI, ask: Ask) -> None:
    made = client.conversations.create()
    final, added = [], []
    for event in ask(conversation=made.id, stream=True):
        if event.type in ("response.completed", "response.incomplete"):
            # While it reads the last event: a client may then send the next request.
            added += texts(client, made.id)
            final.append(event.response)
    (whole,) = final
    assert whole.conversation.id == made.id
    assert added == ["Which wood?", whole.output_text]
    # A client that leaves adds nothing and lets others in.
    stream = ask("And the front?", conversation=made.id, stream=True, max_output_tokens=200)
    next(iter(stream))
    stream.close()
    behind = patient(ask, made.id)
    assert texts(client, made.id)[2:] == ["And the back?", behind.output_text]


def test_calls_and_their_outputs(client: openai.OpenAI, ask: Ask) -> None:
    made = client.conversations.create()
    wishes: dict[str, Any] = {"conversation": made.id, "tools": [TOOL], "max_output_tokens": 60}
    called = ask(tool_choice="required", **wishes)
    (call,) = [item for item in called.output if item.type == "function_call"]
    missing = code_of(lambda: ask("And?", **wishes), openai.BadRequestError)
    assert missing == ("invalid_value", "input")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "spruce"}
    ask([output], **wishes)
    kinds = [one.type for one in client.conversations.items.list(made.id, order="asc")]
    own = [item.type for item in called.output]
    assert kinds[: len(own) + 2] == ["message", *own, "function_call_output"]
    # An output whose call was deleted is not read.
    client.conversations.items.delete(call.id, conversation_id=made.id)
    assert ask("And?", **wishes).status in ("completed", "incomplete")


def test_one_response_at_a_time(
    client: openai.OpenAI, ask: Ask, served: ServedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = served
    made = client.conversations.create(items=[message("one")])
    context.conversations.lock("default", made.id, "other", newest_seconds=60)
    refusals = [
        lambda: ask(conversation=made.id),
        lambda: ask(conversation=made.id, stream=True),
        lambda: client.conversations.items.create(made.id, items=[message("two")]),
        lambda: client.conversations.items.delete(
            client.conversations.items.list(made.id).data[0].id, conversation_id=made.id
        ),
    ]
    for call in nonempty(refusals):
        with pytest.raises(openai.ConflictError) as caught:
            call()
        assert caught.value.code == "conversation_locked"
        # The client waits and sends it again, as its own retries do.
        assert caught.value.response.headers["retry-after"] == "1"
    assert texts(client, made.id) == ["one"]
    context.conversations.unlock(made.id, "another")
    with pytest.raises(openai.ConflictError):
        ask(conversation=made.id)
    context.conversations.unlock(made.id, "other")
    ask(conversation=made.id)
    # A request that never ended keeps others out for a time alone, and cannot add to what it has lost.
    monkeypatch.setattr(conversation_store, "LOCK_SECONDS", -1.0)
    context.conversations.lock("default", made.id, "dead", newest_seconds=60)
    ask(conversation=made.id)
    with pytest.raises(conversation_store.ConversationLockedError):
        context.conversations.append("default", made.id, [], newest_seconds=60, holder="dead")


def test_what_fails_lets_others_in(client: openai.OpenAI, ask: Ask) -> None:
    made = client.conversations.create()
    with pytest.raises(openai.NotFoundError):
        ask(conversation=made.id, model="none")
    with pytest.raises(openai.BadRequestError):
        ask([{"type": "function_call_output", "call_id": "c", "output": "x"}], conversation=made.id)
    with pytest.raises(openai.BadRequestError):
        ask("long " * 3000, conversation=made.id)
    assert texts(client, made.id) == []
    assert ask(conversation=made.id).conversation.id == made.id


def test_an_unknown_conversation_and_one_beside_an_earlier_response(client: openai.OpenAI, ask: Ask) -> None:
    unknown = ("conversation_not_found", "conversation")
    assert code_of(lambda: ask(conversation="conv_none"), openai.NotFoundError) == unknown
    count = client.responses.input_tokens.count
    asked: dict[str, Any] = {"model": "tiny", "input": "x", "conversation": "conv_none"}
    assert code_of(lambda: count(**asked), openai.NotFoundError) == unknown
    made, first = client.conversations.create(), ask()
    both = code_of(lambda: ask(conversation=made.id, previous_response_id=first.id), openai.BadRequestError)
    assert both == ("mutually_exclusive_parameters", "conversation")
    assert texts(client, made.id) == []


def test_another_project_and_wrong_scopes(
    make_client: Callable[..., openai.OpenAI], client: openai.OpenAI, served: ServedHome
) -> None:
    context, _ = served
    made = client.conversations.create(items=[message("one")])
    if "answers" not in {project.name for project in context.access.projects()}:
        context.access.add_project("proj-answers", "answers")
    other = make_client(project="answers")
    for call in nonempty([other.conversations.retrieve, other.conversations.delete, other.conversations.items.list]):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.NotFoundError):
        other.responses.create(model="tiny", input="x", conversation=made.id)
    asker, reader, trainer = make_client("infer"), make_client("read"), make_client("train")
    assert asker.conversations.retrieve(made.id).id == reader.conversations.retrieve(made.id).id == made.id
    assert len(reader.conversations.items.list(made.id).data) == 1
    for refused in nonempty(
        [
            reader.conversations.create,
            lambda: reader.conversations.delete(made.id),
            lambda: reader.conversations.items.create(made.id, items=[message("x")]),
            lambda: trainer.conversations.retrieve(made.id),
        ]
    ):
        with pytest.raises(openai.PermissionDeniedError):
            refused()
    own = other.conversations.create()
    set_traffic_policy(context, Caller(project_id="proj-answers"), TrafficPolicy(keep="off"))
    ask_there = lambda: other.responses.create(model="tiny", input="x", conversation=own.id)  # noqa: E731
    for stored in nonempty([other.conversations.create, ask_there]):
        assert code_of(stored, openai.BadRequestError) == ("unsupported_value", "conversation")


def test_a_user_is_forgotten_and_old_ones_expire(client: openai.OpenAI, served: ServedHome, ask: Ask) -> None:
    context, _ = served
    theirs, kept, old = (client.conversations.create(items=[message("one")]) for _ in range(3))
    ask(conversation=theirs.id, user="carla@example.com")
    ask(conversation=kept.id, user="dora@example.com")
    assert forget_user(context, Caller(), "carla@example.com").num_conversations == 1
    with context.database.write() as connection:
        table = tables.conversations
        connection.execute(table.update().where(table.c.conversation_id == old.id).values(updated_at=1.0))
    for one in (theirs, old):
        assert code_of(lambda one=one: client.conversations.retrieve(one.id), openai.NotFoundError) == (  # type: ignore[misc]
            "conversation_not_found",
            None,
        )
    conversations.sweep_conversations(context)
    with context.database.read() as connection:
        left = set(connection.execute(table.select().with_only_columns(table.c.conversation_id)).scalars())
    assert kept.id in left
    assert not {theirs.id, old.id} & left
