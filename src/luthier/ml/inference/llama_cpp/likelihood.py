"""Exact likelihoods of given tokens from llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import DivergedError, RequestError
from luthier.core.ports import Progress, Score
from luthier.ml.inference.llama_cpp.library import LlamaLibrary


def score_with_llama_cpp(
    model: Path, examples: Sequence[TokenisedExample], progress: Progress, *, num_threads: int
) -> list[Score]:
    """One score an example, in order, by the model of a GGUF file without an adapter.

    Args:
        model: the GGUF file.
        examples: tokenised by the tokenizer of this model.
        progress: advanced by each row.
        num_threads: of llama.cpp.

    Raises:
        RequestError: llama-cpp-py-sync is missing, or an example does not fit the model.
        WorkError: llama.cpp fails.
        DivergedError: a likelihood is not finite.
    """
    if not examples:
        return []
    with (
        closing(LlamaLibrary(model, num_threads=num_threads)) as library,
        progress.task("Scoring", len(examples), "rows") as task,
    ):
        # Once, for the longest row: each growth opens a new context.
        library.make_room(min(library.context_tokens, max(example.num_tokens for example in examples)))
        found = []
        for example in examples:
            found.append(_score(library, example))
            task.advance()
    return found


def _score(library: LlamaLibrary, example: TokenisedExample) -> Score:
    """Nats over the learned tokens of a row, how many, and how many were the likeliest."""
    ids, mask = example.input_ids, example.loss_mask
    if not ids or len(ids) > library.context_tokens or min(ids) < 0 or max(ids) >= library.vocabulary or mask[0]:
        raise RequestError(
            f"{example.id} has {len(ids)} tokens" + (f", ids {min(ids)} to {max(ids)}" if ids else ""),
            expected=f"1 to {library.context_tokens} tokens of this model's own tokenizer, 0 to "
            f"{library.vocabulary - 1}, the first one not learned",
            do="tokenise the rows with the tokenizer of this model, and shorten those that are too long",
        )
    nats, num_correct = 0.0, 0
    # Token t is predicted by the logits after token t - 1; the last token predicts none.
    before_learned = [*(bool(learned) for learned in mask[1:]), False]
    for place, row in library.logits(ids, before_learned):
        # log-sum-exp in float64, the largest logit taken off first so that nothing overflows.
        peak = float(row.max())
        own = float(row[ids[place + 1]])
        nats += peak + float(np.log(np.exp(row - peak, dtype=np.float64).sum())) - own
        num_correct += int(row.argmax()) == ids[place + 1]
    if not np.isfinite(nats):
        raise DivergedError(
            f"the likelihood of {example.id} is not a finite number",
            expected="finite logits",
            do="the weights hold NaN or infinity: export the model again",
        )
    return Score(nll_nats=max(nats, 0.0), num_tokens=example.num_trained_tokens, num_correct=num_correct)
