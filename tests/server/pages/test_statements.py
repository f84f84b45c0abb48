"""How many statements the main pages take: few, and as many for 70 runs, datasets and deployments as for 26."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.statements import statements

from luthier.core.access import Caller
from luthier.core.events import BillUpdated
from luthier.core.ids import new_id
from luthier.features.datasets.service import keep_rows
from luthier.features.datasets.store import Dataset, DatasetVersion
from luthier.features.deployments.service import deploy
from luthier.features.inbox.service import forget_counts
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job, Lane
from luthier.testing.records import bill_at, make_evaluation, make_plan, make_record, make_result, make_step

Browser = Callable[..., TestClient]
FEW, MANY = 26, 70
"""Both are more than a page of any list holds."""
MOST: Final = {
    "/": 38,
    "/inbox": 20,
    "/start": 30,
    "/datasets": 20,
    "/datasets/new": 20,
    "/runs": 24,
    "/runs/new": 30,
    "/evaluations": 24,
    "/playground": 22,
    "/models": 25,
    "/deployments": 20,
    "/batches": 20,
    "/studies": 20,
    "/monitor": 24,
    "/review": 32,
    "/settings/account": 18,
}
"""The most statements of a page that was opened before, the beginnings of transactions and the visitor included."""


def fill(home: Context, numbers: range) -> None:
    """A run that ended and was judged, one that trains, one that waits, one that failed, a dataset and a deployment."""
    # One transaction: the pages see the same, and the test takes a second instead of ten.
    with home.database.transaction():
        for number in numbers:
            ended, trains = (f"run-20261125-{letter}93000-{number:06x}" for letter in "01")
            folder = home.settings.run_folder(ended) / "model"
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}", encoding="utf-8")
            result = make_result().model_copy(update={"adapter_path": str(folder)})
            home.runs.create(make_record(ended, status="succeeded", result=result), make_plan())
            home.evaluations.save(make_evaluation(f"eval-20261125-093000-{number:06x}", run_id=ended))
            home.jobs.submit(job(trains))
            assert home.jobs.claim(f"worker-{number}") is not None
            home.runs.create(make_record(trains, status="running"), make_plan())
            for run_id in (ended, trains):
                home.runs.append(run_id, make_step(4))
                home.runs.append(run_id, BillUpdated(step=4, bill=bill_at(4, 10)))
            home.jobs.submit(job(f"run-20261125-203000-{number:06x}", lane="validate"))
            home.jobs.submit(job(f"run-20261125-213000-{number:06x}", lane="infer"))
            failed = home.jobs.claim(f"worker-{number}", ("infer",))
            assert failed is not None
            home.jobs.finish(failed.job_id, failed.attempt, "failed", {"came": "no room"})
            add_dataset(home, number)
            deploy(home, Caller(), f"name-{number}", ended)


def job(run_id: str, *, lane: Lane = "train") -> Job:
    return Job(job_id=new_id("job"), kind="train", document={"base_model": "tiny"}, run_id=run_id, lane=lane)


def add_dataset(home: Context, number: int) -> None:
    file = keep_rows(home, Caller(), [b'{"prompt": "a", "completion": "b"}\n'], f"{number}.jsonl")
    dataset = Dataset(dataset_id=new_id("dataset"), project_id="default", name=f"Orders {number}")
    version = DatasetVersion(
        dataset_id=dataset.dataset_id,
        number=1,
        file_id=file.file_id,
        filename=file.filename,
        sha256=file.sha256,
        num_bytes=file.num_bytes,
        num_rows=1,
        origin="upload",
    )
    home.datasets.add(dataset, version)


def taken(home: Context, one: TestClient) -> dict[str, list[str]]:
    """The statements of each page, opened for the second time after a change: nothing of the first one counts."""
    found = {}
    for path in MOST:
        assert one.get(path).status_code == 200, path
        forget_counts()
        with statements(home) as seen:
            assert one.get(path).status_code == 200, path
        found[path] = list(seen)
    return found


@pytest.fixture
def pages(home: Context, browser: Browser) -> TestClient:
    fill(home, range(FEW))
    return browser("read", "train", "infer", "admin")


def test_a_page_takes_few_statements_and_not_more_with_more_rows(home: Context, pages: TestClient) -> None:
    few = taken(home, pages)
    fill(home, range(FEW, MANY))
    many = taken(home, pages)
    grown = {path: (len(few[path]), len(many[path])) for path in MOST if len(many[path]) > len(few[path])}
    assert grown == {}
    above = {path: many[path] for path in MOST if len(many[path]) > MOST[path]}
    assert above == {}


def test_the_home_page_is_read_of_one_state_of_the_database(home: Context, pages: TestClient) -> None:
    with statements(home) as seen:
        assert pages.get("/").status_code == 200
    begun = [one for one in seen if one.startswith("BEGIN")]
    assert len(begun) == 2, "one transaction finds the visitor, the other reads the page with its navigation"
