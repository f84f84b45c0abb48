"""One answer of llama.cpp's server: the document that requests it, and its chunks read back as events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

from luthier.core.errors import LuthierError, OverlongError, RequestError, WorkError
from luthier.core.stream import Ended, Piece, TextRequest, TokenLikelihood, WrittenToken
from luthier.ml.inference.engine_prompts import CallsInText
from luthier.ml.inference.thoughts import NO_THINKING, AnswerText, Thinking

# llama.cpp cannot tell the answer from the prompt: a longer window would penalise the words of a long prompt.
_PENALISED_TOKENS: Final = 64
# The largest seed means "any" to llama.cpp.
_NUM_SEEDS: Final = (1 << 32) - 1


def request_body(
    asked: TextRequest,
    choice: int,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    scales: list[dict[str, Any]],
    slot: int,
    grammar: str | None = None,
    shown_marks: Sequence[str] = (),
    reuses_prompts: bool = True,
) -> dict[str, Any]:
    """The document that requests one choice.

    Every option that changes what is drawn is set, since llama.cpp's own defaults cut off unlikely tokens.

    Args:
        asked: the request.
        choice: number of the choice, from 0.
        ids: of the prompt.
        max_new_tokens: of thought and answer.
        scales: of all adapters (`LlamaServer.scales`).
        slot: of the server.
        grammar: what the answer must follow; None for nothing.
        shown_marks: special tokens that are to appear in the text.
        reuses_prompts: whether the slot resumes from what it has read.
    """
    rules = asked.sampling
    # In the order of `Sampler`. llama.cpp's default list has more samplers, in another order.
    names = {"min_p": rules.min_p > 0, "top_k": rules.top_k > 0, "top_p": True}
    truncating = [name for name, is_used in names.items() if is_used]
    body: dict[str, Any] = {
        "prompt": list(ids),
        "max_tokens": max_new_tokens,
        "stream": True,
        "timings_per_token": True,
        # A chunk after each part of a prompt that was read: only where one comes can an answer be stopped.
        "return_progress": True,
        "lora": scales,
        # Together: the slot continues from what it has read of this prompt before.
        "id_slot": slot,
        "cache_prompt": reuses_prompts,
        "temperature": 0.0 if rules.is_greedy else rules.temperature,
        # The likeliest token alone is left by top_k, which spares a softmax over the whole vocabulary.
        "samplers": ["penalties", "top_k"] if rules.is_greedy else ["penalties", "temperature", *truncating],
        "top_k": 1 if rules.is_greedy else rules.top_k,
        "min_p": rules.min_p,
        "top_p": 1.0 if rules.is_greedy else rules.top_p,
        "seed": (rules.seed + choice) % _NUM_SEEDS,  # each choice draws for itself
        "frequency_penalty": rules.frequency_penalty,
        "presence_penalty": rules.presence_penalty,
        "repeat_last_n": _PENALISED_TOKENS,
        "repeat_penalty": 1.0,
    }
    if rules.logit_bias:
        body["logit_bias"] = [[token, bias] for token, bias in rules.logit_bias]
    if grammar is not None:
        body["grammar"] = grammar
    if shown_marks:
        body["preserved_tokens"] = list(shown_marks)
    if asked.num_top is not None:
        # 0 would switch likelihoods off.
        body["logprobs"] = max(1, asked.num_top)
    return body


class AnswerReader:
    """Reads the chunks of one choice. `ended` is set with the last event, of any kind; `received` is the raw text.

    Args:
        asked: the request.
        choice: number of the answer among those of the request.
        calls: finds tool calls in the text.
        thinking: how reasoning is delimited and limited.
    """

    def __init__(self, asked: TextRequest, choice: int, calls: CallsInText, thinking: Thinking = NO_THINKING) -> None:
        self._asked, self._choice, self._calls = asked, choice, calls
        self._answer = AnswerText(asked, thinking, calls.for_stops)
        self._num_new = self._num_characters = self._num_emitted = self._num_before = 0
        self._num_cached: int | None = None
        self._open_tokens: list[WrittenToken] = []
        self.received = ""
        self.ended = False

    def resume(self) -> int:
        """Count what follows as written by another request; returns the tokens that were written before."""
        self._num_before = self._num_new
        return self._num_before

    def end_at_limit(self) -> list[Piece | Ended]:
        """The events of an answer that has as many tokens as it may have."""
        return self._end("length", self._num_new)

    def read(self, chunk: str) -> list[Piece | Ended]:
        """The events of a chunk.

        Raises:
            LuthierError: it reports a failure.
        """
        document = json.loads(chunk)
        if "choices" not in document:
            raise _failure(document)
        if "prompt_progress" in document:  # a part of the prompt was read; nothing is written yet
            return []
        said = document["choices"][0]
        timings = document.get("timings") or {}
        if self._num_cached is None:  # a request that continues the answer finds more: what this one has read
            self._num_cached = timings.get("cache_n")
        # The count has the end token in it.
        if (num_written := timings.get("predicted_n")) is not None:
            self._num_new = self._num_before + int(num_written)
        text = said.get("text") or ""
        self.received += text
        self._add_tokens((said.get("logprobs") or {}).get("content") or (), text)
        pieces: list[Piece | Ended] = self._piece(*self._answer.add(text, self._num_new))
        if self._answer.found_stop:
            return [*pieces, *self._end("stop", self._num_new)]
        if (reason := said.get("finish_reason")) is None:
            return [*pieces, *self._end("length", self._num_new)] if self._answer.is_full(self._num_new) else pieces
        # `predicted_n` counts the end token, which is not part of an answer.
        num_new = self._num_new - 1 if reason == "stop" else self._num_new
        return [*pieces, *self._end("stop" if reason == "stop" else "length", max(num_new, 0))]

    def _end(self, reason: Literal["stop", "length"], num_new: int) -> list[Piece | Ended]:
        was_found = self._answer.found_stop
        reasoning, left = ("", "") if was_found else self._answer.end(num_new)
        if self._answer.found_stop:
            num_emitted = self._answer.num_dropped + self._num_emitted + len(left)
            self._open_tokens = [token for token in self._open_tokens if token.offset < num_emitted]
            reason = "stop"
        elif reason == "stop" and self._open_tokens and not self._open_tokens[-1].chosen.token:
            self._open_tokens.pop()  # the end token itself
        self.ended = True
        self._num_new = num_new
        last = self._piece(reasoning, left, is_last=True)
        ended = Ended(
            choice=self._choice,
            reason=self._calls.reason(reason),
            num_new_tokens=num_new,
            num_cached_tokens=self._num_cached or 0,
            num_thinking_tokens=min(self._answer.num_thinking, num_new),
            ends_in_thought=self._answer.ends_in_thought,
            stop_text=self._answer.stop_text,
        )
        return [*last, ended]

    def _piece(self, reasoning: str, text: str, *, is_last: bool = False) -> list[Piece | Ended]:
        self._num_emitted += len(text)
        tokens: list[WrittenToken] = []
        if self._open_tokens and (text or reasoning or is_last):
            num_emitted = self._answer.num_dropped + self._num_emitted
            tokens = [token for token in self._open_tokens if is_last or token.offset < num_emitted]
            self._open_tokens = self._open_tokens[len(tokens) :]
        num_thought = self._answer.num_of_thought(tokens)
        text, calls = self._calls.split(text, is_last=is_last)
        kept = self._calls.text_tokens(tokens, num_thought, self._answer.answer_start, is_last=is_last)
        if not (text or reasoning or kept or calls):
            return []
        return [
            Piece(
                choice=self._choice,
                text=text,
                num_new_tokens=self._num_new,
                tokens=kept,
                num_thought_tokens=num_thought,
                calls=calls,
                reasoning=reasoning,
            )
        ]

    def _add_tokens(self, said: Sequence[dict[str, Any]], text: str) -> None:
        # Text that was held back because a character was not complete comes with the token that completes it.
        place = self._num_characters + max(0, len(text) - sum(len(token["token"]) for token in said))
        for token in said:
            self._open_tokens.append(self._token(token, place))
            place += len(token["token"])
        self._num_characters += len(text)

    def _token(self, token: dict[str, Any], offset: int) -> WrittenToken:
        top = token.get("top_logprobs") or ()
        return WrittenToken(
            chosen=TokenLikelihood(token=token["token"], log_probability=token["logprob"]),
            offset=offset,
            top=tuple(
                TokenLikelihood(token=one["token"], log_probability=one["logprob"])
                for one in top[: self._asked.num_top or 0]
            ),
        )


def _failure(document: dict[str, Any]) -> LuthierError:
    error = document.get("error")
    error = error if isinstance(error, dict) else document
    words = f"llama.cpp says: {error.get('message') or json.dumps(document)[:400]}"
    if error.get("type") == "exceed_context_size_error":
        return OverlongError(words, expected="a prompt that fits into the context", do="shorten the prompt")
    if error.get("code") == 400:
        return RequestError(words, expected="a request that llama.cpp takes", do="see what it says")
    return WorkError(words, expected="an answer", do="ask again; the log of the server says more")
