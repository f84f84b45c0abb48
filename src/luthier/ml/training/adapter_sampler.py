"""Samples and log-probabilities of snapshots of adapters, by the modules of one adapter over a shared base.

The weights of the snapshot that is asked are copied into these modules; snapshots of the same shape share them. What
was sampled is scored by the forward pass of training, so that a client sees the same log-probabilities in both.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier.core.errors import OverlongError, RequestError
from luthier.core.plan import Plan
from luthier.ml.inference.batch_generate import batch_generate
from luthier.ml.inference.decode import Continuation, Decoder, Request
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training.adapter_session import SharedBase, laid_out
from luthier.ml.training.losses.logit_rows import CHUNK_ROWS, LogitRows
from luthier.ml.training.losses.token_losses import TARGETS, Array, Datum, check_ids
from luthier.ml.training.methods.lora import ADAPTER
from luthier.ml.training.methods.peft_adapter import WEIGHTS
from luthier.ml.training.model import TrainableModel

MAX_TOP: Final = 20
MAX_SAMPLES: Final = 256
_TAIL_TOKENS: Final = 8


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """What is to be sampled from one prompt.

    Attributes:
        prompt: token ids, at least one.
        num_samples: independent answers.
        max_tokens: of an answer; None for what the context has room for.
        seed: of all of them; None for a fresh one.
        stop_ids: tokens that end an answer, and are part of it; None for those of the model's template, empty for none.
        stop_texts: texts that end an answer, and are part of it.
        temperature: divides the logits; 0 for the likeliest token.
        top_k: sample from so many of the likeliest tokens; None for all.
        top_p: sample from the smallest set of likeliest tokens with this probability.
        scores_prompt: whether the log-probabilities of the prompt are returned.
        num_scored: of how many of its last tokens; None for all.
        num_top_of_prompt, num_top: how many of the likeliest tokens are returned at each place of prompt and answer.
        first_sample: the number of the first answer, where others of the same order are sampled apart.
    """

    prompt: tuple[int, ...]
    num_samples: int = 1
    max_tokens: int | None = None
    seed: int | None = None
    stop_ids: frozenset[int] | None = None
    stop_texts: tuple[str, ...] = ()
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    scores_prompt: bool = False
    num_scored: int | None = None
    num_top_of_prompt: int = 0
    num_top: int = 0
    first_sample: int = 0

    def num_tokens(self, context_tokens: int) -> int:
        """Tokens of all answers with their prompts, at most."""
        return self.num_samples * min(context_tokens, len(self.prompt) + (self.max_tokens or context_tokens))

    def parts(self, most_tokens: int, context_tokens: int) -> list[SampleOrder]:
        """The order as several, each of at most so many tokens or one answer; the prompt is scored by the first."""
        num = max(1, most_tokens * self.num_samples // self.num_tokens(context_tokens))
        made = []
        for first in range(0, self.num_samples, num):
            part = replace(self, num_samples=min(num, self.num_samples - first), first_sample=first)
            made.append(part if first == 0 else replace(part, scores_prompt=False, num_top_of_prompt=0))
        return made


@dataclass(frozen=True, slots=True)
class Top:
    """The likeliest tokens: ids int32 [places, k], log-probabilities float32 [places, k]."""

    ids: Array
    log_probabilities: Array


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """One answer.

    Attributes:
        tokens: ids, including that of the end.
        log_probabilities: of each, in the distribution that was sampled from; at temperature 0 in that of the model.
        has_stopped: whether it ended by itself.
        top: the likeliest tokens at each place, in the distribution of the model; None where none were asked for.
    """

    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    has_stopped: bool
    top: Top | None = None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The answers to one order.

    Attributes:
        prompt_log_probabilities: float32 [prompt], NaN where none was computed; None where they were not asked for.
        top_of_prompt: likewise, a row of zeros and -99999 where none was computed.
    """

    answers: tuple[SampledAnswer, ...]
    prompt_log_probabilities: Array | None = None
    top_of_prompt: Top | None = None


