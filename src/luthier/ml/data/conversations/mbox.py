"""Mail archives (`.mbox`), as Thunderbird, Apple Mail and Google Takeout write them, as conversations by thread.

first pass      the headers of each mail: where it lies, whose it is, which mails it answers
threads         mails that name one another in Message-ID, In-Reply-To and References
second pass     one thread after another is read, so that an archive of any size takes little memory
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email import policy
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import EmailMessage, Message
from email.parser import BytesHeaderParser, BytesParser
from email.utils import getaddresses, parsedate_to_datetime
from pathlib import Path
from typing import IO, Final

from luthier.core.errors import DataError
from luthier.ml.data.conversations.quoted_text import own_text, without_signature
from luthier.ml.data.conversations.turns import Assistants, Exchange, Role, Tally, Turn
from luthier.ml.data.readers.email import attachments, read_text, shown_texts

MAX_MAIL_BYTES: Final = 64 << 20
_MAX_TEXT_BYTES: Final = 4 << 20
"""Of a text or HTML part: more is no letter, and HTML takes many times its size in memory."""
MAX_DOCUMENTS: Final = 20_000
"""Mails of one archive that are read as documents."""
_MAX_HEADER_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 20
# The line above each mail has the date as asctime writes it. A sentence "From the shop ..." after a blank line in a
# mail whose program has not quoted it would otherwise cut the mail.
_FROM_LINE: Final = re.compile(rb"^From .*\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b.*\d\d:\d\d.*\d{4}")
# It begins with what it looks for, not with where a line begins: all other bytes are passed over at once.
_QUOTED_FROM: Final = re.compile(rb">(?<![^\r\n]>)(>*From )")
_MESSAGE_ID: Final = re.compile(r"<[^<>\s]+>")
_PASSED_ON: Final = re.compile(r"\s*(fwd?|wg|tr|rv|i)\s*:", re.IGNORECASE)
"""How the subject of a mail begins that was passed on. Outlook gives it references, too."""
_MAX_REFERENCES: Final = 200
_AUTOMATIC_PRECEDENCE: Final = ("bulk", "junk", "auto_reply")
_NOT_SENT: Final = {
    "drafts": "drafts",
    "entwürfe": "drafts",
    "spam": "spam and deleted mails",
    "trash": "spam and deleted mails",
    "papierkorb": "spam and deleted mails",
}
"""Labels of Google Takeout, in English and German."""
_MIN_OWN_SHARE: Final = 0.6
"""An address that has written, and takes part in so many of the mails, is the archive's own."""
_PUBLIC_PROVIDERS: Final = (
    *("gmail.com", "googlemail.com", "outlook.com", "outlook.de", "hotmail.com", "hotmail.de", "live.com"),
    *("yahoo.com", "yahoo.de", "icloud.com", "me.com", "aol.com", "proton.me", "protonmail.com", "posteo.de"),
    *("gmx.de", "gmx.net", "gmx.at", "gmx.ch", "web.de", "t-online.de", "freenet.de", "arcor.de", "mail.de"),
    *("mailbox.org", "bluewin.ch", "orange.fr", "free.fr", "laposte.net", "libero.it"),
)
"""Here another address of the same domain is no colleague."""


@dataclass(frozen=True, slots=True)
class _Mail:
    """What is kept of a mail between the passes."""

    begin: int
    num_bytes: int
    date: float
    sender: str
    is_reply: bool


def is_mbox_name(name: str) -> bool:
    """Whether a file is a mail archive by its name; Apple Mail exports a folder with a file `mbox`."""
    return name.lower() == "mbox" or name.lower().endswith(".mbox")


