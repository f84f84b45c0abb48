"""A dataset as a project keeps it: a name, and versions, none of which is ever changed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel

Origin = Literal["upload", "repair", "split", "annotation", "test case", "review"]
"""How a version was made: uploaded by somebody, or made from an earlier version."""
Decision = Literal["accept", "reject", "edit"]


class Dataset(FrozenModel):
    """A name for rows.

    Attributes:
        dataset_id: Its id.
        project_id: The project that owns it.
        name: Unique in the project.
        created_at: Seconds since 1970.
    """

    dataset_id: str
    project_id: str
    name: str
    created_at: float = 0.0


class DatasetVersion(FrozenModel):
    """Rows as they were at one time. The version is never changed.

    Attributes:
        dataset_id: The dataset.
        number: Counts from 1.
        file_id: The file of the project with the rows; it stays as long as the version does.
        filename: The name that it was uploaded under.
        sha256: The digest of the file.
        num_bytes: Its size.
        num_rows: How many rows it has; None where they were not, or could not be, counted.
        origin: How the version was made.
        parent: The number of the version that it was made from.
        author: Who made it.
        note: Why, in the author's words.
        details: How it was made, such as which repairs; plain JSON.
        created_at: Seconds since 1970.
    """

    dataset_id: str
    number: int
    file_id: str
    filename: str
    sha256: str
    num_bytes: int
    num_rows: int | None
    origin: Origin
    parent: int | None = None
    author: str = "local"
    note: str = ""
    details: dict[str, Any] = Field(default_factory=dict)
    created_at: float = 0.0


class RowDecision(FrozenModel):
    """A person's decision about one row.

    Attributes:
        row: The line of the row in the file, from 1 on.
        decision: What is to become of it.
        edited: The row as it should be, for an edit.
        author: Who decided.
        decided_at: Seconds since 1970.
    """

    row: int
    decision: Decision
    edited: dict[str, Any] | None = None
    author: str = "local"
    decided_at: float = 0.0