def joined(parts: Sequence[SampleResult]) -> SampleResult:
    """The result of an order from those of its parts."""
    answers = tuple(answer for part in parts for answer in part.answers)
    return replace(parts[0], answers=answers)


class AdapterSampler:
    """Answers for snapshots of adapters of one shape.

    Args:
        base: what they are on.
        plan: of one of them.
        template: knows what ends an answer.
    """

    def __init__(self, base: SharedBase, plan: Plan, template: ChatTemplate) -> None:
        self.model, self._template = base.trainable(plan), template
        self._parameters = {n: p for n, p in self.model.module.named_parameters() if p.requires_grad}
        # Cloned before any snapshot is copied in: with these the modules compute the base model.
        self._first = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._used: str | None = None

    @torch.no_grad()
    def use(self, key: str, weights: Callable[[], Mapping[str, Tensor] | None]) -> None:
        """Answer with a snapshot from now on.

        Args:
            key: names the snapshot.
            weights: returns its weights by parameter name, None for the base model; called where another one is in use.
        """
        if key == self._used:
            return
        # A new adapter adds exactly zero, so its initial weights give the base model.
        found = weights() or self._first
        for name, parameter in self._parameters.items():
            parameter.copy_(found[name])
        self._used = key

    def check(self, order: SampleOrder) -> None:
        """Raise RequestError or OverlongError where an order cannot be carried out."""
        num, context = len(order.prompt), self.model.context_length_tokens
        if not num:
            raise RequestError("an empty prompt", expected="at least one token", do="give a prompt")
        check_ids(np.asarray(order.prompt, dtype=np.int64), "the prompt", self.model.vocabulary_size)
        most = order.max_tokens if order.max_tokens is not None else 1
        if num + most > context:
            raise OverlongError(
                f"a prompt of {num:,} tokens with up to {most:,} new ones",
                expected=f"together at most {context:,}, the context of the base model",
                do="shorten the prompt, or lower max_tokens",
            )
        for name, value, least, largest in (
            ("num_samples", order.num_samples, 1, MAX_SAMPLES),
            ("max_tokens", most, 1, context),
            ("topk_prompt_logprobs", order.num_top_of_prompt, 0, MAX_TOP),
            ("topk_sample_logprobs", order.num_top, 0, MAX_TOP),
            ("temperature", order.temperature, 0.0, 100.0),
            ("top_p", order.top_p, 1e-6, 1.0),
            ("top_k", order.top_k if order.top_k is not None else 1, 1, self.model.vocabulary_size),
            ("prompt_logprobs_last_n", order.num_scored if order.num_scored is not None else 1, 1, max(1, num - 1)),
        ):
            if not least <= value <= largest:
                raise RequestError(
                    f"{name} is {value:g}", expected=f"{least:g} to {largest:g}", do="correct the sampling request"
                )

    def sample(self, orders: Sequence[SampleOrder], is_wanted: Callable[[], bool] = lambda: True) -> list[SampleResult]:
        """The answers to some orders, which are computed together.

        Args:
            orders: what is sampled.
            is_wanted: asked behind each token; once it is false, all answers end as they are.
        """
        requests = [request for order in orders for request in self._requests(order, is_wanted)]
        # Ends are found by the limit of each request, since requests may differ in them.
        with self.model.as_decoder() as base:
            decoder = Decoder(base, end_ids=(), pad_id=self.model.pad_id)
            # Answers come in the order of the requests, num_samples for each order.
            found = iter(batch_generate(decoder, requests, lambda _: None))
        return [self._result(order, [next(found) for _ in range(order.num_samples)]) for order in orders]

    def _requests(self, order: SampleOrder, is_wanted: Callable[[], bool]) -> list[Request]:
        seed = secrets.token_hex(8) if order.seed is None else str(order.seed)
        room = self.model.context_length_tokens - len(order.prompt)
        truncates = order.top_k is not None or order.top_p < 1
        return [
            Request(
                order.prompt,
                room if order.max_tokens is None else order.max_tokens,
                order.temperature,
                # One seed an answer: answers to one prompt differ, and do not depend on what is sampled beside them.
                _seed(f"{seed}\n{number}"),
                constraint=(lambda: _Truncation(order)) if truncates and order.temperature else None,
                limit=lambda: self._end(order, is_wanted),  # type: ignore[arg-type, return-value]
            )
            for number in range(order.first_sample, order.first_sample + order.num_samples)
        ]

    def _end(self, order: SampleOrder, is_wanted: Callable[[], bool] = lambda: True) -> _End:
        ids = order.stop_ids
        if ids is None:
            ids = frozenset() if order.stop_texts else frozenset(self._template.end_of_turn_ids)
        return _End(ids, order.stop_texts, self._template, is_wanted)

    def _result(self, order: SampleOrder, found: Sequence[Continuation]) -> SampleResult:
        prompt = order.prompt
        num_first = len(prompt) - order.num_scored if order.num_scored is not None else 1
        scored = top = None
        if order.scores_prompt or order.num_top_of_prompt:
            scored, top = self._scored(prompt, num_first, order.num_top_of_prompt)
        answers = []
        for one in found:
            tokens, log_p, own_top = tuple(one.ids), tuple(one.log_probabilities), None
            # The decoder knows the probability of the sampled token alone; the likeliest ones cost one more pass.
            if order.num_top or not log_p:
                values, own_top = self._scored((*prompt, *tokens), len(prompt), order.num_top)
                log_p = log_p or tuple(values[len(prompt) :].tolist())
                own_top = own_top and Top(own_top.ids[len(prompt) :], own_top.log_probabilities[len(prompt) :])
            end = self._end(order)
            has_stopped = not all(end.goes_on(token) for token in tokens)  # in order: stop texts span several tokens
            answers.append(SampledAnswer(tokens, log_p, has_stopped, own_top))
        return SampleResult(tuple(answers), scored if order.scores_prompt else None, top)

    @torch.no_grad()
    def _scored(self, ids: Sequence[int], first: int, num_top: int) -> tuple[Array, Top | None]:
        """Log-probabilities [tokens] of a text from place `first` on, NaN before, and the likeliest tokens there."""
        self.model.module.eval()
        values = np.full(len(ids), np.nan, dtype=np.float32)
        top = None
        if num_top:
            shape = (len(ids), num_top)
            top = Top(np.zeros(shape, dtype=np.int32), np.full(shape, -99999.0, dtype=np.float32))
        first = max(1, first)
        if first >= len(ids):
            return values, top
        tokens = np.asarray(ids, dtype=np.int32)
        # Position i predicts token i + 1: the first token of a text has no probability.
        datum = Datum(tokens[:-1], {TARGETS: tokens[1:].astype(np.int64)})
        # Only these positions are multiplied with the head: a long prompt before `first` costs no logits.
        places = np.arange(first - 1, len(ids) - 1)
        batch = laid_out([datum], places, self.model)
        rows = self.model.logit_rows(batch)
        values[first:] = rows.token_log_probabilities(batch.targets).float().cpu().numpy()
        if top is not None:
            found = [_likeliest(part, num_top) for part in _chunks(rows)]
            top.log_probabilities[first:] = np.concatenate([one.values.float().cpu().numpy() for one in found])
            top.ids[first:] = np.concatenate([one.indices.int().cpu().numpy() for one in found])
        return values, top


