"""How systems thought before they answered: how long, and how many thoughts were cut off before an answer."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.evaluation import ThinkingFigures
from luthier.core.ports import Generation


def thinking_figures(generations: Sequence[Generation]) -> ThinkingFigures | None:
    """The figures of one system's answers; None where none of them has a thought."""
    thoughts = [one for one in generations if one.reasoning is not None or one.ends_in_thought]
    if not thoughts:
        return None
    counts = [one.num_thinking_tokens for one in thoughts if one.num_thinking_tokens is not None]
    are_told = len(counts) == len(thoughts)
    return ThinkingFigures(
        num_thoughts=len(thoughts),
        num_cut_off=sum(one.ends_in_thought for one in thoughts),
        mean_tokens=sum(counts) / len(counts) if are_told else None,
        least_tokens=min(counts) if are_told else None,
        most_tokens=max(counts) if are_told else None,
    )
