"""Which form of a message a template takes is measured, and nothing else of the message changes."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest

from luthier.ml.inference.models.templates.message_forms import AS_USUAL, MessageForms, measure_forms

_PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
_PARTS = "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
_CALLS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for call in m.tool_calls %}{{ call.function.name }} "
    "{{ ARGUMENTS }}{% endfor %}{% endfor %}"
)
_NAMED = (
    "{% for m in messages %}{% if m.role == 'tool' and not m.name %}{{ 1 / 0 }}{% endif %}[{{ m.name or m.role }}]"
    "{{ m.content }}{% endfor %}"
)
_SHORT_IDS = (
    "{% for m in messages %}{% for call in m.tool_calls %}{% if call.id|length != 9 %}{{ 1 / 0 }}{% endif %}"
    "{{ call.id }}{% endfor %}{% if m.role == 'tool' and m.tool_call_id|length != 9 %}{{ 1 / 0 }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def _measured(template: str) -> MessageForms | None:
    compiled = jinja2.Environment().from_string(template)

    def render(messages: list[dict[str, Any]], _: bool) -> str | None:
        try:
            return compiled.render(messages=json.loads(json.dumps(messages)))
        except (jinja2.TemplateError, TypeError, ZeroDivisionError):
            return None

    return measure_forms(render)


@pytest.mark.parametrize(
    ("template", "forms"),
    [
        (_PLAIN, AS_USUAL),
        (_PARTS, MessageForms(content_as_parts=True)),
        (_CALLS.replace("ARGUMENTS", "call.function.arguments | tojson"), AS_USUAL),
        (_CALLS.replace("ARGUMENTS", "call.function.arguments"), MessageForms(arguments_as_text=True)),
        (_CALLS.replace("ARGUMENTS", "'x' + call.function.arguments"), MessageForms(arguments_as_text=True)),
        (_CALLS.replace("ARGUMENTS", "call.function.arguments.wood"), AS_USUAL),
        (_NAMED, MessageForms(names_results=True)),
        (_SHORT_IDS, MessageForms(shortens_ids=True)),
        (_PLAIN.replace("m.content", "m.content[:5]"), None),
        ("{{ messages[0].nothing.at_all }}", None),
    ],
)
def test_the_form_is_that_which_reaches_the_text(template: str, forms: MessageForms | None) -> None:
    assert _measured(template) == forms


def test_messages_are_given_in_these_forms_and_stay_as_they_were() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "price", "arguments": {"wood": "süß"}}},
        {"id": "b", "type": "function", "function": {"name": "stock", "arguments": {}}},
    ]
    messages = [
        {"role": "user", "content": "Both?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "12", "tool_call_id": "b"},
        {"role": "tool", "content": "3", "tool_call_id": "c"},
        {"role": "tool", "content": "3", "tool_call_id": "b", "name": "own"},
    ]
    before = json.dumps(messages)
    made = MessageForms(content_as_parts=True, arguments_as_text=True, names_results=True).applied(messages)
    assert json.dumps(messages) == before
    assert [message["content"] for message in made] == [
        [{"type": "text", "text": message["content"]}] for message in messages
    ]
    assert [call["function"]["arguments"] for call in made[1]["tool_calls"]] == ['{"wood": "süß"}', "{}"]
    assert [message.get("name") for message in made] == [None, None, "stock", None, "own"]
    assert AS_USUAL.applied(messages) == messages


def test_the_only_call_names_a_result_without_an_id() -> None:
    call = {"type": "function", "function": {"name": "price", "arguments": {}}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "12"}]
    assert MessageForms(names_results=True).applied(messages)[1]["name"] == "price"
    messages[0]["tool_calls"] = [call, call]
    assert "name" not in MessageForms(names_results=True).applied(messages)[1]


def test_ids_of_calls_are_short_where_the_template_wants_them_so_and_name_their_results() -> None:
    calls = [
        {"id": call_id, "type": "function", "function": {"name": "price", "arguments": {}}}
        for call_id in ("call_0", "call_1", "abcdefgh9")
    ]
    results = [{"role": "tool", "content": "12", "tool_call_id": call["id"]} for call in calls]
    messages = [{"role": "assistant", "content": "", "tool_calls": calls}, *results, {"role": "user", "content": "So?"}]
    before = json.dumps(messages)
    made = MessageForms(shortens_ids=True).applied(messages)
    assert json.dumps(messages) == before
    ids = [call["id"] for call in made[0]["tool_calls"]]
    assert [message["tool_call_id"] for message in made[1:4]] == ids
    assert ids[2] == "abcdefgh9"
    assert len(set(ids)) == 3
    assert [(len(one), one.isalnum()) for one in ids] == [(9, True)] * 3
    assert made[4] == messages[4]


_ONLY_IDS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}{% for call in m.tool_calls %}{{ call.id }}"
    "{{ call.function.arguments.wood }}{% endfor %}{{ m.tool_call_id }}{% endfor %}"
)


def test_ids_hold_the_name_and_the_number_of_a_call_where_the_template_writes_nothing_else_of_it() -> None:
    forms = _measured(_ONLY_IDS)
    assert forms is not None
    assert forms == MessageForms(names_ids=True)

    def turn(*calls: tuple[str, str]) -> dict[str, Any]:
        made = [{"id": call_id, "function": {"name": name, "arguments": {}}} for call_id, name in calls]
        return {"role": "assistant", "content": "", "tool_calls": made}

    def result(call_id: str) -> dict[str, Any]:
        return {"role": "tool", "content": "12", "tool_call_id": call_id}

    messages = [
        {"role": "user", "content": "Both?"},
        turn(("call_a", "price"), ("call_b", "stock")),
        result("call_b"),
        result("call_a"),
        turn(("functions.price:7", "price")),
        result("functions.price:7"),
        turn(("call_a", "stock")),
        result("call_a"),
        result("call_unknown"),
    ]
    before = json.dumps(messages)
    made = forms.sent(messages)
    assert json.dumps(messages) == before
    ids = [call["id"] for message in made for call in message.get("tool_calls", ())]
    assert ids == ["functions.price:0", "functions.stock:1", "functions.price:7", "functions.stock:3"]
    assert [message["tool_call_id"] for message in made if message["role"] == "tool"] == [
        "functions.stock:1", "functions.price:0", "functions.price:7", "functions.stock:3", "call_unknown",
    ]  # fmt: skip
    assert AS_USUAL.sent(messages) == messages


def test_calls_without_ids_get_some_where_the_template_needs_them_and_results_follow_in_order() -> None:
    def call(name: str, **more: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "arguments": {}}} | more

    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How much?"},
        {"role": "assistant", "content": "", "tool_calls": [call("price"), call("stock", id="own"), call("price")]},
        {"role": "tool", "content": "first"},
        {"role": "tool", "content": "of stock", "tool_call_id": "own"},
        {"role": "tool", "content": "last"},
        {"role": "assistant", "content": "", "tool_calls": [call("price")]},
        {"role": "tool", "content": "again"},
    ]
    before, called = json.dumps(messages), ("price", "stock", "price", "price")
    for forms, expected in (
        (MessageForms(names_ids=True), [f"functions.{name}:{n}" for n, name in enumerate(called)]),
        (MessageForms(shortens_ids=True), None),
    ):
        made = forms.applied(forms.sent(messages))
        ids = [one["id"] for message in made for one in message.get("tool_calls", ())]
        results = [message["tool_call_id"] for message in made if message["role"] == "tool"]
        assert results == ids
        assert len(set(ids)) == 4
        assert ids == expected or (expected is None and all(len(one) == 9 and one.isalnum() for one in ids))
    assert MessageForms(names_results=True).sent(messages) == messages
    assert json.dumps(messages) == before