def mail_spans(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Where each mail lies: its first byte below the line `From `, and how many bytes it has."""
    begin, offset, is_after_blank, is_line_start = -1, 0, True, True
    while line := file.readline(_PIECE_BYTES):
        if is_line_start and is_after_blank and line.startswith(b"From ") and (offset == 0 or _FROM_LINE.match(line)):
            if begin >= 0:
                yield begin, offset - begin
            begin = offset + len(line)
        offset += len(line)
        is_after_blank = is_line_start and not line.strip()
        is_line_start = line.endswith(b"\n")
    if begin >= 0:
        yield begin, offset - begin


def unquoted(data: bytes) -> bytes:
    """The bytes of a mail, without the `>` that archives write before lines that begin with `From `."""
    return _QUOTED_FROM.sub(rb"\1", data)


def write_mails(path: Path, folder: Path) -> tuple[list[Path], int]:
    """Write each mail of an archive as a file `00001.eml`, to be read as a document.

    Args:
        path: the archive.
        folder: where they go; made where it is missing.

    Returns:
        The files, and how many mails were left out: those of more than 64 MiB, and those beyond the first 20,000.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    num_left_out = 0
    with path.open("rb") as file:
        for begin, num_bytes in list(mail_spans(file)):
            if num_bytes > MAX_MAIL_BYTES or len(written) >= MAX_DOCUMENTS:
                num_left_out += 1
                continue
            file.seek(begin)
            target = folder / f"{len(written) + 1:05}.eml"
            target.write_bytes(unquoted(file.read(num_bytes)))
            written.append(target)
    return written, num_left_out


class MailArchive:
    """A mail archive after its first pass.

    Args:
        path: the file.
        name: what people call it.
        chosen: who answers; none finds the archive's own address.
        tally: counts what is left out.

    Raises:
        DataError: it is no mail archive.
    """

    def __init__(self, path: Path, name: str, chosen: Assistants, tally: Tally) -> None:
        self._path, self._name, self._tally = path, name, tally
        self._threads: dict[str, list[_Mail]] = {}
        self._seen = Counter[str]()
        self._seen_domains, self._wrote = Counter[str](), Counter[str]()
        self._num_mails = 0
        self._scan()
        self.assistants = chosen or Assistants(self._own())
        """Who answers; nobody where it was not chosen and could not be found."""

    def exchanges(self) -> Iterator[Exchange]:
        """Each thread as a conversation."""
        with self._path.open("rb") as file:
            for number, mails in enumerate(self._threads.values(), start=1):
                # Programs with a wrong clock: mails of one time stay in the order of the file.
                in_order = sorted(mails, key=lambda mail: (mail.date, mail.begin))
                title, turns = "", []
                for mail in in_order:
                    message = self._read(file, mail)
                    if message is None:
                        continue
                    title = title or _text_of(message, "Subject")
                    if (text := self._text(message, mail)) is not None:
                        role: Role = "assistant" if self.assistants.match(mail.sender) else "user"
                        turns.append(Turn(mail.sender or "unknown", role, text))
                yield Exchange(title, f"{self._name}, thread {number}", tuple(turns))

    def _scan(self) -> None:
        with self._path.open("rb") as file:
            if not file.read(5) == b"From ":
                raise DataError(
                    f"{self._name} is no mail archive: it does not begin with `From `",
                    expected="an mbox file, with a line `From ` above each mail",
                    do="export the folder from the mail program again, or save single mails as .eml",
                )
            file.seek(0)
            parents: dict[str, str] = {}
            # The spans are found first: the file has one position, which reading a header moves.
            found: list[tuple[str, _Mail]] = []
            known: set[str] = set()
            for begin, num_bytes in list(mail_spans(file)):
                file.seek(begin)
                header = BytesHeaderParser(policy=policy.compat32).parsebytes(_header(file, num_bytes))
                if (taken := self._taken(header, begin, num_bytes, known)) is not None:
                    mail, own, answered = taken
                    found.append((own, mail))
                    for other in answered:
                        _join(parents, own, other)
        for own, mail in found:
            self._threads.setdefault(_root(parents, own), []).append(mail)

    def _taken(
        self, header: Message, begin: int, num_bytes: int, known: set[str]
    ) -> tuple[_Mail, str, Sequence[str]] | None:
        """A mail, its id, and the ids of what it answers; None where it is left out."""
        own = next(iter(_MESSAGE_ID.findall(str(header.get("Message-ID", "")))), f"<{begin}>")
        if own in known:
            self._tally.parts_left_out["mails that the archive has twice"] += 1
            return None
        known.add(own)
        if why := _why_left_out(header):
            self._tally.parts_left_out[why] += 1
            return None
        if num_bytes > MAX_MAIL_BYTES:
            self._tally.parts_left_out[f"mails of more than {MAX_MAIL_BYTES >> 20} MiB"] += 1
            return None
        sender = next(iter(_addresses(header, ("From",))), "")
        people = set(_addresses(header, ("From", "To", "Cc", "Delivered-To")))
        self._num_mails += 1
        self._seen.update(people)
        domains = {one.rpartition("@")[2] for one in people}
        self._seen_domains.update(domain for domain in domains if domain not in _PUBLIC_PROVIDERS)
        self._wrote[sender] += 1
        named = f"{header.get('References', '')} {header.get('In-Reply-To', '')}"
        answered = _MESSAGE_ID.findall(named)[-_MAX_REFERENCES:]
        # Gmail knows threads also where a program writes no references.
        thread = str(header.get("X-GM-THRID", "")).strip()
        others = [*answered, *([f"gmail {thread}"] if thread else [])]
        is_reply = bool(answered) and not _PASSED_ON.match(_decoded(str(header.get("Subject", ""))))
        return _Mail(begin, num_bytes, _date(header), sender, is_reply), own, others

    def _own(self) -> list[str]:
        """The archive's own address, and its domain unless that is a public provider's; none where none is clear."""
        wrote = [(num, address) for address, num in self._seen.items() if address and self._wrote[address]]
        if not wrote:
            return []
        num, address = max(wrote, key=lambda one: (one[0], self._wrote[one[1]], one[1]))
        if num < _MIN_OWN_SHARE * self._num_mails:
            return self._own_domain()
        # Two people who write to each other take part in every mail alike.
        rivals = [other for count, other in wrote if count == num and other != address]
        domain = address.rpartition("@")[2]
        if any(other.rpartition("@")[2] != domain for other in rivals):
            return []
        return [address] if domain in _PUBLIC_PROVIDERS else [address, f"@{domain}"]

    def _own_domain(self) -> list[str]:
        """The one domain that takes part in most mails, where a firm has several addresses, such as info and orders."""
        wrote = {sender.rpartition("@")[2] for sender in self._wrote if sender}
        first, *second = self._seen_domains.most_common(2) or [("", 0)]
        is_clear = first[1] >= _MIN_OWN_SHARE * self._num_mails and (not second or second[0][1] < first[1])
        return [f"@{first[0]}"] if is_clear and first[0] in wrote else []

    def _read(self, file: IO[bytes], mail: _Mail) -> EmailMessage | None:
        file.seek(mail.begin)
        try:
            return BytesParser(EmailMessage, policy=policy.default).parsebytes(unquoted(file.read(mail.num_bytes)))
        # The standard library raises these for headers that no standard allows.
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError):
            self._tally.parts_left_out["mails that cannot be read"] += 1
            return None

    def _text(self, message: EmailMessage, mail: _Mail) -> str | None:
        try:
            shown = shown_texts(message)
            if any(len(str(part.get_payload())) > _MAX_TEXT_BYTES for pair in shown for part in pair if part):
                self._tally.parts_left_out["mails with a text of more than 4 MiB"] += 1
                return None
            sections = [section for plain, html in shown for section in read_text(plain, html, ())[0]]
            num_attached = len(attachments(message, shown))
        except (DataError, ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError):
            self._tally.parts_left_out["mails that cannot be read"] += 1
            return None
        if num_attached:
            self._tally.parts_left_out["attachments"] += num_attached
        parts = []
        for section in sections:
            heading = section.headings[-1] if section.headings else ""
            parts += [heading, section.text] if heading else [section.text]
        text = "\n\n".join(parts)
        # What nobody has answered may be a forwarded mail: there the text of the other mail is the content.
        return own_text(text) if mail.is_reply else without_signature(text)


