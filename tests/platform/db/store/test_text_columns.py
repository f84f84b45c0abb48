"""Names have one limit on both databases: what PostgreSQL cannot hold, SQLite does not keep either."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, select, update

from luthier.core.errors import RequestError
from luthier.core.ids import tuned_name
from luthier.core.results.suite import SuiteResult
from luthier.features.assessments.store import AssessmentStore
from luthier.platform.db.database import Database
from luthier.platform.db.tables import assessments, tuned_models, watches


def watch(name: str) -> dict[str, str]:
    return {"project_id": "default", "kind": "k", "name": name, "document": ""}


def test_a_text_that_is_longer_than_its_column_is_refused(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(watches).values(**watch("é" * 255)))
    for statement in (insert(watches).values(**watch("é" * 256)), update(watches).values(name="é" * 256)):
        with pytest.raises(RequestError, match=r"256 characters(.|\n)*at most 255"), database.write() as connection:
            connection.execute(statement)
    with pytest.raises(RequestError, match="300 characters"), database.write() as connection:
        connection.execute(insert(watches), [watch("a"), watch("b" * 300)])
    with database.read() as connection:
        assert connection.execute(select(watches.c.name)).scalars().all() == ["é" * 255]


def test_a_text_of_any_length_may_be_looked_for(database: Database) -> None:
    with database.read() as connection:
        for condition in (watches.c.name == "x" * 1000, watches.c.name.in_(["x" * 1000]), watches.c.kind > "x" * 1000):
            assert connection.execute(select(watches.c.name).where(condition)).all() == []


def test_results_about_a_folder_of_any_name_are_stored_and_found(database: Database) -> None:
    store, folders = AssessmentStore(database), [f"/models/{'deep/' * 80}{name}" for name in "ab"]
    for name, folder in zip("ab", folders, strict=True):
        document = SuiteResult.model_construct(result_id=name)
        store.save("suite", f"suite-{name}", document, project_id="default", subject=folder)
    with database.read() as connection:
        subjects = connection.execute(select(assessments.c.subject).order_by(assessments.c.number)).scalars().all()
    assert [len(subject) for subject in subjects] == [255, 255]
    assert [list(store.suites("default", folder)) for folder in folders] == [["suite-a"], ["suite-b"]]


def test_a_tuned_model_of_a_long_folder_has_a_name_that_fits_with_its_checkpoints() -> None:
    longest = tuned_models.c.model_id.type.length
    names = {tuned_name(f"/{'deep/' * 80}{end}", "proj-20261125-093000-1f2e3d", "s" * 100, "job-1") for end in "ab"}
    assert len(names) == 2
    assert {len(f"{name}:ckpt-step-{10**9}") <= longest for name in names} == {True}
    assert tuned_name("org/tiny", "default", "mine", "job-1").startswith("ft:org/tiny:default:mine:")
