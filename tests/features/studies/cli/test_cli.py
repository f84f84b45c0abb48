"""`luthier tune` and `luthier studies`: what is asked, refused and shown."""

from __future__ import annotations

import json

import pytest
import yaml
from tests.homes import add_study

from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context


@pytest.fixture
def recipe(tiny_model, tmp_path):
    rows = [{"prompt": f"say {n}", "completion": f"word{n % 7}"} for n in range(60)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    document = {
        "base_model": str(tiny_model),
        "data": {"train": "train.jsonl", "validation": 0.2, "held_out": 0.1},
        "method": {"name": "lora", "rank": 4},
        "training": {"epochs": 2, "num_threads": 1, "precision": "float32", "global_batch_size": 8},
        "evaluation": {"metrics": ["exact_match", "perplexity"], "few_shot": 0, "max_new_tokens": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "recipe.yaml"


def test_a_search_its_list_and_its_recipe(luthier, recipe, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("parameters: {training.learning_rate: {low: 1e-4, high: 1e-2, log: true}}\nonly: true\n")
    done = luthier("tune", recipe, "--budget-hours", "1", "--trials", "2", "--space", space, "--json")
    assert done.code == 0
    study_id, trials = done.document["study_id"], done.document["trials"]
    assert (done.document["status"], len([t for t in trials if t["kind"] == "search"])) == ("done", 2)
    assert "trial 0 (the original recipe): paused" in done.err
    assert study_id in luthier("studies", "list").out
    elsewhere = "study-20260101-000000-aaaaaa"
    with Context.open(tmp_path / "home") as context:
        copy = context.studies.get(study_id).model_copy(update={"study_id": elsewhere})
        context.studies.create(copy, create_project(context, "other").project_id)
    listed = [luthier("studies", "list", *more, "--json").document for more in ((), ("--project", "other"))]
    assert [[one["study_id"] for one in found] for found in listed] == [[study_id], [elsewhere]]
    shown = luthier("studies", "show", study_id).out
    assert "2 recipes were tried" in shown
    assert "preparing and deciding" in shown
    # The winner is held against more than its base, on rows that have chosen nothing.
    verdict = done.document["verdict"]
    assert {one["kind"] for one in verdict["alternatives"]} >= {"majority", "nearest"}
    assert verdict["better_than_best_alternative"] in ("better", "worse", "not_distinguishable")
    assert verdict["headline"] in " ".join(shown.split())
    assert luthier("studies", "show", study_id, "--json").document["verdict"] == verdict
    assert luthier("studies", "compare", study_id, study_id, "--json").document[0]["best_loss"] > 0
    other = tmp_path / "other.yaml"
    assert luthier("studies", "apply", study_id, "--trial", "1", "-o", other).code == 0
    assert (
        yaml.safe_load(other.read_text())["training"]["learning_rate"] == trials[1]["values"]["training.learning_rate"]
    )
    assert "has no trial 99" in luthier("studies", "apply", study_id, "--trial", "99", "-o", tmp_path / "none.yaml").err
    out = tmp_path / "best.yaml"
    assert luthier("studies", "apply", study_id, "-o", out).code == 0
    assert yaml.safe_load(out.read_text())["method"]["name"] == "lora"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "neither a recipe nor --resume"),
        (["RECIPE"], "no budget"),
        (["RECIPE", "--budget-hours", "1", "--sampler", "grid"], "--sampler grid"),
        (["RECIPE", "--budget-hours", "1", "--objective", "quality,speed"], "--objective speed"),
        (["RECIPE", "--budget-hours", "1", "--objective", "size"], "the smallest adapter has learned nothing"),
        (["RECIPE", "--budget-hours", "1", "--objective", "quality,size", "--sampler", "cmaes"], "leave --sampler out"),
        (["RECIPE", "--budget-hours", "1", "--space", "nothing.yaml"], "no such file"),
        (["RECIPE", "--budget-hours", "0.0000001"], "one trial should take"),
        (["--resume", "study-20261126-000000-000000"], "no study"),
        (["--resume", "study-20261126-000000-000000", "--workers", "2"], "--workers with --resume"),
        (
            ["--resume", "study-20261126-000000-000000", "--seed", "0", "--trials", "9"],
            "--trials, --seed with --resume",
        ),
    ],
)
def test_what_cannot_be_is_refused(luthier, recipe, arguments, said):
    refused = luthier("tune", *(recipe if one == "RECIPE" else one for one in arguments))
    assert refused.code != 0
    assert said in refused.err


def test_a_search_that_goes_on_is_listed_with_the_hours_of_its_trials(luthier, home):
    with Context.open(home) as opened:
        study = add_study(opened)
        spent = [trial.hours for trial in opened.studies.trials(study.study_id)]
    assert min(spent) > 0
    for command in (["list"], ["compare", study.study_id]):
        (row,) = luthier("studies", *command, "--json").document
        assert row["hours"] == pytest.approx(sum(spent) + study.overhead_hours)
