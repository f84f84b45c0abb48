"""A dataset as a project keeps it: a name, and versions, none of which is ever changed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel

Origin = Literal["upload", "repair", "split", "annotation", "test case", "review"]
"""How a version came to be: brought by somebody, or made from the version before."""
Decision = Literal["accept", "reject", "edit"]


class Dataset(FrozenModel):
    """A name for rows. created_at: seconds since 1970."""

    dataset_id: str
    project_id: str
    name: str
    created_at: float = 0.0


class DatasetVersion(FrozenModel):
    """Rows as they were at one time; `file_id` is a file of the project, which stays as long as the version does.

    number: counts from 1. parent: the number of the version that it was made from. author: who made it. note: why, in
    their words. details: what is worth knowing of how it was made, such as which repairs; plain JSON. num_rows: None
    where they could not be counted, or were not yet. created_at: seconds since 1970.
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
    """What a person said of one row. row: its place in the file, from 1 on. edited: the row as it should be.

    decided_at: seconds since 1970.
    """

    row: int
    decision: Decision
    edited: dict[str, Any] | None = None
    author: str = "local"
    decided_at: float = 0.0
