"""A safety check on the whole way: probes of base and tuned model, kept, and honest about what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from tests.fixtures.service import write_rows
from tests.vacuous import nonempty

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import DataError, NotFoundError, RequestError
from luthier.core.results.suite import SafetyResult, TaskResult
from luthier.features.models.store import TunedModel
from luthier.features.recipes.service import load_recipe
from luthier.features.release_gates.service import newest_safety
from luthier.features.suites import safety
from luthier.features.suites.safety import Sizes, check_safety
from luthier.features.training.service import train
from luthier.ml.evaluation.safety.refusal import refusal
from luthier.platform.home.context import Context

SMALL = Sizes(pairs=4, a_kind=2, prompts=2, rows=2, alternatives=3)
PEOPLE = ("He", "She", "Mary", "John")


def person_row(number: int) -> dict[str, Any]:
    question = f"{PEOPLE[number % 4]} asks what comes after {number}."
    answer = f"After {number} comes {number + 1}; write to number{number}@firm.de for more of it."
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


class Trained(NamedTuple):
    """A home with one run, and the folder of its rows."""

    home: Path
    run_id: str
    folder: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Trained:
    """A run with three canaries, of whose training rows one asks what the refusal probe asks."""
    folder = tmp_path_factory.mktemp("work")
    prompt = refusal(most_a_kind=SMALL.a_kind).rows[0].example.prompt
    assert prompt is not None
    asked = {"role": "user", "content": prompt.messages[0].content}
    known = {"messages": [asked, {"role": "assistant", "content": "I cannot help with that."}]}
    write_rows(folder / "train.jsonl", [*(person_row(n) for n in range(39)), known])
    write_rows(folder / "test.jsonl", [person_row(n) for n in range(100, 108)])
    training = {
        "max_steps": 2,
        "global_batch_size": 4,
        "learning_rate": 0.001,
        "precision": "float32",
        "num_threads": 1,
    }
    recipe = {
        "base_model": str(tiny_model),
        "data": {"train": "train.jsonl", "held_out": "test.jsonl", "canaries": 3},
        "method": {"name": "lora", "rank": 4, "dropout": 0.0},
        "training": training,
        "evaluation": {"few_shot": 0, "metrics": ["perplexity"]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    home = tmp_path_factory.mktemp("home")
    with Context.open(home) as context:
        outcome = train(context, load_recipe(folder / "recipe.yaml"), base_dir=folder)
    return Trained(home, outcome.record.run_id, folder)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(safety.SIZES, "default", SMALL)


@pytest.fixture
def opened(trained: Trained) -> Iterator[Context]:
    with Context.open(trained.home) as context:
        yield context


@pytest.fixture(scope="module")
def checked(trained: Trained) -> SafetyResult:
    """The run's check."""
    with pytest.MonkeyPatch.context() as patch, Context.open(trained.home) as context:
        patch.setitem(safety.SIZES, "default", SMALL)
        return check_safety(context, trained.run_id)


def the(result: SafetyResult, name: str) -> TaskResult:
    return next(probe for probe in result.probes if probe.name == name)


def test_the_whole_way(opened: Context, trained: Trained, checked: SafetyResult) -> None:
    result = checked
    assert result.base is not None
    assert (result.candidate, result.run_id) == (trained.run_id, trained.run_id)
    names = ["stereotypes", "counterfactual", "toxicity", "refusal", "memorisation", "personal_data", "canaries"]
    assert [probe.name for probe in result.probes] == names
    assert result.left_out == ()
    for probe in result.probes:
        assert [system.name for system in probe.systems] == [result.base, result.candidate], (
            "base against tuned, always"
        )
        assert probe.kind == "safety"
        assert probe.cautions
        assert {c.metric for c in probe.comparisons} == set(probe.systems[0].metrics)
        assert probe.primary == next(iter(probe.systems[0].metrics))
        assert all(nonempty(probe.systems[1].samples)), "what was answered is kept"
    swapped = the(result, "counterfactual")
    assert swapped.num_clusters == 2
    assert any("->" in sample.row_id for sample in swapped.systems[0].samples)
    assert the(result, "canaries").num_rows == 3
    kept = opened.assessments.get("safety", SafetyResult, DEFAULT_PROJECT, result.result_id)
    assert kept == result


def test_rows_of_a_probe_that_were_trained_on_are_said(checked: SafetyResult) -> None:
    asked = the(checked, "refusal")
    assert asked.num_leaked == 1
    assert asked.cautions[0].startswith("1 row of this probe is a training row of the run, of 4")


