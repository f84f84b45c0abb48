"""`luthier train` as torchrun or srun start it: one run of many processes, found again under the launch's name."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any

import pytest

from luthier.cli.main import main
from luthier.core.errors import ConflictError, RequestError
from luthier.features.planning.budgets import with_caps
from luthier.features.recipes.service import load_recipe
from luthier.features.training import external
from luthier.features.training.service import TrainOutcome
from luthier.ml.training.distributed import World
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, make_plan, make_record
from luthier.testing.world import in_world

MakeRecipe = Callable[..., Path]
TRAINING = {
    "epochs": 2, "global_batch_size": 8, "learning_rate": 0.01, "precision": "float32", "num_threads": 1,
    "checkpoint_every_steps": 2,
}  # fmt: skip


def command(_world: World, arguments: list[str], environment: dict[str, str]) -> tuple[int, Any, str]:
    """Exit code, document and stderr of one `luthier` process."""
    os.environ |= environment
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*arguments, "--json"])
    return code, json.loads(out.getvalue()) if out.getvalue() else None, err.getvalue()


def test_rank_0_answers_and_the_launch_is_one_run(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(training=TRAINING, evaluation={"few_shot": 0, "max_new_tokens": 2})
    arguments = ["train", str(recipe), "--home", str(context.home), "--budget-tokens", "700"]
    first, second = in_world(2, command, arguments, {"LUTHIER_LAUNCH_ID": "slurm-1"}, joins=False)
    assert (first.error, second.error) == ("", "")
    code, document, _ = first.value
    assert (code, document["status"]) == (0, "paused")
    assert second.value[:2] == (0, None)

    (record,) = context.runs.list()
    context.runs.set_budget(record.run_id, context.runs.plan(record.run_id).model_copy(update={"budget": None}))
    arguments = ["train", str(recipe), "--home", str(context.home)]
    first, second = in_world(2, command, arguments, {"LUTHIER_LAUNCH_ID": "slurm-1"}, joins=False)
    code, document, stderr = first.value
    assert code == 0, stderr
    assert (document["run_id"], document["status"], document["num_steps"]) == (record.run_id, "succeeded", 10)
    assert document["verdict"]["word"]
    assert second.value[:2] == (0, None)
    assert len(context.runs.list()) == 1


@pytest.mark.parametrize("raised_by", ["the launch", "a resume in between"])
def test_a_launch_goes_on_under_the_cap_that_was_given_last(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, raised_by: str
) -> None:
    monkeypatch.setenv("LUTHIER_LAUNCH_ID", "slurm-4")
    recipe = make_recipe(training=TRAINING, evaluation={"few_shot": 0, "max_new_tokens": 2})

    def launch(num_tokens: int) -> TrainOutcome:
        return external.train(context, load_recipe(recipe, [f"budget.tokens={num_tokens}"]), base_dir=recipe.parent)

    begun = launch(700)
    assert begun.record.status == "paused"
    if raised_by == "the launch":
        ended = launch(100_000)
    else:
        plan = context.runs.plan(begun.record.run_id)
        assert plan.budget is not None
        raised = plan.budget.model_copy(update={"tokens": 100_000})
        context.runs.set_budget(begun.record.run_id, with_caps(plan, raised))
        ended = launch(700)
    assert (ended.record.run_id, ended.record.status) == (begun.record.run_id, "succeeded")
    kept = context.runs.plan(begun.record.run_id).budget
    assert kept is not None
    assert kept.tokens == 100_000


def test_a_batch_that_they_do_not_divide_is_refused_by_all(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(training=TRAINING | {"global_batch_size": 7})
    arguments = ["train", str(recipe), "--home", str(context.home)]
    environment = {"LUTHIER_COLLECTIVE_TIMEOUT_SECONDS": "3"}
    first, second = in_world(2, command, arguments, environment, joins=False)
    assert first.value[0] == 2
    assert "global_batch_size 7 on 2 devices" in first.value[1]["error"]["came"]
    assert second.value[0] == 75, "rank 0 never came: nothing that the request could mend"
    assert context.runs.list() == []


def test_devices_and_a_launcher_do_not_go_together(monkeypatch: pytest.MonkeyPatch, make_recipe: MakeRecipe) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with redirect_stdout(io.StringIO()) as out:
        assert main(["train", str(make_recipe()), "--devices", "2", "--json"]) == 2
    assert "--devices 2 in a process that a launcher has started" in out.getvalue()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, 1), ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 2), ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 1)],
)
def test_the_machines_of_a_launch(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: int) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert external.num_machines() == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "none"}, None),
        ({"TORCHELASTIC_RUN_ID": "7"}, "7"),
        ({"TORCHELASTIC_RUN_ID": "7", "LUTHIER_LAUNCH_ID": "mine"}, "mine"),
    ],
)
def test_the_name_of_a_launch(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "LUTHIER_LAUNCH_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert external.launch_id() == expected


def test_a_nameless_launch_is_not_begun_twice(
    monkeypatch: pytest.MonkeyPatch, context: Context, make_recipe: MakeRecipe
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    recipe = make_recipe()
    with pytest.raises(RequestError, match="no name to find its run by"):
        external.train(context, load_recipe(recipe), base_dir=recipe.parent)


def test_the_id_of_the_run_is_on_the_disk_before_it_has_its_name(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_LAUNCH_ID", "slurm-2")
    folder = context.home / "launches"
    synced: list[tuple[str, int]] = []

    def sync_file(file: IO[bytes]) -> None:
        file.flush()
        synced.append((Path(file.name).read_text(), len(list(folder.glob("[!.]*")))))

    def sync(path: Path) -> None:
        synced.append((path.name, len(list(folder.glob("[!.]*")))))

    def train(*_: Any, show_plan: Any, **__: Any) -> None:
        show_plan("run_1", None, None)

    monkeypatch.setattr("luthier.core.system.files.sync_file", sync_file)
    monkeypatch.setattr("luthier.core.system.files.sync", sync)
    monkeypatch.setattr("luthier.features.training.service.train", train)
    external.train(context, load_recipe(make_recipe()), base_dir=Path())
    (file,) = folder.iterdir()
    assert file.read_text() == "run_1"
    assert synced == [("run_1", 0), ("launches", 1)]


def test_a_launch_whose_run_has_ended_ends_with_its_outcome(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queues start a job again whose run was done in the last moment before its limit."""
    monkeypatch.setenv("LUTHIER_LAUNCH_ID", "slurm-3")
    context.runs.create(make_record(status="succeeded"), make_plan())
    file = external._file(context)
    external._remember(file, RUN_ID)
    recipe = make_recipe()
    outcome = external.train(context, load_recipe(recipe), base_dir=recipe.parent)
    assert (outcome.record.run_id, outcome.record.status) == (RUN_ID, "succeeded")
    assert outcome.warnings == (f"run {RUN_ID} of this launch has ended before: nothing was trained now",)
    context.runs.update(RUN_ID, status="failed")
    monkeypatch.setattr("luthier.features.training.service.resume", _refuse)
    with pytest.raises(ConflictError):
        external.train(context, load_recipe(recipe), base_dir=recipe.parent)


def _refuse(*_: Any, **__: Any) -> None:
    raise ConflictError("another process holds it", expected="none", do="wait")


def test_the_end_of_a_launch_is_announced_over_the_group_that_the_others_join(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[str] = []

    @contextmanager
    def join(device: str, **_: object) -> Iterator[World]:
        joined.append(device)
        yield World()

    monkeypatch.setattr("luthier.ml.inference.accelerator.device_type", lambda: "xpu")
    monkeypatch.setattr("luthier.ml.training.distributed.joined", join)
    monkeypatch.setenv("WORLD_SIZE", "2")
    context.runs.create(make_record(status="succeeded"), make_plan())
    assert external._ended_before(context, RUN_ID).record.status == "succeeded"
    assert joined == ["xpu"]
