"""Suites from end to end, on tiny models: a run against its base, what it was trained on, what it cost, servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError, DataError, LeakageError, NotFoundError, RequestError
from luthier.core.results.suite import SuiteResult
from luthier.features.models.store import TunedModel
from luthier.features.planning.evaluation_plan import training_examples
from luthier.features.planning.service import make_plan
from luthier.features.recipes.service import recipe_from
from luthier.features.release_gates.service import newest_suites
from luthier.features.suites import service as suites
from luthier.features.suites.definition import Seen, general_tasks
from luthier.features.suites.service import run_suite
from luthier.features.training.repeated_runs import runs_of_other_seeds
from luthier.features.training.service import train
from luthier.ml.planning import defaults
from luthier.platform.home.context import Context
from luthier.testing.openai_server import OpenAIServer, serving

SUITE = """\
name: counting
forgetting: false
tasks:
  - {name: next, kind: generate, data: held.jsonl, metrics: [exact_match, token_f1], max_new_tokens: 6,
     few_shot: 2, few_shot_from: shown.jsonl, cluster_by: tens}
  - {name: bits, kind: likelihood, data: held.jsonl, metrics: [bits_per_byte]}
  - {name: pick, kind: choose, data: pick.jsonl, most_rows: 5}
"""
TRAINING = {"max_steps": 2, "global_batch_size": 4, "learning_rate": 0.01, "precision": "float32", "num_threads": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "suite"
    place.mkdir()
    write_rows(place / "held.jsonl", [chat_row(n) | {"tens": n // 10} for n in range(200, 212)])
    write_rows(place / "shown.jsonl", [chat_row(n) for n in range(300, 310)])
    pick = [{"prompt": f"{n}?", "options": [f"{n + 1}", f"{n}"], "answer": "A", "why": "it follows"} for n in range(8)]
    write_rows(place / "pick.jsonl", pick)
    (place / "suite.yaml").write_text(SUITE)
    return place


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, str]:
    """A home with a run of two steps, trained once for all tests of this file."""
    place = tmp_path_factory.mktemp("trained")
    write_rows(place / "train.jsonl", [chat_row(n) for n in range(40)])
    recipe = {"base_model": str(tiny_model), "data": {"train": "train.jsonl"}, "training": TRAINING}
    with Context.open(place / "home") as context:
        outcome = train(context, recipe_from(recipe, base_dir=place), base_dir=place)
    return place / "home", outcome.record.run_id


@pytest.fixture
def context(trained: tuple[Path, str]) -> Iterator[Context]:
    with Context.open(trained[0]) as opened:
        yield opened


@pytest.fixture
def run_id(trained: tuple[Path, str]) -> str:
    return trained[1]


def judged(context: Context, folder: Path, *systems: str, **more: Any) -> SuiteResult:
    return run_suite(context, systems, suite=folder / "suite.yaml", **more)


def test_the_whole_way(context: Context, folder: Path, run_id: str) -> None:
    found = judged(context, folder, run_id)
    base = found.tasks[1].systems[0].name
    assert [task.name for task in found.tasks] == ["next", "bits", "pick"]
    assert found.systems == (base, f"{base} + 2 examples", run_id)
    assert (found.run_id, found.candidate, found.num_seeds) == (run_id, run_id, 1)
    next_, bits, pick = found.tasks
    assert [system.name for system in next_.systems] == list(found.systems), "few-shot only where the task asks"
    assert (next_.num_rows, next_.num_clusters, next_.primary) == (12, 2, "exact_match")
    assert (pick.num_rows, pick.primary) == (5, "choice_accuracy_per_byte")
    assert pick.cautions[-1] == "5 rows were evaluated, of 8 in the file."
    assert set(pick.systems[0].metrics) == {"choice_accuracy_per_byte", "choice_accuracy"}
    assert pick.systems[0].samples[0].output.isdigit()
    own = [one for task in found.tasks for one in task.comparisons if one.candidate == run_id]
    assert all(nonempty(one.adjusted_p_value is not None and one.adjusted_p_value >= one.p_value for one in own))
    assert found.verdict is not None
    assert found.verdict.headline.count(". ") <= 1
    assert context.assessments.get("suite", SuiteResult, "default", found.result_id) == found
    assert judged(context, folder, run_id).fingerprint == found.fingerprint
    assert bits.systems[1].metrics["bits_per_byte"].value != bits.systems[0].metrics["bits_per_byte"].value


def test_rows_that_were_trained_on_are_refused_or_said(context: Context, folder: Path, run_id: str) -> None:
    write_rows(folder / "held.jsonl", [chat_row(n) | {"tens": n // 10} for n in (3, 4, *range(200, 205))])
    with pytest.raises(LeakageError, match="task next: 2 of 7 rows") as error:
        judged(context, folder, run_id)
    assert [problem.line for problem in error.value.problems] == [1, 2]
    found = judged(context, folder, run_id, allow_leakage=True)
    assert [task.num_leaked for task in found.tasks] == [2, 2, 0]
    assert any("2 rows are also training rows, of 7" in line for line in found.tasks[0].cautions)
    assert found.verdict is not None
    assert any("4 evaluated rows of next and bits were trained on" in line for line in found.verdict.caveats)


def test_training_rows_beyond_the_memory_stay_on_the_disk(
    context: Context, folder: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LoadedError(Exception):
        pass

    class OnDisk(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("all of them are in memory")

    def load(_spec: Any, _find: Any, seen: Seen, _progress: Any) -> Any:
        assert seen.examples is rows
        raise LoadedError

    rows = OnDisk()
    monkeypatch.setattr(suites, "training_rows", lambda *_: rows)
    monkeypatch.setattr(suites, "_load", load)
    with pytest.raises(LoadedError):
        judged(context, folder, run_id)


def test_a_prompt_that_was_trained_on_counts_where_rows_have_no_answer(
    context: Context, folder: Path, run_id: str
) -> None:
    write_rows(folder / "ask.jsonl", [{"prompt": "What comes after 7?"}, {"prompt": "What comes after 700?"}])
    (folder / "corpus.txt").write_text("Nothing of it.")
    (folder / "suite.yaml").write_text(
        "name: s\nforgetting: false\ntasks:\n  - {name: asked, kind: citations, data: ask.jsonl, corpus: corpus.txt}\n"
    )
    with pytest.raises(LeakageError, match="task asked: 1 of 2 rows"):
        judged(context, folder, run_id)


def test_what_tuning_cost_rides_along(
    context: Context, folder: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the tiny model's context is too short for the texts: the shortest do
    def short(*, seen: Seen, seed: int) -> list[Any]:
        questions, text = general_tasks(seen=seen, seed=seed)
        rows = sorted(text.rows, key=lambda row: len(row.example.text or ""))[:3]
        from dataclasses import replace

        return [replace(questions, rows=questions.rows[:10]), replace(text, rows=tuple(rows))]

    monkeypatch.setattr(suites, "general_tasks", short)
    (folder / "suite.yaml").write_text(SUITE.replace("forgetting: false\n", ""))
    found = judged(context, folder, run_id)
    assert [task.name for task in found.tasks if task.is_general] == ["general_questions", "general_text"]
    assert found.verdict is not None
    assert "general" in found.verdict.headline
    assert "95% interval" in found.verdict.headline
    (folder / "suite.yaml").write_text(SUITE.replace("forgetting: false\n", "").replace("pick,", "general_text,"))
    with pytest.raises(RequestError, match="names a task general_text"):
        judged(context, folder, run_id)


def test_other_seeds_are_trained_once(context: Context, folder: Path, run_id: str) -> None:
    found = judged(context, folder, run_id, seeds=3)
    assert found.num_seeds == 3
    assert run_id in found.systems
    assert len(found.systems) == 3, "the trainings are one system"
    assert len(context.runs.list()) == 3
    again = judged(context, folder, run_id, seeds=3)
    assert len(context.runs.list()) == 3
    assert again.tasks[1].systems == found.tasks[1].systems or [one.metrics for one in again.tasks[1].systems] == [
        one.metrics for one in found.tasks[1].systems
    ]
    assert {one.test for one in found.tasks[1].comparisons if one.candidate == run_id} == {"seeds"}


def test_trainings_are_known_by_the_content_of_their_files(context: Context, tmp_path: Path, tiny_model: Path) -> None:
    """A changed file at the same path is another training; the same content at another path is the same one."""
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, [chat_row(n) for n in range(40, 80)])
    recipe = {"base_model": str(tiny_model), "data": {"train": "rows.jsonl", "held_out": 0.2}, "training": TRAINING}
    recipe["evaluation"] = {"few_shot": 0, "max_new_tokens": 4}
    first = train(context, recipe_from(recipe, base_dir=tmp_path), base_dir=tmp_path).record.run_id
    (second,) = runs_of_other_seeds(context, first, 1)
    plans = [context.runs.plan(one) for one in (first, second)]
    assert [{e.id for e in training_examples(context, plan.recipe)} for plan in plans][1:] == [
        {e.id for e in training_examples(context, plans[0].recipe)}
    ], "no row that the first holds out is learned"
    moved = rows.rename(tmp_path / "moved.jsonl")
    there = train(
        context,
        recipe_from(recipe | {"data": {"train": "moved.jsonl", "held_out": 0.2}}, base_dir=tmp_path),
        base_dir=tmp_path,
    ).record.run_id
    assert runs_of_other_seeds(context, there, 1) == [second]
    write_rows(rows, [chat_row(n) for n in range(80, 120)])
    changed = train(context, recipe_from(recipe, base_dir=tmp_path), base_dir=tmp_path).record.run_id
    assert runs_of_other_seeds(context, changed, 1) != [second]
    write_rows(moved, [chat_row(n) for n in range(120, 160)])
    with pytest.raises(ConflictError, match="has changed since the run began"):
        runs_of_other_seeds(context, there, 2)


@pytest.mark.parametrize(
    ("task", "judge", "came"),
    [
        ("{name: said, kind: rubric, data: held.jsonl, criteria: [helpfulness]}", None, "said"),
        ("{name: next, kind: generate, data: held.jsonl, metrics: [exact_match]}", "no-such-model", "no-such-model"),
        ("{name: next, kind: generate, data: held.jsonl, primary: rouge_l, metrics: [exact_match]}", None, "primary"),
        ("{name: far, kind: lm_eval, task: no-such-task.yaml}", None, "far|no-such-task"),
    ],
    ids=["no judge", "unknown judge", "wrong primary", "harness"],
)
def test_nothing_is_trained_for_what_is_refused(
    context: Context, folder: Path, run_id: str, task: str, judge: str | None, came: str
) -> None:
    (folder / "suite.yaml").write_text(f"name: counting\nforgetting: false\ntasks:\n  - {task}\n")
    known = [one.run_id for one in context.runs.list()]
    with pytest.raises((RequestError, NotFoundError), match=came):
        judged(context, folder, run_id, seeds=9, judge=judge)
    assert [one.run_id for one in context.runs.list()] == known


def test_seeds_need_a_run(context: Context, folder: Path, tiny_model: Path) -> None:
    with pytest.raises(RequestError, match="the id of a run"):
        judged(context, folder, str(tiny_model), seeds=2)


def test_a_server_writes_and_is_refused_for_likelihoods_by_name(context: Context, folder: Path) -> None:
    server = OpenAIServer()
    with serving(server) as url:
        address = f"{url}#m"
        with pytest.raises(RequestError, match=r"task bits needs likelihoods \(bits_per_byte\), and http"):
            judged(context, folder, address)
        assert server.requests == [], "before anything is asked"
        (folder / "suite.yaml").write_text("\n".join(SUITE.splitlines()[:5]) + "\n")
        server.answer = lambda asked: "After 200 comes 201." if "200" in asked else "no idea"
        found = judged(context, folder, address)
        num = len(server.requests)
        judged(context, folder, address)
        assert len(server.requests) == num == 24, "what was answered is kept"
    assert found.systems == (f"{address} + 2 examples", address)
    assert found.tasks[0].systems[1].metrics["exact_match"].value == pytest.approx(1 / 12)
    assert found.tasks[0].systems[1].samples[0].output == "After 200 comes 201."


def test_wrong_rows_and_missing_files_are_told_before_anything_runs(
    context: Context, folder: Path, tiny_model: Path
) -> None:
    write_rows(folder / "pick.jsonl", [{"prompt": "1?", "options": ["2"], "answer": 0}])
    with pytest.raises(DataError, match="task pick: 1 row cannot be evaluated"):
        judged(context, folder, str(tiny_model))
    write_rows(folder / "pick.jsonl", [{"question": "1?", "options": ["2", "3"], "answer": 0}])
    with pytest.raises(DataError, match="task pick: 1 of 1 rows"):
        judged(context, folder, str(tiny_model))
    (folder / "pick.jsonl").unlink()
    with pytest.raises(NotFoundError, match=r"task pick: no file pick\.jsonl"):
        judged(context, folder, str(tiny_model))
    write_rows(folder / "pick.jsonl", [{"prompt": "1?", "options": ["2", "3"], "answer": 0}])
    with pytest.raises(NotFoundError, match="ft:none"):
        judged(context, folder, "ft:none")


def test_a_wrong_primary_is_refused(context: Context, folder: Path, tiny_model: Path) -> None:
    (folder / "suite.yaml").write_text(SUITE.replace("most_rows: 5", "primary: exact_match"))
    with pytest.raises(RequestError, match="task pick: primary: 'exact_match'"):
        judged(context, folder, str(tiny_model))


def test_a_single_system_has_figures_and_no_verdict(context: Context, folder: Path, tiny_model: Path) -> None:
    (folder / "suite.yaml").write_text("name: s\ntasks:\n  - {name: pick, kind: choose, data: pick.jsonl}\n")
    found = judged(context, folder, str(tiny_model))
    assert found.verdict is None
    assert [task.name for task in found.tasks] == ["pick"], "general ability needs a base to be held against"
    with pytest.raises(RequestError, match="a different name for each system"):
        judged(context, folder, str(tiny_model), str(tiny_model))


def test_the_result_of_a_checkpoint_is_not_one_of_its_run(context: Context, folder: Path, run_id: str) -> None:
    task = "{name: bits, kind: likelihood, data: held.jsonl, metrics: [bits_per_byte]}"
    (folder / "suite.yaml").write_text(f"name: only_bits\nforgetting: false\ntasks:\n  - {task}\n")
    result, name = context.runs.get(run_id).result, "ft:tiny:default::one:ckpt-step-1"
    assert result is not None
    common = {"project_id": "default", "job_id": "job-1", "run_id": run_id, "base_model": "tiny"}
    context.tuned_models.add(TunedModel(model_id=name, adapter_path=str(result.adapter_path), step=1, **common))
    of_run, of_checkpoint = judged(context, folder, run_id), judged(context, folder, name)
    assert (of_checkpoint.run_id, of_checkpoint.candidate) == (None, name)
    assert of_run in newest_suites(context, "default", run_id), "a gate of the run reads these"
    assert of_checkpoint not in newest_suites(context, "default", run_id)
    assert newest_suites(context, "default", name) == [of_checkpoint]


def test_the_result_of_a_command_is_of_the_project_of_the_run(context: Context, folder: Path, run_id: str) -> None:
    task = "{name: bits, kind: likelihood, data: held.jsonl, metrics: [bits_per_byte]}"
    (folder / "suite.yaml").write_text(f"name: only_bits\nforgetting: false\ntasks:\n  - {task}\n")
    context.access.add_project("proj-other", "other")
    theirs = context.runs.get(run_id).model_copy(update={"run_id": "run-20261125-093000-cccccc"})
    context.runs.create(theirs, context.runs.plan(run_id), "proj-other")
    found = judged(context, folder, theirs.run_id)
    assert newest_suites(context, "proj-other", theirs.run_id) == [found], "the gates of its project read these"
    assert newest_suites(context, "default", theirs.run_id) == []


def test_trainings_with_other_seeds_are_of_the_project_of_the_run(context: Context, run_id: str) -> None:
    context.access.add_project("proj-seeds", "seeds")
    theirs = context.runs.get(run_id).model_copy(update={"run_id": "run-20261125-093000-dddddd"})
    context.runs.create(theirs, context.runs.plan(run_id), "proj-seeds")
    known = {one.run_id for one in context.runs.list()}
    made = set(runs_of_other_seeds(context, theirs.run_id, 3)) - known
    assert {context.runs.project_of(one) for one in made} == {"proj-seeds"}
    assert context.owner_project_id is None


def test_other_seeds_have_the_batch_size_and_the_rate_of_the_run_whatever_the_defaults_are_by_now(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "rows.jsonl", [chat_row(n) for n in range(20)])
    training = {"epochs": 1, "precision": "float32", "num_threads": 1}
    document = {"base_model": str(tiny_model), "data": {"train": "rows.jsonl"}, "training": training}
    recipe = recipe_from(document, base_dir=tmp_path)
    with Context.open(tmp_path / "home") as context:
        with monkeypatch.context() as earlier:
            earlier.setattr(defaults, "SMALL_BATCH_SIZE", (4, "an earlier default"))
            earlier.setattr(defaults, "SHORT_RUN_FACTOR", (1.0, "an earlier default"))
            first = train(context, recipe, base_dir=tmp_path).record.run_id
        (second,) = runs_of_other_seeds(context, first, 1)
        then, now = (context.runs.plan(one).training for one in (first, second))
        today = make_plan(context, recipe, base_dir=tmp_path).training
        assert (today.global_batch_size, then.global_batch_size, now.global_batch_size) == (8, 4, 4)
        assert (then.num_steps, now.num_steps) == (5, 5)
        assert today.learning_rate == pytest.approx(1.5 * then.learning_rate)
        assert now.learning_rate == then.learning_rate
        assert now.seed == then.seed + 1
        assert runs_of_other_seeds(context, first, 1) == [second], "it is known by its values"
        # A value that no earlier version of this function has kept.
        with monkeypatch.context() as later:
            later.setattr(defaults, "WEIGHT_DECAY", (0.05, "a later default"))
            (third,) = set(runs_of_other_seeds(context, first, 2)) - {second}
            assert context.runs.plan(third).training.weight_decay == then.weight_decay == 0
            assert runs_of_other_seeds(context, first, 2) == [second, third]
