"""Alembic's entry: runs the migrations on the connection that `schema._migrate` hands over."""

from __future__ import annotations

from alembic import context

from luthier.platform.db.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
# The caller's transaction is open: all migrations take effect together, or none does.
context.run_migrations()
