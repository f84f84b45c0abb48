"""The rows of a version as decisions leave them, written out a piece at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.ml.data.rows.write_rows import json_line

if TYPE_CHECKING:
    from luthier.features.datasets.annotations import Queue


@dataclass
class Counts:
    """What became of the rows while they were written.

    Attributes:
        decided: Rows by decision.
        num_undecided: Rows without a decision, which pass through.
        num_unreadable: Records that are no rows, which are left out.
    """

    decided: Counter[str] = field(default_factory=Counter)
    num_undecided: int = 0
    num_unreadable: int = 0

    def as_details(self, queue: Queue) -> dict[str, Any]:
        """For the version that was made."""
        return {
            "from_version": queue.version.number,
            "accepted": self.decided["accept"],
            "rejected": self.decided["reject"],
            "edited": self.decided["edit"],
            "undecided": self.num_undecided,
            "unreadable": self.num_unreadable,
            "people": dict(queue.by_author[:50]),
        }


def decided_rows(queue: Queue, counts: Counts) -> Iterator[bytes]:
    """JSONL in pieces; counts are right when the last one was taken.

    A row that was not edited passes through unchanged. Of a file that is no JSONL what could not be read has no
    bytes to pass through, and is left out.
    """
    for line, pieces in queue.rows.pieces():
        decision = queue.decisions.get(line)
        if decision is not None:
            counts.decided[decision.decision] += 1
        else:
            counts.num_undecided += 1
        if decision is not None and decision.decision == "reject":
            continue
        if decision is not None and decision.edited is not None:
            yield json_line(decision.edited) + b"\n"
            continue
        # Rows come in pieces, so a row of many megabytes never is in memory as a whole.
        first = next(pieces)
        # In a copied index a row that cannot be read is stored as a JSON string with the reason; rows are objects.
        if queue.rows.is_copy and first.startswith(b'"'):
            counts.num_unreadable += 1
            continue
        yield first
        yield from pieces
