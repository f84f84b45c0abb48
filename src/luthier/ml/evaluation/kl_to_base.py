"""How far a tuned model moved from its base on the task's own prompts: mean KL(tuned || base) a token.

At every token of the rows' own answers both models give a distribution over the whole vocabulary, and the divergence of
the two is computed exactly, not from samples. Fine-tuning that moves less on its own task was seen to forget less of
others, so this tells of forgetting where there are no general rows to measure it on. It is no accuracy: a model that
learned much also moved.

Each model goes once over the rows and leaves the hidden states before the answers' tokens, which are a vocabulary over
a width smaller than its logits; so only one model is in memory at a time.

Source: Shenfeld, Pari and Agrawal, 2025, "RL's Razor: Why Online Reinforcement Learning Forgets Less",
arXiv:2509.04259, section 4 (KL on the task's prompts predicts forgetting; they take the other direction, base || tuned,
over drawn answers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from luthier.core.dataset import TokenisedExample
from luthier.core.evaluation import KlToBase
from luthier.core.ports import ProgressTask
from luthier.core.records.bounds import Bounds
from luthier.ml.evaluation.metrics.protocol import mean_of_sums
from luthier.ml.evaluation.statistics import bootstrap_interval
from luthier.ml.inference.models.forward import ScaledHead

MAX_STATE_BYTES: Final = 256 << 20
"""Of the states of one model; of more rows, equally spaced ones are taken."""
CHUNK_TOKENS: Final = 128
"""Positions whose two distributions are held at one time: half of those that scoring holds of one model."""
_HEAD_ROWS: Final = 8_192
"""Rows of the head that are held in float32 at one time."""


class StatesEngine(Protocol):
    """An engine that gives the hidden states which its logits are made of."""

    def hidden_states(self, examples: Sequence[TokenisedExample], task: ProgressTask) -> list[Tensor]:
        """For each example [learned tokens, width]."""
        ...

    def head(self) -> Tensor:
        """[vocabulary, width]."""
        ...

    def scaled_head(self) -> ScaledHead:
        """What is done to the product of the two."""
        ...


class AnswerStates(NamedTuple):
    """What one model's distributions over the tokens of answers are made of.

    Attributes:
        states: of each row [learned tokens, width].
        head: [vocabulary, width].
        scaled: what is done to the product of the two.
    """

    states: Sequence[Tensor]
    head: Tensor
    scaled: ScaledHead

    def log_probabilities(self, states: Tensor) -> Tensor:
        """[positions, vocabulary] in float32, also where the model computes in fewer bits.

        A rounded logit is off by up to 0.06, which between two close models is more than they differ by.
        """
        wide = states.float()
        product = torch.cat([wide @ rows.float().t() for rows in torch.split(self.head, _HEAD_ROWS)], dim=1)
        return self.scaled.of(product).log_softmax(1)


def rows_that_fit(rows: Sequence[TokenisedExample], width: int, element_bytes: int) -> list[int]:
    """The places of the rows with an answer, or equally spaced ones whose states take about `MAX_STATE_BYTES`."""
    learned = [place for place, row in enumerate(rows) if row.num_trained_tokens]
    num_bytes = sum(rows[place].num_trained_tokens for place in learned) * width * element_bytes
    return learned[:: max(1, math.ceil(num_bytes / MAX_STATE_BYTES))]


def answer_states(engine: StatesEngine, rows: Sequence[TokenisedExample], task: ProgressTask) -> AnswerStates:
    """One pass of a model over rows.

    Raises:
        RequestError: no head makes this model's logits of its states.
    """
    return AnswerStates(engine.hidden_states(rows, task), engine.head(), engine.scaled_head())


@torch.inference_mode()
def kl_by_row(tuned: AnswerStates, base: AnswerStates, device: str) -> list[float]:
    """Of each row the sum of KL(tuned || base) over its answer's tokens, in nats."""
    tuned, base = (AnswerStates(one.states, one.head.to(device), one.scaled) for one in (tuned, base))
    found = []
    for own, other in zip(tuned.states, base.states, strict=True):
        total = 0.0
        for start in range(0, len(own), CHUNK_TOKENS):
            # [positions, vocabulary] each
            log_p, log_q = (
                model.log_probabilities(states[start : start + CHUNK_TOKENS].to(device))
                for model, states in ((tuned, own), (base, other))
            )
            # A divergence is not negative; a sum of 50,000 rounded terms may be, by its last bits.
            total += float((log_p.exp() * (log_p - log_q)).sum(1).clamp_min_(0.0).double().sum())
        found.append(total)
    return found


def kl_result(sums: Sequence[float], rows: Sequence[TokenisedExample], *, tuned: str, base: str, of: int) -> KlToBase:
    """The mean over all tokens with its interval over rows.

    Args:
        sums: of each row, in nats (`kl_by_row`).
        rows: the same rows.
        tuned: name of the one system.
        base: name of the other.
        of: rows that were judged.
    """
    counts = [row.num_trained_tokens for row in rows]
    statistics = np.stack([np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)], axis=1)
    found = bootstrap_interval(statistics, mean_of_sums, bounds=Bounds(0.0, math.inf), seed=0)
    which = f"{len(rows):,} rows" if len(rows) == of else f"{len(rows):,} of {of:,} rows"
    return KlToBase(
        candidate=tuned,
        base=base,
        value=found.value,
        low=found.low,
        high=found.high,
        num_rows=len(rows),
        num_tokens=sum(counts),
        sentence=(
            f"On the task's prompts {tuned} moved {found.value:.3g} nats a token from {base} [{found.low:.3g}, "
            f"{found.high:.3g}] (KL({tuned} || {base}) at {sum(counts):,} tokens of the answers of {which}): the more, "
            "the likelier it forgot something else."
        ),
    )
