"""`luthier data`: documents in; rows looked at, checked, repaired, split and described. One file a verb."""

from __future__ import annotations

from collections.abc import Callable

from luthier.features.datasets.cli import create, describe, prepare, remote
from luthier.platform.cli.command import Answer

COMMANDS: dict[str, Callable[..., Answer]] = {
    "ingest": create.ingest,
    "preview": describe.preview,
    "audit": prepare.audit,
    "answer": create.answer,
    "cache": remote.cache,
    "card": describe.card,
    "conversations": create.conversations,
    "diff": describe.diff,
    "fetch": remote.fetch,
    "repair": prepare.repair,
    "split": prepare.split,
    "synthesise": create.synthesise,
}
