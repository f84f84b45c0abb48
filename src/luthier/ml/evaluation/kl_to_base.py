"""The divergence of a tuned model from its base on the task's prompts: mean KL(tuned || base) per token.

At every token of the rows' answers the divergence of both models' distributions over the whole vocabulary is computed
exactly, not from samples. Fine-tuning that moves less on its own task was observed to forget less of others, so this
indicates forgetting if there are no general rows to measure it on. It is not an accuracy: a model that learned much has
also moved.

Each model makes one pass over the rows and stores the hidden states before the answers' tokens, which are smaller than
the logits by vocabulary / width; so only one model is in memory at a time. The base of an
adapter is the same model with the adapter switched off.

Source: Shenfeld, Pari and Agrawal, 2025, "RL's Razor: Why Online Reinforcement Learning Forgets Less",
arXiv:2509.04259, section 4 (KL on the task's prompts predicts forgetting; they take the other direction, base || tuned,
over drawn answers).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_STATE_BYTES: Final = 256 << 20
"""Memory limit for the states of one model; beyond it, equally spaced rows are used."""
CHUNK_TOKENS: Final = 128
"""Positions per block with two distributions: half of those of scoring with one model."""
_HEAD_ROWS: Final = 8_192
"""Rows of the head per block in float32."""


class StatesEngine(Protocol):
    """An engine that returns the hidden states from which its logits are computed."""

    def hidden_states(self, examples: Sequence[TokenisedExample], task: ProgressTask) -> list[Tensor]:
        """For each example [learned tokens, width]."""
        ...

    def head(self) -> Tensor:
        """[vocabulary, width]."""
        ...

    def scaled_head(self) -> ScaledHead:
        """The scale and cap of the product of the two."""
        ...

    @property
    def causal(self) -> PreTrainedModel:
        """The model itself."""
        ...


class AnswerStates(NamedTuple):
    """The factors of one model's distributions over the tokens of answers.

    Attributes:
        states: of each row [learned tokens, width].
        head: [vocabulary, width].
        scaled: the scale and cap of the product of the two.
    """

    states: Sequence[Tensor]
    head: Tensor
    scaled: ScaledHead

    def log_probabilities(self, states: Tensor) -> Tensor:
        """[positions, vocabulary] in float32, even if the model uses fewer bits.

        A rounded logit is off by up to 0.06, which exceeds the difference between two close models.
        """
        wide = states.float()
        product = torch.cat([wide @ rows.float().t() for rows in torch.split(self.head, _HEAD_ROWS)], dim=1)
        return self.scaled.of(product).log_softmax(1)


def rows_that_fit(rows: Sequence[TokenisedExample], width: int, element_bytes: int) -> list[int]:
    """The indices of rows with an answer, or equally spaced ones whose states take about `MAX_STATE_BYTES`."""
    learned = [place for place, row in enumerate(rows) if row.num_trained_tokens]
    num_bytes = sum(rows[place].num_trained_tokens for place in learned) * width * element_bytes
    return learned[:: max(1, math.ceil(num_bytes / MAX_STATE_BYTES))]


def answer_states(engine: StatesEngine, rows: Sequence[TokenisedExample], task: ProgressTask) -> AnswerStates:
    """One pass of a model over rows.

    Raises:
        RequestError: the logits of this model are not its states times one matrix.
    """
    return AnswerStates(engine.hidden_states(rows, task), engine.head(), engine.scaled_head())


@torch.inference_mode()
def kl_by_row(tuned: AnswerStates, base: AnswerStates, device: str) -> list[float]:
    """The sum of KL(tuned || base) over the answer's tokens of each row, in nats."""
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
            # A divergence is not negative, but a sum of 50,000 rounded terms may be, in its last bits.
            total += float((log_p.exp() * (log_p - log_q)).sum(1).clamp_min_(0.0).double().sum())
        found.append(total)
    return found


def kl_result(
    sums: Sequence[float],
    rows: Sequence[TokenisedExample],
    *,
    tuned: str,
    base: str,
    of: int,
    clusters: Sequence[Hashable] | None = None,
) -> KlToBase:
    """The mean over all tokens with its interval over rows, or over their groups.

    Args:
        sums: of each row, in nats (`kl_by_row`).
        rows: the same rows.
        tuned: name of the one system.
        base: name of the other.
        of: number of evaluated rows.
        clusters: the group of each row; None where every row is its own.
    """
    counts = [row.num_trained_tokens for row in rows]
    statistics = np.stack([np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)], axis=1)
    found = bootstrap_interval(statistics, mean_of_sums, bounds=Bounds(0.0, math.inf), seed=0, clusters=clusters)
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
