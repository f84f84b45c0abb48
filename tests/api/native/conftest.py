"""Runs of a project, with what was found out about them."""

from __future__ import annotations

import pytest

from luthier.service.context import Context
from luthier.testing.records import RUN_ID, make_evaluation, make_plan, make_record, make_result, make_step


@pytest.fixture
def run_id(home: Context) -> str:
    """A run without a job: it belongs to the project `default`."""
    home.runs.create(make_record(status="succeeded", result=make_result()), make_plan())
    for step in (1, 2):
        home.runs.append(RUN_ID, make_step(step))
    home.evaluations.save(make_evaluation(run_id=RUN_ID))
    return RUN_ID
