"""Use cases: webhooks: create, list, remove, see their messages; and the thread that signs and sends these.

Sources: Standard Webhooks specification 1.0.0, sections "Payload structure" and "Verifying webhook authenticity", which
OpenAI's client library checks, too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError, WorkError
from luthier.core.ids import is_id, new_id
from luthier.core.system.process_setup import start_daemon
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.notifications.outgoing import MAX_SECONDS, Address, UnreachableError, post, why_forbidden
from luthier.platform.notifications.store import EVENT_TYPES, TEST_EVENT, Delivery, DueDelivery, EventType, Webhook

MOST_OF_A_PROJECT: Final = 20
_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the prefix of each secret
_NUM_SECRET_BYTES: Final = 32
_MOST_URL_CHARACTERS: Final = 2000


def create_webhook(
    context: Context, caller: Caller, url: str, event_types: tuple[EventType, ...] = EVENT_TYPES
) -> tuple[Webhook, str]:
    """Make a webhook.

    Args:
        context: The home.
        caller: Whose project it belongs to.
        url: Where messages go.
        event_types: The events that it gets.

    Returns:
        The webhook, and the secret that messages are signed with, which cannot be shown again.

    Raises:
        RequestError: The URL is malformed, or its address may not be called.
        ConflictError: The project has too many webhooks.
    """
    _check_url(url, may_reach_private=may_reach_private(context))
    secret = _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_NUM_SECRET_BYTES)).decode()
    chosen = tuple(kind for kind in EVENT_TYPES if kind in event_types)
    made = Webhook(webhook_id=new_id("webhook"), project_id=caller.project_id, url=url, event_types=chosen)
    with context.database.transaction():
        # Inside: of two requests at the same time, the later one sees the earlier's.
        if len(context.webhooks.of_project(caller.project_id)) >= MOST_OF_A_PROJECT:
            raise ConflictError(
                f"this project has {MOST_OF_A_PROJECT} webhooks already",
                expected="no more than that",
                do="remove one that is no longer needed",
            )
        stored = context.webhooks.add(made, secret)
        record(context, caller, "webhook.created", made.webhook_id, {"url": url})
    return stored, secret


def list_webhooks(context: Context, project_id: str) -> list[Webhook]:
    """The webhooks of a project, newest first."""
    with context.database.snapshot():
        found = context.webhooks.of_project(project_id)
        secrets_by_id = context.webhooks.signing_secrets(project_id)
    return [_with_problem(one, secrets_by_id.get(one.webhook_id)) for one in found]


def show_webhook(context: Context, project_id: str, webhook_id: str) -> Webhook:
    """One webhook.

    Raises:
        NotFoundError: The project has no such webhook.
    """
    with context.database.snapshot():
        found = context.webhooks.get(_known(webhook_id), project_id)
        return _with_problem(found, context.webhooks.signing_secrets(project_id).get(webhook_id))


def remove_webhook(context: Context, caller: Caller, webhook_id: str) -> Webhook:
    """Remove a webhook with its undelivered messages.

    Raises:
        NotFoundError: The project has no such webhook.
    """
    found = show_webhook(context, caller.project_id, webhook_id)
    with context.database.transaction():
        removed = context.webhooks.remove(webhook_id, caller.project_id)
        record(context, caller, "webhook.removed", webhook_id, {"url": found.url})
    return removed


def list_deliveries(context: Context, project_id: str, webhook_id: str, *, limit: int) -> list[Delivery]:
    """The messages of a webhook, delivered or not, newest first.

    Raises:
        NotFoundError: The project has no such webhook.
    """
    return context.webhooks.deliveries(_known(webhook_id), project_id, limit)


def send_test(context: Context, project_id: str, webhook_id: str) -> Delivery:
    """Send a test event to a webhook, within seconds.

    Raises:
        NotFoundError: The project has no such webhook.
    """
    return context.webhooks.tell(_known(webhook_id), project_id, TEST_EVENT, {"id": webhook_id})


def sign(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """The header `webhook-signature`: HMAC-SHA256 over id, time and body, joined by dots.

    Args:
        secret: With its prefix, as the owner of the webhook has it.
        message_id: Of the message.
        timestamp: In seconds since 1970.
        body: As it is sent.

    Raises:
        WorkError: The secret cannot be decoded.
    """
    signed = f"{message_id}.{timestamp}.{body}".encode()
    return "v1," + base64.b64encode(hmac.new(_signing_key(secret), signed, hashlib.sha256).digest()).decode()


def _signing_key(secret: str) -> bytes:
    """Standard Webhooks: the key of the HMAC is what the base64 behind the prefix decodes to, not its text."""
    try:
        # validate: without it characters outside of base64 are dropped, and a damaged secret gives some other key.
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise WorkError(
            "the stored secret of the webhook cannot be decoded, so no message can be signed",
            expected="whsec_ and base64 behind it, as Luthier stored it",
            do="remove the webhook, create it again and give the new secret to its receiver",
        )
    return key


def _with_problem(webhook: Webhook, secret: str | None) -> Webhook:
    try:
        _signing_key(secret or "")
    except WorkError as error:
        return webhook.model_copy(update={"problem": f"{error.came}: {error.do}"})
    return webhook


def may_reach_private(context: Context) -> bool:
    """Whether the operator's setting lets messages go to this machine and to private networks."""
    return context.settings.webhooks_may_reach_private


