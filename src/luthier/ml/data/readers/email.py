"""Mail as saved by mail programs (.eml, RFC 5322 with MIME)."""

from __future__ import annotations

from email import policy
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from pathlib import Path

from markitdown.converters import HtmlConverter

from luthier.core.errors import DataError
from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.markdown import PLAIN, sections_of, tidy

_SHOWN_HEADERS = ("From", "To", "Cc", "Date")


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
    if body is None or not (text := _text(body)).strip():
        raise DataError(
            "a mail without text", expected="a text or HTML part", do="leave it out, or save its attachments"
        )
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


def _text(part: MIMEPart) -> str:
    try:
        return str(part.get_content())
    except LookupError as error:  # an unknown charset
        raise DataError(
            f"its text has the character set {part.get_content_charset()!r}",
            expected="a known character set",
            do="save the mail again as UTF-8",
        ) from error
