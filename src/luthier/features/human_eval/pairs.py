"""Use case: preference pairs for training (DPO and its kin) out of what people said, with all that is left out counted.

Of a pairwise panel a pair is what more than half of its raters preferred; of scores it is two answers to one row whose
means lie at least one point apart, and of which no rater gave the worse one more.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.results.human_eval import RatingItem, RatingPanel, RatingRow, RatingsTable
from luthier.features.human_eval.service import panel_report, ratings_table
from luthier.platform.home.context import Context

MIN_GAP: Final = 1.0
"""Points between two means that make one answer the better one."""
_TURNS: Final = re.compile(r"\A\[(system|developer|user|assistant|tool|function)\] ")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Preference pairs.

    Attributes:
        rows: Rows in Luthier's preference shape.
        left_out: How many pairs were left out, by reason.
        caught: Raters whose ratings were left out.
    """

    rows: tuple[dict[str, Any], ...]
    left_out: dict[str, int]
    caught: tuple[str, ...] = ()


@dataclass(slots=True)
class _Making:
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, item: RatingItem, chosen: str, rejected: str) -> None:
        if not chosen.strip() or not rejected.strip():
            self.left_out["an answer is empty"] += 1
        elif chosen.strip() == rejected.strip():
            self.left_out["both answers are the same text"] += 1
        # `readable` joins turns as "[role] text"; such a text as one user turn would teach a format no client sends.
        elif not item.messages and _TURNS.match(item.prompt):
            self.left_out["the prompt has several turns, of which the evaluation kept only the text"] += 1
        else:
            prompt: Any = item.prompt
            if item.messages:
                prompt = [message.model_dump(mode="json", exclude_defaults=True) for message in item.messages]
            self.rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})


def preference_pairs(context: Context, caller: Caller, panel_id: str, *, with_caught: bool = False) -> Pairs:
    """Pairs of what people prefer. with_caught: also from raters who seem not to read. Raises NotFoundError."""
    panel = context.rating_panels.get(caller.project_id, panel_id)
    table = ratings_table(context, caller.project_id, panel_id).real
    caught = () if with_caught else panel_report(context, caller, panel_id).caught
    # Before votes are counted: raters who do not read would decide items by chance.
    table = table.without(caught)
    items = {item.item: item for item in context.rating_panels.items(panel_id) if item.check is None}
    making = _Making()
    if panel.num_same:
        making.left_out["both answers are the same text"] += panel.num_same
    if panel.kind == "pairwise":
        _from_votes(items.values(), table, making)
    else:
        _from_scores(panel, list(items.values()), table, making)
    return Pairs(tuple(making.rows), dict(making.left_out), caught)


def _from_votes(items: Any, table: RatingsTable, making: _Making) -> None:
    said = table.by_item()
    for item in items:
        votes = Counter(row.preference for row in said.get(item.item, ()))
        if not votes:
            making.left_out["nobody has rated it"] += 1
            continue
        winner, num = votes.most_common(1)[0]
        # More than half of all votes, ties included: the largest group alone could be a minority.
        if num * 2 <= votes.total():
            making.left_out["raters disagree"] += 1
        elif winner == "tie":
            making.left_out["a tie"] += 1
        else:
            first, second = (answer.text for answer in item.answers)
            making.add(item, *((first, second) if winner == "a" else (second, first)))


def _from_scores(panel: RatingPanel, items: Sequence[RatingItem], table: RatingsTable, making: _Making) -> None:
    said = table.by_item()
    means = {number: _means(panel, rows) for number, rows in said.items()}
    by_row: dict[str, list[RatingItem]] = {}
    for item in items:
        by_row.setdefault(item.row_id, []).append(item)
    for together in by_row.values():
        for one, other in itertools.combinations(together, 2):
            gaps = _gaps(means.get(one.item, {}), means.get(other.item, {}))
            if not gaps:
                making.left_out["nobody has rated both answers"] += 1
                continue
            gap = sum(gaps) / len(gaps)
            if abs(gap) < MIN_GAP:
                making.left_out[f"less than {MIN_GAP:g} point apart"] += 1
            # A gap with the opposite sign of the mean: somebody preferred the other answer.
            elif min(gaps) * gap < 0 or max(gaps) * gap < 0:
                making.left_out["raters disagree"] += 1
            else:
                better, worse = (one, other) if gap > 0 else (other, one)
                making.add(one, better.answers[0].text, worse.answers[0].text)


def _means(panel: RatingPanel, rows: Sequence[RatingRow]) -> dict[str, float]:
    """Each rater's mean over the criteria."""
    found = {}
    for row in rows:
        scores = [score for name in panel.criteria if (score := row.score(name)) is not None]
        found[row.rater] = sum(scores) / len(scores)
    return found


def _gaps(one: dict[str, float], other: dict[str, float]) -> list[float]:
    """By how much each rater who rated both gave the first one more."""
    # Only raters of both: a strict rater who saw one answer would shift its mean.
    return [one[rater] - other[rater] for rater in one if rater in other]
