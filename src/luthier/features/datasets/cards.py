"""Dataset cards: what a data file is, as text for people and in two notations for machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import RequestError
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.results.audit import Audit
    from luthier.features.datasets.file_audits import AuditOptions


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What a person states about a dataset; what is left out is written as not stated.

    Attributes:
        name: None takes the file's name.
        licence: An SPDX id.
        description: What the data is.
        languages: ISO 639 codes; none takes what the audit finds.
        uses: What it is meant for.
    """

    name: str | None = None
    licence: str | None = None
    description: str | None = None
    languages: tuple[str, ...] = ()
    uses: str | None = None


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """A card that was written.

    Attributes:
        path: The Markdown file.
        croissant: The Croissant document beside it.
        audit: The audit that it shows.
        metadata: The front matter of the card.
        num_files: How many files it describes.
        not_stated: What nobody has stated.
    """

    path: Path
    croissant: Path
    audit: Audit
    metadata: dict[str, Any]
    num_files: int
    not_stated: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data card --json`."""
        return {
            "card": str(self.path),
            "croissant": str(self.croissant),
            "grade": self.audit.grade,
            "num_rows": self.audit.num_rows,
            "num_files": self.num_files,
            "not_stated": list(self.not_stated),
            "metadata": self.metadata,
        }


def make_card(
    context: Context,
    file: Path,
    output: Path,
    options: CardOptions | None = None,
    audit_options: AuditOptions | None = None,
    *,
    date: str,
    command: str,
    force: bool = False,
) -> DatasetCard:
    """Audit a file and write its card (`README.md`) and Croissant (`README.croissant.json` beside it).

    Where the file is one side of a split (`split.json` beside it), the other sides are described too.

    Args:
        date: The date of the audit, ISO 8601.

    Raises:
        NotFoundError: No such file or model.
        DataError: The file cannot be read, has no readable rows, or changed meanwhile.
        RequestError: The output is an input, or no Markdown file.
        ConflictError: An output exists.
    """
    from luthier.core.errors import DataError
    from luthier.features.datasets import file_audits as audits
    from luthier.ml.data.card.croissant import croissant
    from luthier.ml.data.card.facts import look, split_beside
    from luthier.ml.data.card.front_matter import front_matter
    from luthier.ml.data.card.request import CardRequest
    from luthier.ml.data.card.write import card_text
    from luthier.ml.data.rows.outputs import check_free, check_outputs

    options = options or CardOptions()
    beside = croissant_path(output)
    check_outputs([output, beside], [file])
    check_free([output, beside], force=force)
    found = audits.audit(context, file, audit_options).audit
    split = split_beside(file)
    looked = {name: look(path, name, context.progress) for name, path in split.files.items()}
    name = next(name for name, path in split.files.items() if path.name == file.name)
    described, origins = looked[name]
    # Audit and description each read the file; different digests mean that it changed in between.
    if described.sha256 != found.sha256:
        raise DataError(
            f"{file.name} was changed while it was read",
            expected="a file that stays as it is",
            do="wait until whatever writes the file is done, then start again",
        )
    request = CardRequest(
        audit=found,
        described=described,
        files=tuple(facts for facts, _ in looked.values()),
        origins=origins,
        name=options.name or file.name.split(".", 1)[0] or file.name,
        date=date,
        command=command,
        licence=options.licence,
        description=options.description,
        languages=options.languages,
        uses=options.uses,
        split_note=split.note,
    )
    _write(output, card_text(request), beside, croissant(request))
    return DatasetCard(output, beside, found, front_matter(request), len(request.files), _not_stated(request))


def croissant_path(output: Path) -> Path:
    """`README.croissant.json` for `README.md`. Raises RequestError for a name that no card can have."""
    if output.suffix.lower() not in (".md", ".markdown"):
        raise RequestError(
            f"--output {output}", expected="a Markdown file, such as README.md", do="give it a name that ends in .md"
        )
    return output.with_name(f"{output.stem}.croissant.json")


def _write(output: Path, card: str, beside: Path, croissant: dict[str, Any]) -> None:
    import json

    from luthier.ml.charts.page import replace_text

    output.parent.mkdir(parents=True, exist_ok=True)
    # Each file is replaced whole by a rename, so a reader never sees half a card.
    replace_text(output, card)
    replace_text(beside, json.dumps(croissant, indent=2, ensure_ascii=False) + "\n")


def _not_stated(request: Any) -> tuple[str, ...]:
    known = {
        "description": request.description,
        "licence": request.licence_known,
        "languages": request.languages_known,
        "uses": request.uses,
        "sources": request.origins.sources,
    }
    return tuple(name for name, value in known.items() if not value)
