"""The server clears away by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import update

from luthier.api import sweeping
from luthier.api.sweeping import swept
from luthier.core.errors import WorkError
from luthier.service.context import Context
from luthier.service.files import add_file, sweep_files
from luthier.store.tables import files


def test_what_expires_goes_without_being_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def sweep(context: Context) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise WorkError("the store does not answer", expected="an answer", do="wait")
        sweep_files(context)

    async def serve(context: Context) -> None:
        async with swept(context, every_seconds=0.01):
            while len(calls) < 3:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(sweeping, "sweep_files", sweep)
    (tmp_path / "rows").write_text("rows")
    with Context.open(tmp_path / "home") as context:
        file = add_file(context, "default", tmp_path / "rows", filename="rows", purpose="fine-tune")
        with context.database.write() as connection:
            connection.execute(update(files).values(expires_at=1.0))
        asyncio.run(serve(context))
        assert not context.artifacts.has(file.sha256)
