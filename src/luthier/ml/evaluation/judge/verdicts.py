"""Verdicts on answers: pairs in both orders, and scores by a rubric.

Zheng et al., 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv:2306.05685, section 3.4: an answer
wins only where it is preferred in both orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.ports import Engine, Progress
from luthier.core.records.calibration import NoVerdictKind
from luthier.core.results.suite import Criterion
from luthier.ml.evaluation.judge.ask import ask_judge
from luthier.ml.evaluation.judge.questions import pairwise_question, rubric_question
from luthier.ml.evaluation.judge.replies import NoVerdict, read_preference, read_scores

Preference = Literal["a", "b", "tie"]
POINTS: Final[dict[Preference, float]] = {"a": 1.0, "tie": 0.5, "b": 0.0}
"""What the first of two answers gets."""
_MEANT: Final[dict[str, tuple[Preference, Preference]]] = {"A": ("a", "b"), "B": ("b", "a"), "tie": ("tie", "tie")}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        prompt: the request.
        a: the first answer.
        b: the second answer.
    """

    prompt: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """What a judge said of a pair, shown in both orders.

    Attributes:
        a_first: who won with `a` shown first, or why there is no verdict.
        b_first: who won with `b` shown first.
    """

    a_first: Preference | NoVerdict
    b_first: Preference | NoVerdict

    @property
    def no_verdict(self) -> NoVerdictKind | None:
        """Why there is no verdict; one order alone is none, since its share of position bias is not known."""
        return next((one.kind for one in (self.a_first, self.b_first) if isinstance(one, NoVerdict)), None)

    @property
    def preference(self) -> Preference | None:
        """Who won in both orders; a tie where there is none; None without a verdict."""
        if self.no_verdict is not None:
            return None
        return self.a_first if self.a_first == self.b_first and not isinstance(self.a_first, NoVerdict) else "tie"

    @property
    def is_flipped(self) -> bool:
        """Whether one answer won in one order, and the other in the other."""
        return {self.a_first, self.b_first} == {"a", "b"} if self.no_verdict is None else False

    @property
    def shown_first_won(self) -> tuple[int, int]:
        """In how many of the two showings the one shown first won, and in how many anybody won."""
        if self.no_verdict is not None:
            return 0, 0
        winners = [(self.a_first, "a"), (self.b_first, "b")]
        return sum(won == first for won, first in winners), sum(won != "tie" for won, _ in winners)


def judge_pairs(engine: Engine, criterion: Criterion, pairs: Sequence[Pair], progress: Progress) -> list[PairVerdict]:
    """A verdict for each pair, in order. Two equal answers are a tie without a question to the judge.

    Raises:
        WorkError: the judge gives no answers any more.
    """
    places = [place for place, pair in enumerate(pairs) if pair.a.strip() != pair.b.strip()]
    asked = [pairs[place] for place in places]
    prompts = [pairwise_question(criterion, one.prompt, one.a, one.b) for one in asked]
    # All questions in one call: first every pair in one order, then every pair in the other.
    prompts += [pairwise_question(criterion, one.prompt, one.b, one.a) for one in asked]
    said = ask_judge(engine, prompts, read_preference, progress)
    found = [PairVerdict("tie", "tie") for _ in pairs]
    for place, forward, backward in zip(places, said[: len(places)], said[len(places) :], strict=True):
        found[place] = PairVerdict(_of_shown(forward, 0), _of_shown(backward, 1))
    return found


def judge_answers(
    engine: Engine, criteria: Sequence[Criterion], answers: Sequence[tuple[str, str]], progress: Progress
) -> list[dict[Criterion, int] | NoVerdict]:
    """The scores of each (prompt, answer), in order.

    Raises:
        WorkError: the judge gives no answers any more.
    """
    prompts = [rubric_question(criteria, prompt, answer) for prompt, answer in answers]
    return ask_judge(engine, prompts, lambda made: read_scores(made, criteria), progress)


def _of_shown(said: str | NoVerdict, order: int) -> Preference | NoVerdict:
    return said if isinstance(said, NoVerdict) else _MEANT[said][order]
