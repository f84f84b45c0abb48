"""What is asked of a repair, and how it says why a row was changed or removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.request import AuditRequest
from luthier.ml.data.audit.table import CountTokens
from luthier.ml.data.personal_data.masking import MaskedKinds
from luthier.ml.data.repair.actions import Action
from luthier.ml.data.repair.masked_kinds import masked_kinds


@dataclass(frozen=True, slots=True)
class RepairRequest:
    """Which file to repair into which.

    Attributes:
        output: a .jsonl file.
        actions: as `actions.choose_actions` gives them.
        audit: by which both the original (its table) and the outcome are audited; its held-out file is that of
            contamination.
        mapping: field of the shape -> column, by which the table was built.
        count_tokens: by which the table was built; None where tokens were not counted.
        force: replace an output that is there.
        mask: which personal data is masked.
    """

    output: Path
    actions: tuple[Action, ...]
    audit: AuditRequest
    mapping: dict[str, str] = field(default_factory=dict)
    count_tokens: CountTokens | None = None
    force: bool = False
    mask: MaskedKinds = field(default_factory=masked_kinds)

    @property
    def file(self) -> Path:
        """The original."""
        return self.audit.table.path

    @property
    def checks(self) -> tuple[str, ...]:
        """Ids of the checks that are needed, each once."""
        return tuple(dict.fromkeys(action.check for action in self.actions))

    def has(self, name: str) -> bool:
        """Whether an action is requested."""
        return any(action.id == name for action in self.actions)


@dataclass(frozen=True, slots=True)
class Note:
    """Why a row was changed or removed.

    Attributes:
        action: id of the action.
        reason: one phrase, without any value of the row.
        reason_by_line: the same phrase for who has the file open, other rows of it named by their lines alone; empty
            where the reason names none.
    """

    action: str
    reason: str
    reason_by_line: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        by_line = {"reason_by_line": self.reason_by_line} if self.reason_by_line else {}
        return {"check": self.action, "reason": self.reason} | by_line


Notes = dict[int, list[Note]]


def add_note(notes: Notes, line: int, note: Note) -> None:
    """Give the row of a line one more reason, each once."""
    said = notes.setdefault(line, [])
    if note not in said:
        said.append(note)


def lines_of(findings: Sequence[Finding], action: Action) -> list[int]:
    """The rows of the findings that an action is about, ascending."""
    return sorted({line for finding in findings if action.is_about(finding) for line in finding.lines})
