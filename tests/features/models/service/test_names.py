"""A model by any of its names: what each means, and what a name that means nothing is told."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.access import Caller
from luthier.core.errors import LeakageError, NotFoundError, RequestError
from luthier.core.ids import tuned_name
from luthier.core.ports import SilentProgress
from luthier.core.records.deployment import Deployment, Revision, Share
from luthier.features.evaluations.service import evaluate
from luthier.features.generation.engines import identity_of
from luthier.features.models.names import ANY_MODEL, find_model
from luthier.features.models.resolve import find_candidate
from luthier.features.models.store import TunedModel
from luthier.ml.inference.models import sources
from luthier.platform.cli import command
from luthier.platform.home.context import Context
from luthier.testing.records import add_run

TUNED = "ft:tiny:default:support:abc"


def deploy(context: Context, name: str, *targets: str, folder: str | None = None, project_id: str = "default") -> None:
    """A deployment; of several targets the last one is its canary."""
    shares = [Share(target=one, fraction=1 / len(targets), folder=folder) for one in targets]
    canary = targets[-1] if len(targets) > 1 else None
    revision = Revision(number=1, kind="deploy", shares=tuple(shares), canary=canary)
    made = Deployment(deployment_id=f"dep-{project_id}-{name}", project_id=project_id, name=name, revision=revision)
    context.deployments.add(made)


@pytest.fixture
def run(context: Context) -> str:
    """A run with a tuned model, a checkpoint of it, and a deployment with a canary."""
    run_id = add_run(context, "a")
    made = TunedModel(
        model_id=TUNED, project_id="default", job_id="job-1", run_id=run_id, base_model="tiny", adapter_path="/gone"
    )
    context.tuned_models.add(made)
    later = {"model_id": f"{TUNED}:ckpt-step-8", "step": 8, "checkpoint_id": "ftckpt_1"}
    context.tuned_models.add(made.model_copy(update=later))
    deploy(context, "support", run_id, add_run(context, "b"))
    return run_id


def test_each_kind_of_name(context: Context, run: str, tmp_path: Path) -> None:
    names = [run, TUNED, f"{TUNED}:ckpt-step-8", "support", "smollm2-135m-instruct", str(tmp_path), "x.gguf", "hub:a/b"]
    found = {name: find_model(context, name) for name in names}
    assert [(one.name, one.run_id) for one in found.values()] == [
        (run, run),
        (run, run),
        (f"{TUNED}:ckpt-step-8", run),
        (run, run),
        ("smollm2-135m-instruct", None),
        (str(tmp_path), None),
        ("x.gguf", None),
        ("hub:a/b", None),
    ]
    assert [name for name, one in found.items() if one.is_checkpoint] == [f"{TUNED}:ckpt-step-8"]
    assert {name: one.note for name, one in found.items() if one.note} == {
        "support": f"support is a deployment, whose revision 1 routes to {run}; its other targets are left out: "
        f"{run.replace('aaaaaa', 'bbbbbb')}."
    }
    outcome = context.runs.get(run).result
    assert outcome is not None
    assert find_model(context, str(outcome.adapter_path)).run_id == run, "the folder of a run is that run"
    assert find_model(context, str(context.settings.run_folder(run))).run_id is None


@pytest.mark.parametrize("base", ["tiny", "hub:org/name@main", "layers:2@hub:org/name"])
def test_a_command_finds_a_tuned_model_of_any_project_whatever_its_base_is_called(context: Context, base: str) -> None:
    run_id, project_id = add_run(context, "c"), "proj-20261201-080000-abcdef"
    context.access.add_project(project_id, "mails")
    name = tuned_name(base, project_id, "support", "ftjob-1")
    assert name.startswith(f"ft:{base}:{project_id}:support:")
    made = TunedModel(
        model_id=name, project_id=project_id, job_id="ftjob-1", run_id=run_id, base_model=base, adapter_path="/gone"
    )
    context.tuned_models.add(made)
    checkpoint = made.model_copy(update={"model_id": f"{name}:ckpt-step-16", "step": 16, "checkpoint_id": "ftckpt_2"})
    context.tuned_models.add(checkpoint)
    assert find_model(context, name).tuned == context.tuned_models.get(project_id, name)
    assert find_model(context, checkpoint.model_id).is_checkpoint


def test_a_command_finds_the_deployments_of_all_projects_and_its_own_first(context: Context, run: str) -> None:
    mails, letters = "proj-20261201-080000-abcdef", "proj-20261201-080000-fedcba"
    for project_id, name in ((mails, "mails"), (letters, "letters")):
        context.access.add_project(project_id, name)
    theirs = {project_id: add_run(context, kind) for project_id, kind in ((mails, "c"), (letters, "d"))}
    deploy(context, "answers", theirs[mails], project_id=mails)
    deploy(context, "support", theirs[mails], project_id=mails)
    found = find_model(context, "answers")
    assert found.run_id == theirs[mails]
    assert found.note.startswith(f"answers is a deployment of the project {mails}, whose revision 1 routes to ")
    assert find_model(context, "support").run_id == run, "that of `default`"
    with context.caching_for(mails):
        assert find_model(context, "support").run_id == theirs[mails], "that of the project of the command"
    deploy(context, "answers", theirs[letters], project_id=letters)
    with pytest.raises(RequestError, match="'answers' is a deployment of the projects mails, letters"):
        find_model(context, "answers")
    with context.caching_for(letters):
        assert find_model(context, "answers").run_id == theirs[letters]
    for caller in (Caller(project_id=letters), Caller(key_id="key-1")):
        with pytest.raises(NotFoundError):
            find_model(context, "supports", caller)
    with pytest.raises(NotFoundError):
        find_model(context, "answers", Caller(key_id="key-1"))


def test_a_deployment_goes_before_a_folder_of_its_name(
    context: Context, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "support").mkdir()
    assert find_model(context, "support").run_id == run
    assert find_model(context, "./support").name == "./support"
    deploy(context, "base", "smollm2-135m-instruct")
    deploy(context, "exported", "export:merged", folder="/exports/merged")
    assert find_model(context, "base").name == "smollm2-135m-instruct"
    assert find_model(context, "exported").name == "/exports/merged"
    with pytest.raises(RequestError, match="routes to an export"):
        find_candidate(context, "exported")


def test_a_name_that_means_nothing_is_told_the_nearest(context: Context, run: str) -> None:
    known = ["support", TUNED, "smollm2-135m-instruct"]
    for name, nearest in zip(["suport", TUNED[:-1], "smollm2-135m-instrct"], known, strict=True):
        with pytest.raises(NotFoundError, match="does not exist") as caught:
            find_model(context, name)
        assert f"nearest: {nearest}" in caught.value.came
        assert caught.value.expected == ANY_MODEL
    with pytest.raises(NotFoundError, match="does not exist"):
        find_model(context, "support", Caller(project_id="other"))
    with pytest.raises(NotFoundError, match="does not exist"):
        find_model(context, TUNED, Caller(project_id="other", key_id="key-1"))
    for name in ("", "\0", "x" * 5000):
        with pytest.raises(NotFoundError):
            find_model(context, name)
    assert command.ANY_MODEL == ANY_MODEL


def test_what_is_tuned_is_one_candidate_by_all_of_its_names(deployed: str, context: Context, tiny_model: Path) -> None:
    sources.pull(str(tiny_model), context.home, SilentProgress())
    result = context.runs.get(deployed).result
    assert result is not None
    made = TunedModel(
        model_id=TUNED,
        project_id="default",
        job_id="job-1",
        run_id=deployed,
        base_model="tiny",
        adapter_path=str(result.adapter_path),
    )
    context.tuned_models.add(made)
    names = [deployed, TUNED, "support"]
    found = [find_candidate(context, name) for name in names]
    assert [one.name for one in found] == names
    assert [replace(one, name="one") for one in found] == [replace(found[0], name="one")] * len(names)
    identities = [identity_of(context, name, one) for name, one in zip(names, found, strict=True)]
    assert identities == [identities[0]] * len(names)


def test_held_out_rows_are_compared_with_those_of_the_run_whatever_its_name(
    deployed: str, context: Context, tmp_path: Path
) -> None:
    assert deployed
    seen = write_rows(tmp_path / "seen.jsonl", [chat_row(number) for number in range(4)])
    with pytest.raises(LeakageError, match="4 of 4"):
        evaluate(context, ["support"], data=seen)


def test_an_adapter_from_elsewhere_is_put_on_the_base_that_it_names(
    deployed: str, context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    base = sources.pull(str(tiny_model), context.home, SilentProgress())
    result = context.runs.get(deployed).result
    assert result is not None
    folder = tmp_path / "adapter"
    shutil.copytree(str(result.adapter_path), folder)
    config = folder / "adapter_config.json"
    config.write_text(f'{{"base_model_name_or_path": "{base.name}"}}', encoding="utf-8")
    found = find_candidate(context, str(folder))
    assert (found.model_path, found.adapter_path) == (base.path, str(folder))
    assert identity_of(context, str(folder), found)["trained_sha256"]
    config.write_text("{}", encoding="utf-8")
    with pytest.raises(RequestError, match="names no base model"):
        find_candidate(context, str(folder))
