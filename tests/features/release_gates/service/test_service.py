"""Gates at a deployment: who is let through, who is refused, and what stays on record of an override."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.assessed import make_safety_result, make_suite_result, make_task
from tests.homes import add_export

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import sha256_bytes, sha256_file
from luthier.core.records.deployment import Share
from luthier.core.records.export import Export
from luthier.core.results.suite import SafetyResult, SuiteResult
from luthier.features.deployments import service as deployments
from luthier.features.models.store import TunedModel
from luthier.features.release_gates.service import (
    check_gate,
    default_gate,
    judged_behind,
    newest_outcome,
    outcome_of_target,
    own_run_behind,
    read_gate,
    unjudged_targets,
)
from luthier.features.serving.checkpoint_permissions import permit
from luthier.ml.export.bundle.manifest import EVALUATION, LINEAGE
from luthier.platform.audit_log.service import newest_entries, verify_log
from luthier.platform.db.database import Database
from luthier.platform.home.context import Context
from luthier.testing.records import add_run, make_evaluation, make_export

ME = Caller()
REASON = "The old one insults customers; the rate of refusals is mended next week."
RULE = "rules:\n  - {metric: sql.execution_accuracy, at_least: 0.8}\n"


def keep(context: Context, result: SuiteResult | SafetyResult, run_id: str) -> None:
    kind = "suite" if isinstance(result, SuiteResult) else "safety"
    context.assessments.save(kind, result.result_id, result, project_id="default", subject=run_id, run_id=run_id)


@pytest.fixture
def good(context: Context) -> str:
    """A run that meets the rule."""
    run = add_run(context, "a")
    keep(context, make_suite_result(run_id=run, candidate=run), run)
    return run


@pytest.fixture
def bad(context: Context) -> str:
    """A run that does not."""
    run = add_run(context, "b")
    task = make_task(metrics={"execution_accuracy": (0.4, 0.5)}, candidate=run)
    keep(context, make_suite_result("suite-20261126-120000-bbbbbb", run_id=run, candidate=run, tasks=(task,)), run)
    return run


def gate(context: Context, text: str = RULE) -> Path:
    path = context.home / "gate.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_gate_of_the_home_holds_and_a_run_that_meets_it_is_let_through(context: Context, good: str) -> None:
    path = gate(context)
    made = deployments.deploy(context, ME, "support", good)
    assert made.revision.gate is not None
    assert made.revision.gate.passed
    assert made.revision.gate.override is None
    assert made.revision.gate.checked[0].outcome.gate_sha256 == sha256_file(path)
    assert context.deployments.get("default", "support").revision.gate == made.revision.gate
    assert newest_outcome(context, "default", good, path).passed


def test_one_that_does_not_is_refused_with_the_sentences(context: Context, good: str, bad: str) -> None:
    gate(context)
    with pytest.raises(ConflictError, match="1 of 1 rules are not met") as refused:
        deployments.deploy(context, ME, "support", bad)
    assert "0.500 [0.470, 0.530]: the low end of its interval is not at least 0.8" in refused.value.came
    assert context.deployments.find("default", "support") is None
    deployments.deploy(context, ME, "support", good)
    with pytest.raises(ConflictError, match="refuses"):
        deployments.deploy(context, ME, "support", bad, canary=0.1)
    with pytest.raises(ConflictError, match="refuses"):
        deployments.split(context, ME, "ab", {good: 0.5, bad: 0.5})
    with pytest.raises(ConflictError, match="was not evaluated"):
        deployments.deploy(context, ME, "support", add_run(context, "c"))


def test_an_override_needs_a_reason_and_goes_to_the_audit_log(context: Context, good: str, bad: str) -> None:
    gate(context)
    for reason in ("", "   ", "because", "x" * 1_001):
        with pytest.raises(RequestError, match="characters to override"):
            deployments.deploy(context, ME, "support", bad, override=reason)
    assert not [one for one in newest_entries(context, limit=50) if one.subject == "support"]
    made = deployments.deploy(context, ME, "support", bad, override=f"  {REASON}\n")
    passage = made.revision.gate
    assert passage is not None
    assert (passage.override, passage.passed, len(passage.failed)) == (REASON, False, 1)
    entries = newest_entries(context, limit=2)
    assert [one.action for one in entries] == ["deployment.gate_overridden", "deployment.deployed"]
    told = json.loads(entries[0].document)
    assert told["reason"] == REASON
    assert told["outcome_sha256"] == passage.sha256()
    assert told["targets"] == [bad]
    assert told["failed"] == list(passage.failed)
    assert verify_log(context).is_whole
    assert deployments.authors_of(context, ME, "support") == {1: "local"}
    # a model that passes needs no reason, and none is kept
    assert deployments.deploy(context, ME, "support", good, override=REASON).revision.gate.override is None  # type: ignore[union-attr]


def test_a_promotion_is_gated_and_a_rollback_is_not(context: Context, good: str, bad: str) -> None:
    deployments.deploy(context, ME, "support", good)
    deployments.deploy(context, ME, "support", bad, canary=0.1)
    gate(context)
    with pytest.raises(ConflictError, match="refuses"):
        deployments.promote(context, ME, "support")
    deployments.promote(context, ME, "support", override=REASON)
    deployments.deploy(context, ME, "support", good)
    back = deployments.rollback(context, ME, "support")
    assert (back.revision.shares[0].target, back.revision.gate) == (bad, None)


def test_a_named_gate_asks_for_more_and_never_for_less(context: Context, good: str, bad: str, tmp_path: Path) -> None:
    easy = tmp_path / "easy.yaml"
    easy.write_text("rules:\n  - {metric: sql.execution_accuracy, at_least: 0}\n", encoding="utf-8")
    assert deployments.deploy(context, ME, "one", bad, gate=easy).revision.gate.passed  # type: ignore[union-attr]
    gate(context)
    with pytest.raises(ConflictError, match="refuses"):
        deployments.deploy(context, ME, "two", bad, gate=easy)
    made = deployments.deploy(context, ME, "two", good, gate=easy)
    assert [one.file for one in made.revision.gate.checked] == ["gate.yaml", "easy.yaml"]  # type: ignore[union-attr]


def test_a_project_may_have_a_gate_of_its_own(context: Context, bad: str) -> None:
    gate(context)
    (context.home / "gates").mkdir()
    own = context.home / "gates" / "default.yaml"
    own.write_text("rules:\n  - {metric: sql.execution_accuracy, at_least: 0.4}\n", encoding="utf-8")
    assert default_gate(context, "default") == own
    assert default_gate(context, "proj-other") == context.home / "gate.yaml"
    assert deployments.deploy(context, ME, "support", bad).revision.gate.passed  # type: ignore[union-attr]


def test_a_reason_where_no_gate_holds_is_refused(context: Context, good: str) -> None:
    with pytest.raises(RequestError, match="no gate applies here"):
        deployments.deploy(context, ME, "support", good, override=REASON)


def test_the_newest_result_of_a_suite_counts(context: Context, good: str) -> None:
    path = gate(context)
    task = make_task(metrics={"execution_accuracy": (0.4, 0.6)}, candidate=good)
    worse = make_suite_result("suite-20261126-140000-cccccc", run_id=good, candidate=good, tasks=(task,))
    keep(context, worse, good)
    outcome = newest_outcome(context, "default", good, path)
    assert (outcome.passed, outcome.results) == (False, (worse.result_id,))


def test_a_suite_that_runs_every_night_hides_no_other(context: Context, good: str) -> None:
    path = gate(context)
    task = make_task("next", metrics={"exact_match": (0.4, 0.6)}, candidate=good)
    for number in range(60):
        made = f"suite-20261127-12{number:02}00-dddddd"
        keep(context, make_suite_result(made, run_id=good, candidate=good, suite="nightly", tasks=(task,)), good)
    outcome = newest_outcome(context, "default", good, path)
    assert (outcome.passed, outcome.results) == (True, (made, "suite-20261126-120000-aaaaaa"))


def test_other_weights_than_those_that_were_judged_are_refused(context: Context, good: str) -> None:
    path = gate(context)
    record = context.runs.get(good)
    assert record.result is not None
    weights = Path(str(record.result.adapter_path)) / "model.safetensors"
    weights.write_bytes(b"weights")
    right = record.result.model_copy(update={"adapter_sha256": sha256_bytes(b"weights")})
    context.runs.update(good, result=right)
    assert newest_outcome(context, "default", good, path).passed
    weights.write_bytes(b"others")
    outcome = newest_outcome(context, "default", good, path)
    assert not outcome.passed
    assert "differ from those of the run" in outcome.outcomes[0].sentence
    # Also in a home that was copied to this machine, where the folder of the training is not.
    context.runs.update(good, result=right.model_copy(update={"adapter_path": "/elsewhere/runs/model"}))
    assert not newest_outcome(context, "default", good, path).passed
    weights.write_bytes(b"weights")
    assert newest_outcome(context, "default", good, path).passed


def test_names_of_a_model_lead_to_its_run_but_a_checkpoint_was_not_judged(context: Context, good: str) -> None:
    path = gate(context)
    record = context.runs.get(good)
    assert record.result is not None
    common = {"project_id": "default", "job_id": "job-1", "run_id": good, "base_model": "tiny"}
    for name, step in (("ft:tiny:default::one", None), ("ft:tiny:default::one:ckpt-step-5", 5)):
        place = str(record.result.adapter_path)
        context.tuned_models.add(TunedModel(model_id=name, adapter_path=place, step=step, **common))
    made = deployments.deploy(context, ME, "support", "ft:tiny:default::one")
    assert made.revision.gate is not None
    assert made.revision.gate.checked[0].outcome.results == newest_outcome(context, "default", good, path).results
    with pytest.raises(ConflictError, match="is a checkpoint"):
        deployments.deploy(context, ME, "support", "ft:tiny:default::one:ckpt-step-5")


def test_results_of_what_a_training_client_has_saved_before_do_not_count(
    context: Context, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, result = gate(context), context.runs.get(good).result
    assert result is not None
    common: dict[str, Any] = {"project_id": "default", "job_id": "", "run_id": good, "base_model": "tiny", "step": 4}
    suite = make_suite_result()
    ended_at = datetime.fromisoformat(suite.created_at).timestamp()
    outcomes = []
    # As the result of the run: before the suite began, and while it was going on.
    for saved_at in (ended_at - suite.seconds - 10, ended_at - suite.seconds + 10):
        monkeypatch.setattr(Database, "clock", lambda *_, now=saved_at: now)
        name = f"ft:tiny:default:state:{int(saved_at)}"
        context.tuned_models.add(TunedModel(model_id=name, adapter_path=str(result.adapter_path), **common))
        unjudged = unjudged_targets(context, ME, [Share(target=good, fraction=1)])
        outcomes.append((newest_outcome(context, "default", good, path), unjudged))
        context.tuned_models.delete("default", name)
    (present, judged), (stale, unjudged) = outcomes
    assert (present.passed, judged, stale.passed, unjudged) == (True, (), False, (good,))
    assert "1 result is of weights that the run had before, and not counted." in stale.outcomes[0].sentence


def test_results_of_a_save_that_was_deleted_do_not_count_for_the_earlier_one(
    context: Context, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result of a run goes back to the save before: a suite that began later was about the one that is gone."""
    path, result = gate(context), context.runs.get(good).result
    assert result is not None
    monkeypatch.setattr(Database, "clock", lambda *_: datetime.fromisoformat("2026-11-26T11:00:00+00:00").timestamp())
    earlier = str(context.settings.run_folder(good) / "tinker" / "tck-a" / "adapter")
    common: dict[str, Any] = {"project_id": "default", "job_id": "", "run_id": good, "base_model": "tiny", "step": 4}
    context.tuned_models.add(TunedModel(model_id="ft:tiny:default:a:1", adapter_path=earlier, **common))
    context.runs.update(good, result=result.model_copy(update={"adapter_path": earlier}))
    outcomes = []
    # Where a home was before it was moved says nothing.
    for number, save in enumerate(("tck-a", "tck-b")):
        made = make_suite_result(f"suite-20261126-13000{number}-eeeeee", run_id=good, candidate=good)
        tasks = tuple(
            task.model_copy(
                update={
                    "systems": tuple(
                        one.model_copy(update={"adapter": f"/old/runs/{good}/tinker/{save}/adapter"})
                        if one.name == good
                        else one
                        for one in task.systems
                    )
                }
            )
            for task in made.tasks
        )
        keep(context, made.model_copy(update={"tasks": tasks}), good)
        outcomes.append(newest_outcome(context, "default", good, path))
    assert [one.passed for one in outcomes] == [True, False]
    assert "1 result is of weights that the run had before" in outcomes[1].outcomes[0].sentence
    # An evaluation of the weights that the run has now counts, although one of the others was made later.
    share, unjudged = Share(target=good, fraction=1), []
    for number, save in enumerate(("tck-b", "tck-a", "tck-b")):
        judged = make_evaluation(f"eval-20261126-13000{number}-eeeeee", run_id=good)
        base, tuned = judged.systems
        tuned = tuned.model_copy(update={"adapter": f"/old/runs/{good}/tinker/{save}/adapter"})
        made = {"systems": (base, tuned), "created_at": f"2026-11-26T13:00:0{number}+00:00"}
        context.evaluations.save(judged.model_copy(update=made))
        unjudged.append(unjudged_targets(context, ME, [share]))
    assert unjudged == [(good,), (), ()]


