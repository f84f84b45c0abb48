"""Answers that keep to a form: which tokens may come next, worked out by llguidance from a JSON schema or a grammar.

A mask over the vocabulary before every draw: what is drawn is what the model finds likeliest of what the form allows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import RequestError
from luthier.core.json_schema import check_schema
from luthier.ml.inference.answer_row import Guide
from luthier.ml.inference.tool_calls import COMPACT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Guides:
    """Makes guides for the answers of one model. num_logits: how many logits it gives; end_ids: its end tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, num_logits: int, end_ids: Sequence[int]) -> None:
        self._tokenizer, self._num_logits, self._end_ids = tokenizer, num_logits, list(end_ids)

    def of_schema(self, schema: dict[str, Any]) -> Callable[[], Guide]:
        """Of JSON and nothing else. Raises RequestError for a schema that cannot be followed to the letter."""
        check_schema(schema)
        library = _library()
        try:
            grammar = library.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPACT)
        except ValueError as error:
            raise _refused(str(error)) from error
        return self._guide(grammar)

    def of_grammar(self, grammar: str) -> Callable[[], Guide]:
        """Of a grammar in llguidance's dialect of Lark. Raises RequestError for one that cannot be followed."""
        return self._guide(_library().LLMatcher.grammar_from_lark(grammar))

    def _guide(self, grammar: str) -> Callable[[], Guide]:
        first = _library().LLMatcher(self._known, grammar, log_level=0)
        if first.is_error():
            raise _refused(first.get_error())
        return lambda: _Guide(first.deep_copy(), self._num_logits)

    @cached_property
    def _known(self) -> Any:
        """The vocabulary as llguidance wants it, which takes a second: made once, when the first guide is needed."""
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, n_vocab=self._num_logits, eos_token=self._end_ids)


class _Guide:
    """Of one answer."""

    def __init__(self, matcher: Any, num_logits: int) -> None:
        self._matcher, self._num_logits = matcher, num_logits

    def mask(self, logits: Tensor) -> Tensor:
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        shifts = torch.arange(8, dtype=torch.uint8)
        allowed = ((bits[:, None] >> shifts) & 1).reshape(-1)[: self._num_logits].bool()
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            # A form that is too complex is so the next time, too: no error that clients repeat a request after.
            raise RequestError(
                f"the answer left its form: {self._matcher.get_error()[:200]}",
                expected="a form that can be followed",
                do="ask with a simpler schema",
            )


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise RequestError(
            "an answer that keeps to a schema, and llguidance is not installed on the server",
            expected="the package llguidance",
            do="pip install llguidance, or ask without response_format and without tool_choice",
        ) from error
    return llguidance


def _refused(reason: str) -> RequestError:
    first = next((line for line in reason.splitlines() if line.strip()), "")
    return RequestError(
        f"a schema that cannot be followed: {first[:300]}",
        expected="a JSON schema of what can be enforced (type, properties, required, enum, items, anyOf, ...)",
        do="take out the keyword that the message names",
    )
