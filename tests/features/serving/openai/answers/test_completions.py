"""Texts that a model goes on with, asked by the unmodified OpenAI client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from tests.vacuous import nonempty

from luthier.features.serving.api.completions import CompletionBody, completion_requests


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    def create(**wishes: Any) -> Any:
        given = {"model": "tiny", "prompt": "The front is made of", "temperature": 0} | wishes
        return client.completions.create(**given)

    return create


def test_a_text_goes_on(ask: Callable[..., Any]) -> None:
    made = ask()
    assert (made.object, made.model, made.choices[0].index) == ("text_completion", "tiny", 0)
    assert made.id.startswith("cmpl-")
    assert made.choices[0].finish_reason in ("stop", "length")
    assert made.usage.completion_tokens <= 16
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_several_prompts_are_counted_through_and_streamed_alike(ask: Callable[..., Any]) -> None:
    wishes: dict[str, Any] = {"prompt": ["The front", "Maple is"], "n": 2, "temperature": 1.0, "seed": 1}
    whole = ask(**wishes)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in whole.choices[2:]] == [
        choice.text for choice in ask(**wishes | {"prompt": "Maple is"}).choices
    ]
    *chunks, last = ask(**wishes, stream=True, stream_options={"include_usage": True})
    texts = ["", "", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert (last.choices, last.usage) == ([], whole.usage)


def test_a_request_may_have_as_many_prompts_as_langchain_sends_at_once() -> None:
    prompts = [f"Row {number} is" for number in range(20)]
    body = CompletionBody.model_validate({"model": "tiny", "prompt": prompts})
    assert [request.text for request in completion_requests(body)] == prompts


def test_likelihoods_have_their_places_in_the_text(ask: Callable[..., Any]) -> None:
    made = ask(logprobs=2, max_tokens=5)
    told = made.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == made.usage.completion_tokens
    assert told.text_offset == sorted(told.text_offset)
    assert all(nonempty(1 <= len(top) <= 2 for top in told.top_logprobs))


@pytest.mark.parametrize(
    ("wishes", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"extra_body": {"messages": []}}, "messages"),
    ],
)
def test_what_cannot_be_done_is_refused(ask: Callable[..., Any], wishes: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(**wishes)
    assert param is None or str(caught.value.param).startswith(param)


def test_a_prompt_may_come_as_token_ids(client: openai.OpenAI) -> None:
    made = client.completions.create(model="tiny", prompt=[[5, 6, 7], [8]], max_tokens=3, temperature=0)
    alone = client.completions.create(model="tiny", prompt=[8], max_tokens=3, temperature=0)
    assert made.usage is not None
    assert made.usage.prompt_tokens == 4
    assert made.choices[1].text == alone.choices[0].text
    with pytest.raises(openai.BadRequestError, match="token id 99999"):
        client.completions.create(model="tiny", prompt=[99999])
