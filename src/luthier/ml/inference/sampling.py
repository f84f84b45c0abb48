"""Which token comes next: greedy or drawn, from the likeliest only, with less of what was written already."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from luthier.core.stream import Sampling

# The softmax is one-hot by then, and dividing by far less would overflow.
_GREEDY_BELOW: Final = 1e-4


class Sampler:
    """Draws the tokens of one answer. Equal logits, rules and seeds give equal tokens.

    Args:
        number: of the choice; each draws from numbers of its own.
    """

    def __init__(self, rules: Sampling, number: int, device: torch.device) -> None:
        self._rules = rules
        self._counts: dict[int, int] = {}
        self._generator: torch.Generator | None = None
        if rules.temperature >= _GREEDY_BELOW and rules.top_p > 0:
            self._generator = torch.Generator(device=device)
            # torch takes seeds of 63 bits.
            self._generator.manual_seed((rules.seed + number) % (1 << 63))

    @property
    def takes_likeliest(self) -> bool:
        """Whether it always draws the token with the largest logit."""
        rules = self._rules
        changes_logits = rules.frequency_penalty or rules.presence_penalty or rules.logit_bias
        return self._generator is None and not changes_logits

    def draw(self, logits: Tensor) -> int:
        """The next token.

        Args:
            logits: [vocabulary].
        """
        # fp32: in bf16 a softmax over a large vocabulary does not sum to 1.
        scores = self._with_penalties(self._with_bias(logits.float()))  # [vocabulary] in fp32
        if self._generator is None:
            token = int(scores.argmax())
        else:
            probabilities = torch.softmax(scores / self._rules.temperature, -1)
            if self._rules.top_p < 1:
                probabilities = _nucleus(probabilities, self._rules.top_p)
            # multinomial normalises: what the nucleus leaves need not sum to 1.
            token = int(torch.multinomial(probabilities, 1, generator=self._generator))
        if self._rules.frequency_penalty or self._rules.presence_penalty:
            self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _with_bias(self, logits: Tensor) -> Tensor:
        if not self._rules.logit_bias:
            return logits
        tokens, biases = zip(*self._rules.logit_bias, strict=True)
        index = torch.tensor(tokens, device=logits.device)
        return logits.index_add(0, index, torch.tensor(biases, dtype=logits.dtype, device=logits.device))

    def _with_penalties(self, logits: Tensor) -> Tensor:
        if not self._counts:
            return logits
        tokens = torch.tensor(list(self._counts), device=logits.device)
        counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=logits.device)
        penalties = self._rules.frequency_penalty * counts + self._rules.presence_penalty
        return logits.index_add(0, tokens, -penalties)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest set of likeliest tokens with `top_p` of the probability; all others get none."""
    # [vocabulary], the likeliest first.
    ordered, places = probabilities.sort(descending=True)
    # The probability of all likelier tokens: the token that crosses top_p stays in.
    before = ordered.cumsum(-1) - ordered
    ordered[before >= top_p] = 0.0
    # Back into the order of the vocabulary.
    return torch.zeros_like(probabilities).scatter(0, places, ordered)


def likelihoods(logits: Tensor, token: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of a token, and the likeliest tokens with theirs.

    Args:
        logits: [vocabulary].
        token: id of the token.
        num_top: how many of the likeliest; 0 for none.
    """
    log_probabilities = torch.log_softmax(logits.float(), -1)
    found = log_probabilities.topk(min(num_top, len(log_probabilities)))
    top = list(zip(found.indices.tolist(), found.values.tolist(), strict=True))
    return float(log_probabilities[token]), top
