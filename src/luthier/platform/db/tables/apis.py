"""Tables of APIs of other services: OpenAI's Evals, Batch, stored answers and conversations, and Tinker."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, Table, Text, UniqueConstraint

from luthier.platform.db.tables.base import String, metadata, number, project_id

# document: a features.evals_api.records.Eval.
evals = Table(
    "evals",
    metadata,
    number(),
    Column("eval_id", String(64), nullable=False),
    project_id(),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    UniqueConstraint("eval_id"),
    Index(None, "project_id"),
    sqlite_autoincrement=True,
)

# A run of an eval. Its status is that of its job. totals: counts of the output items so far, as JSON; written in the
# transaction that writes the items.
eval_runs = Table(
    "eval_runs",
    metadata,
    number(),
    Column("eval_run_id", String(64), nullable=False),
    Column("eval_id", String(64), ForeignKey("evals.eval_id", ondelete="CASCADE"), nullable=False),
    project_id(),
    Column("job_id", String(64), nullable=False),
    Column("result_id", String(64), nullable=False),
    Column("document", Text, nullable=False),
    Column("totals", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("eval_run_id"),
    UniqueConstraint("job_id"),
    Index(None, "eval_id"),
    sqlite_autoincrement=True,
)

# position: the place of the item in the data source, from 0 on.
eval_output_items = Table(
    "eval_output_items",
    metadata,
    number(),
    Column("item_id", String(64), nullable=False),
    Column("eval_run_id", String(64), ForeignKey("eval_runs.eval_run_id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("status", String(8), nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("item_id"),
    UniqueConstraint("eval_run_id", "position"),
    Index(None, "eval_run_id", "status"),
    sqlite_autoincrement=True,
)

# Answers to requests with `store: true`. user_digest: the end user as in the traffic log; empty for none.
stored_completions = Table(
    "stored_completions",
    metadata,
    number(),
    Column("completion_id", String(64), nullable=False),
    project_id(),
    Column("model", String(255), nullable=False),
    Column("user_digest", String(64), nullable=False),
    Column("labels", Text, nullable=False),  # the metadata of the request, as JSON
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("completion_id"),
    Index(None, "project_id", "created_at"),
    sqlite_autoincrement=True,
)

# Answers of the Responses API. earlier_ids: the responses before one in its conversation, as JSON.
stored_responses = Table(
    "stored_responses",
    metadata,
    number(),
    Column("response_id", String(64), nullable=False),
    project_id(),
    Column("model", String(255), nullable=False),
    Column("user_digest", String(64), nullable=False),
    Column("earlier_ids", Text, nullable=False),
    Column("labels", Text, nullable=False),  # the metadata of the request, as JSON
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("response_id"),
    Index(None, "project_id", "created_at"),
    sqlite_autoincrement=True,
)

# Conversations of the Responses API. locked_by: the request that writes a response in it, empty for none; locked_until:
# when others may take over from a request that never ended. updated_at: when an item was last added or removed.
conversations = Table(
    "conversations",
    metadata,
    number(),
    Column("conversation_id", String(64), nullable=False),
    project_id(),
    Column("labels", Text, nullable=False),  # the metadata of the conversation, as JSON
    Column("locked_by", String(64), nullable=False),
    Column("locked_until", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    UniqueConstraint("conversation_id"),
    Index(None, "project_id", "updated_at"),
    sqlite_autoincrement=True,
)

# user_digest: the end user of the response that has added the item; empty for none.
conversation_items = Table(
    "conversation_items",
    metadata,
    number(),
    Column(
        "conversation_id", String(64), ForeignKey("conversations.conversation_id", ondelete="CASCADE"), nullable=False
    ),
    Column("item_id", String(128), nullable=False),
    Column("user_digest", String(64), nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("conversation_id", "item_id"),
    Index(None, "user_digest"),
    sqlite_autoincrement=True,
)

# A file of requests that is answered beside live traffic. document: a features.batches.records.Batch.
batches = Table(
    "batches",
    metadata,
    number(),
    Column("batch_id", String(64), nullable=False),
    project_id(),
    Column("job_id", String(64), nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("batch_id"),
    UniqueConstraint("job_id"),
    Index(None, "project_id"),
    sqlite_autoincrement=True,
)


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
