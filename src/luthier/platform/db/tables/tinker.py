"""Tables of the Tinker API: training clients, and what they have saved."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, String, Table, Text, UniqueConstraint

from luthier.platform.db.tables.base import metadata, number, project_id

# document: a features.tinker_api.records.TinkerModel. run_id: the run that its saved states belong to; there is one
# from the first of them on.
tinker_models = Table(
    "tinker_models",
    metadata,
    number(),
    Column("model_id", String(128), nullable=False),
    project_id(),
    Column("run_id", String(64), nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("model_id"),
    UniqueConstraint("run_id"),
    Index(None, "project_id"),
    sqlite_autoincrement=True,
)

# document: a features.tinker_api.records.TinkerCheckpoint. kind: training, sampler or external.
tinker_checkpoints = Table(
    "tinker_checkpoints",
    metadata,
    number(),
    Column("checkpoint_id", String(64), nullable=False),
    Column("model_id", String(128), ForeignKey("tinker_models.model_id", ondelete="CASCADE"), nullable=False),
    project_id(),
    Column("kind", String(16), nullable=False),
    Column("name", String(100), nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    UniqueConstraint("checkpoint_id"),
    UniqueConstraint("model_id", "kind", "name"),
    Index(None, "project_id"),
    sqlite_autoincrement=True,
)
