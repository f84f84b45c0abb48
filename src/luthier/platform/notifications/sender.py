"""Tells webhooks what there is to tell, in a thread of the server, until it is stopped."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from luthier.core.errors import LuthierError
from luthier.platform.home.context import Context
from luthier.platform.notifications.outgoing import MAX_SECONDS, UnreachableError, post
from luthier.platform.notifications.records import DueDelivery
from luthier.platform.notifications.webhooks import may_reach_private, sign

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


class WebhookSender:
    """A thread that announces ended jobs and delivers messages; leaving the `with` block ends it."""

    def __init__(self, context: Context) -> None:
        self._context, self._stop = context, threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
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
    # list() waits for all of them and raises what one of them raised.
    list(pool.map(lambda one: deliver(context, one), due))
    return len(due)


def deliver(context: Context, due: DueDelivery) -> None:
    """Try a message once and write down how it went: 2xx is done, 410 ends the webhook, all else is tried again."""
    # The wall clock of this machine: receivers compare the time with theirs, to refuse messages that are replayed.
    taken, timestamp = due.delivery, int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "luthier-webhooks",
        "webhook-id": taken.message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(due.secret, taken.message_id, timestamp, taken.body),
    }
    try:
        status = post(due.url, headers, taken.body.encode(), may_reach_private=may_reach_private(context))
    except UnreachableError as error:
        answer, status = str(error), 0
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


def wait_seconds(num_attempts: int) -> float:
    """From an attempt that failed to the next: 5 s, 20 s, 80 s ... 12 h, each a fifth more or less, by chance."""
    wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 4.0 ** min(num_attempts - 1, 10))
    # Jitter spreads the attempts of messages that failed at the same moment.
    return wait * secrets.SystemRandom().uniform(0.8, 1.2)
