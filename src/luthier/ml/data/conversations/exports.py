"""Which files are exports of conversations, and such an export written as rows of the chat shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.errors import DataError
from luthier.ml.data.conversations.intercom import begins_with_intercom, intercom_exchanges
from luthier.ml.data.conversations.mbox import MailArchive, is_mbox_name
from luthier.ml.data.conversations.slack import is_slack_folder, slack_exchanges
from luthier.ml.data.conversations.turns import Assistants, Exchange, Tally, chat_rows
from luthier.ml.data.conversations.zendesk import begins_with_tickets, zendesk_exchanges
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.outputs import write_rows

ExportKind = Literal["mbox", "zendesk", "intercom", "slack"]
KIND_NAMES: Final[dict[ExportKind, str]] = {
    "mbox": "a mail archive",
    "zendesk": "tickets of Zendesk",
    "intercom": "conversations of Intercom",
    "slack": "an export of Slack",
}
_JSON_SUFFIXES: Final = (".json", ".jsonl", ".ndjson")
HEAD_BYTES: Final = 1 << 20
NO_OWN_ADDRESS: Final = "no address that has written takes part in most of its mails"


@dataclass(frozen=True, slots=True)
class Converted:
    """An export that was written as rows.

    Attributes:
        name: What people call it.
        kind: What it is an export of.
        chosen: Who answers as the assistant, where it was chosen or is the archive's own address; else empty.
        tally: What became of its conversations.
        unmatched: Those who were chosen and have written nothing in it.
    """

    name: str
    kind: ExportKind
    chosen: tuple[str, ...]
    tally: Tally
    unmatched: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The document of `--json`."""
        chosen = {"chosen": list(self.chosen), "unmatched": list(self.unmatched)}
        return {"name": self.name, "kind": self.kind, **chosen, **self.tally.as_json()}


def export_kind(path: Path) -> ExportKind | None:
    """What a file or folder is an export of; None for anything else. A file that cannot be opened is none."""
    if path.is_dir():
        return "slack" if is_slack_folder(path) else None
    if is_mbox_name(path.name):
        return "mbox"
    if Path(path.name.removesuffix(".gz")).suffix.lower() in _JSON_SUFFIXES:
        try:
            with open_source(path).open() as file:
                return kind_of_json(file.read(HEAD_BYTES))
        except DataError:
            return None
    return None


def kind_of_json(head: bytes) -> ExportKind | None:
    """What a JSON file is an export of, by the names in its first `HEAD_BYTES`; None for any other."""
    if begins_with_intercom(head):
        return "intercom"
    return "zendesk" if begins_with_tickets(head) else None


def convert(path: Path, kind: ExportKind, name: str, output: Path, chosen: Iterable[str] = ()) -> Converted:
    """Write the conversations of an export as rows of the chat shape, atomically.

    Args:
        path: the export.
        kind: what it is an export of.
        name: what people call it.
        output: the JSONL file; replaced where it exists.
        chosen: who answers as the assistant: addresses, `@domain`, names or ids; none goes by the export.

    Raises:
        DataError: it cannot be read, or has no conversation with a question and an answer.
        StorageFullError: the disk is full.
    """
    tally = Tally()
    by_person = assistants = Assistants(chosen)
    exchanges: Iterator[Exchange]
    if kind == "mbox":
        archive = MailArchive(path, name, assistants, tally)
        assistants = archive.assistants
        if not assistants:
            raise DataError(
                f"who answers in {name} is not clear: {NO_OWN_ADDRESS}",
                expected="your own address: its mails are the answers",
                do="name your own address, or @domain, as who answers",
            )
        exchanges = archive.exchanges()
    elif kind == "zendesk":
        exchanges = zendesk_exchanges(open_source(path), name, assistants, tally)
    elif kind == "intercom":
        exchanges = intercom_exchanges(open_source(path), name, assistants, tally)
    else:
        exchanges = slack_exchanges(path, name, assistants, tally)
    write_rows(chat_rows(exchanges, tally), output)
    if not tally.num_rows:
        output.unlink()
        raise DataError(
            f"{name} has no conversation with a question and an answer: {tally.left_out_summary() or 'it is empty'}",
            expected=f"{KIND_NAMES[kind]} in which somebody answers",
            do="name who answers: addresses, @domain, names or ids",
        )
    return Converted(name, kind, assistants.chosen, tally, by_person.unmatched)
