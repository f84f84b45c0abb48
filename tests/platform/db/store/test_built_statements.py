"""Statements that pages ask again and again are built once: SQLAlchemy knows them by the objects that they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from luthier.core.access import Caller
from luthier.features.home_page.progress import progress_of
from luthier.platform.auth.members import session_of, sign_in_with_key
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.records import add_run


@contextmanager
def executed() -> Iterator[list[object]]:
    """The statements of the block as SQLAlchemy was given them; they are kept, so that no id comes twice."""
    seen: list[object] = []

    def note(_connection: object, statement: object, *_others: object) -> None:
        seen.append(statement)

    event.listen(Engine, "before_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_execute", note)


def _session(home: Context) -> Callable[[str], object]:
    key = create_key(home, "a", scopes=("read",))[1]
    secret = sign_in_with_key(home, key)
    assert secret is not None
    return lambda _project: session_of(home, secret)


READS: dict[str, Callable[[Context], Callable[[str], object]]] = {
    "session": _session,
    "first steps": lambda home: lambda project: progress_of(home, project),
    "jobs of one status": lambda home: lambda project: home.jobs.list(status="queued", project_id=project, limit=3),
    "jobs of several": lambda home: lambda project: home.jobs.list(status=("running", "queued"), project_id=project),
    "runs": lambda home: lambda project: home.runs.of_project(project, limit=3),
    "runs of one status": lambda home: lambda project: home.runs.of_project(project, limit=3, status="succeeded"),
    "evaluations of a run": lambda home: lambda run_id: home.evaluations.list(run_id, limit=3),
    "datasets": lambda home: lambda project: home.datasets.list(project),
    "annotated datasets": lambda home: lambda project: home.datasets.annotated(project),
    "deployments": lambda home: lambda project: home.deployments.list(project),
    "reviews": lambda home: lambda project: home.review_items.waiting(project),
}


@pytest.mark.parametrize("name", READS)
def test_a_second_read_executes_the_statements_of_the_first(home: Context, name: str) -> None:
    read = READS[name](home)
    home.access.now()  # a new connection has statements of its own
    found = []
    for project in ("default", "other"):
        with executed() as seen:
            read(project)
        assert seen
        found.append(seen)
    assert [id(one) for one in found[0]] == [id(one) for one in found[1]]


def test_statements_with_other_conditions_are_others(home: Context) -> None:
    run_id = add_run(home, "a")
    assert [one.run_id for one in home.runs.of_project("default", limit=5)] == [run_id]
    assert not home.runs.of_project("default", limit=5, status="failed")
    assert not home.runs.of_project("default", limit=5, after=run_id)
    assert not home.runs.of_project("default", limit=0)
    assert not home.jobs.list(status=(), project_id="default"), "no status is the status of none"
    assert not home.members.list(Caller().project_id)
