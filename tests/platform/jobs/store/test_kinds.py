"""Kinds of jobs: each is declared once, and what the queue does for a kind is in its declaration."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError
from luthier.platform.db.database import Database
from luthier.platform.jobs.events import JobEventStore
from luthier.platform.jobs.kinds import KINDS, KindRules, attempt_of, models_of
from luthier.platform.jobs.records import Job, JobKind
from luthier.platform.jobs.store import JobStore

ADDRESS = "https://rows.example/train.jsonl"


def test_every_kind_is_declared_and_its_attempts_are_there() -> None:
    assert set(KINDS) == set(get_args(JobKind))
    for rules in nonempty(KINDS.values()):
        models = (rules.models, *rules.models_by_document.values())
        named = (rules.attempt, *rules.by_document.values(), *models, rules.cancelled, rules.in_use)
        for name in nonempty([name for name in named if name]):
            module, _, function = name.partition(":")
            spec = find_spec(module)
            assert spec is not None, name
            assert spec.origin is not None, name
            tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_a_document_decides_within_its_kind_alone() -> None:
    assert attempt_of("train", {}) == "luthier.features.training.jobs:carry_out"
    assert attempt_of("train", {"request": {}}) == "luthier.features.finetuning_api.job:carry_out"
    assert attempt_of("train", {"asked": {}}) == "luthier.features.training.recipe_job:carry_out"
    assert attempt_of("evaluation", {"eval_run": "evalrun_1"}) == "luthier.features.evals_api.job:carry_out"
    assert attempt_of("batch", {"request": {}, "asked": {}}) == "luthier.features.batches.job:carry_out"


def test_every_kind_declares_where_it_names_models() -> None:
    # There is no default: whoever adds a kind has to decide.
    with pytest.raises(TypeError, match="models"):
        KindRules("New", "no:where")  # type: ignore[call-arg]
    assert {kind for kind, rules in KINDS.items() if not rules.models} == {"import", "tracking"}
    # An attempt by another document asks other models, except that training has one format for all of them.
    differ = {key: set(rules.by_document) for key, rules in KINDS.items() if rules.by_document and key != "train"}
    assert differ == {key: set(KINDS[key].models_by_document) for key in differ}
    assert models_of("evaluation", {"eval_run": "evalrun_1"}) == "luthier.features.evals_api.service:models_of"


@pytest.mark.parametrize("kind", get_args(JobKind))
def test_a_kind_that_hides_queries_loses_them_once_it_has_ended(database: Database, kind: JobKind) -> None:
    store = JobStore(database)
    store.submit(Job(job_id="job-1", kind=kind, document={"path": f"{ADDRESS}?signature=secret"}, run_id=""))
    claimed = store.claim("w1")
    assert claimed is not None
    assert claimed.document["path"].endswith("secret"), "the work needs it"
    ended = store.finish("job-1", claimed.attempt, "succeeded")
    assert ended.document["path"] == (ADDRESS if KINDS[kind].hides_queries else f"{ADDRESS}?signature=secret")


def test_the_queue_knows_no_kind_by_name(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = KindRules("Tuning", "no:where", models="", noun="tuning", continues="goes on", hides_queries=True)
    monkeypatch.setitem(KINDS, "export", rules)
    store, events = JobStore(database), JobEventStore(database)
    store.submit(Job(job_id="job-1", kind="export", document={"path": f"{ADDRESS}?signature=secret"}, run_id=""))
    first = store.claim("w1")
    assert first is not None
    store.give_back("job-1", first.attempt)
    again = store.claim("w1")
    assert again is not None
    assert store.finish("job-1", again.attempt, "cancelled").document == {"path": ADDRESS}
    said = [event.message for event in reversed(events.page("job-1")[0])]
    assert (said[0], said[1], said[3:]) == (
        "Created tuning: job-1",
        "Tuning started",
        ["Tuning goes on", "Tuning cancelled"],
    )


PAUSABLE = ("train", "synthesis", "workflow")
"""What the pages of runs, of questions and of workflows offer to pause."""


@pytest.mark.parametrize("kind", get_args(JobKind))
def test_kinds_that_keep_their_work_can_be_paused_and_the_others_say_what_they_are(
    database: Database, kind: JobKind
) -> None:
    store, events = JobStore(database), JobEventStore(database)
    store.submit(Job(job_id="job-1", kind=kind, document={}, run_id=""))
    assert store.claim("w1") is not None
    if kind in PAUSABLE:
        assert store.ask("job-1", "pause").shown_status == "pausing"
        assert re.fullmatch(r"Pausing: [a-z ]+", events.page("job-1")[0][0].message)
        return
    with pytest.raises(ConflictError, match=r"^job job-1 is (an export|an evaluation|a batch|an import|a delivery to)"):
        store.ask("job-1", "pause")
    assert store.get("job-1").shown_status == "running"
    assert store.ask("job-1", "cancel").shown_status == "cancelling"
