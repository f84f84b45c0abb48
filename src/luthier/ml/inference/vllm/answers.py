"""Likelihoods and greedy tokens of token ids, as a running vLLM gives them: what proofs of its models compare.

vLLM lists the likeliest tokens of each position and the token of the prompt, never its whole vocabulary. Every other
token gets the log-probability of the last one listed, which is the most that it can have.

`prompt_logprobs` give a whole prompt at once, and are asked only of a server without adapters: vLLM 0.32 on a CPU ends
where such a request is computed together with others while adapters are enabled (`add_lora_logits` takes one adapter an
answer, and there is a row for each token). Elsewhere each position is its own request, for one new token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import WorkError

NUM_LISTED: Final = 64
"""Tokens that vLLM lists at a position; it is started with this `--max-logprobs`."""
# Overrides vLLM's defaults from the model's generation_config.json: only the request determines sampling.
NO_DEFAULTS: Final = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_GREEDY: Final = {"temperature": 0.0, "top_p": 1.0, **NO_DEFAULTS}
_TOKEN_ID: Final = "token_id:"  # noqa: S105 - no secret

_AT_ONCE: Final = 8

Complete = Callable[[dict[str, Any]], dict[str, Any]]
"""Sends a body to `/v1/completions` and returns the document; raises WorkError where there is none."""


class VllmAnswers:
    """One model of a vLLM server: its base, or an adapter by its name.

    Args:
        complete: sends a request to the server.
        model: the name of the model there.
        vocabulary: the number of logits.
    """

    def __init__(self, complete: Complete, model: str, vocabulary: int) -> None:
        self._complete, self._model, self._vocabulary = complete, model, vocabulary

    def after(self, ids: Sequence[int]) -> dict[int, float]:
        """Log-probabilities of the listed tokens after `ids`.

        Raises:
            WorkError: vLLM does not answer, or its answer has no likelihoods.
        """
        body = {"prompt": list(ids), "max_tokens": 1, "logprobs": NUM_LISTED, "return_tokens_as_token_ids": True}
        choice = self._choice(body)
        try:
            return _of_new_token(choice)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(choice, "the log-probabilities of the new token") from error

    def listed(self, ids: Sequence[int]) -> list[dict[int, float]]:
        """Log-probabilities of the listed tokens after each position of `ids`, by one request (see above).

        Raises:
            WorkError: vLLM does not answer, or its answer has no likelihoods.
        """
        body = {
            "prompt": list(ids),
            "max_tokens": 1,
            "prompt_logprobs": NUM_LISTED,
            "logprobs": NUM_LISTED,
            "return_tokens_as_token_ids": True,
        }
        choice = self._choice(body)
        try:
            # The first token of a prompt follows nothing, so it has no likelihood.
            rows = [{int(token): float(one["logprob"]) for token, one in row.items()} for row in _rows(choice)]
            rows.append(_of_new_token(choice))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(choice, "the log-probabilities of every position") from error
        if len(rows) != len(ids):
            raise _unreadable(choice, f"{len(ids)} positions with log-probabilities")
        return rows

    def log_probabilities(self, ids: Sequence[int], start: int = 0, *, at_once: bool) -> NDArray[np.float32]:
        """[len(ids) - start, vocabulary] of natural logarithms; row i belongs to the token after position i.

        Args:
            ids: the tokens.
            start: the first position.
            at_once: by one request; otherwise by one a position.

        Raises:
            WorkError: vLLM does not answer, or its answer has no likelihoods.
        """
        if at_once:
            found = self.listed(ids)[start:]
        else:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found = list(pool.map(self.after, [ids[: place + 1] for place in range(start, len(ids))]))
        rows = np.empty((len(found), self._vocabulary), dtype=np.float32)
        for row, listed in zip(rows, found, strict=True):
            row.fill(min(listed.values()))
            row[list(listed)] = list(listed.values())
        return rows

    def greedy(
        self, ids: Sequence[int], num_new_tokens: int, end_ids: frozenset[int], *, sends_ends: bool
    ) -> list[int]:
        """The likeliest tokens after `ids`, without the token that ends the answer.

        Args:
            ids: the prompt.
            num_new_tokens: the largest number of new tokens.
            end_ids: the tokens that end an answer.
            sends_ends: whether the request names them; otherwise vLLM has to know them from the model's files.

        Raises:
            WorkError: vLLM does not answer, or its answer has no token ids.
        """
        choice = self._choice(
            {
                "prompt": list(ids),
                "max_tokens": num_new_tokens,
                "return_token_ids": True,
                "stop_token_ids": sorted(end_ids) if sends_ends else [],
            }
        )
        tokens = choice.get("token_ids")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise _unreadable(choice, "the ids of the new tokens")
        ends = [place for place, token in enumerate(tokens) if token in end_ids]
        return tokens[: ends[0]] if ends else tokens

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        document = self._complete({"model": self._model, **_GREEDY, **body})
        try:
            choice: dict[str, Any] = document["choices"][0]
        except (LookupError, TypeError) as error:
            raise _unreadable(document, "a completion") from error
        return choice


def largest_difference(some: Mapping[int, float], others: Mapping[int, float]) -> float:
    """The largest difference of log-probabilities over the tokens that both list, in nats."""
    pairs = [abs(nats - others[token]) for token, nats in some.items() if token in others]
    return max(pairs, default=float("inf"))


def _of_new_token(choice: Mapping[str, Any]) -> dict[int, float]:
    listed = choice["logprobs"]["top_logprobs"][0]
    return {int(text.removeprefix(_TOKEN_ID)): float(nats) for text, nats in listed.items()}


def _rows(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = choice["prompt_logprobs"][1:]
    return rows


def _unreadable(document: object, expected: str) -> WorkError:
    return WorkError(
        f"vLLM's answer: {str(document)[:300]}",
        expected=expected,
        do="install a version of vLLM from 0.12 on, which returns them",
    )
