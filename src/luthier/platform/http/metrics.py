"""GET /metrics in the text format of Prometheus: requests of this process, queue, workers and free disk of the home.

Every request adds one line to the log and one count to the metrics.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.core.errors import LuthierError
from luthier.core.frozen_model import FrozenModel
from luthier.core.system.libraries import version
from luthier.platform.db.database import Database
from luthier.platform.db.tables import jobs, key_usage, webhook_deliveries
from luthier.platform.home.context import Context
from luthier.platform.home.logs import FACTS
from luthier.platform.http.authentication import let_in
from luthier.platform.http.errors import ApiError, documented
from luthier.platform.http.health import free_bytes
from luthier.platform.jobs.records import ENDED


class Measured(FrozenModel):
    """Counts at one moment, by the database's clock.

    Attributes:
        jobs_by_status: Jobs by their status.
        oldest_queued_seconds: How long the job that has waited longest has been queued; 0 where none waits.
        busy_workers: The names of the workers whose lease has not run out.
        num_tokens: Tokens that were charged to keys, in total.
        deliveries_by_status: Webhook messages by their status.
    """

    jobs_by_status: dict[str, int]
    oldest_queued_seconds: float
    busy_workers: frozenset[str]
    num_tokens: int
    deliveries_by_status: dict[str, int]


def measure(database: Database) -> Measured:
    """Count in one transaction that reads."""
    now = database.now
    with database.read() as connection:
        # The database's clock, which leases were written by; this machine's may differ from it.
        clock = float(connection.execute(select(now)).scalar_one())
        by_status = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status)).all()
        # updated_at, not created_at: a job that was given back has waited since then.
        since = connection.execute(select(func.min(jobs.c.updated_at)).where(jobs.c.status == "queued")).scalar()
        leased = select(jobs.c.worker).distinct().where(jobs.c.status == "running", jobs.c.lease_until >= clock)
        workers = connection.execute(leased).scalars().all()
        tokens = connection.execute(select(func.sum(key_usage.c.num_tokens))).scalar()
        statement = select(webhook_deliveries.c.status, func.count()).group_by(webhook_deliveries.c.status)
        deliveries = connection.execute(statement).all()
    return Measured(
        jobs_by_status={row[0]: row[1] for row in by_status},
        oldest_queued_seconds=0.0 if since is None else max(0.0, clock - float(since)),
        busy_workers=frozenset(str(worker) for worker in workers if worker is not None),
        num_tokens=int(tokens or 0),
        deliveries_by_status={row[0]: row[1] for row in deliveries},
    )


_PREFIX, _SUFFIX = "worker-", ".lock"


def measured(context: Context) -> Measured:
    """What the database knows.

    Raises:
        UnreachableError: The database does not answer.
    """
    return measure(context.database)


def living_workers(context: Context, busy: frozenset[str]) -> frozenset[str]:
    """The existing workers: those that hold a job, on any machine, and those of this home that wait for one.

    A worker holds a lock of its name as long as its process lives, which is seen by the machine that it runs on.
    """
    from luthier.core.system.files import is_held

    locks = context.settings.jobs_folder.glob(f"{_PREFIX}*{_SUFFIX}")
    # A lock file stays after its worker: that the lock is held shows that the process lives.
    return busy | {lock.name[len(_PREFIX) : -len(_SUFFIX)] for lock in locks if is_held(lock)}


def disk_free_bytes(context: Context) -> int:
    """What is free on the disk that holds the home."""
    return free_bytes(context)


router = APIRouter(tags=["operation"])

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_JOB_STATUSES: Final = ("queued", "running", "paused", *ENDED)
_DELIVERY_STATUSES: Final = ("pending", "delivered", "failed")
_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
_FORWARDING: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper ends of the intervals by which requests are counted. Answers take minutes; the library ends at 10 s."""


