"""The checks of texts for the signals, put together from several stages, since no stage imports another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.drift.drift.topics import TextWords
    from luthier.ml.drift.signals.column import Checks

MAX_CHARACTERS: Final = 4_000
"""Of a text that is looked at: what comes later counts in no signal."""
_MAX_KNOWN: Final = 500_000
_KNOWN: Final[dict[bytes, bool]] = {}


def text_checks(context: Context, corpus: Path | None = None) -> Checks:
    """The checks of texts that the signals need.

    Args:
        corpus: Documents that answers may cite; None checks no citations.

    Raises:
        NotFoundError: No such path.
        DataError: A document that cannot be read, or no text at all.
    """
    from luthier.ml.data.personal_data.find import find_personal_data
    from luthier.ml.data.text.toxic_words import english
    from luthier.ml.data.text.toxicity_score import THRESHOLD, toxicity_of
    from luthier.ml.drift.signals.column import Checks
    from luthier.ml.evaluation.safety.refusal import is_refusal
    from luthier.ml.evaluation.statistics.shares import share_ends

    listed = english()
    return Checks(
        words=text_words,
        languages=_languages,
        is_refusal=is_refusal,
        is_toxic=_remembered("toxic", lambda text: toxicity_of(text, listed).probability >= THRESHOLD),
        has_personal_data=_remembered("personal data", lambda text: bool(find_personal_data(text))),
        share_ends=share_ends,
        citations=None if corpus is None else _citations(context, corpus),
    )


def _remembered(name: str, check: Callable[[str], bool]) -> Callable[[str], bool]:
    """The check, which looks at a text once in the life of a process: the next look sees most answers again."""

    def remembered(text: str) -> bool:
        # The key is of the cut text, so answers that differ only behind the limit share one entry.
        cut = text[:MAX_CHARACTERS]
        # 16 bytes a text instead of up to 4,000 characters. surrogatepass: JSON may hold lone surrogates.
        key = blake2b(f"{name}\0{cut}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in _KNOWN:
            # Cleared as a whole: an LRU order would cost more than checking the texts once more.
            if len(_KNOWN) >= _MAX_KNOWN:
                _KNOWN.clear()
            _KNOWN[key] = check(cut)
        return _KNOWN[key]

    return remembered


def text_words(texts: Sequence[str]) -> TextWords:
    """The words of texts as hashes."""
    import numpy as np
    import polars as pl

    from luthier.ml.data.text.words import word_blocks
    from luthier.ml.drift.drift.topics import TextWords

    cut = pl.Series([text[:MAX_CHARACTERS] for text in texts], dtype=pl.String)
    # hashes: uint64 [words of all texts]; counts: int64 [texts], how many words each text has.
    blocks = list(word_blocks(cut))
    if not blocks:
        return TextWords(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))
    return TextWords(np.concatenate([one.hashes for one in blocks]), np.concatenate([one.counts for one in blocks]))


def _languages(texts: Sequence[str]) -> list[str | None]:
    import polars as pl

    from luthier.ml.data.text.languages import UNDETERMINED, languages

    found = languages(pl.Series(list(texts), dtype=pl.String))["language"].to_list()
    return [None if one == UNDETERMINED else one for one in found]


def _citations(context: Context, path: Path) -> Callable[[str], tuple[int, int]]:
    from luthier.core.results.suite import CitationsTask
    from luthier.features.datasets.corpora import read_corpus
    from luthier.ml.evaluation.grounding.corpus import Corpus, findings

    forms = CitationsTask.model_fields["forms"].get_default(call_default_factory=True)
    corpus = Corpus(read_corpus(path, context.progress), forms=forms, progress=context.progress)

    def counted(text: str) -> tuple[int, int]:
        found = findings(text, corpus)
        return len(found), sum(one.status == "unknown" for one in found)

    return counted
