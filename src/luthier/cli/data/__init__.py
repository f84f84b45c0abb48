"""`luthier data`: documents in; rows looked at, checked, repaired, split and described. One file a verb."""

from __future__ import annotations

from collections.abc import Callable

from luthier.cli.answer import Answer
from luthier.cli.data import audit, preview, split

COMMANDS: dict[str, Callable[..., Answer]] = {
    "preview": preview.preview,
    "audit": audit.audit,
    "split": split.split,
}
