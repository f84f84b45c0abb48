"""Deployments on both databases: one change after another, and none that somebody else has overtaken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.records import deployment as routing
from luthier.core.records.deployment import Deployment, Share
from luthier.features.deployments.store import DeploymentStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database


def a_deployment(name: str = "n", project_id: str = "default") -> Deployment:
    revision = routing.first(Share(target="a", fraction=1.0))
    return Deployment(deployment_id=f"dep-{project_id}-{name}", project_id=project_id, name=name, revision=revision)


def test_revisions_are_added_and_the_newest_holds(database: Database) -> None:
    store = DeploymentStore(database)
    made = store.add(a_deployment())
    assert made.created_at == made.revision.created_at > 0
    canary = routing.with_canary(Share(target="b", fraction=0.1), made.revision)
    revised = store.revise(made, canary)
    assert store.get("default", "n") == revised == store.list("default")[0]
    assert [one.number for one in store.revisions(made.deployment_id)] == [2, 1]
    with pytest.raises(ConflictError, match="is at revision 2, not at revision 1"):
        store.revise(made, canary)
    with pytest.raises(ConflictError, match="exists already"):
        store.add(a_deployment())
    store.delete("default", "n")
    with pytest.raises(ConflictError, match="is gone"):
        store.revise(revised, routing.promoted(canary))
    assert store.revisions(made.deployment_id) == ()


def test_another_projects_is_not_there(database: Database) -> None:
    AccessStore(database).add_project("proj-other", "other")
    store = DeploymentStore(database)
    store.add(a_deployment())
    store.add(a_deployment(project_id="proj-other"))
    store.delete("proj-other", "n")
    assert store.find("proj-other", "n") is None
    assert store.list("proj-other") == []
    assert len(store.list("default")) == 1
    for use in (store.get, store.delete):
        with pytest.raises(NotFoundError, match="no deployment"):
            use("proj-other", "n")


def test_of_many_that_change_it_at_once_one_does(database: Database) -> None:
    store = DeploymentStore(database)
    made = store.add(a_deployment())

    def change(number: int) -> bool:
        try:
            store.revise(made, routing.replace(Share(target=f"t{number}", fraction=1.0), made.revision))
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(change, range(8))) == 1
    assert store.get("default", "n").revision.number == 2
