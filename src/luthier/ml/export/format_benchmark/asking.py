"""Input and output of the process that measures one format: JSON documents, so that it loads nothing else."""

from __future__ import annotations

from typing import Literal

from luthier.core.frozen_model import FrozenModel
from luthier.core.records.export import ExportFormat, ExportSource


class AskedRow(FrozenModel):
    """One held-out row in the source's tokens.

    Attributes:
        ids: all tokens.
        learned: places of `ids` that are predicted.
        num_prompt: tokens before the answer, 0 where nothing is written (plain text).
    """

    ids: tuple[int, ...]
    learned: tuple[int, ...]
    num_prompt: int


class Asked(FrozenModel):
    """What the process measures.

    Attributes:
        what: "quality" for likelihoods and greedy text of every row; "speed" for how fast prompts are read and tokens
            written.
        format: None runs the source itself, as it was trained.
        folder: of the export.
        source: the model.
        rows: what is read and written.
        max_new_tokens: of each answer.
    """

    what: Literal["quality", "speed"]
    format: ExportFormat | None
    folder: str
    source: ExportSource
    rows: tuple[AskedRow, ...]
    max_new_tokens: int


class RowQuality(FrozenModel):
    """A format's output for one row.

    Attributes:
        nll_nats: of the learned tokens, in all.
        num_correct: learned tokens that were the likeliest.
        written: greedy tokens.
        is_ended: whether the answer ended before the limit.
    """

    nll_nats: float
    num_correct: int
    written: tuple[int, ...]
    is_ended: bool


class Quality(FrozenModel):
    """What a format makes of all rows.

    Attributes:
        runtime: its name and version.
        rows: in the order of the request.
    """

    runtime: str
    rows: tuple[RowQuality, ...]


class Speed(FrozenModel):
    """One round of one format.

    Attributes:
        load_seconds: to load it.
        first_seconds: until the first new token of every prompt, summed.
        all_seconds: for the whole answers, summed.
        num_prompt_tokens: of all prompts.
        num_new_tokens: new tokens after the first of each answer.
        peak_memory_bytes: resident, of the process.
        idle_memory_bytes: the same before the model is loaded.
    """

    load_seconds: float
    first_seconds: float
    all_seconds: float
    num_prompt_tokens: int
    num_new_tokens: int
    peak_memory_bytes: int
    idle_memory_bytes: int

    @property
    def prompt_tokens_per_second(self) -> float:
        """Tokens of prompts, up to the first new token."""
        return self.num_prompt_tokens / self.first_seconds

    @property
    def new_tokens_per_second(self) -> float | None:
        """New tokens after the first of each answer; None where answers were too short or time too unsteady."""
        seconds = self.all_seconds - self.first_seconds
        return self.num_new_tokens / seconds if self.num_new_tokens and seconds > 0 else None