def _chunks(rows: LogitRows) -> list[Tensor]:
    """The logits before each target, a chunk of rows at a time: [n, vocabulary]."""
    made = []
    for part in rows.rows.split(CHUNK_ROWS):
        if rows.form is not None:
            made.append(rows.form(part).float())
            continue
        assert rows.matrix is not None
        # [n, vocabulary], n at most CHUNK_ROWS: the logits of a long prompt are never in memory at one time.
        logits = (part @ rows.matrix.t()).float()
        # Soft cap: cap * tanh(logits / cap), as Gemma 2 defines it.
        made.append(logits if rows.cap is None else (logits / rows.cap).tanh() * rows.cap)
    return made


def _likeliest(logits: Tensor, num: int) -> torch.return_types.topk:
    return logits.log_softmax(-1).topk(num, dim=-1)


def batches_of(orders: Sequence[SampleOrder], most_tokens: int, context_tokens: int) -> list[list[int]]:
    """Places of orders that are sampled together: by the tokens of all their answers with their prompts.

    Args:
        orders: in the order in which they are answered.
        most_tokens: of one group, prompts and all answers included; an order larger than that is its own group.
        context_tokens: the longest text of the model.
    """
    sizes = [order.num_tokens(context_tokens) for order in orders]
    groups: list[list[int]] = []
    room = 0
    for place, size in enumerate(sizes):
        # Greedy, in the order given: an order larger than the limit has its own group.
        if not groups or size > room:
            groups.append([])
            room = most_tokens
        groups[-1].append(place)
        room -= size
    return groups


