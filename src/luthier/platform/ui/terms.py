"""A word of a page with a "?" that explains it: `{{ term("loss mask") }}` in a template.

The explanation is a popover: it opens by click, tap and keyboard without a script, and on hover with `app.js`. Each
word has its "?" at its first use on a page; later uses are the word alone, so that pages stay calm and ids unique.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from markupsafe import Markup

from luthier.core.ids import sha256_bytes
from luthier.core.text.glossary import find_term

_WORD: Final = Markup('<span class="term-word">{}</span>')
_TERM: Final = Markup(
    '<span class="term">{word}'
    '<button type="button" class="term-ask" popovertarget="{id}" aria-label="{question}">?</button>'
    '<span class="term-tip" id="{id}" popover><b>{name}</b> {meaning} <a href="/glossary#{key}">{glossary}</a></span>'
    "</span>"
)


class Terms:
    """The words that were explained so far, of one page or of one piece of a page.

    Args:
        path: Of the page.
        is_piece: Whether it is a piece of a page.
        word: The text of the page's language for an English one.
    """

    def __init__(self, path: str, *, is_piece: bool, word: Callable[[str], str] = str) -> None:
        self._in_language = word
        # A piece is put into a page whose ids it does not know.
        self._prefix = f"term-{sha256_bytes(path.encode())[:6]}-" if is_piece else "term-"
        self._explained: set[str] = set()

    def __call__(self, word: str, shown: str = "") -> Markup:
        """The word with its "?".

        Args:
            word: A term of the glossary, in any of its forms.
            shown: What the page writes in its place.

        Raises:
            NotFoundError: The glossary has no such term.
        """
        return self._with(word, _WORD.format(shown or word), Markup("{}").format(shown or word))

    def ask(self, word: str) -> Markup:
        """The "?" alone, for a place behind a heading or a label that has the word; nothing at a later use.

        Raises:
            NotFoundError: The glossary has no such term.
        """
        return self._with(word, Markup(""), Markup(""))

    def _with(self, word: str, first: Markup, later: Markup) -> Markup:
        found = find_term(word)
        if found.name in self._explained:
            return later
        self._explained.add(found.name)
        text = self._in_language
        return _TERM.format(
            word=first,
            id=f"{self._prefix}{found.key}",
            question=text(f"What does {found.name} mean?"),
            name=text(found.name),
            meaning=text(found.meaning),
            key=found.key,
            glossary=text("Glossary"),
        )
