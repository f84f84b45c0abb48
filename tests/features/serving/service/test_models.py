"""What a job has tuned answers by its name, as its run's own engine does, and by no other project's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.conversation import Conversation, Message
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.ports import Prompt, SilentProgress
from luthier.features.models.resolve import find_candidate, open_engine
from luthier.features.models.store import TunedModel
from luthier.features.recipes.service import load_recipe
from luthier.features.serving import models as served_models
from luthier.features.serving import service as serving
from luthier.features.training.service import train
from luthier.platform.home.context import Context

ME, STRANGER = Caller(), Caller(project_id="proj-other")
QUESTION = [{"role": "user", "content": "What comes after 7?"}]
MakeRecipe = Callable[..., Path]


def tune(context: Context, recipe: Path, name: str) -> str:
    """Trains, and names the outcome as a job does; returns the run's id."""
    outcome = train(context, load_recipe(recipe), base_dir=recipe.parent)
    result = context.runs.get(outcome.record.run_id).result
    assert result is not None
    assert result.adapter_path is not None
    context.tuned_models.add(
        TunedModel(
            model_id=name,
            project_id=ME.project_id,
            job_id=f"ftjob-{name}",
            run_id=outcome.record.run_id,
            base_model="tiny",
            adapter_path=result.adapter_path,
        )
    )
    return outcome.record.run_id


def ask(context: Context, name: str) -> str:
    return serving.answer(context, ME, name, QUESTION, max_tokens=10)


def test_adapters_and_whole_models_answer_as_their_runs_do(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {"data": {"train": "train.jsonl", "validation": "valid.jsonl"}}
    runs = {
        "ft:tiny:default::lora": tune(context, make_recipe(**sections), "ft:tiny:default::lora"),
        "ft:tiny:default::full": tune(
            context, make_recipe(**sections, method={"name": "full"}), "ft:tiny:default::full"
        ),
    }
    talk = Conversation(messages=tuple(Message.model_validate(message) for message in QUESTION))
    base = ask(context, "tiny")
    for name, run_id in runs.items():
        engine = open_engine(find_candidate(context, run_id))
        expected = engine.generate([Prompt(conversation=talk, max_new_tokens=10)], SilentProgress())[0].text
        assert ask(context, name) == expected != base
    listed = [model.model_id for model in served_models.list_models(context, ME)]
    assert listed == [*reversed(runs), "tiny"]
    with pytest.raises(NotFoundError, match="does not exist"):
        serving.answer(context, STRANGER, listed[0], QUESTION, max_tokens=1)

    lora = context.tuned_models.get(ME.project_id, "ft:tiny:default::lora")
    before = ask(context, lora.model_id)
    shutil.rmtree(lora.adapter_path)
    assert ask(context, lora.model_id) == before  # the artifacts hold the weights
    shutil.rmtree(lora.adapter_path)
    with monkeypatch.context() as patched:
        patched.setattr(context.artifacts, "linked", lambda run_id: {})
        with pytest.raises(NotFoundError, match="no longer on this machine"):
            ask(context, lora.model_id)
    with pytest.raises(ConflictError, match="base model"):
        served_models.delete_model(context, ME, "tiny")
    assert served_models.delete_model(context, ME, lora.model_id) == lora
    with pytest.raises(NotFoundError):
        ask(context, lora.model_id)