def read_adapter(folder: Path, model: TrainableModel) -> dict[str, Tensor]:
    """The weights of a saved adapter by the parameter names of a model with an adapter of the same shape.

    Raises:
        RequestError: the files are gone, or hold an adapter of another shape.
    """
    file = folder / "adapter" / WEIGHTS
    found = load_file(file) if file.is_file() else {}
    # PEFT leaves the name of the adapter out of its files.
    own = {n: n.replace(f".{ADAPTER}.", ".") for n, p in model.module.named_parameters() if p.requires_grad}
    if set(own.values()) != set(found):
        raise RequestError(
            "the saved weights are not those of this adapter, or their files are gone",
            expected="the files that were saved",
            do="save the weights again from a training client",
        )
    return {name: found[saved] for name, saved in own.items()}


def _seed(words: str) -> int:
    # torch's CPU generator uses 32 bits of a seed
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=4).digest(), "big")


class _Truncation:
    """Forbids all but the likeliest tokens, as top_k and top_p say."""

    def __init__(self, order: SampleOrder) -> None:
        self._order = order

    def mask(self, logits: Tensor) -> Tensor:
        """[vocabulary], minus infinity at what is left out."""
        order = self._order
        # float32: a cumulative sum over a vocabulary in bf16 stops growing before it reaches top_p.
        ordered, places = logits.float().sort(descending=True)
        keeps = torch.ones_like(ordered, dtype=torch.bool)
        if order.top_k is not None:
            keeps[order.top_k :] = False
        if order.top_p < 1:
            probabilities = (ordered.masked_fill(~keeps, -torch.inf) / order.temperature).softmax(-1)
            # The probability of all likelier tokens: the token that crosses top_p is kept.
            keeps &= probabilities.cumsum(-1) - probabilities < order.top_p
        return logits.masked_fill(~torch.zeros_like(keeps).scatter(0, places, keeps), -torch.inf)

    def take(self, token: int) -> None:
        """Nothing depends on earlier tokens."""


class _End:
    """Whether an answer continues behind a token."""

    def __init__(
        self, ids: frozenset[int], texts: Sequence[str], template: ChatTemplate, is_wanted: Callable[[], bool]
    ) -> None:
        self._ids, self._texts, self._template, self._is_wanted = ids, texts, template, is_wanted
        self._tokens: list[int] = []
        # Each character takes at least one byte, and a token at least one: the end of the answer holds a stop text.
        self._num_tail = _TAIL_TOKENS + max((len(text.encode()) for text in texts), default=0)

    def goes_on(self, token: int) -> bool:
        """Whether another token may follow this one."""
        if token in self._ids or not self._is_wanted():
            return False
        if self._texts:
            self._tokens.append(token)
            tail = self._template.tokenizer.decode(
                self._tokens[-self._num_tail :], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            return not any(text in tail for text in self._texts)
        return True
