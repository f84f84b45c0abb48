"""What a card is made from."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.results.audit import Audit
from luthier.ml.data.card.facts import FileFacts, Origins

NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class CardRequest:
    """The dataset and what a person says about it; what is None is not known, and the card says so.

    Attributes:
        audit: of the described file.
        described: that file.
        files: all files of the dataset, the described one among them.
        origins: where the rows of the described file come from.
        name: shown as the title.
        description: what the dataset is, in a few sentences.
        licence: an SPDX id or the hub's.
        languages: ISO 639 codes.
        uses: what it is meant for.
        date: of the audit, ISO 8601.
        command: the one that made the card.
        split_note: why no split is described, where that needs a word.
    """

    audit: Audit
    described: FileFacts
    files: tuple[FileFacts, ...]
    origins: Origins
    name: str
    date: str
    command: str
    licence: str | None = None
    description: str | None = None
    languages: tuple[str, ...] = ()
    uses: str | None = None
    split_note: str = ""

    @property
    def licence_known(self) -> str | None:
        """The licence that was given, else the only one that all rows state."""
        if self.licence:
            return self.licence
        licences = self.origins.licences
        whole = len(licences) == 1 and sum(licences.values()) == self.described.num_rows
        return next(iter(licences)) if whole else None

    @property
    def languages_seen(self) -> dict[str, int]:
        """Languages that the audit found, by number of rows, the most frequent first."""
        for finding in self.audit.findings:
            counts = finding.details.get("counts")
            is_mix = finding.check == "language" and finding.details.get("sort", "mix") == "mix"
            if is_mix and isinstance(counts, dict):
                pairs = [(str(name), value) for name, value in counts.items() if isinstance(value, int)]
                return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
        return {}

    @property
    def languages_known(self) -> tuple[str, ...]:
        """The languages that were given, else those of at least 5% of the rows whose language was determined."""
        if self.languages:
            return self.languages
        seen = self.languages_seen
        whole = sum(seen.values())
        return tuple(name for name, count in seen.items() if count >= 0.05 * whole and name.isalpha())
