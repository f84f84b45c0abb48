"""GET /metrics in the text format of Prometheus: the requests of this process, and the state of the home."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from luthier.core.errors import LuthierError
from luthier.platform.home.context import Context
from luthier.platform.http import counts as measures
from luthier.platform.http.authentication import let_in
from luthier.platform.http.error_documents import documented
from luthier.platform.http.errors import ApiError
from luthier.platform.jobs.records import ENDED

router = APIRouter(tags=["operation"])

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_JOB_STATUSES: Final = ("queued", "running", "paused", *ENDED)
_DELIVERY_STATUSES: Final = ("pending", "delivered", "failed")
_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
_FORWARDING: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Metrics:
    """The counters of one app, in a registry of its own. Labels are routes as they are declared, never addresses."""

    def __init__(self, context: Context) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route")
        self._requests = Counter(
            "luthier_http_requests", "Requests that were answered.", (*labels, "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "luthier_http_request_seconds", "From a request to the end of its answer.", labels, registry=self.registry
        )
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.in_flight = Gauge("luthier_http_requests_in_flight", "Requests under way.", registry=self.registry)
        build = Gauge("luthier_build_info", "The version that runs.", ("version",), registry=self.registry)
        build.labels(version("luthier")).set(1)
        self.registry.register(_HomeCollector(context))

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        # A client may invent methods: each would become a series of its own, for ever.
        counted = (method if method in _METHODS else "other", route, status)
        series = self._series.get(counted)
        if series is None:  # the labels are bounded, so these are
            named = (*counted[:2], str(status))
            # `labels()` formats and locks each time; with the children at hand counting costs two increments.
            series = self._series[counted] = (self._requests.labels(*named), self._seconds.labels(*named[:2]))
        series[0].inc()
        series[1].observe(seconds)


class _HomeCollector(Collector):
    """Looks into the database whenever somebody asks, so that several processes tell the same."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def describe(self) -> list[Metric]:
        """Nothing beforehand: registering must not open the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The state of the home; without what the database knows where it does not answer."""
        free = measures.disk_free_bytes(self._context)
        yield GaugeMetricFamily("luthier_disk_free_bytes", "Free on the disk that holds the home.", value=free)
        try:
            found = measures.measured(self._context)
        except LuthierError:
            yield GaugeMetricFamily("luthier_database_up", "Whether the database answers.", value=0)
            return
        yield GaugeMetricFamily("luthier_database_up", "Whether the database answers.", value=1)
        alive = measures.living_workers(self._context, found.busy_workers)
        yield GaugeMetricFamily("luthier_workers_alive", "Workers that hold a job or wait for one.", value=len(alive))
        yield _by_status("luthier_jobs", "Jobs by status.", _JOB_STATUSES, found.jobs_by_status)
        waiting = found.oldest_queued_seconds
        yield GaugeMetricFamily("luthier_queue_oldest_seconds", "How long the oldest queued job waits.", value=waiting)
        yield CounterMetricFamily("luthier_tokens", "Tokens that were charged to keys.", value=found.num_tokens)
        deliveries = found.deliveries_by_status
        yield _by_status("luthier_webhook_deliveries", "Webhook deliveries by status.", _DELIVERY_STATUSES, deliveries)


def _by_status(name: str, text: str, statuses: tuple[str, ...], counts: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("status",))
    for status in statuses:
        family.add_metric((status,), counts.get(status, 0))
    return family


async def _may_look(request: Request) -> None:
    """Whoever is on this machine itself may look without a key; what a proxy hands on comes from elsewhere."""
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
