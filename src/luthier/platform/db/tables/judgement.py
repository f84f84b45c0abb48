"""What models were judged by beside their held-out rows, and what people said of their answers."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from luthier.platform.db.tables.base import metadata, number, project_id, run_id

# Results of suites, of safety checks, and of holding judges against people. kind: `suite`, `safety`, `calibration`,
# `showdown`. subject: the run or model that it is about; of a calibration the judge. document: a core
# spec of that kind.
assessments = Table(
    "assessments",
    metadata,
    number(),
    Column("assessment_id", String(64), nullable=False),
    project_id(),
    Column("kind", String(20), nullable=False),
    Column("subject", String(255), nullable=False),
    run_id(is_optional=True),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("assessment_id"),
    Index(None, "kind", "subject"),
    sqlite_autoincrement=True,
)

# Answers that people rate, blind. document: a core.rating.RatingPanel.
rating_panels = Table(
    "rating_panels",
    metadata,
    number(),
    Column("panel_id", String(64), nullable=False),
    project_id(),
    Column("name", String(100), nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("closed_at", Double),
    UniqueConstraint("panel_id"),
    sqlite_autoincrement=True,
)

# What is shown: a prompt with the answers of the systems. document: a core.rating.RatingItem.
rating_items = Table(
    "rating_items",
    metadata,
    Column("panel_id", String(64), ForeignKey("rating_panels.panel_id", ondelete="CASCADE"), primary_key=True),
    Column("item", Integer, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
)

# Who rates. digest: SHA-256 of what their link holds.
raters = Table(
    "raters",
    metadata,
    number(),
    Column("rater_id", String(64), nullable=False),
    Column("panel_id", String(64), ForeignKey("rating_panels.panel_id", ondelete="CASCADE"), nullable=False),
    Column("name", String(100), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("rater_id"),
    UniqueConstraint("digest"),
    UniqueConstraint("panel_id", "name"),
    sqlite_autoincrement=True,
)

# The newest word of a rater on an item counts. document: a core.rating.Rating.
ratings = Table(
    "ratings",
    metadata,
    Column("panel_id", String(64), primary_key=True),
    Column("item", Integer, primary_key=True, autoincrement=False),
    Column("rater_id", String(64), ForeignKey("raters.rater_id", ondelete="CASCADE"), primary_key=True),
    Column("document", Text, nullable=False),
    Column("rated_at", Double, nullable=False),
    ForeignKeyConstraint(
        ["panel_id", "item"],
        ["rating_items.panel_id", "rating_items.item"],
        name="fk_ratings_panel_id",
        ondelete="CASCADE",
    ),
)
