"""A few fixed prompts, answered by the model in training: before its first step, and at each checkpoint.

Decoding is greedy and takes no random numbers, the weights are the ones in training and are not changed, and the model
goes back to its training state: a run trains the same bytes with and without this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import LuthierError
from luthier.core.events import SampleAnswer, SamplesAnswered, WarningRaised
from luthier.core.ports import EventSink

if TYPE_CHECKING:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.training.model import TrainableModel

AnswerSamples = Callable[["TrainableModel", int], None]
"""Answers the fixed prompts with the weights of a step, and emits what was written."""
MAX_NEW_TOKENS: Final = 64
_MAX_CHARACTERS: Final = 4_000


def chosen_rows(
    rows: Sequence[TokenisedExample], number: int, *, context_length_tokens: int
) -> tuple[TokenisedExample, ...]:
    """The first rows with different prompts that leave room for an answer, at most `number`."""
    found: dict[bytes, TokenisedExample] = {}
    for row in rows:
        if len(found) == number:
            break
        if 0 < row.num_prompt_tokens <= context_length_tokens - MAX_NEW_TOKENS:
            found.setdefault(row.input_ids[: row.num_prompt_tokens].tobytes(), row)
    return tuple(found.values())


class SamplePrompts:
    """Answers the same prompts at each call.

    Args:
        rows: Whose prompts are answered.
        template: Of the model.
        emit: Receives the answers; where they cannot be written one warning, and nothing more for the rest of the run.
        max_new_tokens: Of an answer.
    """

    def __init__(
        self, rows: Sequence[TokenisedExample], template: ChatTemplate, emit: EventSink, max_new_tokens: int
    ) -> None:
        self._rows, self._template, self._emit = tuple(rows), template, emit
        self._max_new_tokens = min(max_new_tokens, MAX_NEW_TOKENS)
        self._is_broken = False

    def __call__(self, model: TrainableModel, step: int) -> None:
        """Answer all prompts with the present weights."""
        if self._is_broken or not self._rows:
            return
        began = time.perf_counter()
        try:
            answers = self._answers(model)
        # Samples are for people: a model that cannot write now must not end a training of hours.
        except (LuthierError, RuntimeError, ValueError, NotImplementedError) as error:
            self._is_broken = True
            why = error.came if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
            message = f"the sample prompts are not answered in this run: {why[:500]}"
            self._emit(WarningRaised(step=step, code="no_samples", message=message))
            return
        self._emit(SamplesAnswered(step=step, answers=answers, seconds=time.perf_counter() - began))

    def _answers(self, model: TrainableModel) -> tuple[SampleAnswer, ...]:
        import torch

        from luthier.ml.training.objectives.sampling import draw_samples

        with torch.no_grad():
            found = draw_samples(
                model,
                self._template,
                self._rows,
                num_samples=1,
                max_new_tokens=self._max_new_tokens,
                temperature=0.0,
                seed="",
            )
        return tuple(
            SampleAnswer(
                prompt=self._text(row.input_ids[: row.num_prompt_tokens].tolist(), special=True)[-_MAX_CHARACTERS:],
                answer=sample.attempt.text[:_MAX_CHARACTERS],
                reference=self._text(_last_answer(row), special=False)[:_MAX_CHARACTERS],
                num_new_tokens=sample.attempt.num_new_tokens,
                is_cut=not sample.attempt.ended,
            )
            for row, (sample,) in zip(self._rows, found, strict=True)
        )

    def _text(self, ids: list[int], *, special: bool) -> str:
        text: str = self._template.tokenizer.decode(
            ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text


def _last_answer(row: TokenisedExample) -> list[int]:
    """The learned ids behind the prompt."""
    begin = row.num_prompt_tokens
    return [int(token) for token, mask in zip(row.input_ids[begin:], row.loss_mask[begin:], strict=True) if mask]
