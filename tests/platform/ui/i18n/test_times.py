"""A relative time is read in a sentence: "3 days ago", "vor 3 Tagen"; behind "since" or "seit" it is none."""

from __future__ import annotations

import re

from tests.vacuous import nonempty

from luthier.platform.ui.i18n.catalog import catalog
from luthier.platform.ui.i18n.environments import messages_of
from luthier.platform.ui.render import environment

_TIME = re.compile(r"\{\{[^}]*\|\s*ago\s*\}\}")
_WRONG = re.compile(r"\b(since|until|from|till)\s*(?:<[^>]*>\s*)?\{\{[^}]*\|\s*ago\s*\}\}", re.I)
_GERMAN = re.compile(r"\b(seit|bis|von|ab) \{((?!num_)\w*(?:_at|since|until))\}")


def test_no_preposition_is_before_a_relative_time() -> None:
    loader, wrong = environment().loader, []
    assert loader is not None
    names = nonempty([one for one in loader.list_templates() if one.endswith(".html")])
    sources = {name: loader.get_source(environment(), name)[0] for name in names}
    assert any(_TIME.search(source) for source in sources.values())
    for name, source in sources.items():
        wrong += [f"{name}: {found[0]}" for found in _WRONG.finditer(source)]
        for message in messages_of(source):
            translated = catalog("de").page(message) or ()
            wrong += [f"{name}: {text}" for text in translated if _GERMAN.search(text)]
    assert wrong == []
