"""Mail as saved by mail programs (.eml, RFC 5322 with MIME)."""

from __future__ import annotations

import codecs
import re
from email import policy
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from pathlib import Path
from typing import Final

from bs4 import BeautifulSoup

from luthier.core.errors import DataError
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

    Plain text is preferred where it says what the HTML says, else HTML is read whole: a mail has no menus.

    Raises:
        DataError: the file is no mail, or has no text.
    """
    with path.open("rb") as file:
        message = BytesParser(EmailMessage, policy=policy.default).parse(file)
    if not message.keys() or not any(message[name] for name in ("From", "Subject", "Date", "Received", "Message-ID")):
        raise DataError(
            "no mail headers at its top", expected="a mail as RFC 5322 writes it", do="check the content of the file"
        )
    warnings = [f"damaged: {type(defect).__name__}" for part in message.walk() for defect in part.defects]
    subject = " ".join(str(message["Subject"] or "").split())
    headings = (subject,) if subject else ()
    head = "\n".join(f"{name}: {' '.join(str(message[name]).split())}" for name in _SHOWN_HEADERS if message[name])
    body = message.get_body(("plain", "html"))
    decoded = None if body is None else _text(body)
    if decoded is not None and (fuller := _fuller(message, body, decoded[0])) is not None:
        body, decoded = fuller
        warnings.append("its plain text is only a part of what the HTML says, which was read instead")
    if body is None or decoded is None or not decoded[0].strip():
        raise DataError(
            "a mail without text", expected="a text or HTML part", do="leave it out, or save its attachments"
        )
    text, notes = decoded
    warnings += notes
    if body.get_content_type() == "text/html":
        tidied, notes = tidy(WholeRows().convert_string(text, **PLAIN).markdown)
        warnings += notes
        inside = tuple(Section(part.text, None, headings + part.headings) for part in sections_of(tidied))
    else:
        text = text.replace("\r\n", "\n")
        if str(body.get_param("format", "")).lower() == "flowed":
            text = _unflowed(text, joins_words=str(body.get_param("delsp", "")).lower() == "yes")
        inside = (Section(text, None, headings),)
    left = [part.get_filename() or f"a part of type {part.get_content_type()}" for part in message.iter_attachments()]
    if left:
        warnings.append(
            f"{len(left)} attachments were not read: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}"
        )
    return Document((*((Section(head, None, headings),) if head else ()), *inside), tuple(dict.fromkeys(warnings)))


def _fuller(message: EmailMessage, body: MIMEPart | None, plain: str) -> tuple[MIMEPart, _Decoded] | None:
    """The HTML part, decoded, where the plain text is a stub such as "view this in a browser"; else None."""
    html = message.get_body(("html",))
    if html is None or body is None or body.get_content_type() == "text/html":
        return None
    try:
        decoded = _text(html)
    except DataError:
        return None
    page = BeautifulSoup(decoded[0], "html.parser")
    for unseen in page(["script", "style", "title"]):
        unseen.extract()
    num_html, num_plain = (sum(map(str.isalnum, text)) for text in (page.get_text(), plain))
    return (html, decoded) if num_html > (max(_FULLER * num_plain, _FEWEST) if num_plain else 0) else None


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
