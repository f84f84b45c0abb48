"""Batch generation for many prompts: batches of similar length, with a common prefix computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Final

from luthier.ml.inference.batches import common_prefix_length, length_batches
from luthier.ml.inference.decode import Continuation, Decoder, Prefix, Request
from luthier.ml.inference.side_by_side import Advance, BatchRunner, Form, one_after_another

# Keys and values of this many tokens: 0.4 GB for SmolLM2-135M in bfloat16, 2 GB for an 8B model.
DEFAULT_BATCH_TOKENS: Final = 16_384
# Below that, one more forward pass costs more than the shared tokens save.
MIN_SHARED_TOKENS: Final = 32
MAX_GENERATE_ROWS: Final = 32


def batch_generate(
    decoder: Decoder,
    requests: Sequence[Request],
    advance: Advance,
    *,
    prefix: Prefix | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    shares_prefix: bool = True,
    run: BatchRunner = one_after_another,
    known: Mapping[int, Continuation] | None = None,
    keep: Callable[[Mapping[int, Continuation]], None] = lambda _: None,
) -> list[Continuation]:
    """One continuation a request, in order.

    Args:
        decoder: over the model.
        requests: the prompts with their limits, temperatures and seeds.
        advance: called with how many more requests have ended.
        prefix: what precedes every prompt already (`Decoder.run`); with none, what all begin with is found here where
            it is at least 32 tokens long.
        batch_tokens: how many tokens' keys and values a batch may hold.
        shares_prefix: whether a common prefix may be computed once.
        run: has the batches computed.
        known: continuations by the number of their request, of an earlier call with the same requests that did not
            come to its end. Batches are the same with and without them; those that are known as a whole are not
            computed again.
        keep: called with the continuations of each batch as it is done.

    Raises:
        DivergedError: the model's logits are NaN.
    """
    if not requests:
        return []
    # New tokens count too: a batch's cache grows to prompt + answer, and must fit the windows at its end.
    totals = [len(request.ids) + request.max_new_tokens for request in requests]
    # Rows are padded to the longest prompt and grow by the longest answer, which may be those of two requests.
    widest = max(len(request.ids) for request in requests) + max(request.max_new_tokens for request in requests)
    if prefix is None and shares_prefix and decoder.fits_windows(widest):
        num_shared = _num_shared(requests)
        prefix = decoder.prefill(requests[0].ids[:num_shared]) if num_shared else None
    batches = length_batches(totals, max_tokens=batch_tokens, max_rows=MAX_GENERATE_ROWS)
    # How a batch is written is proved here, before other processes write some of them.
    for batch in batches:
        decoder.path_of(max(totals[i] for i in batch))
    found = dict(known or {})
    left = [batch for batch in batches if any(i not in found for i in batch)]

    def write(number: int, advance: Advance) -> list[Continuation]:
        return decoder.run([requests[i] for i in left[number]], prefix, lambda _: advance(1))

    def done(number: int, written: list[Continuation]) -> None:
        made = dict(zip(left[number], written, strict=True))
        found.update(made)
        keep(made)

    run(len(left), write, advance, lambda: _CONTINUATIONS, done)
    return [found[number] for number in range(len(requests))]


_CONTINUATIONS: Final[Form[list[Continuation]]] = Form(
    encode=lambda _, made: [astuple(one) for one in made],
    decode=lambda _, message: [Continuation(*one) for one in message],
)


def _num_shared(requests: Sequence[Request]) -> int:
    """The number of leading tokens to compute once; 0 if it saves nothing. At least one token per prompt remains."""
    if len(requests) < 2:
        return 0
    shortest = min(len(request.ids) for request in requests)
    # A row needs at least one separate token: its last position gives the logits of the first new token.
    num_shared = min(common_prefix_length([request.ids for request in requests]), shortest - 1)
    return num_shared if num_shared >= MIN_SHARED_TOKENS else 0