def test_a_base_model_alone_is_not_asked_about_rows(opened: Context, trained: Trained, tiny_model: Path) -> None:
    result = check_safety(opened, str(tiny_model), prompts=trained.folder / "test.jsonl")
    assert result.base is None
    assert [probe.name for probe in result.probes] == ["stereotypes", "counterfactual", "toxicity", "refusal"]
    assert result.headline.startswith("The model was not compared with a base.")
    assert [said.split(" ")[0] for said in result.left_out] == ["Memorisation", "Personal"]


def test_rows_that_are_gone_leave_the_other_probes(opened: Context, trained: Trained, checked: SafetyResult) -> None:
    file = trained.folder / "train.jsonl"
    content = file.read_bytes()
    file.write_bytes(content + b"\n")
    try:
        result = check_safety(opened, trained.run_id)
    finally:
        file.write_bytes(content)
    assert [probe.name for probe in result.probes] == ["stereotypes", "toxicity", "refusal", "canaries"]
    assert "missing or has changed" in result.left_out[0]
    assert the(result, "refusal").data_sha256 == the(checked, "refusal").data_sha256, "the same rows at every check"


def test_files_of_the_user_that_cannot_be_used_are_refused(opened: Context, trained: Trained, tmp_path: Path) -> None:
    nothing = write_rows(tmp_path / "p.jsonl", [{"prompt": "What comes after 3?", "completion": "4"}])
    with pytest.raises(
        DataError, match=r"none of the 1 rows of p\.jsonl has a prompt in which something can be swapped"
    ):
        check_safety(opened, trained.run_id, prompts=nothing)
    with pytest.raises(NotFoundError, match=r"none\.csv"):
        check_safety(opened, trained.run_id, pairs=tmp_path / "none.csv")
    with pytest.raises(RequestError, match="the file that is read"):
        check_safety(opened, trained.run_id, prompts=nothing, html=nothing)


def test_pairs_of_the_user_take_the_place_of_ours(opened: Context, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("sent_more,sent_less,bias_type\nA b c.,A d c.,x\nE f.,E g.,x\n", encoding="utf-8")
    result = check_safety(opened, str(tiny_model), pairs=file, only=["stereotypes"])
    assert len(result.probes) == 1
    assert result.left_out == ("Only stereotypes of 3 probes were run.",)
    probe = result.probes[0]
    assert (probe.data_file, probe.num_rows) == ("pairs.csv", 2)
    assert list(probe.systems[0].metrics) == ["stereotype_preference", "stereotype_preference_per_token"]


@pytest.mark.parametrize(("name", "said"), [("stereotype", "one of stereotypes"), ("canaries", "cannot be asked here")])
def test_probes_that_there_are_not_are_refused(opened: Context, tiny_model: Path, name: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        check_safety(opened, str(tiny_model), only=[name])


def test_a_tokenizer_that_cannot_score_is_refused(opened: Context, tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "chat_template.jinja").unlink()
    settings = json.loads((broken / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("eos_token")
    (broken / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(RequestError, match="end-of-text token"):
        check_safety(opened, str(broken))


def test_models_behind_a_server_are_refused(opened: Context) -> None:
    with pytest.raises(RequestError, match="behind a server"):
        check_safety(opened, "http://127.0.0.1:9/v1#model")


def test_the_check_of_a_checkpoint_is_not_that_of_its_run(opened: Context, trained: Trained) -> None:
    result, name = opened.runs.get(trained.run_id).result, "ft:tiny:default::one:ckpt-step-1"
    assert result is not None
    common = {"project_id": DEFAULT_PROJECT, "job_id": "job-1", "run_id": trained.run_id, "base_model": "tiny"}
    opened.tuned_models.add(TunedModel(model_id=name, adapter_path=str(result.adapter_path), step=1, **common))
    of_run = check_safety(opened, trained.run_id, only=["stereotypes"])
    of_checkpoint = check_safety(opened, name, only=["stereotypes"])
    assert (of_checkpoint.run_id, of_checkpoint.candidate) == (None, name)
    assert newest_safety(opened, DEFAULT_PROJECT, trained.run_id) == of_run
    assert newest_safety(opened, DEFAULT_PROJECT, name) == of_checkpoint


def test_the_check_by_a_command_is_of_the_project_of_the_run(opened: Context, trained: Trained) -> None:
    opened.access.add_project("proj-other", "other")
    theirs = opened.runs.get(trained.run_id).model_copy(update={"run_id": "run-20261125-093000-cccccc"})
    opened.runs.create(theirs, opened.runs.plan(trained.run_id), "proj-other")
    found = check_safety(opened, theirs.run_id, only=["stereotypes"])
    assert newest_safety(opened, "proj-other", theirs.run_id) == found
    assert newest_safety(opened, DEFAULT_PROJECT, theirs.run_id) is None
