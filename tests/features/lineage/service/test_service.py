"""Where models come from: rows by their digest, and all that was made of them."""

from __future__ import annotations

import pytest
from tests.homes import ME, fill

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError
from luthier.features.deployments import service as deployments
from luthier.features.lineage.service import Lineage, model_lineage, project_lineage
from luthier.features.runs.changes import edit_here
from luthier.features.runs.labels import LabelChanges
from luthier.platform.home.context import Context
from luthier.testing.records import add_run

STRANGER = Caller(project_id="proj-other")


def edges(lineage: Lineage) -> set[tuple[str, str]]:
    return {(lineage.nodes[a].name, lineage.nodes[b].name) for a, b in lineage.edges}


def test_digests_and_ids_tie_it_together(context: Context) -> None:
    made = fill(context)
    first, second = made.runs
    deployments.deploy(context, ME, "support", made.tuned, canary=0.1)
    edit_here(context, first, LabelChanges(name="First try"))
    edit_here(context, second, LabelChanges(name="Second try"))
    found = project_lineage(context, ME)
    assert edges(found) == {
        ("answers v1", "First try"), ("tiny", "First try"), ("First try", "First try"),
        ("answers v1", "Second try"), ("tiny", "Second try"), ("Second try", "Second try"),
        ("Second try", "not distinguishable"), ("Second try", "merged float16"),
        ("First try", "support"), ("Second try", "support"),
    }  # fmt: skip
    runs = [node for node in found.nodes.values() if node.kind == "run"]
    assert {node.subject for node in runs} == {first, second}, "ids stay in the details"
    dataset = next(node for node in found.nodes.values() if node.kind == "dataset")
    assert (dataset.subject, dataset.version) == (made.dataset_id, 1)
    assert not found.has_more
    assert project_lineage(context, ME, limit=1).has_more
    assert project_lineage(context, STRANGER).nodes == {}


def test_one_models_shows_its_checkpoints(context: Context) -> None:
    made = fill(context)
    found = model_lineage(context, ME, made.runs[1])
    assert (context.run_labels.names([made.runs[1]])[made.runs[1]], "step 5") in edges(found)
    assert made.runs[0] not in found.nodes
    with pytest.raises(NotFoundError):
        model_lineage(context, STRANGER, made.runs[1])
    with pytest.raises(ConflictError, match="has no model"):
        model_lineage(context, ME, add_run(context, "c", status="failed"))


def test_rows_that_are_no_dataset_go_by_their_file(context: Context) -> None:
    run_id = add_run(context, "c")
    file = next(node for node in model_lineage(context, ME, run_id).nodes.values() if node.kind == "file")
    assert (file.name, file.note) == ("train.jsonl", "40 rows, train")
