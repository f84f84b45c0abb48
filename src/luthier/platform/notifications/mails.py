"""Mails by SMTP (RFC 5321): kept until a server has taken them, tried again where it has not."""

from __future__ import annotations

import contextlib
import logging
import re
import smtplib
import socket
import ssl
import threading
from email.message import EmailMessage
from email.utils import formatdate
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from luthier.core.errors import RequestError, WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.core.system.clock_jump import SLACK_SECONDS
from luthier.platform.db.monitor_state import WatchDocument
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.platform.notifications.webhooks import GIVE_UP_SECONDS, wait_seconds

log = logging.getLogger("luthier.alerts")

KIND: Final = "mail"
_CONNECT_SECONDS: Final = 10.0
MAX_SECONDS: Final = 30.0
_LEASE_SECONDS: Final = 4 * MAX_SECONDS
_KEPT_SECONDS: Final = 30 * 24 * 3600.0
_PORTS: Final = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
_ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


class Mail(FrozenModel):
    """A mail that waits, or that was given up. Times are seconds since 1970 by the database's clock.

    Attributes:
        mail_id: Its id, also of its Message-ID.
        to: The addresses that do not have it yet.
        subject: Its subject.
        text: Its plain text.
        status: `failed` once it was given up.
        num_attempts: The attempts until now.
        next_at: When it is tried next, or when the current sender counts as gone.
        last_answer: How the last attempt went.
        created_at: When it was made.
    """

    mail_id: str
    to: tuple[str, ...]
    subject: str
    text: str
    status: Literal["pending", "failed"] = "pending"
    num_attempts: int = 0
    next_at: float = 0.0
    last_answer: str = ""
    created_at: float = 0.0


def check_address(text: str) -> str:
    """An address as SMTP takes it without extensions.

    Raises:
        RequestError: The text is no such address.
    """
    if not _ADDRESS.fullmatch(text):
        raise RequestError(f"the mail address {text[:100]!r}", expected="NAME@HOST, in ASCII", do="correct it")
    return text


def waiting(project_id: str, to: tuple[str, ...], subject: str, text: str, *, now: float) -> WatchDocument:
    """A stored mail, due immediately for any sender.

    Args:
        project_id: The project that it is about.
        to: The addresses.
        subject: Its subject line.
        text: Its body, as plain text.
        now: The time, in seconds since 1970.
    """
    mail = Mail(mail_id=new_id("mail"), to=to, subject=subject, text=text, next_at=now, created_at=now)
    return WatchDocument(project_id, KIND, mail.mail_id, mail.model_dump_json())


def list_mails(context: Context, project_id: str) -> list[Mail]:
    """What was not sent yet, or could not be, oldest first. What was sent is not kept."""
    return [Mail.model_validate_json(one.document) for one in context.watches.list(KIND, project_id)]


def send_due(context: Context) -> int:
    """Try the mails whose time has come, of all projects; returns how many were tried."""
    num, now = 0, context.access.now()
    for one in context.watches.list(KIND):
        mail = Mail.model_validate_json(one.document)
        if mail.status == "failed" and now - mail.created_at > _KEPT_SECONDS:
            context.watches.remove(one.project_id, KIND, one.name)
        # `_take` decides between servers that found the same mail due.
        elif mail.status == "pending" and _is_due(mail, now) and (taken := _take(context, one, mail, now)) is not None:
            _try(context, one.project_id, taken)
            num += 1
    return num


def _is_due(mail: Mail, now: float) -> bool:
    """Also where it was written in the future: that was before the clock was set back."""
    return mail.next_at <= now or mail.created_at > now + SLACK_SECONDS


def deliver(settings: Settings, mail: Mail) -> dict[str, str]:
    """Hand a mail to the SMTP server of the settings.

    It waits at most 10 s for each reply of the server, and 30 s for all after its greeting.

    Returns:
        The addresses that the server refused, and why; empty where it took all.

    Raises:
        WorkError: The server took the mail for no address.
    """
    scheme, host, port, user, password = _server(settings)
    try:
        message = _message(settings, mail, host)
        with _connected(scheme, host, port) as smtp:
            alarm = threading.Timer(MAX_SECONDS, _cut, (smtp,))  # each single wait is bounded by the socket
            alarm.daemon = True
            alarm.start()
            try:
                if scheme == "smtp+starttls":
                    # An explicit context: without one smtplib checks neither certificate nor name.
                    smtp.starttls(context=ssl.create_default_context())
                if user:
                    smtp.login(user, password)
                refused = smtp.send_message(message, to_addrs=list(mail.to))
            finally:
                alarm.cancel()
    except smtplib.SMTPRecipientsRefused as error:
        raise _failed(host, "; ".join(f"{to}: {_words(*why)}" for to, why in error.recipients.items())) from error
    except smtplib.SMTPResponseException as error:
        raise _failed(host, _words(error.smtp_code, error.smtp_error)) from error
    except (OSError, smtplib.SMTPException, ValueError) as error:
        raise _failed(host, f"{type(error).__name__}: {error}") from error
    return {to: _words(*why) for to, why in refused.items()}


