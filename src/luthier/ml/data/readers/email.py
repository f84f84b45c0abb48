"""Mail as saved by mail programs (.eml, RFC 5322 with MIME)."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from pathlib import Path
from typing import Final

from bs4 import BeautifulSoup

from luthier.core.errors import DataError
from luthier.core.text.counted import counted
from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.html_tables import WholeRows
from luthier.ml.data.readers.markdown import PLAIN, sections_of, tidy
from luthier.ml.data.readers.text import decode

_SHOWN_HEADERS = ("From", "To", "Cc", "Date")
_UNSURE: Final = ("ascii", "utf-8")
"""What a mail is said to be written in where its program has not looked: then the bytes themselves decide."""
_FULLER: Final = 3
_FEWEST: Final = 200
"""The HTML of a mail is read where it has more letters than this, and so many times those of the plain text."""
_Decoded = tuple[str, tuple[str, ...]]
"""A text, and warnings."""
_CONTROLS: Final = re.compile("[\x80-\x9f]")
"""Of ISO 8859-1, which no text has; Windows-1252 has quotation marks, dashes and the euro there."""


def read(path: Path) -> Document:
    """The subject as heading; who wrote to whom and when, then the text. Attachments are not read but named.

    Plain text is preferred where it says what the HTML says, else HTML is read whole: a mail has no menus. Text below
    an attachment, which mail programs write as a part of its own, is read, too.

    Raises:
        DataError: the file is no mail, or has no text.
    """
    with path.open("rb") as file:
        message = BytesParser(EmailMessage, policy=policy.default).parse(file)
    if not message.keys() or not any(message[name] for name in ("From", "Subject", "Date", "Received", "Message-ID")):
        raise DataError(
            "no mail headers at its top", expected="a mail as RFC 5322 writes it", do="check the content of the file"
        )
    return document_of(message)


def document_of(message: EmailMessage) -> Document:
    """A mail that is parsed, see `read`.

    Raises:
        DataError: it has no text.
    """
    warnings = [f"damaged: {type(defect).__name__}" for part in message.walk() for defect in part.defects]
    subject = " ".join(str(message["Subject"] or "").split())
    headings = (subject,) if subject else ()
    head = "\n".join(f"{name}: {' '.join(str(message[name]).split())}" for name in _SHOWN_HEADERS if message[name])
    inside: list[Section] = []
    shown = shown_texts(message)
    for plain, html in shown:
        sections, notes = read_text(plain, html, headings)
        inside += sections
        warnings += notes
    if not inside:
        raise DataError(
            "a mail without text", expected="a text or HTML part", do="leave it out, or save its attachments"
        )
    left = [part.get_filename() or f"a part of type {part.get_content_type()}" for part in attachments(message, shown)]
    if left:
        warnings.append(
            f"{counted(len(left), 'attachment was not read', 'attachments were not read')}: "
            f"{', '.join(left[:5])}{' ...' if len(left) > 5 else ''}"
        )
    return Document((*((Section(head, None, headings),) if head else ()), *inside), tuple(dict.fromkeys(warnings)))


def attachments(message: EmailMessage, shown: list[TextPair]) -> list[MIMEPart]:
    """The parts of a mail that are none of its texts.

    Args:
        message: the mail.
        shown: its texts.
    """
    of_text = {id(part) for pair in shown for part in pair}
    return [part for part in message.iter_attachments() if id(part) not in of_text]


TextPair = tuple[MIMEPart | None, MIMEPart | None]
"""One text of a mail, as plain text and as HTML, where it has them; at least one."""


def shown_texts(message: EmailMessage) -> list[TextPair]:
    """The texts of a mail in their order; a file of text is none, unless there is no other."""
    pairs = list(_texts_of(message))
    named = [pair for pair in pairs if all(part is None or part.get_filename() for part in pair)]
    return [pair for pair in pairs if pair not in named] or named[:1]


def _texts_of(part: MIMEPart) -> Iterator[TextPair]:
    kind = part.get_content_type()
    if part.is_attachment():
        return
    if kind == "text/plain":
        yield part, None
    elif kind == "text/html":
        yield None, part
    elif kind in ("multipart/alternative", "multipart/related"):
        # The same text twice, or a page with its pictures.
        plain, html = part.get_body(("plain",)), part.get_body(("html",))
        if plain is not None or html is not None:
            yield plain, html
    elif part.get_content_maintype() == "multipart":
        for inner in part.iter_parts():
            yield from _texts_of(inner)


def read_text(
    plain: MIMEPart | None, html: MIMEPart | None, headings: tuple[str, ...]
) -> tuple[list[Section], tuple[str, ...]]:
    """The sections of one text, none of a blank one, and warnings."""
    part = plain or html
    assert part is not None
    text, warnings = _text(part)
    if plain is not None and html is not None and (fuller := _fuller(html, text)) is not None:
        part, (text, notes) = html, fuller
        warnings = ("its plain text is only a part of what the HTML says, which was read instead", *notes)
    if part.get_content_type() == "text/html":
        tidied, notes = tidy(WholeRows().convert_string(text, **PLAIN).markdown)
        sections = [Section(one.text, None, headings + one.headings) for one in sections_of(tidied)]
        return sections, (*warnings, *notes)
    text = text.replace("\r\n", "\n")
    if str(part.get_param("format", "")).lower() == "flowed":
        text = _unflowed(text, joins_words=str(part.get_param("delsp", "")).lower() == "yes")
    return [Section(text, None, headings)] if text.strip() else [], warnings


def _fuller(html: MIMEPart, plain: str) -> _Decoded | None:
    """The HTML part, decoded, where the plain text is a stub such as "view this in a browser"; else None."""
    try:
        decoded = _text(html)
    except DataError:
        return None
    page = BeautifulSoup(decoded[0], "html.parser")
    for unseen in page(["script", "style", "title"]):
        unseen.extract()
    num_html, num_plain = (sum(map(str.isalnum, text)) for text in (page.get_text(), plain))
    return decoded if num_html > (max(_FULLER * num_plain, _FEWEST) if num_plain else 0) else None


def _unflowed(text: str, *, joins_words: bool) -> str:
    """Lines that the mail program has wrapped joined again: those that end in a blank (RFC 3676).

    Args:
        text: of a part with format=flowed.
        joins_words: whether the blank is only the sign of it (delsp=yes), and belongs to no text.
    """
    out: list[str] = []
    is_wrapped = False
    for line in text.split("\n"):
        # A line that begins with a blank or with what would be a quotation has another one before it.
        line = line.removeprefix(" ")
        is_quoted = line.startswith(">")
        if is_wrapped and not is_quoted:
            out[-1] += line
        else:
            out.append(line)
        # The line before a signature ends in a blank, and has no continuation.
        is_wrapped = line.endswith(" ") and not is_quoted and line != "-- "
        if is_wrapped and joins_words:
            out[-1] = out[-1].removesuffix(" ")
    return "\n".join(out)


def _text(part: MIMEPart) -> _Decoded:
    """The text of a part. Bytes that are not what the part says they are do not become U+FFFD unnoticed.

    Raises:
        DataError: the part names an unknown character set, or is binary.
    """
    data = part.get_payload(decode=True)
    assert isinstance(data, bytes)  # a part with its own parts is no body
    charset = part.get_content_charset("us-ascii")
    try:
        name, text = codecs.lookup(charset).name, data.decode(charset)
    except LookupError as error:
        raise DataError(
            f"its text has the character set {charset!r}",
            expected="a known character set",
            do="save the mail again as UTF-8",
        ) from error
    except UnicodeDecodeError:
        if codecs.lookup(charset).name in _UNSURE:
            return decode(data)
        text = data.decode(charset, "replace")
        num_unknown = text.count("\ufffd")
        return text, (f"{num_unknown:,} bytes that are not characters in {charset} became U+FFFD",)
    if name == "iso8859-1" and _CONTROLS.search(text):
        # As browsers and mail programs read it (WHATWG Encoding, "windows-1252").
        return data.decode("cp1252", "replace"), ()
    return text, ()
