"""Items of the Responses API as a conversation, and the events of items as they are written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tests.vacuous import nonempty

from luthier.core.stream import CallPiece, Ended, Piece, TokenLikelihood, WrittenToken
from luthier.features.serving.api.responses.body import (
    ResponseBody,
    TokenCountBody,
    prompt_request,
    response_request,
)
from luthier.features.serving.api.responses.items import item_documents, messages_of, parsed_items
from luthier.features.serving.api.responses.writer import OutputItems
from luthier.platform.http.errors import ApiError

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "done"}


def conversation(*items: Any, instructions: str | None = None, num_before: int = 0) -> list[dict[str, Any]]:
    messages = messages_of(instructions, parsed_items(items), num_before)
    return [one.model_dump(exclude_defaults=True) for one in messages]


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def test_a_text_and_a_message_of_parts_are_the_same() -> None:
    body = ResponseBody.model_validate({"model": "m", "input": "Hi"})
    parts = [{"type": "input_text", "text": "H"}, {"type": "input_text", "text": "i"}]
    assert messages_of(None, body.input, 0)[0].content == "Hi"
    assert conversation({"type": "message", "role": "user", "content": parts}) == [said("user", "Hi")]
    assert conversation(said("developer", "D"), said("user", "U"), instructions="I") == [
        said("system", "I"), said("developer", "D"), said("user", "U"),
    ]  # fmt: skip


def test_marks_of_a_prompt_cache_are_neither_read_nor_stored() -> None:
    part = {"type": "input_text", "text": "Hi"}
    marked = part | {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}
    item = {"type": "message", "role": "user", "content": [marked]}
    assert conversation(item) == [said("user", "Hi")]
    assert item_documents(parsed_items([item])) == [item | {"content": [part]}]
    with pytest.raises(ValidationError, match="explicit"):
        parsed_items([item | {"content": [part | {"prompt_cache_breakpoint": {"mode": "always"}}]}])


def test_consecutive_items_of_the_assistant_are_one_turn() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "T"}]}
    answer = {
        "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": "A", "annotations": [], "logprobs": []}],
    }  # fmt: skip
    other = CALL | {"call_id": "c2"}
    found = conversation(said("user", "Q"), thought, answer, CALL, other, RESULT, RESULT | {"call_id": "c2"})
    assert [one["role"] for one in found] == ["user", "assistant", "tool", "tool"]
    assert (found[1]["content"], found[1]["reasoning"]) == ("A", "T")
    assert [call["id"] for call in found[1]["tool_calls"]] == ["c1", "c2"]
    assert found[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert found[2] == {"role": "tool", "content": "done", "tool_call_id": "c1"}
    # A second message, and a thought behind an answer, begin turns of their own.
    found = conversation(said("user", "Q"), answer, thought, answer, said("assistant", "B"), said("user", "R"))
    assert [(one["content"], one.get("reasoning")) for one in found[1:4]] == [("A", None), ("A", "T"), ("B", None)]


def test_answers_go_back_as_clients_of_several_versions_dump_them() -> None:
    """Version 3.57 has `async_`, null; `parse` of 3.3 leaves what it has parsed in the items."""
    nothing = {"async_": None, "caller": None, "namespace": None, "created_by": None}
    call = CALL | nothing | {"id": "fc_1", "status": "completed", "parsed_arguments": {"a": 1}}
    part = {"type": "output_text", "text": "A", "annotations": [], "logprobs": None, "parsed": {"a": [1]}}
    answer = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "phase": None}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": None}
    talk = [said("user", "Q") | {"type": None}, thought, answer | {"content": [part]}, call, RESULT]
    assert conversation(*talk)[1]["content"] == "A"
    dumped = item_documents(parsed_items(talk))
    assert dumped[2] == {k: v for k, v in answer.items() if v is not None} | {
        "content": [{"type": "output_text", "text": "A", "annotations": []}]
    }
    assert dumped[3] == CALL | {"id": "fc_1", "status": "completed"}


def test_a_conversation_of_the_hosted_service_goes_on_here() -> None:
    """What its answers have by default says nothing that a model of this server would read."""
    answer = said("assistant", "A") | {"phase": "commentary"}
    direct: dict[str, Any] = {"caller": {"type": "direct"}}
    call = CALL | direct | {"async": False}
    found = conversation(said("user", "Q"), answer, call, RESULT | direct | {"name": "f"})
    plain = conversation(said("user", "Q"), said("assistant", "A"), CALL, RESULT)
    assert found == [*plain[:-1], plain[-1] | {"name": "f"}]
    tool = {"type": "function", "name": "f", "parameters": {}, "strict": False}
    ResponseBody.model_validate(
        {"model": "m", "input": "Q", "tools": [tool | {"allowed_callers": ["direct"], "async": False}]}
    )
    for wrong in ({"allowed_callers": ["programmatic"]}, {"async": True}):
        with pytest.raises(ValidationError):
            ResponseBody.model_validate({"model": "m", "input": "Q", "tools": [tool | wrong]})
    with pytest.raises(ValidationError, match="direct"):
        parsed_items([CALL | {"caller": {"type": "program", "caller_id": "p"}}])


def test_a_summary_is_the_thought_where_there_is_no_content() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "S"}]}
    assert conversation(said("user", "Q"), thought, CALL, RESULT)[1]["reasoning"] == "S"


@pytest.mark.parametrize(
    ("items", "param", "words"),
    [
        ([said("user", "Q"), RESULT], "input.1.call_id", "No tool call found"),
        ([RESULT, CALL], "input.0.call_id", "No tool call found"),
        ([CALL, RESULT, RESULT], "input.2.call_id", "No tool call found"),
        ([CALL, said("user", "Q")], "input", "No tool output found for function call 'c1'"),
        ([CALL, RESULT, CALL, RESULT], "input.2.call_id", "two calls"),
        ([CALL | {"arguments": "[" * 1000}, RESULT], "input.0.arguments", ""),
        ([said("user", "Q"), {"type": "reasoning", "summary": []}], "input.1", "reasoning that nothing follows"),
        ([{"type": "reasoning", "summary": []}, said("user", "Q")], "input.0", "reasoning that nothing follows"),
    ],
)
def test_items_that_do_not_belong_together_are_refused_by_their_place(items: list[Any], param: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        conversation(*items)
    assert (caught.value.param, caught.value.code) == (param, "invalid_value") or words == ""
    assert caught.value.param == param
    assert words in caught.value.message


def test_the_place_of_a_fault_counts_items_of_this_request_alone() -> None:
    with pytest.raises(ApiError) as caught:
        conversation(said("user", "Q"), said("assistant", "A"), RESULT, num_before=2)
    assert caught.value.param == "input.0.call_id"
    with pytest.raises(ApiError) as caught:
        conversation(*[said("user", "Q")] * 2049)
    assert "2,049 items" in caught.value.message
    # An earlier answer may have ended within its thought.
    assert len(conversation({"type": "reasoning", "summary": []}, said("user", "Q"), num_before=1)) == 2


@pytest.mark.parametrize(
    ("item", "place"),
    [
        ({"type": "item_reference"}, "input.0.id"),
        ({"type": "item_reference", "id": "msg_1", "role": "user"}, "input.0.role"),
        ({"type": "web_search_call", "id": "ws", "status": "completed"}, "input.0"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}, "input.0.content.0"),
        ({"role": "tool", "content": "x"}, "input.0.role"),
        ({"content": "x"}, "input.0.role"),
        (CALL | {"namespace": "n"}, "input.0.namespace"),
        (CALL | {"async": True}, "input.0.async"),
        (RESULT | {"output": [{"type": "input_file", "file_id": "f"}]}, "input.0.output.0.type"),
        ({"type": "reasoning", "summary": [], "encrypted_content": "x"}, "input.0.encrypted_content"),
        (7, "input.0"),
    ],
)
def test_items_that_are_not_supported_are_refused_by_name(item: Any, place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ResponseBody.model_validate({"model": "m", "input": [item]})
    kinds = {"message", "function_call", "function_call_output", "reasoning", "item_reference"}
    found = [str(part) for part in caught.value.errors()[0]["loc"] if part not in kinds]
    assert ".".join(found) == place


def test_items_are_listed_with_their_parts() -> None:
    items = parsed_items([said("user", "Q"), said("assistant", "A"), CALL, RESULT])
    found = item_documents(items)
    assert found[0] == {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Q"}]}
    assert found[1]["content"] == [{"type": "output_text", "text": "A", "annotations": []}]
    assert found[2] == CALL
    assert found[3] == RESULT | {"output": [{"type": "input_text", "text": "done"}]}
    assert item_documents(parsed_items(found)) == found


def written(*pieces: Piece, reason: Any = "stop", **options: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    output = OutputItems(**{"summarises": False, "returns_logprobs": False, "response_id": "resp_1"} | options)
    events = [event for piece in pieces for event in output.add(piece)]
    return [*events, *output.end(Ended(reason=reason, num_new_tokens=1))], output.items


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_events_of_text_come_in_the_order_of_the_documentation() -> None:
    events, items = written(Piece(text="Gr"), Piece(text="üß"), Piece(text=""))
    assert names(events) == [
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
    ]  # fmt: skip
    (item,) = items
    assert item["content"] == [{"type": "output_text", "text": "Grüß", "annotations": [], "logprobs": []}]
    assert events[-1]["item"] == item
    assert (events[0]["item"]["status"], events[0]["item"]["content"], item["status"]) == (
        "in_progress", [], "completed",
    )  # fmt: skip
    assert {event.get("item_id", item["id"]) for event in events} == {item["id"]}


def test_each_thought_text_and_call_has_an_item_and_a_place() -> None:
    first, second = CallPiece(index=0, call_id="c1", name="f"), CallPiece(index=1, call_id="c2", name="g")
    events, items = written(
        Piece(text="", reasoning="Hm"),
        Piece(text="Well", reasoning="m"),
        Piece(text="", calls=(first, CallPiece(index=0, arguments='{"a"'))),
        Piece(text="", calls=(CallPiece(index=0, arguments=": 1}"), second, CallPiece(index=1, arguments="{}"))),
    )
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "Hmm"}]
    assert items[0]["summary"] == []
    assert [(item["call_id"], item["name"], item["arguments"]) for item in items[2:]] == [
        ("c1", "f", '{"a": 1}'), ("c2", "g", "{}"),
    ]  # fmt: skip
    places = [event["output_index"] for event in events]
    assert places == sorted(places)
    assert set(places) == {0, 1, 2, 3}
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(one["arguments"], one["name"]) for one in done] == [('{"a": 1}', "f"), ("{}", "g")]
    for event in nonempty(event for event in events if event["type"] == "response.output_item.done"):
        assert event["item"]["id"] == items[event["output_index"]]["id"]


@pytest.mark.parametrize("summarises", [False, True])
def test_a_thought_goes_back_by_its_encrypted_content_alone(summarises: bool) -> None:
    items = written(Piece(text="A", reasoning="Thöught"), summarises=summarises, returns_encrypted=True)[1]
    sent = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": items[0]["encrypted_content"]}
    talk = [said("user", "Q"), sent, said("assistant", "A")]
    assert conversation(*talk)[1]["reasoning"] == "Thöught"
    # The whole item goes back as well. What is stored is its text.
    assert conversation(said("user", "Q"), *items)[1]["reasoning"] == "Thöught"
    (kept,) = item_documents(parsed_items([sent]))
    assert kept["content"] == [{"type": "reasoning_text", "text": "Thöught"}]
    assert "encrypted_content" not in kept
    assert "encrypted_content" not in written(Piece(text="A", reasoning="T"), summarises=summarises)[1][0]


def test_reasoning_may_come_as_the_summary() -> None:
    events, items = written(Piece(text="A", reasoning="T"), summarises=True)
    assert names(events)[:5] == [
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.done", "reasoning_summary_part.done",
    ]  # fmt: skip
    assert items[0]["summary"] == [{"type": "summary_text", "text": "T"}]
    assert "content" not in items[0]


def test_an_answer_that_is_cut_off_or_empty_still_has_its_items() -> None:
    assert [(one["type"], one["status"]) for one in written(Piece(text="A"), reason="length")[1]] == [
        ("message", "incomplete")
    ]
    assert [(one["type"], one["status"]) for one in written(Piece(text="", reasoning="T"), reason="length")[1]] == [
        ("reasoning", "incomplete")
    ]
    (thought, message) = written(Piece(text="", reasoning="T"))[1]
    assert (thought["status"], message["content"][0]["text"]) == ("completed", "")
    (message,) = written()[1]
    assert message["content"][0]["text"] == ""


def test_likelihoods_come_with_the_text_that_they_belong_to() -> None:
    token = TokenLikelihood(token="A", log_probability=-0.5)
    half = TokenLikelihood(token="\ufffd", log_probability=-1.0)
    piece = Piece(text="A", tokens=(WrittenToken(chosen=token, offset=0, top=(token, half)),))
    events, items = written(piece, returns_logprobs=True)
    expected = {"token": "A", "logprob": -0.5, "bytes": [65]}
    shown = expected | {"top_logprobs": [expected, {"token": "\ufffd", "logprob": -1.0, "bytes": []}]}
    assert items[0]["content"][0]["logprobs"] == [shown]
    assert next(event for event in events if event["type"].endswith("text.delta"))["logprobs"] == [shown]
    assert written(piece)[1][0]["content"][0]["logprobs"] == []


def test_calls_that_are_written_at_once_are_items_one_after_the_other() -> None:
    first, second = CallPiece(index=0, call_id="a", name="f"), CallPiece(index=1, call_id="b", name="g")
    events, items = written(
        Piece(text="", calls=(first, second)),
        Piece(text="", calls=(CallPiece(index=1, arguments='{"b": '), CallPiece(index=0, arguments='{"a": '))),
        Piece(text="", calls=(CallPiece(index=1, arguments="2}"), CallPiece(index=0, arguments="1}"))),
    )
    assert [(item["name"], item["arguments"]) for item in items] == [("f", '{"a": 1}'), ("g", '{"b": 2}')]
    deltas: dict[str, str] = {}
    for event in events:
        if event["type"] == "response.function_call_arguments.delta":
            deltas[event["item_id"]] = deltas.get(event["item_id"], "") + event["delta"]
    assert deltas == {item["id"]: item["arguments"] for item in items}
    places = [event["output_index"] for event in events]
    assert places == sorted(places)


def test_text_behind_a_call_in_the_same_piece_is_an_item_of_its_own() -> None:
    begin = CallPiece(index=0, call_id="c1", name="f", arguments='{"a": ')
    # As engines send it that write several tokens at once: the rest of a call, text, and the next call.
    both = (CallPiece(index=0, arguments="1}"), CallPiece(index=1, call_id="c2", name="g", arguments="{}"))
    _, items = written(Piece(text="", calls=(begin,)), Piece(text="Well", calls=both))
    assert [item["type"] for item in items] == ["function_call", "message", "function_call"]
    assert [items[0]["arguments"], items[1]["content"][0]["text"], items[2]["arguments"]] == ['{"a": 1}', "Well", "{}"]


def test_a_count_is_the_prompt_of_the_answer_and_writes_nothing() -> None:
    given = {"model": "m", "input": "Q", "instructions": "I", "truncation": "auto"}
    messages = messages_of("I", parsed_items([said("user", "Q")]), 0)
    answered = response_request(ResponseBody.model_validate(given), messages, 100)
    asked = prompt_request(TokenCountBody.model_validate(given), messages)
    assert (asked.counts_tokens, answered.counts_tokens) == (True, False)
    assert (asked.conversation, asked.drops_oldest) == (answered.conversation, answered.drops_oldest)
