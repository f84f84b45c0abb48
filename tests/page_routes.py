"""The routes of an app, and addresses beside them: what tests of all pages open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, routing

QUERIES = (
    "/runs/compare?run={run_id}&run=run-20261125-093008-bbbbbb",
    "/runs/new?from={run_id}&dataset={dataset_id}&base_model={model}",
    "/runs?text=eeeeee",
    "/evaluations?words=answers&word=none",
    "/evaluations/{evaluation_id}?page=1&system=1",
    "/evaluations/panels/new?evaluation={evaluation_id}",
    "/evaluations/new?model={run_id}",
    "/monitor/model?name={name}",
    "/review?item=none",
    "/playground?model={model}",
    "/playground/head?model={run_id}",
    "/datasets/{dataset_id}/compare?old=1&new=1",
    "/datasets/{dataset_id}/tokens?version=1&model={model}",
    "/datasets/{dataset_id}/annotate/news?version=1&seen=0",
    "/models/{model}",
    "/models/{checkpoint}",
    "/pipelines/auto-20261126-130000-abcdef",
    "/pipelines/showdown-20261126-120000-abcdef",
    "/api/v1/evaluations/{evaluation_id}?with_samples=true",
    "/api/v1/runs?limit=100",
)
"""Addresses with queries, beside each route as it is."""
WITHOUT_ADDRESS = {"/welcome/{token}", "/rate/{token}", "/invite/{token}", "/tinker/weights/{token}/{file}"}
"""Routes of links that hold a secret, which no address can be made of."""


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every route of the API, and of the pages behind it."""
    walk: Any = getattr(routing, "iter_route_contexts", iter)
    for one in (app, app.router.default._pages):  # type: ignore[attr-defined]
        for route in walk(one.routes):
            for method in sorted(set(getattr(route, "methods", None) or ()) - {"HEAD", "OPTIONS"}):
                yield method, str(route.path)
