"""Clients of a home that takes small files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastapi.testclient import TestClient

from luthier.core.access import Scope
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.server.api import create_app


def signed_in(context: Context, project: str, *scopes: Scope) -> Iterator[TestClient]:
    """One client with a new key of a project."""
    _, key = create_key(context, "test", scopes=scopes, project=project)
    with TestClient(create_app(context), headers={"Authorization": f"Bearer {key}"}) as opened:
        yield opened


def kept_files(context: Context) -> list[Path]:
    """All that is in the artifacts folder, partial files too."""
    return [path for path in (context.home / "artifacts").rglob("*") if path.is_file()]
