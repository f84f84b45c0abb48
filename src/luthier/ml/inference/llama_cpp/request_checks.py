"""What a request must be so that llama.cpp can answer it."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.errors import RequestError, UnsupportedError
from luthier.core.stream import TextRequest


def check_request(request: TextRequest, vocabulary: int, *, drafts: bool) -> None:
    """Check a request before its prompt is read.

    Args:
        request: to be answered.
        vocabulary: tokens of the model.
        drafts: whether the server drafts tokens.

    Raises:
        RequestError: not one prompt, or a token that the model does not have.
        UnsupportedError: likelihoods of drafted tokens.
    """
    if sum(one is not None for one in (request.conversation, request.text, request.token_ids)) != 1:
        raise RequestError(
            "not exactly one of conversation, text and token_ids", expected="exactly one", do="set one of them"
        )
    if request.num_top is not None and drafts:
        raise UnsupportedError(
            "likelihoods of tokens from an engine with speculative decoding",
            expected="a request without logprobs: llama.cpp gives none for tokens that were drafted",
            do="leave logprobs out, or have the server started without speculative_config",
            param="logprobs",
        )
    biased = [token for token, _ in request.sampling.logit_bias]
    if biased and not 0 <= min(biased) <= max(biased) < vocabulary:
        raise RequestError(
            f"logit_bias for tokens {min(biased)} to {max(biased)}",
            expected=f"ids of this model's own tokenizer, 0 to {vocabulary - 1}",
            do="leave the others out",
        )


def check_ids(ids: Sequence[int] | None, vocabulary: int) -> None:
    """Check the tokens of a prompt; None is not checked.

    Args:
        ids: of the prompt.
        vocabulary: tokens of the model.

    Raises:
        RequestError: there are none, or one that the model does not have.
    """
    if ids is not None and (not ids or min(ids) < 0 or max(ids) >= vocabulary):
        raise RequestError(
            f"a prompt of {len(ids)} tokens" + (f", ids {min(ids)} to {max(ids)}" if ids else ""),
            expected=f"at least one token, each from 0 to {vocabulary - 1}",
            do="correct the prompt",
        )