class Metrics:
    """The counters of one app, in its own registry. Labels are routes as they are declared, never addresses."""

    def __init__(self, context: Context) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route")
        self._requests = Counter(
            "luthier_http_requests", "Requests that were answered.", (*labels, "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "luthier_http_request_seconds",
            "From a request to the end of its answer.",
            labels,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.in_flight = Gauge("luthier_http_requests_in_flight", "Requests in progress.", registry=self.registry)
        build = Gauge("luthier_build_info", "The version that runs.", ("version",), registry=self.registry)
        build.labels(version("luthier")).set(1)
        self.registry.register(_HomeCollector(context))

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered.

        Args:
            method: As the client has sent it; unknown ones count as `other`.
            route: Its pattern, not the address.
            status: Of the response.
            seconds: From the first byte of the request to the last of the response.
        """
        # A client may invent methods: each would become a separate series, forever.
        counted = (method if method in _METHODS else "other", route, status)
        series = self._series.get(counted)
        if series is None:  # the labels are bounded, so these are
            named = (*counted[:2], str(status))
            # `labels()` formats and locks each time; with the children stored counting costs two increments.
            series = self._series[counted] = (self._requests.labels(*named), self._seconds.labels(*named[:2]))
        series[0].inc()
        series[1].observe(seconds)


class _HomeCollector(Collector):
    """Reads the database on each scrape, so that several processes report the same."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def describe(self) -> list[Metric]:
        """Nothing beforehand: registering must not open the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The state of the home; without what the database knows where it does not answer."""
        free = disk_free_bytes(self._context)
        yield GaugeMetricFamily("luthier_disk_free_bytes", "Free on the disk that holds the home.", value=free)
        yield _by_engine(self._context)
        try:
            found = measured(self._context)
        except LuthierError:
            yield GaugeMetricFamily("luthier_database_up", "Whether the database answers.", value=0)
            return
        yield GaugeMetricFamily("luthier_database_up", "Whether the database answers.", value=1)
        alive = living_workers(self._context, found.busy_workers)
        yield GaugeMetricFamily("luthier_workers_alive", "Workers that hold a job or wait for one.", value=len(alive))
        yield _by_status("luthier_jobs", "Jobs by status.", _JOB_STATUSES, found.jobs_by_status)
        waiting = found.oldest_queued_seconds
        yield GaugeMetricFamily("luthier_queue_oldest_seconds", "How long the oldest queued job waits.", value=waiting)
        yield CounterMetricFamily("luthier_tokens", "Tokens that were charged to keys.", value=found.num_tokens)
        deliveries = found.deliveries_by_status
        yield _by_status("luthier_webhook_deliveries", "Webhook deliveries by status.", _DELIVERY_STATUSES, deliveries)


def _by_engine(context: Context) -> Metric:
    """Of this process, unlike the rest; nothing where no model was asked yet: a scrape starts no client."""
    family = CounterMetricFamily(
        "luthier_serving_requests", "Requests for text by engine and by why it answered.", labels=("engine", "reason")
    )
    client = context.__dict__.get("inference_client")
    for (engine, reason), num in sorted(client.num_requests.items() if client is not None else ()):
        family.add_metric((engine, reason), num)
    return family


def _by_status(name: str, text: str, statuses: tuple[str, ...], counts: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("status",))
    for status in statuses:
        family.add_metric((status,), counts.get(status, 0))
    return family


async def _may_look(request: Request) -> None:
    """Clients on this machine may read without a key; what a proxy forwards comes from elsewhere."""
    host = request.client.host if request.client is not None else ""
    # A reverse proxy on this machine connects from loopback, too: its headers show that the client is elsewhere.
    is_near = host.startswith(_LOOPBACK) and not any(name in request.headers for name in _FORWARDING)
    if not is_near and not (caller := await let_in(request)).may("read"):
        raise ApiError(
            403,
            f"The key {caller.name!r} has the scopes {', '.join(caller.scopes)}; expected: read; what to do: use or "
            f"make a key that has it",
            type="insufficient_permissions",
            code="missing_scope",
        )


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    dependencies=[Depends(_may_look)],
    response_class=PlainTextResponse,
    responses=documented(),
)
def metrics(request: Request) -> Response:
    """Figures of this process and of the home; from another machine it takes a key with the scope read."""
    found: Metrics = request.app.state.metrics
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)


log = logging.getLogger("luthier.requests")

_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: in the log only where the answer is not good."""
_MOST_PATH_CHARACTERS: Final = 300
_GONE: Final = 499
"""The client went away before it had an answer."""


class Observe:
    """The outermost middleware, so that what the others answer is noted, too.

    The path is logged without its query, and the key by its id: neither holds a secret.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on a request and note how it was answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answer = time.perf_counter(), _Answer()

        async def noted(message: Message) -> None:
            answer.note(message)
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, noted)
        except Exception:
            # An exception after the answer has begun keeps the status that the client has seen.
            answer.status = answer.status or 500
            raise
        finally:
            self._metrics.in_flight.dec()
            self._note(scope, answer, time.perf_counter() - began)

    def _note(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        status, method = answer.status or _GONE, str(scope["method"])
        # The declared route, with `{id}` in place of ids: the labels of metrics stay few.
        route = str(getattr(scope.get("route"), "path", "unmatched"))
        self._metrics.count(method, route, status, seconds)
        if route in _QUIET and status < 400:
            return
        caller = scope.get("state", {}).get("caller")
        path, milliseconds = str(scope["path"])[:_MOST_PATH_CHARACTERS], round(seconds * 1000, 1)
        facts = {
            "request_id": answer.request_id, "key_id": getattr(caller, "key_id", None), "method": method,
            "path": path, "route": route, "status": status, "milliseconds": milliseconds,
        }  # fmt: skip
        words = f"{method} {path} {status} {milliseconds:g} ms {facts['key_id'] or '-'} {answer.request_id or '-'}"
        log.info("%s", words, extra={FACTS: facts})


class _Answer:
    def __init__(self) -> None:
        self.status: int | None = None
        self.request_id: str | None = None

    def note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            found = [value for name, value in message["headers"] if name.lower() == b"x-request-id"]
            self.request_id = found[0].decode("latin-1") if found else None
