"""Chat completions with `store: true`, by the unmodified client: kept, listed, read, labelled and deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from luthier.core.access import Caller
from luthier.core.records.traffic import TrafficPolicy
from luthier.features.traffic.files import forget_user
from luthier.features.traffic.policy import set_traffic_policy
from luthier.features.traffic.stored_completions import sweep_stored_completions
from luthier.platform.db.tables import stored_completions
from luthier.platform.home.context import Context

ServedHome = tuple[Context, str]


@pytest.fixture
def ask(client: openai.OpenAI, served: ServedHome) -> Iterator[Callable[..., Any]]:
    """Asks for a completion that is stored; all of them are gone after the test."""

    def create(text: str = "Which wood?", **wishes: Any) -> Any:
        given: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "seed": 7, "store": True}
        messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        return client.chat.completions.create(**given | {"messages": messages} | wishes)

    yield create
    for one in list(client.chat.completions.list()):
        client.chat.completions.delete(one.id)


def test_a_stored_completion_is_read_labelled_and_deleted(client: openai.OpenAI, ask: Callable[..., Any]) -> None:
    made = ask(metadata={"use": "a"}, temperature=0.5)
    found = client.chat.completions.retrieve(made.id)
    assert found.choices[0].message.content == made.choices[0].message.content
    assert (found.usage, found.model) == (made.usage, "tiny")
    assert found.model_extra is not None
    assert (found.metadata, found.model_extra["temperature"]) == ({"use": "a"}, 0.5)
    (message,) = client.chat.completions.messages.list(made.id).data
    assert (message.id, message.role, message.content) == (f"{made.id}-0", "user", None)
    assert message.content_parts is not None
    assert message.content_parts[0].text == "Which wood?"  # type: ignore[union-attr]
    assert client.chat.completions.update(made.id, metadata={"use": "b"}).metadata == {"use": "b"}
    assert client.chat.completions.delete(made.id).deleted
    for method in (client.chat.completions.retrieve, client.chat.completions.delete):
        with pytest.raises(openai.NotFoundError):
            method(made.id)


def test_a_stored_completion_shows_its_parameters_as_they_were_sent(
    client: openai.OpenAI, ask: Callable[..., Any]
) -> None:
    schema = {"type": "object", "properties": {"wood": {"enum": ["maple"]}}, "additionalProperties": False}
    form: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "wood", "schema": schema, "strict": True}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    found = client.chat.completions.retrieve(ask(response_format=form, tools=[tool], tool_choice="none").id)
    assert found.model_extra is not None
    assert {name: found.model_extra[name] for name in ("response_format", "tools", "tool_choice", "seed")} == {
        "response_format": form,
        "tools": [tool],
        "tool_choice": "none",
        "seed": 7,
    }


def test_a_stream_is_stored_whole_and_what_is_not_asked_for_is_not(
    client: openai.OpenAI, ask: Callable[..., Any]
) -> None:
    pieces = [piece for chunk in ask(stream=True) if (piece := chunk.choices[0].delta.content)]
    ask(store=False)
    (found,) = client.chat.completions.list().data
    assert found.choices[0].message.content == "".join(pieces)


def test_pages_and_conditions(client: openai.OpenAI, ask: Callable[..., Any]) -> None:
    ids = [ask(metadata={"n": str(n % 2)}).id for n in range(4)]
    listed = client.chat.completions.list
    assert [one.id for one in listed(limit=3)] == ids
    assert [one.id for one in listed(order="desc", limit=1).data] == ids[3:]
    assert [one.id for one in listed(metadata={"n": "1"})] == ids[1::2]
    odd = {"50%_\\/": 'größer "x"'}
    made = ask(metadata=odd | {"n": "2"}).id
    assert [one.id for one in listed(metadata=odd)] == [made]
    # Only looks like the label, in another label's value.
    ask(metadata={"quoted": '"n": "3"'})
    assert listed(metadata={"n": "3"}).data == []
    assert listed(model="other").data == []
    with pytest.raises(openai.BadRequestError) as caught:
        listed(after="chatcmpl-none")
    assert (caught.value.param, caught.value.code) == ("after", "invalid_value")


def test_they_can_be_deleted_while_their_list_is_paged_through(
    client: openai.OpenAI, make_client: Callable[..., openai.OpenAI], served: ServedHome, ask: Callable[..., Any]
) -> None:
    ids = [ask().id for _ in range(5)]
    deleted = []
    for one in client.chat.completions.list(limit=2):
        client.chat.completions.delete(one.id)
        deleted.append(one.id)
    assert deleted == ids
    served[0].access.add_project("proj-deleted", "deleted")
    with pytest.raises(openai.BadRequestError):
        make_client(project="deleted").chat.completions.list(after=ids[0])


def test_another_project_a_wrong_scope_and_a_project_that_keeps_nothing(
    make_client: Callable[..., openai.OpenAI], served: ServedHome, ask: Callable[..., Any]
) -> None:
    context, _ = served
    made = ask()
    context.access.add_project("proj-stored", "stored")
    other = make_client(project="stored")
    for call in (
        other.chat.completions.retrieve,
        other.chat.completions.delete,
        lambda one: other.chat.completions.update(one, metadata={}),
        lambda one: other.chat.completions.messages.list(one),
    ):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert other.chat.completions.list().data == []
    with pytest.raises(openai.PermissionDeniedError):
        make_client("infer").chat.completions.list()
    with pytest.raises(openai.PermissionDeniedError):
        make_client("read").chat.completions.delete(made.id)
    set_traffic_policy(context, Caller(project_id="proj-stored"), TrafficPolicy(keep="off"))
    with pytest.raises(openai.BadRequestError) as caught:
        other.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}], store=True)
    assert (caught.value.param, caught.value.code) == ("store", "unsupported_value")


def test_a_user_is_forgotten_and_old_ones_expire(
    client: openai.OpenAI, served: ServedHome, ask: Callable[..., Any]
) -> None:
    context, _ = served
    ask(user="anna@example.com")
    kept, old = ask(user="ben@example.com"), ask()
    assert forget_user(context, Caller(), "anna@example.com").num_stored_completions == 1
    with context.database.write() as connection:
        table = stored_completions
        connection.execute(table.update().where(table.c.completion_id == old.id).values(created_at=1.0))
    sweep_stored_completions(context)
    assert [one.id for one in client.chat.completions.list().data] == [kept.id]
