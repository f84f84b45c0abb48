"""How well a model predicts the learned tokens of an example: the body in batches, the head only where it counts.

The head of a small model is a large part of its work (49,152 rows of logits a token), and a held-out row is mostly
prompt. So the body runs over whole rows, and logits are made for the positions before a learned token only. What
several rows begin with goes through the body once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import DivergedError, RequestError
from luthier.core.ports import Score
from luthier.engines.decode import Prefix, cache_argument
from luthier.engines.roomy_cache import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A vocabulary of 49,152 makes 50 MB of logits in fp32 of so many positions, and the log-softmax as much again.
MAX_LOGIT_ROWS = 256
_PROBE_TOKENS = 4


class Scorer:
    """Scores examples with a causal language model in evaluation mode.

    Raises:
        RequestError: head(body(x)) is not what the whole model computes, even with the scalings that its config names.
        DivergedError: its logits are not finite.
    """

    def __init__(self, model: PreTrainedModel, *, pad_id: int) -> None:
        self._body: nn.Module = model.get_decoder()
        self._head: nn.Module = model.get_output_embeddings()
        self._pad_id = pad_id
        self._device = model.device
        config = model.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        # Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`.
        self._scale: float = (getattr(config, "logit_scale", None) or 1.0) / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        self._config = config
        self._cache_argument = cache_argument(self._body)
        self._check(model)

    @property
    def longest_shared(self) -> int:
        """How long a row may be that shares its beginning; 0 where the model keeps a state that cannot be shared."""
        layers = DynamicCache(config=self._config).layers
        if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            return 0
        windows: list[int] = [layer.sliding_window for layer in layers if layer.is_sliding]
        return min([int(self._config.max_position_embeddings), *windows])

    @torch.inference_mode()
    def begin(self, ids: Sequence[int]) -> Prefix:
        """Send what several rows begin with through the body: no token that is learned, or predicts a learned one."""
        cache = DynamicCache(config=self._config)
        arguments: dict[str, Any] = {self._cache_argument: cache}
        self._body(input_ids=torch.tensor([list(ids)], device=self._device), use_cache=True, **arguments)
        return Prefix(len(ids), cache)

    @torch.inference_mode()
    def score(self, examples: Sequence[TokenisedExample], beginning: Prefix | None = None) -> list[Score]:
        """One score an example, in order. Rows are padded on the right: a causal model never looks there.

        beginning: what all of them begin with, as `begin` has made it.

        Raises:
            DivergedError: a likelihood is NaN or infinite.
        """
        rows, hidden, targets = self._before_learned(examples, beginning)
        nll, correct = self._judge(hidden, targets)
        if not nll.isfinite().all():
            place = int(rows[(~nll.isfinite()).nonzero()[0, 0]])
            raise _diverged(f"the likelihood of {examples[place].id}")
        # In float64 and per row, so that a score does not depend on the batch it was made in.
        sums = torch.zeros(len(examples), 2, dtype=torch.float64)
        sums.index_add_(0, rows, torch.stack([nll, correct], 1))
        return [
            Score(nll_nats=float(total), num_tokens=example.num_trained_tokens, num_correct=int(hits))
            for example, (total, hits) in zip(examples, sums.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def states(self, examples: Sequence[TokenisedExample], beginning: Prefix | None = None) -> list[Tensor]:
        """For each example the last hidden states that its learned tokens are predicted from, on the CPU.

        Each [learned tokens of the example, width], as precise as the model; `head` makes logits of them. beginning: as
        for `score`.

        Raises:
            DivergedError: a state is NaN or infinite.
        """
        rows, hidden, _ = self._before_learned(examples, beginning)
        if not hidden.isfinite().all():
            place = int(rows[(~hidden.isfinite().all(1)).nonzero()[0, 0]])
            raise _diverged(f"a hidden state of {examples[place].id}")
        counts = torch.bincount(rows, minlength=len(examples)).tolist()
        return list(torch.split(hidden.cpu(), counts))

    @property
    def head(self) -> Tensor:
        """[vocabulary, width] the matrix that makes logits of hidden states.

        Raises:
            RequestError: the model's logits are not its states times one matrix.
        """
        head, is_plain = self._head, self._softcap is None and self._scale == 1.0
        if type(head) is not nn.Linear or head.bias is not None or not is_plain:
            raise RequestError(
                f"a head of {type(head).__name__} with bias={getattr(head, 'bias', None) is not None}, "
                f"logit capping={self._softcap}, logit scale={self._scale:g}",
                expected="a model whose logits are its last hidden state times one matrix",
                do="choose another teacher",
            )
        return head.weight.detach().cpu()

    def _before_learned(
        self, examples: Sequence[TokenisedExample], beginning: Prefix | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each learned token of all rows, in order: its row, the state it is predicted from, and the token."""
        skip = 0 if beginning is None else beginning.num_tokens
        width = max(example.num_tokens for example in examples) - skip
        tokens = torch.full((len(examples), width), self._pad_id)
        learned = torch.zeros((len(examples), width), dtype=torch.bool)
        for row, example in enumerate(examples):
            own = slice(0, example.num_tokens - skip)
            tokens[row, own] = torch.tensor(example.input_ids[skip:])
            learned[row, own] = torch.frombuffer(bytearray(example.loss_mask[skip:]), dtype=torch.bool)
        rows, places = learned.nonzero(as_tuple=True)
        tokens = tokens.to(self._device)
        arguments: dict[str, Any] = {"use_cache": False}
        if beginning is not None:
            arguments = {"use_cache": True, self._cache_argument: expanded(beginning.cache, len(examples))}
        hidden = self._body(input_ids=tokens, **arguments).last_hidden_state
        return rows, hidden[rows, places - 1], tokens[rows, places]

    def _judge(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood and correctness of each target, both float64 [positions] on the CPU."""
        nll, correct = [], []
        for part, target in zip(torch.split(hidden, MAX_LOGIT_ROWS), torch.split(targets, MAX_LOGIT_ROWS), strict=True):
            logits = self._logits(part)
            nll.append(F.cross_entropy(logits, target, reduction="none"))
            correct.append(logits.argmax(-1) == target)
        return torch.cat(nll).double().cpu(), torch.cat(correct).double().cpu()

    def _logits(self, hidden: Tensor) -> Tensor:
        """[positions, vocabulary] in float32, as the whole model would give them."""
        logits: Tensor = self._head(hidden).float() * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    @torch.inference_mode()
    def _check(self, model: PreTrainedModel) -> None:
        tokens = torch.arange(_PROBE_TOKENS, device=self._device)[None]
        expected = model(input_ids=tokens, use_cache=False).logits.float()
        if not expected.isfinite().all():
            raise _diverged(f"a logit of {type(model).__name__}")
        ours = self._logits(self._body(input_ids=tokens, use_cache=False).last_hidden_state)
        difference = float((ours - expected).abs().max())
        # bfloat16 keeps 8 bits: what it rounds may differ by 2^-7 of the largest logit.
        if not difference <= 2**-7 * float(expected.abs().max()) + 1e-6:
            raise RequestError(
                f"{type(model).__name__}: its logits differ by {difference:.3g} from head(body(tokens))",
                expected="a model whose logits are its head, scaled or capped as its config says",
                do="evaluate this model with text metrics only, or with another engine",
            )


def _diverged(what: str) -> DivergedError:
    return DivergedError(
        f"{what} is not a finite number",
        expected="finite logits",
        do="the weights hold NaN or infinity: go back to an earlier checkpoint, or use float32",
    )
