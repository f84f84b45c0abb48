"""The tables of this version. New databases get them as they are here, older ones by migrations/, append-only.

Documents (plans, results, events, evaluations) are JSON text of the core specs: the columns next to them are only what
is searched by. Nothing here is SQLite's own: PostgreSQL has the same tables.
"""

from __future__ import annotations

from luthier.platform.db.tables.base import metadata
from luthier.platform.db.tables.deployments import (
    alerts,
    deployment_revisions,
    deployments,
    feedback,
    model_usage,
    pipelines,
    review_items,
    traffic_files,
    watches,
)
from luthier.platform.db.tables.server import (
    api_keys,
    audit_log,
    checkpoint_permissions,
    dataset_versions,
    datasets,
    exports,
    files,
    idempotency_keys,
    key_usage,
    members,
    projects,
    row_decisions,
    sign_in_links,
    tuned_models,
    upload_parts,
    uploads,
    web_sessions,
    webhook_deliveries,
    webhooks,
)
from luthier.platform.db.tables.team import inbox_items, invitations
from luthier.platform.db.tables.work import (
    artifact_links,
    artifacts,
    assessments,
    evaluations,
    events,
    generations,
    job_events,
    jobs,
    plans,
    raters,
    rating_items,
    rating_panels,
    ratings,
    runs,
    studies,
    trials,
)

# The newest migration. A test holds that this is the head of migrations/ and that older databases become these tables.
SCHEMA_VERSION = "0013"

__all__ = [
    "SCHEMA_VERSION",
    "alerts",
    "api_keys",
    "artifact_links",
    "artifacts",
    "assessments",
    "audit_log",
    "checkpoint_permissions",
    "dataset_versions",
    "datasets",
    "deployment_revisions",
    "deployments",
    "evaluations",
    "events",
    "exports",
    "feedback",
    "files",
    "generations",
    "idempotency_keys",
    "inbox_items",
    "invitations",
    "job_events",
    "jobs",
    "key_usage",
    "members",
    "metadata",
    "model_usage",
    "pipelines",
    "plans",
    "projects",
    "raters",
    "rating_items",
    "rating_panels",
    "ratings",
    "review_items",
    "row_decisions",
    "runs",
    "sign_in_links",
    "studies",
    "traffic_files",
    "trials",
    "tuned_models",
    "upload_parts",
    "uploads",
    "watches",
    "web_sessions",
    "webhook_deliveries",
    "webhooks",
]