def _known(webhook_id: str) -> str:
    if not is_id(webhook_id, "webhook"):
        raise NotFoundError(
            f"{webhook_id[:100]!r} is not the id of a webhook",
            expected="the id of a webhook of this project",
            do="list them: GET /api/v1/webhooks",
        )
    return webhook_id


def _check_url(url: str, *, may_reach_private: bool) -> None:
    """What can be seen of an address before it is looked up; where it leads is looked at whenever it is called."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        raise _wrong(url) from None
    is_plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= _MOST_URL_CHARACTERS
    if not is_plain or parts.scheme not in ("http", "https") or not host or port == 0:
        raise _wrong(url)
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise RequestError(
            "the webhook's url holds a user, a password or a fragment",
            expected="an address without them: messages are signed, so that needs no password",
            do="leave it out, and check the signature",
        )
    address = _literal(host)
    if address is None:
        return
    if why := why_forbidden(address, may_reach_private=may_reach_private):
        raise RequestError(
            f"the webhook's url leads to {why}",
            expected="an address that this server may call",
            do="choose another, or ask the operator to set LUTHIER_WEBHOOKS_MAY_REACH_PRIVATE=true",
        )


def _literal(host: str) -> Address | None:
    """The address that a host is written as, in any form that the resolver takes (0x7f.1, 2130706433); None for a name.

    Nothing is looked up: a name is resolved when it is called.
    """
    try:
        # AI_NUMERICHOST: the resolver's own parser, which knows more spellings than `ip_address`, and sends no query.
        found = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return ip_address(str(found[0][4][0]).partition("%")[0])


def _wrong(url: str) -> RequestError:
    return RequestError(
        f"url {url[:200]!r}",
        expected=f"http://... or https://..., plain ASCII, at most {_MOST_URL_CHARACTERS:,} characters",
        do="correct the url; encode other characters with percent signs",
    )


log = logging.getLogger("luthier.webhooks")

_LOOK_SECONDS: Final = 1.0
_REST_SECONDS: Final = 5.0
"""Where the database does not answer."""
_NUM_AT_ONCE: Final = 4
_LEASE_SECONDS: Final = 4 * MAX_SECONDS
FIRST_WAIT_SECONDS: Final = 5.0
LONGEST_WAIT_SECONDS: Final = 12 * 3600.0
GIVE_UP_SECONDS: Final = 3 * 24 * 3600.0
_GONE: Final = 410
_MOST_ANSWER_CHARACTERS: Final = 300


class WebhookSender:
    """A thread that announces ended jobs and delivers messages; leaving the `with` block ends it."""

    def __init__(self, context: Context) -> None:
        self._context, self._stop = context, threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._thread = start_daemon(self._work, "webhooks")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(MAX_SECONDS + 5)

    def _work(self) -> None:
        with ThreadPoolExecutor(_NUM_AT_ONCE, thread_name_prefix="webhook") as pool:
            while not self._stop.is_set():
                try:
                    num_done = send_due(self._context, pool)
                except LuthierError as error:
                    log.warning("webhooks wait for the database: %s", error.came)
                    self._stop.wait(_REST_SECONDS)
                except Exception:
                    log.exception("webhooks are tried again after an unexpected error")
                    self._stop.wait(_REST_SECONDS)
                else:
                    self._stop.wait(0.0 if num_done else _LOOK_SECONDS)


def send_due(context: Context, pool: ThreadPoolExecutor) -> int:
    """Announce what has ended and send what is due; returns how many messages were tried."""
    context.webhooks.announce()
    due = context.webhooks.claim(limit=_NUM_AT_ONCE, lease_seconds=_LEASE_SECONDS)
    # list() waits for all of them and raises what one of them raised: only the database can, see `deliver`.
    list(pool.map(lambda one: deliver(context, one), due))
    return len(due)


def deliver(context: Context, due: DueDelivery) -> None:
    """Try a message once and write down how it went: 2xx is done, 410 ends the webhook, all else is tried again.

    A message whose secret cannot be decoded has failed at once: no later attempt can sign it. Every other error of one
    message counts as an attempt of this message, so that it never holds up the others.
    """
    taken = due.delivery
    try:
        status = _send(context, due)
    except WorkError as error:
        log.warning("message %s to %s has failed: %s", taken.message_id, taken.webhook_id, error.came)
        context.webhooks.settle(taken, "failed", f"{error.came}: {error.do}")
        return
    except UnreachableError as error:
        answer, status = str(error), 0
    except Exception as error:
        log.exception("message %s to %s met an unexpected error", taken.message_id, taken.webhook_id)
        answer, status = f"unexpected error: {type(error).__name__}: {error}"[:_MOST_ANSWER_CHARACTERS], 0
    else:
        answer = f"HTTP {status}"
    if status == _GONE:
        log.warning("webhook %s wants no more messages (HTTP 410): removed", taken.webhook_id)
        context.webhooks.drop(taken.webhook_id)
    elif 200 <= status < 300:
        context.webhooks.settle(taken, "delivered", answer)
    else:
        wait = wait_seconds(taken.num_attempts)
        # Age is measured by the database's clock, which wrote `created_at`.
        if due.age_seconds + wait > GIVE_UP_SECONDS:
            log.warning("message %s to %s was given up: %s", taken.message_id, taken.webhook_id, answer)
            context.webhooks.settle(taken, "failed", answer)
        else:
            context.webhooks.settle(taken, "pending", answer, wait_seconds=wait)


def _send(context: Context, due: DueDelivery) -> int:
    # The wall clock of this machine: receivers compare the time with theirs, to refuse messages that are replayed.
    taken, timestamp = due.delivery, int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "luthier-webhooks",
        "webhook-id": taken.message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(due.secret, taken.message_id, timestamp, taken.body),
    }
    return post(due.url, headers, taken.body.encode(), may_reach_private=may_reach_private(context))


def wait_seconds(num_attempts: int) -> float:
    """From an attempt that failed to the next: 5 s, 20 s, 80 s ... 12 h, each a fifth more or less, by chance."""
    wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 4.0 ** min(num_attempts - 1, 10))
    # Jitter spreads the attempts of messages that failed at the same moment.
    return wait * secrets.SystemRandom().uniform(0.8, 1.2)
