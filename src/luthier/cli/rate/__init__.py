"""`luthier rate`: people rate answers, blind, by a link for each of them."""

from __future__ import annotations

from collections.abc import Callable

from luthier.cli.answer import Answer
from luthier.cli.rate.create import create
from luthier.cli.rate.files import export, import_label_studio, pairs
from luthier.cli.rate.panels import close, link, list_panels, status

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
