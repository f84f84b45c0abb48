"""Likelihood scoring of the learned tokens of examples: the body in batches, the head only where needed.

The head of a small model is a large part of its computation (49,152 logits per token), and a held-out row is mostly
prompt. So the body runs over whole rows, and logits are computed only for positions before a learned token. A common
prefix of several rows goes through the body once.

This is verified per model on a few tokens: head(body(x)) reproduces its own logits, and padded batches and shared
prefixes give the same results as separate rows. Other models are scored by their own forward pass, one row at a time.

Batches are computed by this process or by forked ones (`side_by_side`); `ScoreBatches` and the forms of results are for
both.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import DivergedError, RequestError, first_line
from luthier.core.ports import Score
from luthier.ml.inference.decode import Prefix
from luthier.ml.inference.decoding_proof import (
    Probe,
    apart,
    own_logits,
    precision,
    proof_key,
    short_probe,
    text_part,
    tolerance,
)
from luthier.ml.inference.kv_cache import cache_argument, expanded, rope_border, smallest_window, why_not_cacheable
from luthier.ml.inference.models.architecture import context_tokens, language_model
from luthier.ml.inference.models.forward import PLAIN, OwnHead, ScaledHead, accepted, measured
from luthier.ml.inference.side_by_side import Advance, Form

if TYPE_CHECKING:
    from luthier.core.dataset import TokenisedExample
    from luthier.ml.inference.batches import Shared
    from luthier.ml.inference.decode import Prefix

# With a vocabulary of 49,152 that many positions take 50 MB of logits in fp32, and the log-softmax as much again.
MAX_LOGIT_ROWS = 256
# Number of logits that a model's own forward pass may produce in one pass: 256 MB in float32.
MAX_OWN_LOGITS = 1 << 26
_HEAD_TOKENS = 4
_STATES = 8
"""Number of random hidden states with which a model's own head is tested."""
_EXACT = 1e-5
"""Tolerance for float32 logits that are computed in the same order, relative to the largest."""


@dataclass(frozen=True, slots=True)
class ScoringPath:
    """How a model is scored.

    Attributes:
        by_head: head over body on batched rows; otherwise by its own forward pass.
        shares: whether a prefix may go through the body once.
        reason: why one of these is false.
    """

    by_head: bool
    shares: bool
    reason: str = ""

    def describe(self) -> str:
        """One sentence, for logs and cards."""
        text = "its head over the states of many rows" if self.by_head else "its own forward pass, a row at a time"
        if self.by_head and self.shares:
            text += ", shared prefixes once"
        return f"{text} ({self.reason})" if self.reason else text


_proved: dict[tuple[object, ...], ScoringPath] = {}
_measured: dict[tuple[object, ...], ScaledHead] = {}


