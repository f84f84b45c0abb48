"""Tables of work: runs, their artifacts and labels, the job queue, studies, assessments and ratings."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
)

from luthier.platform.db.tables.base import String, metadata, number, project_id, run_id

runs = Table(
    "runs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order in which runs were made
    Column("run_id", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("base_model", Text, nullable=False),
    Column("method", String(32), nullable=False),
    Column("plan_hash", String(64), nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("updated_at", String(40), nullable=False),
    Column("step", Integer, nullable=False),
    Column("num_steps", Integer, nullable=False),
    Column("stopped_because", Text),
    Column("result", Text),
    Column("evaluation_id", String(64)),
    Column("report_path", Text),
    Column("project_id", String(64)),  # of a run that a workflow's job made; None: that of its own job, else `default`
    UniqueConstraint("run_id"),
    sqlite_autoincrement=True,
)

plans = Table("plans", metadata, run_id(is_key=True), Column("document", Text, nullable=False))

events = Table(
    "events",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=True),  # grows with every append, never reused
    run_id(),
    Column("kind", String(32), nullable=False),
    Column("step", Integer, nullable=False),
    Column("code", String(64), nullable=False),
    Column("document", Text, nullable=False),
    UniqueConstraint("run_id", "kind", "step", "code"),
    Index(None, "run_id", "step"),
    sqlite_autoincrement=True,
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("evaluation_id", String(64), nullable=False),
    run_id(is_optional=True),
    Column("document", Text, nullable=False),
    Column("project_id", String(64)),  # of one without a run; None: that of its run, else `default`
    UniqueConstraint("evaluation_id"),
    Index(None, "run_id"),
    sqlite_autoincrement=True,
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("num_bytes", BigInteger().with_variant(Integer, "sqlite"), nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("place", String(100)),  # below the root, new with every writing; None: `ab/cdef...`, as before 0004
)

artifact_links = Table(
    "artifact_links",
    metadata,
    run_id(is_key=True),
    Column("name", String(200), primary_key=True),
    Column("sha256", String(64), ForeignKey("artifacts.sha256"), nullable=False),
    Index(None, "sha256"),
)

generations = Table(
    "generations",
    metadata,
    Column("key", String(64), primary_key=True),  # SHA-256 over engine, prompt and, since 0024, project
    Column("engine", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("project_id", String(64)),  # None: of no project, or from before 0024 in a home of several projects
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order in which they are taken
    Column("job_id", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("document", Text, nullable=False),
    Column("run_id", String(64), nullable=False),  # no foreign key: the run is made when the work begins
    Column("status", String(16), nullable=False),
    Column("wish", String(16)),
    Column("attempt", Integer, nullable=False),
    Column("num_crashes", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("crash_step", Integer, nullable=False),  # how far it was at its last crash
    Column("num_losses", Integer, nullable=False, server_default="0"),  # workers it has lost since it got any further
    Column("worker", String(200)),
    Column("lease_until", Double),
    Column("not_before", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("error", Text),
    Column("project_id", String(64), nullable=False, server_default="default"),
    Column("lane", String(16), nullable=False, server_default="train"),  # which kind of worker takes it next
    Column("announced", Integer, nullable=False, server_default="0"),  # 1 once webhooks know that it has ended
    Column("workflow_id", String(64)),  # that it makes or continues; no foreign key: it is made when the work begins
    UniqueConstraint("job_id"),
    Index(None, "status"),
    Index(None, "project_id"),
    Index(None, "project_id", "kind", "number"),
    Index(None, "run_id"),
    Index(None, "workflow_id"),
    Index(None, "announced", "status"),
    sqlite_autoincrement=True,
)

# Events of a job, in order; never changed and never removed while the job is there. `code` names an event: one that
# an attempt repeats is stored once.
job_events = Table(
    "job_events",
    metadata,
    number(),
    Column("event_id", String(64), nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("code", String(100), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("level", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Text),  # JSON; None for an event that is a message alone
    UniqueConstraint("event_id"),
    UniqueConstraint("job_id", "code"),
    Index("ix_job_events_job_id_number", "job_id", "number"),
    sqlite_autoincrement=True,
)


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


# No foreign key: a run that waits in the queue has a name and tags before it has a row in `runs`.
run_labels = Table(
    "run_labels",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("name", String(200), nullable=False),  # empty: the default name of `run_values`
    Column("note", Text, nullable=False),
    Column("group_name", String(100), nullable=False),
    Column("is_starred", Integer, nullable=False, server_default="0"),
    Column("is_archived", Integer, nullable=False, server_default="0"),  # 2: deleted, and its job is still there
)

run_tags = Table(
    "run_tags",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("tag", String(50), primary_key=True),
    Index(None, "tag"),
)

# One row for each value of a run's plan, result and evaluation, and its default name. number: None for text.
run_values = Table(
    "run_values",
    metadata,
    run_id(is_key=True),
    Column("key", String(100), primary_key=True),
    Column("number", Double),
    Column("text", String(200)),
    Index(None, "key", "number"),
    Index(None, "key", "text"),
)

# A filter, columns and an order under a name. query: as the address of the list has it.
run_views = Table(
    "run_views",
    metadata,
    number(),
    project_id(),
    Column("name", String(100), nullable=False),
    Column("query", Text, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("project_id", "name"),
    sqlite_autoincrement=True,
)