def _header(file: IO[bytes], num_bytes: int) -> bytes:
    """The lines up to the first blank one, of a mail of this many bytes."""
    lines: list[bytes] = []
    num_left = min(num_bytes, _MAX_HEADER_BYTES)
    while num_left > 0 and (line := file.readline(num_left)).strip():
        lines.append(line)
        num_left -= len(line)
    return b"".join(lines)


def _why_left_out(header: Message) -> str:
    automatic = str(header.get("Auto-Submitted", "no")).strip().lower()
    precedence = str(header.get("Precedence", "")).strip().lower()
    if automatic.partition(";")[0].strip() not in ("no", "") or precedence in _AUTOMATIC_PRECEDENCE:
        return "automatic mails"
    if header.get("X-Autoreply") or header.get("X-Autorespond"):
        return "automatic mails"
    labels = _decoded(str(header.get("X-Gmail-Labels", ""))).split(",")
    return next((_NOT_SENT[one] for label in labels if (one := label.strip().lower()) in _NOT_SENT), "")


def _addresses(header: Message, names: Iterable[str]) -> list[str]:
    """The addresses in headers of these names, in lower case."""
    values = [str(value) for name in names for value in header.get_all(name, [])]
    return [address.strip().lower() for _, address in getaddresses(values) if "@" in address]


def _decoded(value: str) -> str:
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, ValueError):
        return value


def _text_of(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message[name] or "").split())
    except (ValueError, TypeError, LookupError, AttributeError):
        return ""


def _date(header: Message) -> float:
    """Seconds since 1970, when it was written or else received; 0 where the mail has no date that can be read."""
    for text in (str(header.get("Date", "")), str(header.get("Received", "")).rpartition(";")[2]):
        with contextlib.suppress(ValueError, TypeError, OverflowError, IndexError, OSError):
            return parsedate_to_datetime(text).timestamp()
    return 0.0


def _root(parents: dict[str, str], name: str) -> str:
    while (parent := parents.get(name, name)) != name:
        # Every second step is cut short, so that long threads stay flat.
        parents[name] = name = parents.get(parent, parent)
    return name


def _join(parents: dict[str, str], one: str, other: str) -> None:
    first, second = _root(parents, one), _root(parents, other)
    if first != second:
        parents[first] = second
