"""Rows of concurrent answers that go through the model together, with the logits of their next tokens."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from luthier.ml.inference.decode import Batch
from luthier.ml.inference.kv_cache import RowBatch, shallow


@dataclass(slots=True, eq=False)
class RowGroup:
    """Rows that share a batch.

    Attributes:
        batch: the rows and their cache.
        logits: [rows, vocabulary] of the next token of each.
        num_room: remaining tokens in preallocated buffers; None for an ordinary cache.
    """

    batch: Batch | RowBatch
    logits: Tensor
    num_room: int | None

    def keep(self, rows: Collection[int]) -> None:
        """Drop all rows but these."""
        places = [place for place, number in enumerate(self.batch.rows) if number in rows]
        if places and len(places) < len(self.batch.rows):
            self.batch.keep(places)
            self.logits = self.logits[torch.tensor(places, device=self.logits.device)]
        elif not places:
            # A batch without rows cannot be indexed; whoever holds the group removes it.
            self.batch.rows = []

    def taken(self, rows: Collection[int]) -> RowGroup:
        """These of its rows as a group of their own, which leaves this one; the group itself where it has no others."""
        left = [number for number in self.batch.rows if number not in rows]
        if not left or not isinstance(self.batch, Batch):
            return self
        part = RowGroup(replace(self.batch, cache=shallow(self.batch.cache)), self.logits, self.num_room)
        part.keep(rows)
        self.keep(left)
        # It is as wide as the rows that have left it: laid out again without their columns.
        self.num_room = 0
        return part