CHECKPOINT = "ft:tiny:default::one:ckpt-step-5"


def add_checkpoint(context: Context, run_id: str, monkeypatch: pytest.MonkeyPatch, *, saved_at: str) -> Share:
    """A checkpoint of a run; the clock of the database stays at that time."""
    moment = datetime.fromisoformat(saved_at).timestamp()
    monkeypatch.setattr(Database, "clock", lambda *_: moment)
    place = str(context.settings.run_folder(run_id) / "model")
    common = {"project_id": "default", "job_id": "job-1", "run_id": run_id, "base_model": "tiny", "step": 5}
    context.tuned_models.add(TunedModel(model_id=CHECKPOINT, adapter_path=place, **common))
    return Share(target=CHECKPOINT, fraction=1)


def test_a_checkpoint_passes_by_its_own_results_and_by_none_of_its_run(
    context: Context, good: str, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, share = gate(context), add_checkpoint(context, bad, monkeypatch, saved_at="2026-11-26T11:00:00+00:00")
    assert not outcome_of_target(context, ME, share, path).passed
    made = make_suite_result("suite-20261126-120000-eeeeee", candidate=CHECKPOINT)
    context.assessments.save("suite", made.result_id, made, project_id="default", subject=CHECKPOINT, run_id=bad)
    outcome = outcome_of_target(context, ME, share, path)
    assert (outcome.passed, outcome.results) == (True, (made.result_id,))
    assert not newest_outcome(context, "default", bad, path).passed
    assert unjudged_targets(context, ME, [share]) == ()
    own = outcome_of_target(context, ME, share, gate(context, "rules:\n  - {metric: exact_match, at_least: 0}\n"))
    assert (own.passed, "is a checkpoint" in own.outcomes[0].sentence) == (False, True)


def test_results_of_a_checkpoint_do_not_count_once_other_weights_were_saved_under_its_name(
    context: Context, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, share = gate(context), add_checkpoint(context, good, monkeypatch, saved_at="2026-11-26T12:30:00+00:00")
    made = make_suite_result("suite-20261126-120000-eeeeee", candidate=CHECKPOINT)
    context.assessments.save("suite", made.result_id, made, project_id="default", subject=CHECKPOINT, run_id=good)
    outcome = outcome_of_target(context, ME, share, path)
    assert not outcome.passed
    assert f"1 result is of weights that {CHECKPOINT} had before" in outcome.outcomes[0].sentence
    assert unjudged_targets(context, ME, [share]) == (CHECKPOINT,)


def test_a_checkpoint_is_judged_by_an_evaluation_that_names_it_last(
    context: Context, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = add_checkpoint(context, good, monkeypatch, saved_at="2026-11-20T12:00:00+00:00")
    for number, names in enumerate((("base", "another"), (CHECKPOINT, "another"), ("base", f"{CHECKPOINT}0"))):
        other = make_evaluation(f"eval-20261125-093000-{number:06}")
        systems = tuple(one.model_copy(update={"name": name}) for one, name in zip(other.systems, names, strict=True))
        context.evaluations.save(other.model_copy(update={"systems": systems}))
    assert unjudged_targets(context, ME, [share]) == (CHECKPOINT,)
    own = make_evaluation("eval-20261125-093000-cccccc")
    systems = (own.systems[0], own.systems[1].model_copy(update={"name": CHECKPOINT}))
    context.evaluations.save(own.model_copy(update={"systems": systems}))
    assert unjudged_targets(context, ME, [share]) == ()
    assert unjudged_targets(context, ME, [Share(target=good, fraction=1)]) == ()


def exported(context: Context, run_id: str, sha256: str | None) -> Export:
    """An export of weights of a run with this digest."""
    made = make_export(run_id)
    return made.model_copy(update={"source": made.source.model_copy(update={"adapter_sha256": sha256})})


@pytest.mark.parametrize(
    ("exported_sha256", "counts"), [("1" * 64, True), ("2" * 64, False), (None, True)], ids=["same", "other", "unknown"]
)
@pytest.mark.parametrize("is_of_server", [True, False])
def test_results_of_a_run_count_for_an_export_of_the_weights_that_it_has(
    context: Context, good: str, tmp_path: Path, exported_sha256: str | None, counts: bool, is_of_server: bool
) -> None:
    path, result = gate(context), context.runs.get(good).result
    assert result is not None
    assert result.adapter_sha256 == "1" * 64
    if is_of_server:
        export_id = add_export(context, good, is_made=False)
        context.exports.finish(export_id, exported(context, good, exported_sha256))
        share = Share(target=f"export:{export_id}", fraction=1, folder=str(tmp_path))
    else:
        (tmp_path / EVALUATION).write_text(json.dumps({"run_id": good}), encoding="utf-8")
        parts = [{"name": "tiny", "digest": {"weights": "3" * 64}, "annotations": {"role": "base model"}}]
        if exported_sha256 is not None:
            trained = {"role": "trained weights", "method": "lora"}
            parts.append({"name": good, "digest": {"sha256": exported_sha256}, "annotations": trained})
        document = {"predicate": {"buildDefinition": {"resolvedDependencies": parts}}}
        (tmp_path / LINEAGE).write_text(json.dumps(document), encoding="utf-8")
        share = Share(target=f"export:{tmp_path.name}", fraction=1, folder=str(tmp_path))
    outcome = outcome_of_target(context, ME, share, path)
    assert outcome.passed is counts
    assert ("was made of other weights than" in outcome.outcomes[0].sentence) is not counts
    assert (unjudged_targets(context, ME, [share]) == ()) is counts
    assert (judged_behind(context, ME, share).run_id, own_run_behind(context, ME, share).run_id) == (
        good if counts else None,
        good,
    )


def test_an_export_of_a_run_without_an_evaluation_counts_as_that_of_its_run(
    context: Context, good: str, tmp_path: Path
) -> None:
    """Its bundle has no evaluation, and names the run in its lineage: the results of suites are there all the same."""
    run = {"name": good, "digest": {"sha256": "1" * 64}, "annotations": {"role": "run", "file": "plan.json"}}
    document = {"predicate": {"runDetails": {"byproducts": [run]}}}
    (tmp_path / LINEAGE).write_text(json.dumps(document), encoding="utf-8")
    share = Share(target=f"export:{tmp_path.name}", fraction=1, folder=str(tmp_path))
    assert outcome_of_target(context, ME, share, gate(context)).passed
    assert unjudged_targets(context, ME, [share]) == ()
    context.access.add_project("proj-other", "other")
    assert judged_behind(context, Caller(project_id="proj-other"), share).run_id is None
    (tmp_path / LINEAGE).write_text("[" * 100_000, encoding="utf-8")
    assert unjudged_targets(context, ME, [share]) == (share.target,)


def test_the_evaluation_of_a_run_of_another_project_neither_counts_nor_is_shown(context: Context, good: str) -> None:
    path, result = gate(context, "rules:\n  - {metric: exact_match, at_least: 0.1}\n"), context.runs.get(good).result
    assert result is not None
    evaluation = make_evaluation(run_id=good)
    context.evaluations.save(evaluation)
    context.runs.update(good, evaluation_id=evaluation.evaluation_id)
    own = newest_outcome(context, "default", good, path)
    assert (own.passed, "[0.25, 0.75]" in own.outcomes[0].sentence) == (True, True)
    context.access.add_project("proj-other", "other")
    name = "ft:tiny:default::one"
    common = {"project_id": "default", "job_id": "job-1", "run_id": good, "base_model": "tiny"}
    context.tuned_models.add(TunedModel(model_id=name, adapter_path=str(result.adapter_path), **common))
    permit(context, ME, name, ["proj-other"])
    with pytest.raises(ConflictError, match="shares the model alone") as refused:
        deployments.deploy(context, Caller(project_id="proj-other"), "support", name)
    assert "0.25" not in str(refused.value)
    # That its owner has evaluated it is enough where no rule asks for a figure: it was not never evaluated.
    assert unjudged_targets(context, Caller(project_id="proj-other"), [Share(target=name, fraction=1)]) == ()


def test_results_may_be_given(context: Context) -> None:
    path = gate(context, f"{RULE}  - {{metric: safety.refusal.refusal_rate, against: base, at_least: -0.3}}\n")
    assert check_gate(context, "default", path, suite=make_suite_result(), safety=make_safety_result()).passed
    assert not check_gate(context, "default", path, suite=make_suite_result()).passed


def test_a_judge_of_whom_nothing_is_known_does_not_count(context: Context, good: str) -> None:
    path = gate(context, "rules:\n  - {metric: style.win_rate, at_least: 0.1}\n")
    outcome = newest_outcome(context, "default", good, path)
    assert not outcome.passed
    assert "strict judge" in outcome.outcomes[0].sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("rules: []\n", "rules"),
        ("rules:\n  - {metric: a.b}\n", "exactly one of at_least and at_most"),
        ("rules:\n  - {metric: a.b, at_least: high}\n", "rules.0.at_least"),
        ("rules:\n  - {metric: a.b, at_least: .nan}\n", "wrong place"),
        ("rule:\n  - {metric: a.b, at_least: 1}\n", "rule"),
        ("rules: [\n", "YAML"),
    ],
)
def test_a_wrong_gate_names_the_place(context: Context, text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_gate(gate(context, text))


def test_a_gate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no gate"):
        read_gate(tmp_path / "nothing.yaml")
