"""`luthier human-eval`: people rate answers, blind, by a link for each of them."""

from __future__ import annotations

from collections.abc import Callable

from luthier.features.human_eval.cli.panels import (
    close,
    create,
    export,
    import_label_studio,
    link,
    list_panels,
    pairs,
    status,
)
from luthier.platform.cli.command import Answer

COMMANDS: dict[str, Callable[..., Answer]] = {
    "create": create,
    "list": list_panels,
    "status": status,
    "link": link,
    "export": export,
    "import-labelstudio": import_label_studio,
    "pairs": pairs,
    "close": close,
}
