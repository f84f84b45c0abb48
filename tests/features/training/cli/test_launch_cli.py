"""`luthier launch`: the file on stdout or where it is wanted, and no file for what could not be trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from luthier.cli.main import main


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("base_model: tiny\ndata: {train: rows.jsonl}\n", encoding="utf-8")
    return path


def test_it_prints_the_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "slurm", str(recipe), "--nodes", "2", "--devices", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#!/usr/bin/env bash\n")
    assert f"luthier luthier train {recipe} --interrupted-exit-code 85 &\n" in out


def test_it_writes_the_file(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "skypilot", str(recipe), "--out", str(tmp_path / "job.yaml"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["path"] == str(tmp_path / "job.yaml")
    assert (tmp_path / "job.yaml").read_text(encoding="utf-8") == document["text"]


def test_an_unknown_system_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "pbs", str(recipe)]) == 2
    assert "expected: one of slurm, skypilot, ray" in capsys.readouterr().err


def test_devices_that_do_not_divide_the_batch_are_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "slurm", str(recipe), "--nodes", "3"]) == 2
    assert "training.global_batch_size 16 on 3 devices" in capsys.readouterr().err


def test_the_budget_of_the_recipe_limits_the_job(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text("base_model: tiny\ndata: {train: rows.jsonl}\nbudget: {hours: 20}\n", encoding="utf-8")
    for options, limit in (([], 22.5), (["--budget-hours", "10"], 11.5), (["--hours", "2"], 2.0)):
        assert main(["launch", "skypilot", str(recipe), *options, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["limit_hours"] == pytest.approx(limit)


def test_files_outside_the_recipes_folder_go_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://objects.example.com")
    rows, folder = tmp_path / "elsewhere.jsonl", tmp_path / "work"
    rows.write_text("", encoding="utf-8")
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    data = f"{{train: {rows}, validation: valid.jsonl, held_out: /nowhere/test.jsonl}}"
    recipe.write_text(f"base_model: tiny\ndata: {data}\n", encoding="utf-8")
    assert main(["launch", "skypilot", str(recipe), "--checkpoints", "s3://bucket/runs"]) == 0
    text = capsys.readouterr().out
    task = yaml.safe_load(text)
    assert task["file_mounts"] == {str(rows): str(rows)}
    assert task["envs"]["AWS_ENDPOINT_URL"] == "https://objects.example.com"
    assert "# note: data.held_out: /nowhere/test.jsonl is not on this machine" in text
    given = ["--data", "/nowhere=s3://bucket/rows"]
    assert main(["launch", "skypilot", str(recipe), *given]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["file_mounts"]["/nowhere"] == {"source": "s3://bucket/rows", "mode": "COPY"}
    assert "# note" not in text
    recipe.write_text(f"base_model: tiny\ndata: {{train: {tmp_path}/else*.jsonl}}\n", encoding="utf-8")
    assert main(["launch", "skypilot", str(recipe)]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["file_mounts"] == {str(rows): str(rows)}, "the files that match a pattern"
    assert "# note" not in text
    recipe.write_text("base_model: tiny\ndata: {train: ../elsewhere.jsonl}\n", encoding="utf-8")
    assert main(["launch", "skypilot", str(recipe)]) == 2
    assert "is outside the folder of the recipe" in " ".join(capsys.readouterr().err.split())


def test_models_and_files_of_a_home_folder_go_along_to_that_of_the_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    teacher = tmp_path / "teacher"
    for folder in (tmp_path / "me" / "base", teacher, tmp_path / "work"):
        folder.mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "me" / name).write_text("", encoding="utf-8")
    recipe = tmp_path / "work" / "recipe.yaml"
    objective = f"{{name: distillation, teacher: {teacher}}}"
    recipe.write_text(
        f"base_model: ~/base\ndata: {{train: ~/*.jsonl, held_out: ~/gone.jsonl}}\nobjective: {objective}\n",
        encoding="utf-8",
    )
    assert main(["launch", "skypilot", str(recipe)]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["file_mounts"] == {
        place: place for place in ("~/a.jsonl", "~/b.jsonl", "~/base", str(teacher))
    }
    assert "data.held_out" in text


def test_a_place_that_only_this_machine_knows_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_CHECKPOINTS", "artifacts")
    assert main(["launch", "skypilot", str(recipe)]) == 2
    assert "expected: a place that every node reaches" in capsys.readouterr().err
    assert main(["launch", "slurm", str(recipe)]) == 0
    assert main(["launch", "skypilot", str(recipe), "--checkpoints", "s3://bucket/runs"]) == 0


def test_credentials_of_the_store_that_stay_on_this_machine_are_named(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-word")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    (recipe.parent / "rows.jsonl").write_text("", encoding="utf-8")
    stores = ["--checkpoints", "s3://bucket/runs"]
    data = ["--data", "more=s3://bucket/more"]
    image = ["--image", "mine:1"]
    for system, options in (("skypilot", stores), ("ray", [*image, *stores]), ("ray", [*image, *data])):
        assert main(["launch", system, str(recipe), *options]) == 0
        text = capsys.readouterr().out
        assert "add --secret AWS_ACCESS_KEY_ID --secret AWS_SECRET_ACCESS_KEY" in " ".join(text.split())
        assert "a-secret-word" not in text
    given = ["--secret", "AWS_ACCESS_KEY_ID", "--secret", "AWS_SECRET_ACCESS_KEY"]
    # Slurm's jobs have the environment of sbatch, and SkyPilot copies data with its own credentials.
    for system, options in (
        ("skypilot", [*stores, *given]),
        ("ray", [*image, *stores, *given]),
        ("ray", image),
        ("slurm", stores),
        ("skypilot", data),
    ):
        assert main(["launch", system, str(recipe), *options]) == 0
        assert "# note" not in capsys.readouterr().out, (system, options)


GRADED = """\
base_model: tiny
data: {train: rows.jsonl}
objective:
  name: grpo
  rewards: [{grader: {type: python, name: own, source: "def grade(sample, item): return 1.0"}}]
