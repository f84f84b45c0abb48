"""Groups of evaluated rows, such as those of one document or customer, which tend to be right or wrong together.

Where rows name their groups, intervals and tests count groups (`statistics.cluster_sums`): ten questions about one
contract are not ten contracts. Pieces of one text are a group, too. Fewer than six groups cannot show any difference,
so there rows count, and a sentence says that the figures hold for these groups alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.dataset import Example
from luthier.core.evaluation import Verdict
from luthier.ml.evaluation.verdict_text import held_out_rows

MIN_GROUPS: Final = 6
"""Two-sided, five groups that all point to one side have p = 2^-4 at the least (`intervals.difference_of`)."""


@dataclass(frozen=True, slots=True)
class RowGroups:
    """The groups of evaluated rows, of which at least two share one.

    Attributes:
        of_row: by the id of the row; rows without a group have one of their own.
        are_texts: they are texts, of which rows are pieces.
        num_trained: how many of them have training rows, too.
    """

    of_row: Mapping[str, Hashable]
    are_texts: bool = False
    num_trained: int = 0

    @property
    def num_groups(self) -> int:
        """How many different ones there are."""
        return len(set(self.of_row.values()))

    @property
    def are_few(self) -> bool:
        """Whether they are too few to count groups in place of rows."""
        return self.num_groups < MIN_GROUPS

    def clusters(self, row_ids: Sequence[str]) -> list[Hashable] | None:
        """The group of each row, for intervals and tests; None where rows count by themselves."""
        return None if self.are_few else [self.of_row.get(row_id, row_id) for row_id in row_ids]

    @property
    def counted(self) -> Mapping[str, Hashable] | None:
        """The group of each row, where groups count in place of rows; else None."""
        return None if self.are_few else self.of_row

    @property
    def sentence(self) -> str:
        """How they count."""
        rows, num = held_out_rows(len(self.of_row)), self.num_groups
        one, many = ("text", "texts") if self.are_texts else ("group", "groups")
        if num == 1:
            return (
                f"These {rows} are all of one {one}: intervals and tests hold for other rows of it, and say nothing of "
                f"other {many}."
            )
        if self.are_few:
            return (
                f"These {rows} are of only {num} {many}: intervals and tests hold for other rows of these, and say "
                f"nothing of other {many}. That takes {MIN_GROUPS} {many} at least."
            )
        said = f"These {rows} are of {num:,} {many}: rows of one {one} count together in intervals and tests."
        if not self.num_trained:
            return said
        # Known groups are easier: a customer whose other letters were learned, or a module whose names were.
        have = "has" if self.num_trained == 1 else "have"
        return f"{said} {self.num_trained:,} of these {many} {have} training rows, too: new {many} may be harder."


def row_groups(
    examples: Sequence[Example],
    piece_of: Callable[[str], str],
    named: Mapping[str, str] | None = None,
    train: Iterable[Example] = (),
) -> RowGroups | None:
    """The groups of rows; None where no two rows share one.

    Args:
        examples: the evaluated rows.
        piece_of: the id of the row that one is a piece of, by its id; the same id for a row that is whole.
        named: groups by the id of the row, of rows that do not carry theirs.
        train: the training rows, some of which may carry a group that evaluated rows have.
    """
    found: dict[str, Hashable] = {}
    for one in examples:
        whole = piece_of(one.id)
        group = one.group if one.group is not None else (named or {}).get(whole)
        # Pairs, so that a group with the name of a row is another one.
        found[one.id] = ("row", whole) if group is None else ("group", group)
    keys = set(found.values())
    if len(keys) == len(found):
        return None
    trained = {("group", one.group) for one in train if one.group is not None} & keys
    are_texts = all(isinstance(key, tuple) and key[0] == "row" for key in keys)
    return RowGroups(found, are_texts=are_texts, num_trained=len(trained))


def with_groups(words: Verdict | None, groups: RowGroups | None) -> Verdict | None:
    """The verdict with a caveat where its rows are of too few groups to say anything of others.

    Args:
        words: None stays None.
        groups: that rows share; None where no two rows share one.
    """
    if words is None or groups is None or not groups.are_few:
        return words
    return words.model_copy(update={"caveats": (*words.caveats, groups.sentence)})
