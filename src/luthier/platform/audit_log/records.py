"""Records of the audit log: who did what to what, in a chain of hashes."""

from __future__ import annotations

from typing import Final

from luthier.core.digest import sha256_document
from luthier.core.frozen_model import FrozenModel

GENESIS_HASH: Final = "0" * 64
"""The previous hash of the first entry."""


class AuditEvent(FrozenModel):
    """An action to be logged.

    Attributes:
        actor: Who did it.
        action: What was done, such as `file.deleted`.
        subject: The id of the object.
        project_id: The project it belongs to; None for the whole home.
        document: Details as JSON text, without secrets.
    """

    actor: str
    action: str
    subject: str
    project_id: str | None
    document: str = "{}"


class AuditEntry(FrozenModel):
    """One entry of the log.

    Attributes:
        number: 1, 2, 3 ... without a gap.
        created_at: Seconds since 1970 by the database's clock, to the millisecond.
        actor: Who did it.
        action: What was done, such as `file.deleted`.
        subject: The id of the object.
        project_id: The project it belongs to; None for the whole home.
        document: Details as JSON text, without secrets.
        previous_hash: The hash of the entry before.
        hash: SHA-256 over all other fields, in hexadecimal digits.
    """

    number: int
    created_at: float
    actor: str
    action: str
    subject: str
    project_id: str | None
    document: str
    previous_hash: str
    hash: str = ""

    def hash_of_it(self) -> str:
        """The hash of an entry with this content: SHA-256 over its canonical JSON, which holds the hash before it."""
        # previous_hash is part of it: that is what links the chain.
        return sha256_document(self.model_dump(exclude={"hash"}))


class AuditVerdict(FrozenModel):
    """The result of verifying the chain.

    Attributes:
        is_whole: Whether every entry is as it was written.
        num_entries: How many entries are whole, from the first one on.
        head_number: The number of the last of these; 0 in an empty log.
        head_hash: Its hash; `GENESIS_HASH` in an empty log. Keep both outside of the database: a chain alone cannot
            show that its end was cut off.
        broken_number: The first entry that is not as it was written; None if there is none.
        problem: What is wrong with that entry.
    """

    is_whole: bool
    num_entries: int
    head_number: int
    head_hash: str
    broken_number: int | None = None
    problem: str | None = None