"""


def test_settings_that_decide_what_a_run_does_travel_with_it(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.write_text(GRADED, encoding="utf-8")
    (recipe.parent / "rows.jsonl").write_text("", encoding="utf-8")
    image = ["--image", "mine:1"]
    monkeypatch.delenv("LUTHIER_PYTHON_GRADERS", raising=False)
    for system, options in (("skypilot", []), ("ray", image)):
        assert main(["launch", system, str(recipe), *options]) == 0
        text = capsys.readouterr().out
        assert "# note: objective.rewards has graders in Python, which run only where" in text
        assert "LUTHIER_PYTHON_GRADERS" not in yaml.safe_dump(yaml.safe_load(text))
    monkeypatch.setenv("LUTHIER_PYTHON_GRADERS", "true")
    monkeypatch.setenv("LUTHIER_COLLECTIVE_TIMEOUT_SECONDS", "77")
    assert main(["launch", "skypilot", str(recipe)]) == 0
    text = capsys.readouterr().out
    envs = yaml.safe_load(text)["envs"]
    assert (envs["LUTHIER_PYTHON_GRADERS"], envs["LUTHIER_COLLECTIVE_TIMEOUT_SECONDS"]) == ("true", "77")
    assert "# note" not in text
    assert main(["launch", "ray", str(recipe), *image, "--nodes", "2"]) == 0
    text = capsys.readouterr().out
    cluster = yaml.safe_load(text)["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]):
        env = {one["name"]: one["value"] for one in group["template"]["spec"]["containers"][0]["env"]}
        assert (env["LUTHIER_PYTHON_GRADERS"], env["LUTHIER_COLLECTIVE_TIMEOUT_SECONDS"]) == ("true", "77")
    assert "# note" not in text
    # Slurm's jobs have the environment of sbatch.
    assert main(["launch", "slurm", str(recipe)]) == 0
    assert "LUTHIER_PYTHON_GRADERS" not in capsys.readouterr().out


def test_a_key_of_checkpoints_that_stays_on_this_machine_is_named_and_not_shown(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (recipe.parent / "rows.jsonl").write_text("", encoding="utf-8")
    monkeypatch.setenv("LUTHIER_CHECKPOINT_KEY", "a-secret-word")
    stores = ["--checkpoints", "s3://bucket/runs"]
    assert main(["launch", "skypilot", str(recipe), *stores]) == 0
    text = capsys.readouterr().out
    assert "sign and verify no checkpoints without it: add --secret LUTHIER_CHECKPOINT_KEY" in " ".join(text.split())
    assert "a-secret-word" not in text
    for options in (["--secret", "LUTHIER_CHECKPOINT_KEY", *stores], []):
        assert main(["launch", "skypilot", str(recipe), *options]) == 0
        assert "# note" not in capsys.readouterr().out


def test_tokens_of_the_hub_and_of_trackers_that_stay_on_this_machine_are_named(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "a-secret-word")
    (recipe.parent / "rows.jsonl").write_text("", encoding="utf-8")
    for system, options in (("skypilot", []), ("ray", ["--image", "mine:1"])):
        assert main(["launch", system, str(recipe), *options]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "HF_TOKEN, WANDB_API_KEY: set here and not on the nodes" in text
        assert "add --secret HF_TOKEN --secret WANDB_API_KEY" in text
        assert "a-secret-word" not in text
        assert main(["launch", system, str(recipe), *options, "--secret", "HF_TOKEN"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "WANDB_API_KEY: set here and not on the nodes" in text
        assert "HF_TOKEN, WANDB_API_KEY" not in text
    # Jobs of Slurm have the environment of sbatch.
    assert main(["launch", "slurm", str(recipe)]) == 0
    assert "not on the nodes" not in capsys.readouterr().out