def _take(context: Context, one: WatchDocument, mail: Mail, now: float) -> Mail | None:
    """The mail, claimed so that no one else sends it meanwhile; None where another sender has it."""
    # A sender that dies lets the lease run out, and the mail is tried again: it may arrive twice, never not at all.
    changed = {"next_at": now + _LEASE_SECONDS, "created_at": min(now, mail.created_at)}
    taken = mail.model_copy(update=changed | {"num_attempts": mail.num_attempts + 1})
    document = taken.model_dump_json()

    def change(there: str | None) -> str | None:
        return document if there == one.document else there

    return taken if context.watches.change(one.project_id, KIND, one.name, change) == document else None


def _try(context: Context, project_id: str, mail: Mail) -> None:
    to: tuple[str, ...] = mail.to
    try:
        refused = deliver(context.settings, mail)
    except WorkError as error:
        answer = error.came
    else:
        # Only those that the server refused are tried again; the others have the mail.
        to, answer = tuple(refused), "; ".join(f"{one}: {why}" for one, why in refused.items())
    if not to:
        context.watches.remove(project_id, KIND, mail.mail_id)
        return
    now, wait = context.access.now(), wait_seconds(mail.num_attempts)
    # Given up now where the next attempt would come too late, rather than by another attempt.
    is_over = now - mail.created_at + wait > GIVE_UP_SECONDS
    log.warning("mail %s to %s %s: %s", mail.mail_id, ", ".join(to), "given up" if is_over else "waits", answer)
    changed = {
        "to": to,
        "last_answer": answer[:1000],
        "next_at": now + wait,
        "status": "failed" if is_over else "pending",
    }
    context.watches.put(project_id, KIND, mail.mail_id, mail.model_copy(update=changed).model_dump_json())


def _message(settings: Settings, mail: Mail, host: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = settings.smtp_from or f"luthier@{host}"
    message["To"] = ", ".join(mail.to)
    message["Subject"] = mail.subject[:200]
    message["Date"] = formatdate(mail.created_at)
    message["Message-ID"] = f"<{mail.mail_id}@luthier>"  # the same at each attempt, so that a copy is recognised
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no machine is to answer
    message.set_content(mail.text)
    return message


def _connected(scheme: str, host: str, port: int) -> smtplib.SMTP:
    if scheme == "smtps":
        return smtplib.SMTP_SSL(host, port, timeout=_CONNECT_SECONDS, context=ssl.create_default_context())
    return smtplib.SMTP(host, port, timeout=_CONNECT_SECONDS)


def _cut(smtp: smtplib.SMTP) -> None:
    if smtp.sock is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(smtp.sock, socket.SHUT_RDWR)  # TLS would wait for its turn first


def _server(settings: Settings) -> tuple[str, str, int, str, str]:
    """Scheme, host, port, user and password. The URL is never shown: it may hold the password."""
    text = "" if settings.smtp is None else settings.smtp.get_secret_value()
    try:
        parts = urlsplit(text)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in _PORTS or not parts.hostname:
        raise WorkError(
            "no mail server is named" if not text else "LUTHIER_SMTP is not the URL of a mail server",
            expected="smtps://USER:PASSWORD@HOST, smtp+starttls://USER:PASSWORD@HOST or smtp://HOST in LUTHIER_SMTP",
            do="set it where the server is started, then `luthier alerts test`",
        )
    return parts.scheme, parts.hostname, port, unquote(parts.username or ""), unquote(parts.password or "")


def _failed(host: str, why: str) -> WorkError:
    return WorkError(
        f"the mail server {host} did not accept the mail: {why[:500]}",
        expected="a server that accepts it",
        do="check LUTHIER_SMTP, LUTHIER_SMTP_FROM and the addresses; it is tried again for three days",
    )


def _words(code: int, text: bytes | str) -> str:
    return f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"
