"""/datasets/{id}/annotate, /map, /split and /compare: the work on a dataset, one file a page."""

from __future__ import annotations

from fastapi import APIRouter

from luthier.web.pages import dataset_annotate, dataset_compare, dataset_map, dataset_split

router = APIRouter()
for _page in (dataset_annotate, dataset_map, dataset_split, dataset_compare):
    router.include_router(_page.router)
