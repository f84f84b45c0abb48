"""Mail as saved by mail programs (.eml, RFC 5322 with MIME)."""

from __future__ import annotations

import codecs
import re
from email import policy
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from pathlib import Path
from typing import Final

from markitdown.converters import HtmlConverter

from luthier.core.errors import DataError
from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.markdown import PLAIN, sections_of, tidy
from luthier.ml.data.readers.text import decode

_SHOWN_HEADERS = ("From", "To", "Cc", "Date")
_UNSURE: Final = ("ascii", "utf-8")
"""What a mail is said to be written in where its program has not looked: then the bytes themselves decide."""
_CONTROLS: Final = re.compile("[\x80-\x9f]")
"""Of ISO 8859-1, which no text has; Windows-1252 has quotation marks, dashes and the euro there."""


def read(path: Path) -> Document:
    """The subject as heading; who wrote to whom and when, then the text. Attachments are not read but named.

    Plain text is preferred, else HTML is read whole: a mail has no menus.

    Raises:
        DataError: the file is no mail, or has no text.
    """
    with path.open("rb") as file:
        message = BytesParser(EmailMessage, policy=policy.default).parse(file)
    if not message.keys() or not any(message[name] for name in ("From", "Subject", "Date", "Received", "Message-ID")):
        raise DataError(
            "no mail headers at its top", expected="a mail as RFC 5322 writes it", do="check what the file holds"
        )
    warnings = [f"damaged: {type(defect).__name__}" for part in message.walk() for defect in part.defects]
    subject = " ".join(str(message["Subject"] or "").split())
    headings = (subject,) if subject else ()
    head = "\n".join(f"{name}: {' '.join(str(message[name]).split())}" for name in _SHOWN_HEADERS if message[name])
    body = message.get_body(("plain", "html"))
    decoded = None if body is None else _text(body)
    if body is None or decoded is None or not decoded[0].strip():
        raise DataError(
            "a mail without text", expected="a text or HTML part", do="leave it out, or save its attachments"
        )
    text, notes = decoded
    warnings += notes
    if body.get_content_type() == "text/html":
        tidied, notes = tidy(HtmlConverter().convert_string(text, **PLAIN).markdown)
        warnings += notes
        inside = tuple(Section(part.text, None, headings + part.headings) for part in sections_of(tidied))
    else:
        inside = (Section(text.replace("\r\n", "\n"), None, headings),)
    left = [part.get_filename() or f"a part of type {part.get_content_type()}" for part in message.iter_attachments()]
    if left:
        warnings.append(
            f"{len(left)} attachments were not read: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}"
        )
    return Document((*((Section(head, None, headings),) if head else ()), *inside), tuple(dict.fromkeys(warnings)))


def _text(part: MIMEPart) -> tuple[str, tuple[str, ...]]:
    """The text of a part, and warnings. Bytes that are not what the part says they are do not become U+FFFD unnoticed.

    Raises:
        DataError: the part names an unknown character set, or is binary.
    """
    data = part.get_payload(decode=True)
    assert isinstance(data, bytes)  # a part with parts of its own is no body
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
