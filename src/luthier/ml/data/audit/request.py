"""What a check is given, and what it may answer instead of findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from luthier.core.ports import Progress, SilentProgress
from luthier.core.results.audit import Finding
from luthier.ml.data.audit.table import AuditTable

# Texts -> for each the probability, 0 to 1, that it is toxic.
ToxicityModel = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """A file to check, and what is known about what it is for.

    Attributes:
        table: the file.
        held_out: the file that will judge (`--against`); None for none.
        model: the base model; None where it is not known.
        context_tokens: tokens that the model can see.
        method: how it will be trained, such as "lora".
        toxicity_model: judges in place of the word list.
        toxicity_model_name: its name in messages.
        progress: shows slow checks.
    """

    table: AuditTable
    held_out: AuditTable | None = None
    model: str | None = None
    context_tokens: int | None = None
    method: str = "lora"
    toxicity_model: ToxicityModel | None = None
    toxicity_model_name: str | None = None
    progress: Progress = SilentProgress()  # noqa: RUF009 - it has no state


@dataclass(frozen=True, slots=True)
class Skipped:
    """A check that could not be run. It is shown beside the findings, so that nobody takes it for a clean result.

    Attributes:
        reason: why it could not be run.
    """

    reason: str


class Check(Protocol):
    """A pure function: the same request gives the same findings, in the same order."""

    def __call__(self, request: AuditRequest) -> Sequence[Finding] | Skipped: ...
