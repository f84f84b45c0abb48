"""`luthier data`: documents in; rows looked at, checked, repaired, split and described. One file a verb."""

from __future__ import annotations

from collections.abc import Callable

from luthier.features.datasets.cli import answer, audit, card, diff, ingest, preview, repair, split, synthesise
from luthier.platform.cli.answer import Answer

COMMANDS: dict[str, Callable[..., Answer]] = {
    "ingest": ingest.ingest,
    "preview": preview.preview,
    "audit": audit.audit,
    "answer": answer.answer,
    "card": card.card,
    "diff": diff.diff,
    "repair": repair.repair,
    "split": split.split,
    "synthesise": synthesise.synthesise,
}
