"""A repair from rows in a file to what came out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.repair.request import RepairRequest, choose_actions, masked_kinds
from luthier.ml.data.repair.run import Repaired, repair_file

Made = Callable[..., "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a repair left."""

    repaired: Repaired

    @property
    def lines(self) -> list[str]:
        return self.repaired.output.read_text(encoding="utf-8").splitlines()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def fates(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.repaired.manifest.read_text(encoding="utf-8").splitlines()]

    @property
    def fate(self) -> dict[int, str]:
        return {entry["line"]: entry["fate"] for entry in self.fates}

    @property
    def reasons(self) -> dict[int, list[str]]:
        """Line -> `check: reason`, for every row that was not kept."""
        said = {e["line"]: [f"{r['check']}: {r['reason']}" for r in e["reasons"]] for e in self.fates}
        return {line: reasons for line, reasons in said.items() if reasons}


@pytest.fixture
def make(tmp_path: Path) -> Made:
    """Repairs a file: `make(path, only=..., against=path)`."""

    def repair(
        file: Path,
        *,
        only: list[str] | None = None,
        skip: list[str] | None = None,
        against: Path | None = None,
        output: Path | None = None,
        mapping: dict[str, str] | None = None,
        force: bool = False,
        mask: tuple[str, ...] = (),
        leave: tuple[str, ...] = (),
    ) -> Outcome:
        held_out = build_table(against, mapping=mapping) if against else None
        request = RepairRequest(
            output=output or tmp_path / "out" / "clean.jsonl",
            actions=choose_actions(only, skip, has_held_out=against is not None),
            audit=AuditRequest(table=build_table(file, mapping=mapping), held_out=held_out),
            mapping=mapping or {},
            force=force,
            mask=masked_kinds(mask, leave),
        )
        return Outcome(repair_file(request))

    return repair
