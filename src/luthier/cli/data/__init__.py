"""`luthier data`: documents in; rows looked at, checked, repaired, split and described. One file a verb."""

from __future__ import annotations

from collections.abc import Callable

from luthier.cli.answer import Answer
from luthier.cli.data import audit, card, preview, repair, split, synthesise

COMMANDS: dict[str, Callable[..., Answer]] = {
    "preview": preview.preview,
    "audit": audit.audit,
    "card": card.card,
    "repair": repair.repair,
    "split": split.split,
    "synthesise": synthesise.synthesise,
}