class Scorer:
    """Scores examples with a causal language model in evaluation mode.

    Args:
        pad_id: any valid id; results at padding positions are never read.

    Raises:
        RequestError: the model's own forward pass fails, or it is not a causal model.
        DivergedError: its logits are not finite.
    """

    def __init__(self, model: PreTrainedModel, *, pad_id: int) -> None:
        model = text_part(model)
        self._model = model
        body = model.get_decoder()
        # Where a head has that name, the body is found otherwise.
        self._body: nn.Module = body if isinstance(body, PreTrainedModel) else language_model(model)
        self._head: nn.Module | None = model.get_output_embeddings()
        self._pad_id = pad_id
        self._device = model.device
        config = model.config.get_text_config(decoder=True)
        self._scaled: ScaledHead = PLAIN
        self._config = config
        self._cache_argument = cache_argument(self._body)
        self._path = self._proved()

    @property
    def path(self) -> ScoringPath:
        """How this model is scored."""
        return self._path

    @property
    def longest_shared(self) -> int:
        """Maximum length of rows that share a prefix, in tokens; 0 if the model's state cannot be shared."""
        if not self._path.shares or why_not_cacheable(self._config):
            return 0
        bounds = (context_tokens(self._config), smallest_window(self._config), self.border)
        return min(one for one in bounds if one is not None)

    @property
    def border(self) -> int | None:
        """The text length in tokens beyond which the encoding of all positions changes; None if there is none.

        Rows on both sides of it must not be batched.
        """
        return rope_border(self._config)

    @torch.inference_mode()
    def begin(self, ids: Sequence[int]) -> Prefix:
        """Run a common prefix of several rows through the body; it must not contain learned or predicting tokens."""
        cache = DynamicCache(config=self._config)
        arguments: dict[str, Any] = {self._cache_argument: cache}
        # The head is not run: only keys and values are needed.
        self._body(input_ids=torch.tensor([list(ids)], device=self._device), use_cache=True, **arguments)
        return Prefix(len(ids), cache)

    @torch.inference_mode()
    def score(self, examples: Sequence[TokenisedExample], prefix: Prefix | None = None) -> list[Score]:
        """One score per example, in order. Rows are padded on the right: a causal model never looks there.

        Args:
            examples: rows that fit into one batch.
            prefix: their common prefix, from `begin`.

        Raises:
            DivergedError: a likelihood is NaN or infinite.
        """
        if self._path.by_head:
            rows, hidden, targets = self._before_learned(examples, prefix)
            nll, correct = self._judge(hidden, targets)
        else:
            rows, nll, correct = self._judge_whole(examples)
        if not nll.isfinite().all():
            place = int(rows[(~nll.isfinite()).nonzero()[0, 0]])
            raise _diverged(f"the likelihood of {examples[place].id}")
        # In float64 and per row, so that a score does not depend on the batch.
        sums = torch.zeros(len(examples), 2, dtype=torch.float64)
        sums.index_add_(0, rows, torch.stack([nll, correct], 1))
        return [
            Score(nll_nats=float(total), num_tokens=example.num_trained_tokens, num_correct=int(hits))
            for example, (total, hits) in zip(examples, sums.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def states(self, examples: Sequence[TokenisedExample], prefix: Prefix | None = None) -> list[Tensor]:
        """For each example, the last hidden states that predict its learned tokens, on the CPU.

        Args:
            examples, prefix: as for `score`.

        Returns:
            Each [learned tokens of the example, width], in the precision of the model; `head` maps them to logits.

        Raises:
            DivergedError: a state is NaN or infinite.
            RequestError: the logits of this model are not its states times one matrix.
        """
        if not self._path.by_head:
            raise self._no_head()
        rows, hidden, _ = self._before_learned(examples, prefix)
        if not hidden.isfinite().all():
            place = int(rows[(~hidden.isfinite().all(1)).nonzero()[0, 0]])
            raise _diverged(f"a hidden state of {examples[place].id}")
        # `rows` is sorted, so the states of an example are contiguous and can be split by counts.
        counts = torch.bincount(rows, minlength=len(examples)).tolist()
        return list(torch.split(hidden.cpu(), counts))

    @property
    def head(self) -> Tensor:
        """The matrix [vocabulary, width] that maps hidden states to logits.

        Raises:
            RequestError: the model's logits are not its states times one matrix.
        """
        head: Any = self._head
        # PEFT keeps a trained copy beside the module of the base (`modules_to_save`).
        if (copies := getattr(head, "modules_to_save", None)) is not None:
            head = copies[head.active_adapters[0]]
        if not self._path.by_head or type(head) is not nn.Linear or head.bias is not None:
            raise self._no_head()
        matrix: Tensor = head.weight.detach().cpu()
        return matrix

    @property
    def state_form(self) -> tuple[int, torch.dtype]:
        """Width of a hidden state, and in what it is computed."""
        width = self._config.hidden_size if self._head is None else next(self._head.parameters()).shape[-1]
        return int(width), precision(self._model)

    @property
    def scaled(self) -> ScaledHead:
        """The scale and cap of the product of states and `head`."""
        return self._scaled

    def _no_head(self) -> RequestError:
        why = f": {self._path.reason}" if self._path.reason else ""
        return RequestError(
            f"a teacher of class {type(self._model).__name__} with an output head of {type(self._head).__name__}"
            f"{'' if getattr(self._head, 'bias', None) is None else ' and a bias'}{why}",
            expected="a model whose logits are its last hidden state times one matrix, scaled or capped at most",
            do="choose another teacher, or have it write the answers and learn those: luthier data answer",
        )

    def _before_learned(
        self, examples: Sequence[TokenisedExample], prefix: Prefix | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For each learned token of all rows, in order: its row, the state that predicts it, and the token."""
        skip = 0 if prefix is None else prefix.num_tokens
        width = max(example.num_tokens for example in examples) - skip
        tokens = torch.full((len(examples), width), self._pad_id)
        # [rows, T], as `tokens`: true where a token is learned.
        learned = torch.zeros((len(examples), width), dtype=torch.bool)
        for row, example in enumerate(examples):
            own = slice(0, example.num_tokens - skip)
            tokens[row, own] = torch.tensor(example.input_ids[skip:])
            learned[row, own] = torch.frombuffer(bytearray(example.loss_mask[skip:]), dtype=torch.bool)
        rows, places = learned.nonzero(as_tuple=True)
        tokens = tokens.to(self._device)
        arguments: dict[str, Any] = {"use_cache": False}
        if prefix is not None:
            arguments = {"use_cache": True, self._cache_argument: expanded(prefix.cache, len(examples))}
        # No mask: padding is on the right, and its states are never selected.
        hidden = self._body(input_ids=tokens, **accepted(self._body, arguments)).last_hidden_state  # [rows, T, width]
        # The state of token t - 1 predicts token t: [learned, width] and [learned].
        return rows, hidden[rows, places - 1], tokens[rows, places]

    def _judge(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood and correctness of each target, both float64 [positions] on the CPU."""
        nll, correct = [], []
        # In chunks, since the logits of all positions would not fit into memory.
        for part, target in zip(torch.split(hidden, MAX_LOGIT_ROWS), torch.split(targets, MAX_LOGIT_ROWS), strict=True):
            logits = self._logits(part)  # [at most MAX_LOGIT_ROWS, vocabulary] in fp32
            nll.append(F.cross_entropy(logits, target, reduction="none"))
            correct.append(logits.argmax(-1) == target)
        return torch.cat(nll).cpu().double(), torch.cat(correct).cpu().double()

    def _logits(self, hidden: Tensor) -> Tensor:
        """[positions, vocabulary] in float32, as returned by the full model."""
        if self._head is None:
            raise self._no_head()
        return self._scaled.of(self._head(hidden).float())

    def _measure(self, exact: float) -> ScaledHead:
        """The transformation that the model applies to the output of its head, measured on states of normalised size.

        Not measured on the probe: a cap does not affect the small logits of a few tokens.
        """
        if self._head is None:
            return PLAIN
        weight = next(self._head.parameters())
        # Unit variance, as a norm with weight 1 leaves it. Seeded on the CPU: the same on every device.
        drawn = torch.randn(_STATES, weight.shape[-1], generator=torch.Generator().manual_seed(0))
        states = drawn.to(weight.device, precision(self._model))
        return measured(OwnHead(self._model, self._body), self._head, states, exact) or PLAIN

    def _judge_whole(self, examples: Sequence[TokenisedExample]) -> tuple[Tensor, Tensor, Tensor]:
        """Like `_judge`, by the model's own forward pass over each row; the row of each target comes first."""
        rows, nll, correct = [], [], []
        for row, example in enumerate(examples):
            places = torch.frombuffer(bytearray(example.loss_mask), dtype=torch.bool).nonzero()[:, 0]
            targets = torch.tensor(list(example.input_ids), device=self._device)[places.to(self._device)]
            for part, target in zip(
                torch.split(places, self._head_chunk_tokens), torch.split(targets, self._head_chunk_tokens), strict=True
            ):
                # The row is recomputed for each part, trading time for memory. Token t is predicted at t - 1.
                logits = self._own_logits(example.input_ids, part - 1)
                nll.append(F.cross_entropy(logits, target, reduction="none"))
                correct.append(logits.argmax(-1) == target)
                rows.append(torch.full((len(part),), row))
        if not rows:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0).double(), torch.zeros(0).double()
        return torch.cat(rows), torch.cat(nll).cpu().double(), torch.cat(correct).cpu().double()

    @property
    def _head_chunk_tokens(self) -> int:
        """Positions per chunk, so that their logits stay below MAX_OWN_LOGITS numbers."""
        return max(1, MAX_OWN_LOGITS // int(self._config.vocab_size))

    def _own_logits(self, ids: Sequence[int], places: Tensor) -> Tensor:
        """Logits [places, vocabulary] in float32 of the full model after these positions of one row."""
        tokens = torch.tensor([list(ids)], device=self._device)
        arguments = accepted(self._model, {"use_cache": False, "logits_to_keep": places.to(self._device)})
        logits: Tensor = self._model(input_ids=tokens, **arguments).logits[0]
        # not every model returns only what is requested
        return logits.float() if logits.shape[0] == len(places) else logits[places.to(self._device)].float()

    @torch.inference_mode()
    def _proved(self) -> ScoringPath:
        """The fast paths that reproduce the model's logits on a few tokens; the head is always tested."""
        window, why = smallest_window(self._config), why_not_cacheable(self._config)
        probe = short_probe(self._model, window, is_recurrent=bool(why))
        # Four tokens in one pass: fast enough to check for every model, including its weights.
        few = Probe((probe.rows[-1][:_HEAD_TOKENS],), 0)
        own = own_logits(self._model, few.rows[0])
        if not own.isfinite().all():
            raise _diverged(f"a logit of {type(self._model).__name__}")
        # bfloat16 keeps 8 bits: rounded values may differ by 2^-7 of the largest logit.
        exact = _EXACT if precision(self._model) == torch.float32 else 2**-7
        key = proof_key(self._model, "scoring")
        # Measured once per config, but a scale may be a trained parameter, so `_wrong` below checks it on these
        # weights.
        known = _measured.get(key)
        self._scaled = known or self._measure(exact)
        reason = self._wrong(few, [own], "head(body(tokens))", exact, num_shared=0)
        if reason and known is not None:  # a trained scale has changed since
            self._scaled = self._measure(exact)
            reason = self._wrong(few, [own], "head(body(tokens))", exact, num_shared=0)
        if reason:
            return ScoringPath(by_head=False, shares=False, reason=reason)
        _measured[key] = self._scaled
        if key not in _proved:
            _proved[key] = self._prove(probe, why)
        return _proved[key]

    def _prove(self, probe: Probe, why: str) -> ScoringPath:
        """Whether rows may be padded into batches and continue from a shared prefix.

        Args:
            why: why they cannot, if known.
        """
        expected = [own_logits(self._model, row) for row in probe.rows]
        # The strongest test first: if a shared prefix with padded rows agrees, no other test is needed.
        if not why and probe.num_shared:
            why = self._wrong(probe, expected, "a shared beginning", None, num_shared=probe.num_shared)
            if not why:  # which were padded, too
                return ScoringPath(by_head=True, shares=True)
        if reason := self._wrong(probe, expected, "rows padded together", None, num_shared=0):
            return ScoringPath(by_head=False, shares=False, reason=reason)
        return ScoringPath(by_head=True, shares=False, reason=why)

    def _wrong(
        self, probe: Probe, expected: Sequence[Tensor], what: str, most: float | None, *, num_shared: int
    ) -> str:
        """Why a scoring path is rejected: it fails, or its logits differ from the model's own; empty if it is accepted.

        Args:
            most: tolerance relative to the largest logit; None allows the effect of another summation order.
        """
        try:
            far = self._distance(probe, expected, num_shared)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - what a model's code raises is of many kinds
            return f"{what}: {type(error).__name__}: {first_line(error, '')[:200]}"
        if most is None:
            most = tolerance(self._model, probe, expected, far)
        return "" if far <= most else f"{what}: logits differ by {far:.2g} of the largest"

    def _distance(self, probe: Probe, expected: Sequence[Tensor], num_shared: int) -> float:
        """The difference between the logits of batched rows and the model's own."""
        prefix = self.begin(probe.rows[0][:num_shared]) if num_shared else None
        # The first token after the prefix is predicted by the prefix's last state, which `begin` does not store.
        unlearned = num_shared + 1
        examples = [
            TokenisedExample("probe", array("i", row), bytes(unlearned) + b"\1" * (len(row) - unlearned))
            for row in probe.rows
        ]
        rows, hidden, _ = self._before_learned(examples, prefix)
        ours = self._logits(hidden)
        # own[i] are the logits after token i: tokens num_shared + 1 to the end are predicted by those after num_shared
        # to the second-to-last.
        return max(apart(ours[(rows == row).to(ours.device)], own[num_shared:-1]) for row, own in enumerate(expected))


def _diverged(what: str) -> DivergedError:
    return DivergedError(
        f"{what} is not a finite number",
        expected="finite logits",
        do="the weights contain NaN or infinity: go back to an earlier checkpoint, or use float32",
    )


Found = TypeVar("Found")


class ScoreBatches(Generic[Found]):
    """Computes a batch by its number (`side_by_side.Compute`).

    Args:
        rows: all rows.
        batches: which of them go through the model together; batches with one prefix follow one another.
        scorer: computes prefixes.
        look: gets the rows of a batch with their prefix, and finds something of each.
    """

    def __init__(
        self,
        rows: Sequence[TokenisedExample],
        batches: Sequence[Shared],
        scorer: Scorer,
        look: Callable[[Sequence[TokenisedExample], Prefix | None], list[Found]],
    ) -> None:
        self._rows, self._batches, self._scorer, self._look = rows, batches, scorer, look
        # Of each batch the first one with its prefix.
        self._first: list[int] = []
        for number, batch in enumerate(batches):
            self._first.append(self._first[-1] if batch.is_same else number)
        self._held: tuple[int, Prefix | None] = (-1, None)
        """The prefix that was computed last, and the first batch that has it: one is in memory at a time."""

    def __call__(self, number: int, advance: Advance) -> list[Found]:
        """What is found of each row of a batch."""
        batch, first = self._batches[number], self._first[number]
        # A worker may get any of the batches with one prefix: it computes the prefix once for those that it gets.
        if self._held[0] != first:
            self._held = (-1, None)
            ids = self._rows[batch.rows[0]].input_ids[: batch.num_shared]
            self._held = (first, self._scorer.begin(ids) if batch.num_shared else None)
        found = self._look([self._rows[row] for row in batch.rows], self._held[1])
        advance(len(batch.rows))
        return found


SCORES: Final[Form[list[Score]]] = Form(
    encode=lambda _, made: [[one.nll_nats, one.num_tokens, one.num_correct] for one in made],
    decode=lambda _, message: [Score(nll_nats=one[0], num_tokens=one[1], num_correct=one[2]) for one in message],
)


def shared_states(counts: Sequence[int], scorer: Scorer, batches: Sequence[Shared]) -> Form[list[Tensor]]:
    """The form of the hidden states of all rows: they are in memory that forked processes share.

    Args:
        counts: states of each row: its learned tokens.
        scorer: finds them.
        batches: the rows of each batch.
    """
    width, dtype = scorer.state_form
    total = sum(counts) * width
    # Anonymous memory, whose pages are taken when they are first written.
    memory = mmap.mmap(-1, max(1, total) * dtype.itemsize)
    # [learned tokens of all rows, width]
    whole = torch.frombuffer(memory, dtype=dtype)[:total].view(sum(counts), width)
    rooms = torch.split(whole, list(counts))

    def encode(number: int, made: Sequence[Tensor]) -> None:
        for row, states in zip(batches[number].rows, made, strict=True):
            if states.dtype != dtype or states.shape != rooms[row].shape:
                raise ValueError(f"states of {states.dtype} {list(states.shape)}, not {dtype} {list(rooms[row].shape)}")
            rooms[row].copy_(states)

    return Form(encode, lambda number, _: [rooms[row] for row in batches[number].rows])
