"""Cautions beside every figure of a judge: its verdicts that are none, and its bias, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from luthier.core.errors import WorkError
from luthier.core.records.calibration import MAX_NO_VERDICT_FRACTION, JudgeBias, NoVerdictKind
from luthier.core.results.human_eval_report import Estimate

MAX_LEFT_OUT_FRACTION = 0.5
_KINDS: Mapping[NoVerdictKind, str] = {
    "empty": "nothing",
    "refusal": "a refusal",
    "prose": "words without a verdict",
    "incomplete": "not all of the scores",
    "out of range": "a verdict that was not to choose",
    "contradiction": "two verdicts at once",
    "cut off": "no end within its tokens",
    "too long": "a question over its context",
    "no answer": "an error or no answer in time",
}


def missing_sentence(judge: str, num_asked: int, missing: Counter[NoVerdictKind], what: str) -> str | None:
    """What the judge gave no verdict on; None where nothing is missing.

    Args:
        judge: name of the judge.
        num_asked: questions that were put to it.
        missing: questions without a verdict, by kind.
        what: "pairs" or "answers".
    """
    num_missing = missing.total()
    if not num_missing:
        return None
    kinds = ", ".join(f"{_KINDS[kind]} ({count:,})" for kind, count in missing.most_common())
    share = num_missing / num_asked
    sentence = (
        f"{judge} gave no verdict on {num_missing:,} of {num_asked:,} {what} ({share:.0%}), asked twice: {kinds}. They "
        "are left out of the figures"
    )
    if share <= MAX_NO_VERDICT_FRACTION:
        return f"{sentence}."
    return f"{sentence}; that is too many to call the rest a fair sample."


def check_missing(judge: str, num_asked: int, missing: Counter[NoVerdictKind], what: str) -> None:
    """Check that enough verdicts are left for a figure.

    Args:
        judge: name of the judge.
        num_asked: questions that were put to it.
        missing: questions without a verdict, by kind.
        what: "pairs" or "answers".

    Raises:
        WorkError: most of them are missing.
    """
    if missing.total() > MAX_LEFT_OUT_FRACTION * num_asked:
        raise WorkError(
            missing_sentence(judge, num_asked, missing, what) or "",
            expected=f"a verdict on at least {1 - MAX_LEFT_OUT_FRACTION:.0%} of them",
            do="name a judge that keeps to a form (--judge): a larger model, or a server that knows JSON schemas",
        )


def bias_sentences(judge: str, bias: JudgeBias | None) -> tuple[str, ...]:
    """Position and length, a sentence each; none where there were no pairs."""
    if bias is None:
        return ()
    found = []
    if bias.first_shown is not None:
        found.append(
            f"{judge} saw each pair in both orders: shown first, an answer won {_percent(bias.first_shown)} of "
            f"{bias.num_showings:,} showings with a winner (50% is fair); {_leaning(bias.first_shown)}."
        )
    if bias.num_flipped:
        found.append(
            f"In {bias.num_flipped:,} of {bias.num_pairs:,} pairs ({bias.flipped.value:.0%}) {judge} preferred another "
            "answer when the order was turned around; they count as ties."
        )
    if bias.length is not None:
        found.append(f"{_length(judge, bias.length)}{_beside_people(bias.people_length)}.")
    return tuple(found)


def _leaning(first_shown: Estimate) -> str:
    if first_shown.low > 0.5:
        return "it leans to the first"
    return "it leans to the second" if first_shown.high < 0.5 else "no leaning to a place is seen"


def _length(judge: str, length: Estimate) -> str:
    figure = f"correlation {length.value:+.2f} [{length.low:+.2f}, {length.high:+.2f}]"
    if length.low > 0:
        return f"{judge} prefers longer answers ({figure})"
    return f"{judge} prefers shorter answers ({figure})" if length.high < 0 else f"No leaning to a length ({figure})"


def _beside_people(length: Estimate | None) -> str:
    return "" if length is None else f"; people: {length.value:+.2f} [{length.low:+.2f}, {length.high:+.2f}]"


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"
