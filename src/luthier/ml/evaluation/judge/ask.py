"""Ask a judge many questions: one that fails stops no other, and one that got no verdict is asked once more.

Questions are asked greedily. The second time they are drawn with another seed, at a temperature, since a model that
takes the likeliest token would only repeat itself; where the first reply was cut off, there is more room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from luthier.core.errors import OverlongError, WorkError
from luthier.core.ports import Engine, Generation, Progress, ProgressTask, Prompt
from luthier.ml.evaluation.judge.replies import NoVerdict

T = TypeVar("T")
Read = Callable[[Generation], T | NoVerdict]

RETRY_TEMPERATURE: Final = 0.7
RETRY_SEED: Final = 1
ROOMY_TOKENS: Final = 4096
# Where a call of many questions fails, each part is asked by itself, down to the one that is to blame.
_PARTS: Final = 8
# So many single questions in a row without an answer, and the judge is taken for dead.
_MAX_IN_A_ROW: Final = 3


def ask_judge(engine: Engine, prompts: Sequence[Prompt], read: Read[T], progress: Progress) -> list[T | NoVerdict]:
    """A verdict for each question, in order, or why there is none.

    An engine that caches keeps what it wrote, so that a second attempt after a failure costs nothing.

    Args:
        engine: the judge.
        prompts: the questions.
        read: turns a reply into a verdict.
        progress: shows the replies.

    Raises:
        WorkError: the judge fails on three single questions in a row.
        RequestError: the engine refuses the request, such as for a wrong key or an unknown model.
    """
    titled = _Judging(progress)
    found: list[T | NoVerdict] = [_read(made, read) for made in _each(engine, prompts, titled)]
    # A question that is too long is as long the second time.
    again = [place for place, one in enumerate(found) if isinstance(one, NoVerdict) and one.kind != "too long"]
    second = _each(engine, [_retried(prompts[place], found[place]) for place in again], titled)
    for place, made in zip(again, second, strict=True):
        verdict = _read(made, read)
        # A second failure keeps the first reason: it is that of the greedy reply.
        if not isinstance(verdict, NoVerdict):
            found[place] = verdict
    return found


def _retried(prompt: Prompt, first: object) -> Prompt:
    is_cut = isinstance(first, NoVerdict) and first.kind == "cut off"
    changes = {"temperature": RETRY_TEMPERATURE, "seed": prompt.seed + RETRY_SEED}
    room = {"max_new_tokens": max(ROOMY_TOKENS, prompt.max_new_tokens)} if is_cut else {}
    return prompt.model_copy(update={**changes, **room})


def _read(made: Generation | WorkError | OverlongError, read: Read[T]) -> T | NoVerdict:
    if isinstance(made, OverlongError):
        return NoVerdict("too long", made.came)
    return NoVerdict("no answer", made.came) if isinstance(made, WorkError) else read(made)


def _each(
    engine: Engine, prompts: Sequence[Prompt], progress: Progress
) -> list[Generation | WorkError | OverlongError]:
    """One generation a prompt, in order, or the error in its place."""
    found: dict[int, Generation | WorkError | OverlongError] = {}
    num_in_a_row = 0

    def ask(places: Sequence[int]) -> None:
        nonlocal num_in_a_row
        try:
            made = engine.generate([prompts[place] for place in places], progress)
        except (WorkError, OverlongError) as error:
            if len(places) == 1:
                found[places[0]] = error
                # A question that is too long says nothing about the health of the judge.
                num_in_a_row += isinstance(error, WorkError)
                if num_in_a_row >= _MAX_IN_A_ROW:
                    raise
                return
        else:
            num_in_a_row = 0
            found.update(zip(places, made, strict=True))
            return
        size = -(-len(places) // _PARTS)
        for start in range(0, len(places), size):
            ask(places[start : start + size])

    if prompts:
        ask(range(len(prompts)))
    return [found[place] for place in range(len(prompts))]


class _Judging:
    """Progress whose tasks say that a judge is at work."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        return self._progress.task("Judging" if title == "Writing answers" else title, total, unit, done)
