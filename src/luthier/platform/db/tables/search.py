"""Searches: studies, and the trials of each."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Integer, String, Table, Text, UniqueConstraint

from luthier.platform.db.tables.base import metadata, number, project_id

# document: a core.study.Study.
studies = Table(
    "studies",
    metadata,
    number(),
    Column("study_id", String(64), nullable=False),
    project_id(),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("study_id"),
    sqlite_autoincrement=True,
)

# document: a core.study.Trial; its run is there once it was begun.
trials = Table(
    "trials",
    metadata,
    Column("study_id", String(64), ForeignKey("studies.study_id", ondelete="CASCADE"), primary_key=True),
    Column("trial", Integer, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
)
