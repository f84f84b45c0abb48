"""Outlook messages (.msg, MS-OXMSG): their properties become a mail as RFC 5322 has it, which is read as any other."""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Final

from luthier.core.errors import DataError
from luthier.ml.data.files.compound_file import Storage, read_compound_file
from luthier.ml.data.readers.document import Document
from luthier.ml.data.readers.email import document_of
from luthier.ml.data.readers.rtf import rtf_text

_PROPERTIES: Final = "__properties_version1.0"
_STREAM: Final = re.compile(r"__substg1\.0_([0-9A-F]{4})([0-9A-F]{4})", re.IGNORECASE)
# Ids of properties (MS-OXPROPS) and types of values (MS-OXCDATA 2.11.1).
_SUBJECT, _BODY, _RTF, _HTML = 0x0037, 0x1000, 0x1009, 0x1013
_SENDER_NAME, _SENDER_ADDRESS, _SENDER_SMTP = 0x0C1A, 0x0C1F, 0x5D01
_FOR_NAME, _FOR_ADDRESS, _FOR_SMTP = 0x0042, 0x0065, 0x5D02
_SENT, _RECEIVED = 0x0039, 0x0E06
_CODE_PAGES: Final = (0x3FDE, 0x3FFD)
_DISPLAY_TO, _DISPLAY_CC = 0x0E04, 0x0E03
_RECIPIENT_TYPE, _DISPLAY_NAME, _ADDRESS, _SMTP = 0x0C15, 0x3001, 0x3003, 0x39FE
_LONG_FILENAME, _FILENAME = 0x3707, 0x3704
_UNICODE, _BYTES_TEXT, _BINARY = 0x001F, 0x001E, 0x0102
_INT, _TIME = 0x0003, 0x0040
_TO, _CC = 1, 2
_EPOCH: Final = datetime(1601, 1, 1, tzinfo=UTC)
_CODECS: Final[Mapping[int, str]] = {
    65001: "utf-8",
    65000: "utf-7",
    20127: "ascii",
    1200: "utf-16-le",
    28591: "latin-1",
    20866: "koi8-r",
    21866: "koi8-u",
    50220: "iso2022_jp",
    51932: "euc_jp",
    51949: "euc_kr",
    52936: "hz",
    54936: "gb18030",
} | {28590 + part: f"iso8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 9, 13, 15)}


def read(path: Path) -> Document:
    """As a mail (`email.read`): the subject as heading, who wrote to whom and when, then the text.

    Attachments are named and not read. Where the message has neither plain text nor HTML, its RTF is read as text.

    Raises:
        DataError: the file is no Outlook message, damaged, or has no text.
    """
    root = read_compound_file(path)
    if _PROPERTIES not in root:
        raise DataError(
            "it has no properties of a message",
            expected="a message as Outlook saves it",
            do="save the mail again, as .msg or .eml",
        )
    return document_of(as_mail(root))


def as_mail(root: Storage) -> EmailMessage:
    """The mail in the root storage of a message, with headers, texts and the names of its attachments.

    Raises:
        DataError: a part of it is damaged.
    """
    message = _Properties(root, header_bytes=32)
    mail = EmailMessage()
    sender = _address(message, _SENDER_SMTP, _SENDER_ADDRESS, _SENDER_NAME) or _address(
        message, _FOR_SMTP, _FOR_ADDRESS, _FOR_NAME
    )
    recipients = [
        _Properties(inner, header_bytes=8, code_page=message.code_page)
        for name, inner in root.storages.items()
        if name.startswith("__recip_version1.0_")
    ]
    headers = {
        "From": sender,
        "To": _addresses(recipients, _TO) or message.text(_DISPLAY_TO),
        "Cc": _addresses(recipients, _CC) or message.text(_DISPLAY_CC),
        "Date": _date(message.number(_SENT, _TIME) or message.number(_RECEIVED, _TIME)),
        "Subject": message.text(_SUBJECT),
    }
    for name, value in headers.items():
        if value and value.split():
            mail[name] = " ".join(value.split())
    _set_texts(mail, message)
    for name, inner in root.storages.items():
        if name.startswith("__attach_version1.0_"):
            file = _Properties(inner, header_bytes=8, code_page=message.code_page)
            named = file.text(_LONG_FILENAME) or file.text(_FILENAME) or file.text(_DISPLAY_NAME) or "attachment"
            mail.add_attachment(b"", "application", "octet-stream", filename=" ".join(named.split()))
    return mail


def _set_texts(mail: EmailMessage, message: _Properties) -> None:
    plain, html = message.text(_BODY), message.text(_HTML)
    if not (plain or html) and (packed := message.binary(_RTF)):
        plain = rtf_text(unpacked_rtf(packed))
    if plain is None and not html:
        plain = ""  # a mail without a body has none to read
    if plain is not None:
        mail.set_content(plain.replace("\r\n", "\n").replace("\r", "\n"))
    if html and plain is not None:
        mail.add_alternative(html, subtype="html")
    elif html:
        mail.set_content(html, subtype="html")


class _Properties:
    """The properties of a message, a recipient or an attachment.

    Args:
        storage: holds them.
        header_bytes: before the entries of its stream of fixed values.
        code_page: of texts that are no Unicode, where the storage names none.
    """

    def __init__(self, storage: Storage, *, header_bytes: int, code_page: str = "cp1252") -> None:
        self._storage = storage
        self._streams = {
            (int(found[1], 16), int(found[2], 16)): name
            for name in storage.streams
            if (found := _STREAM.fullmatch(name)) is not None
        }
        fixed = storage.read(_PROPERTIES) or b""
        self._fixed: dict[tuple[int, int], int] = {}
        for begin in range(header_bytes, len(fixed) - 15, 16):
            kind, number, _, value = struct.unpack_from("<HHIQ", fixed, begin)
            self._fixed[number, kind] = value
        pages = (self.number(one, _INT) for one in _CODE_PAGES)
        self.code_page = next((name for page in pages if page and (name := _codec(page))), code_page)

    def number(self, number: int, kind: int) -> int | None:
        """A value of fixed size."""
        value = self._fixed.get((number, kind))
        return value if value is None or kind == _TIME else value & 0xFFFFFFFF

    def binary(self, number: int) -> bytes | None:
        """The bytes of a property."""
        name = self._streams.get((number, _BINARY))
        return None if name is None else self._storage.read(name)

    def text(self, number: int) -> str | None:
        """A property as text; None where there is none, or an empty one."""
        found = None
        if (name := self._streams.get((number, _UNICODE))) is not None:
            found = (self._storage.read(name) or b"").decode("utf-16-le", "replace")
        elif (name := self._streams.get((number, _BYTES_TEXT))) is not None:
            found = (self._storage.read(name) or b"").decode(self.code_page, "replace")
        elif (data := self.binary(number)) is not None:
            found = data.decode(self.code_page, "replace")
        return (found or "").replace("\0", "") or None


def _codec(page: int) -> str | None:
    name = _CODECS.get(page, f"cp{page}")
    with suppress(LookupError):
        return codecs.lookup(name).name
    return None


def _address(properties: _Properties, smtp: int, address: int, name: int) -> str:
    """`Name <address>`; Exchange's own addresses (/o=...) say nothing to a reader."""
    display = " ".join((properties.text(name) or "").split())
    found = properties.text(smtp) or properties.text(address) or ""
    found = "" if "@" not in found else found.strip()
    if not found or found == display.strip("'"):
        return found or display
    with suppress(ValueError, IndexError):
        return str(Address(display, addr_spec=found))
    return f"{display} {found}".strip()


def _addresses(recipients: list[_Properties], kind: int) -> str:
    return ", ".join(
        filter(
            None,
            (
                _address(one, _SMTP, _ADDRESS, _DISPLAY_NAME)
                for one in recipients
                if one.number(_RECIPIENT_TYPE, _INT) == kind
            ),
        )
    )


def _date(filetime: int | None) -> str | None:
    """Tenths of microseconds since 1601 as a header has a date."""
    if not filetime:
        return None
    with suppress(OverflowError):
        return format_datetime(_EPOCH + timedelta(microseconds=filetime // 10))
    return None


_RTF_START: Final = (
    rb"{\rtf1\ansi\mac\deff0\deftab720{\fonttbl;}{\f0\fnil \froman \fswiss \fmodern \fscript \fdecor "
    rb"MS Sans SerifSymbolArialTimes New RomanCourier{\colortbl\red0\green0\blue0"
    b"\r\n"
    rb"\par \pard\plain\f0\fs20\b\i\u\tab\tx"
)
"""What is in the dictionary before the first byte (MS-OXRTFCP 2.1.2.1)."""
_MAX_RTF_BYTES: Final = 2**28


def unpacked_rtf(data: bytes) -> bytes:
    """RTF as a message packs it (MS-OXRTFCP): runs of bytes, and references to the last 4,096 of them.

    Raises:
        DataError: it is not packed so.
    """
    if len(data) < 16 or data[8:12] not in (b"LZFu", b"MELA"):
        raise DataError("its RTF is damaged", expected="packed RTF", do="save the mail again, as .msg or .eml")
    size = min(struct.unpack_from("<I", data, 4)[0], _MAX_RTF_BYTES)
    if data[8:12] == b"MELA":
        return data[16 : 16 + size]
    return bytes(b"".join(_runs(data, size)))[:size]


def _runs(data: bytes, size: int) -> Iterator[bytes]:
    window, place = bytearray(_RTF_START.ljust(4096, b"\0")), len(_RTF_START)
    read, num_written = 16, 0
    while read < len(data) and num_written < size:
        control = data[read]
        read += 1
        for bit in range(8):
            if control >> bit & 1:
                if read + 1 >= len(data):
                    return
                reference = data[read] << 8 | data[read + 1]
                read += 2
                offset, length = reference >> 4, (reference & 15) + 2
                if offset == place:  # the end
                    return
            elif read < len(data):
                window[place] = data[read]
                read, offset, length = read + 1, place, 1
            else:
                return
            run = bytearray()
            for step in range(length):
                byte = window[(offset + step) % 4096]
                window[place] = byte
                place = (place + 1) % 4096
                run.append(byte)
            num_written += length
            yield bytes(run)
