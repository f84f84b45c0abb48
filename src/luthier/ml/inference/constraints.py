"""Constrained decoding: llguidance computes which tokens may come next from a JSON schema or a grammar.

Before each draw the logits of all other tokens are set to -inf, so sampling is renormalised over the allowed tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import RequestError
from luthier.core.text.json_schema import check_schema
from luthier.ml.inference.answer_row import Constraint
from luthier.ml.inference.tool_calls import COMPACT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ConstraintFactory:
    """Builds the constraints for the answers of one model.

    Args:
        tokenizer: The model's own tokenizer.
        num_logits: Width of the model's logits; may exceed the size of the tokenizer's vocabulary.
        end_ids: Ids of the tokens that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, num_logits: int, end_ids: Sequence[int]) -> None:
        self._tokenizer, self._num_logits, self._end_ids = tokenizer, num_logits, list(end_ids)

    def of_schema(self, schema: dict[str, Any]) -> Callable[[], Constraint]:
        """A constraint to JSON of this schema.

        Returns:
            A function that makes the constraint of one answer.

        Raises:
            RequestError: The schema has a keyword that cannot be enforced.
        """
        check_schema(schema)
        library = _library()
        try:
            grammar = library.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPACT)
        except ValueError as error:
            raise _refused(str(error)) from error
        return self._constraint(grammar)

    def of_grammar(self, grammar: str) -> Callable[[], Constraint]:
        """A constraint to a grammar in llguidance's dialect of Lark.

        Returns:
            A function that makes the constraint of one answer.

        Raises:
            RequestError: llguidance cannot compile the grammar.
        """
        return self._constraint(_library().LLMatcher.grammar_from_lark(grammar))

    def _constraint(self, grammar: str) -> Callable[[], Constraint]:
        first = _library().LLMatcher(self._known, grammar, log_level=0)
        if first.is_error():
            raise _refused(first.get_error())
        # The grammar is compiled once; each answer gets a copy of the parser in its first state.
        return lambda: _GrammarConstraint(first.deep_copy(), self._num_logits)

    @cached_property
    def _known(self) -> Any:
        """The vocabulary in llguidance's form. Building it takes a second, so it is built once, on first use."""
        # `n_vocab` is the width of the logits: ids past the tokenizer's own are then never allowed.
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, n_vocab=self._num_logits, eos_token=self._end_ids)


class _GrammarConstraint:
    """The constraint of one answer: the state of its parser."""

    def __init__(self, matcher: Any, num_logits: int) -> None:
        self._matcher, self._num_logits = matcher, num_logits

    def mask(self, logits: Tensor) -> Tensor:
        # The bitmask packs eight tokens into a byte, the lowest bit first: [vocabulary / 8] becomes [vocabulary].
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        shifts = torch.arange(8, dtype=torch.uint8)
        allowed = ((bits[:, None] >> shifts) & 1).reshape(-1)[: self._num_logits].bool()
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            # A retry would fail in the same way, so this is a client error (not retried) and no server error.
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
