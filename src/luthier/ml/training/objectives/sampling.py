"""Answers sampled during training, with the current weights, by the inference engine's decoder.

Nothing is copied or saved: the decoder runs the modules being trained, including the adapter. Each prompt is computed
once for all of its samples.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from luthier.core.conversation import Conversation
from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.ports import Prompt, Rollout
from luthier.ml.inference.batch_generate import batch_generate
from luthier.ml.inference.decode import Continuation, Decoder, Prefix, Request
from luthier.ml.inference.engine_prompts import WholeAnswers
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.thoughts import Thoughts
from luthier.ml.training.model import TrainableModel


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: its source row, prompt and answer as a trainable row, and the answer in the form that is graded.

    Attributes:
        row_id: of the row whose prompt was answered.
        tokens: prompt and answer; the answer has loss mask 1.
        attempt: the answer as graders get it.
        log_probabilities: of each sampled token at sampling time; empty for greedy answers.
    """

    row_id: str
    tokens: TokenisedExample
    attempt: Rollout
    log_probabilities: tuple[float, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.tokens.num_tokens - self.tokens.num_trained_tokens


def prompt_ids(row: TokenisedExample) -> list[int]:
    """The prompt of a row: the ids before its last learned answer."""
    return row.input_ids[: row.num_prompt_tokens].tolist()


def draw_samples(
    model: TrainableModel,
    template: ChatTemplate,
    rows: Sequence[TokenisedExample],
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: str,
    prompts: Mapping[str, Conversation] = MappingProxyType({}),
) -> list[list[Sample]]:
    """Sample `num_samples` answers to the prompt of each row, in order.

    Temperature 0 decodes greedily. Otherwise each answer has a separate generator, seeded from `seed`, its row and its
    number, so it depends neither on the rest of its batch nor on the process that samples it.

    Args:
        model: samples with its present weights.
        template: its end-of-turn tokens stop an answer.
        rows: tokenised; only their prompts are used.
        num_samples: answers per row.
        max_new_tokens: of an answer with its thought.
        temperature: of the softmax.
        seed: of the run and step.
        prompts: by id of a row whose prompt offers tools, that prompt: calls are taken out of the answers to it.
    """
    if not rows:  # as a process that gets none of a small step
        return []
    prompt = model.method.virtual_prompt()
    ahead = 0 if prompt is None else len(prompt)
    requests = []
    for row in rows:
        # Placeholders at the positions of the trained prompt, which has no token ids.
        ids = [model.pad_id] * ahead + prompt_ids(row)
        seeds = [_seed(f"{seed}\n{row.id}\n{number}") for number in range(num_samples)]
        requests += [Request(ids, max_new_tokens, temperature, one) for one in seeds]
    with model.as_decoder() as base:
        decoder = Decoder(base, end_ids=template.end_of_turn_ids, pad_id=model.pad_id)
        prefix = None if prompt is None else _trained_prefix(decoder, prompt, requests)
        found = batch_generate(decoder, requests, lambda _: None, prefix=prefix)
    reader = _AnswerReader(template, prompts)
    samples = [
        _sample(row, ahead, number, requests[number], found[number], reader)
        for number, row in enumerate(row for row in rows for _ in range(num_samples))
    ]
    return [samples[i : i + num_samples] for i in range(0, len(samples), num_samples)]


class _AnswerReader:
    """Turns sampled tokens into the answer that is graded, with the text that evaluations would give it.

    Args:
        template: of the model.
        prompts: by id of a row whose prompt offers tools, that prompt.
    """

    def __init__(self, template: ChatTemplate, prompts: Mapping[str, Conversation]) -> None:
        self._thoughts, self._prompts = Thoughts(template), prompts
        self._answers = WholeAnswers(template) if prompts else None

    def attempt(self, row_id: str, prompt_ids: list[int], found: Continuation, num_new_tokens: int) -> Rollout:
        """The answer to the prompt of a row, without its thought and its calls."""
        prompt = None if row_id not in self._prompts else Prompt(conversation=self._prompts[row_id])
        marks = () if self._answers is None or prompt is None else self._answers.marks(prompt)
        written, _ = self._thoughts.split(found.ids, is_open=self._thoughts.is_open(prompt_ids), marks=marks)
        text, calls = written.content, tuple[dict[str, Any], ...]()
        if self._answers is not None and prompt is not None:
            text, calls = self._answers.split(prompt, text)
        return Rollout(row_id, text, num_new_tokens, found.stopped, written.reasoning, calls)


def _seed(words: str) -> int:
    # torch's CPU generator uses 32 bits of a seed
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=4).digest(), "big")


def _trained_prefix(decoder: Decoder, prompt: torch.Tensor, requests: Sequence[Request]) -> Prefix:
    most = max(len(request.ids) + request.max_new_tokens for request in requests)
    if decoder.path.kind != "batched":
        raise RequestError(
            f"a trained prompt for a model that writes {decoder.path.describe()}",
            expected="a model whose answers can share an empty prefix",
            do="choose another method than prompt_tuning, such as lora",
        )
    if not decoder.fits_windows(most):
        raise RequestError(
            f"a trained prompt before answers of up to {most:,} tokens in all, for a model with sliding windows",
            expected="texts that fit into its windows whole: padding after the prompt would count in them",
            do="lower objective.max_new_tokens, or choose another method than prompt_tuning",
        )
    return decoder.prefill_vectors(prompt)


def _sample(
    row: TokenisedExample, ahead: int, number: int, request: Request, found: Continuation, reader: _AnswerReader
) -> Sample:
    """The end token of an answer is learned with it; a truncated answer has none.

    Reasoning and answer are learned together, weighted by the reward of the answer.
    """
    own = list(request.ids[ahead:])
    new = [*found.ids, *(() if found.end_id is None else (found.end_id,))]
    mask = bytes(len(own)) + b"\1" * len(new)
    return Sample(
        row_id=row.id,
        tokens=TokenisedExample(f"{row.id}#{number}", array("i", own + new), mask),
        attempt=reader.attempt(row.id, own, found, len(new)),
        log_probabilities=tuple(found.log_probabilities),
    )
