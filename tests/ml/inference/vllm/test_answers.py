"""vLLM's completions are read as log-probabilities by position and as token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from luthier.core.errors import WorkError
from luthier.ml.inference.vllm.answers import NUM_LISTED, VllmAnswers, largest_difference

# As vLLM 0.32 answers a prompt of three tokens: nothing before the first, then one row a token, then the new one.
_ANSWER: dict[str, Any] = {
    "choices": [
        {
            "prompt_logprobs": [
                None,
                {"7": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}, "2": {"logprob": -1.5, "rank": 4}},
                {"3": {"logprob": -2.0, "rank": 1, "decoded_token": "b"}},
            ],
            "logprobs": {"top_logprobs": [{"token_id:1": -0.25, "token_id:4": -3.0}]},
        }
    ]
}


def test_each_row_belongs_to_the_token_after_its_position() -> None:
    sent: list[dict[str, Any]] = []

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        sent.append(body)
        return _ANSWER

    answers = VllmAnswers(complete, "base", 8)
    rows = answers.log_probabilities([5, 7, 3], at_once=True)
    assert rows.shape == (3, 8)
    assert rows[0].tolist() == [-1.5] * 7 + [-0.5]
    assert rows[1].tolist() == [-2.0] * 8
    assert (rows[2][1], rows[2][4], rows[2][0]) == (-0.25, -3.0, -3.0)
    assert np.array_equal(answers.log_probabilities([5, 7, 3], 2, at_once=True), rows[2:])
    (body, _) = sent
    assert (body["model"], body["prompt"], body["temperature"]) == ("base", [5, 7, 3], 0.0)
    assert body["prompt_logprobs"] == body["logprobs"] == NUM_LISTED


def test_the_end_token_is_no_part_of_a_greedy_answer() -> None:
    sent: list[dict[str, Any]] = []

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        sent.append(body)
        return {"choices": [{"token_ids": [4, 5, 2, 9]}]}

    answers = VllmAnswers(complete, "a", 8)
    assert answers.greedy([1], 4, frozenset({2}), sends_ends=True) == [4, 5]
    assert answers.greedy([1], 4, frozenset({3}), sends_ends=False) == [4, 5, 2, 9]
    assert [body["stop_token_ids"] for body in sent] == [[2], []]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, "completion"),
        ({"choices": [{"logprobs": None}]}, "log-probabilities"),
        ({"choices": [{"prompt_logprobs": None, "logprobs": {"top_logprobs": [{}]}}]}, "log-probabilities"),
        ({"choices": [{**_ANSWER["choices"][0], "prompt_logprobs": [None]}]}, "3 positions"),
    ],
)
def test_an_answer_of_another_version_is_named(document: dict[str, Any], expected: str) -> None:
    with pytest.raises(WorkError, match="vLLM's answer") as caught:
        VllmAnswers(lambda _: document, "base", 8).listed([5, 7, 3])
    assert expected in caught.value.expected
    assert "0.12" in caught.value.do


def test_token_ids_that_are_missing_are_named() -> None:
    with pytest.raises(WorkError, match="vLLM's answer") as caught:
        VllmAnswers(lambda _: {"choices": [{"text": "Yes"}]}, "base", 8).greedy([1], 4, frozenset(), sends_ends=False)
    assert "ids of the new tokens" in caught.value.expected


def test_differences_are_taken_over_tokens_that_both_list() -> None:
    assert largest_difference({1: -1.0, 2: -2.0}, {1: -1.25, 3: -9.0}) == 0.25
    assert largest_difference({1: -1.0}, {2: -1.0}) == float("inf")


def test_beside_other_requests_each_position_is_asked_for_by_itself() -> None:
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        assert "prompt_logprobs" not in body
        last = body["prompt"][-1]
        return {"choices": [{"logprobs": {"top_logprobs": [{f"token_id:{last}": -0.5, "token_id:0": -2.0}]}}]}

    rows = VllmAnswers(complete, "a", 8).log_probabilities([5, 7, 3], 1, at_once=False)
    assert [(row.argmax(), float(row.max()), float(row.min())) for row in rows] == [(7, -0.5, -2.0), (3, -0.5, -2.0)]
    with pytest.raises(WorkError, match="vLLM's answer"):
        VllmAnswers(lambda _: {"choices": [{"logprobs": None}]}, "a", 8).after([5])
