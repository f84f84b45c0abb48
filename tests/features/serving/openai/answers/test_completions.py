"""Texts that a model goes on with, asked by the unmodified OpenAI client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from tests.vacuous import nonempty

from luthier.features.serving import prompt_window
from luthier.features.serving.api.completions import CompletionBody, completion_requests
from luthier.platform.home.context import Context


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


def test_many_prompts_are_answered_in_one_request_some_at_a_time(
    client: openai.OpenAI, served: tuple[Context, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lm-evaluation-harness asks for likelihoods: token ids, echo and one token."""
    monkeypatch.setattr(prompt_window, "PROMPTS_AT_ONCE", 3)  # this home has a queue of 4
    rows = [[5 + n % 90, 7, 9 + n % 40][: 2 + n % 2] for n in range(60)]
    wishes: dict[str, Any] = {"model": "tiny", "echo": True, "max_tokens": 1, "temperature": 0, "logprobs": 1}
    many = client.completions.create(prompt=rows, **wishes)
    assert [choice.index for choice in many.choices] == list(range(60))
    assert many.usage is not None
    assert many.usage.prompt_tokens == sum(map(len, rows))
    for place in (0, 1, 41, 59):
        (alone,) = client.completions.create(prompt=rows[place], **wishes).choices
        found, expected = many.choices[place].logprobs, alone.logprobs
        assert found is not None
        assert expected is not None
        assert found.tokens == expected.tokens
        assert found.token_logprobs[0] is None  # type: ignore[index]
        assert found.token_logprobs[1:] == pytest.approx(expected.token_logprobs[1:], abs=0.05)  # type: ignore[index]
    assert served[0].inference_client.num_under_way == 0


def test_without_a_prompt_the_refusal_says_what_to_send(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"no prompt.*<\|endoftext\|>"):
        client.post("/completions", body={"model": "tiny"}, cast_to=object)


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
        ({"prompt": ["a"] * 2049}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
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


def test_a_prompt_comes_back_before_its_answer(ask: Callable[..., Any]) -> None:
    text = "The front is made of"
    plain, echoed = ask(logprobs=2, max_tokens=5), ask(logprobs=2, max_tokens=5, echo=True)
    (answer,), (whole,) = plain.choices, echoed.choices
    assert whole.text == text + answer.text
    num_prompt = plain.usage.prompt_tokens
    told = whole.logprobs
    assert (
        len(told.tokens)
        == len(told.token_logprobs)
        == len(told.top_logprobs)
        == num_prompt + len(answer.logprobs.tokens)
    )
    assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
    assert told.token_logprobs[num_prompt:] == pytest.approx(answer.logprobs.token_logprobs, abs=1e-4)
    assert told.text_offset[num_prompt:] == [len(text) + offset for offset in answer.logprobs.text_offset]
    assert echoed.usage == plain.usage
    chunks = [one for one in ask(logprobs=2, max_tokens=5, echo=True, stream=True) if one.choices]
    assert "".join(one.choices[0].text for one in chunks) == whole.text
    streamed = [value for one in chunks if one.choices[0].logprobs for value in one.choices[0].logprobs.token_logprobs]
    assert streamed == pytest.approx(told.token_logprobs, abs=1e-4)


def test_a_prompt_comes_back_alone(ask: Callable[..., Any]) -> None:
    made = ask(prompt=["The front", "Maple is"], echo=True, max_tokens=0, n=2)
    assert [one.text for one in made.choices] == ["The front", "The front", "Maple is", "Maple is"]
    assert {one.finish_reason for one in made.choices} == {"length"}
    assert (made.usage.completion_tokens, made.choices[0].logprobs) == (0, None)


def test_answers_are_scored_as_lm_evaluation_harness_does_it(client: openai.OpenAI) -> None:
    """Its model `local-completions`: context and continuation as token ids, the sum over the continuation's."""
    rows = [([5, 6, 7], [8, 9]), ([10], [11, 12, 13]), ([5, 6, 7], [20])]
    # One more token is written, which is cut off: `max_tokens: 0` is no part of every server.
    made = client.completions.create(
        model="tiny", prompt=[[*before, *after] for before, after in rows], max_tokens=1, logprobs=1, echo=True,
        temperature=0, seed=1234,
    )  # fmt: skip
    for choice, (before, after) in zip(sorted(made.choices, key=lambda one: one.index), rows, strict=True):
        assert choice.logprobs is not None
        sums, tops = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
        assert sums is not None
        assert tops is not None
        own = slice(len(before), -1)
        assert len(sums[own]) == len(after)
        # Token after token, as the likeliest tokens of an answer of one token.
        for place, token in enumerate(after):
            alone = client.completions.create(
                model="tiny", prompt=[*before, *after[:place]], max_tokens=1, logprobs=1, logit_bias={str(token): 100},
                temperature=0,
            )  # fmt: skip
            likelihoods = alone.choices[0].logprobs
            assert likelihoods is not None
            assert likelihoods.token_logprobs is not None
            assert sums[own][place] == pytest.approx(likelihoods.token_logprobs[0], abs=1e-4)
            is_likeliest = sums[own][place] == max(tops[own][place].values())
            assert is_likeliest == (len(tops[own][place]) == 1)


def test_the_chosen_token_is_always_among_the_likeliest(ask: Callable[..., Any]) -> None:
    made = ask(logprobs=0, max_tokens=2)
    told = made.choices[0].logprobs
    expected = [{token: value} for token, value in zip(told.tokens, told.token_logprobs, strict=True)]
    assert told.top_logprobs == expected
