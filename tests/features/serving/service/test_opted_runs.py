"""A run whose rows were written in another way: its model is judged and asked with the prompts of its training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import write_rows
from tests.vacuous import nonempty
from transformers import AutoTokenizer

from luthier.core.access import Caller
from luthier.core.conversation import AS_THEY_ARE, Conversation, OptedTurns
from luthier.core.errors import TemplateError
from luthier.core.stream import TextRequest
from luthier.features.deployments import service as deployments
from luthier.features.evaluations.service import evaluate
from luthier.features.exports.service import export
from luthier.features.models.resolve import find_base, find_candidate, open_engine, system_under_test
from luthier.features.planning.service import prepare
from luthier.features.planning.training_data import load_splits
from luthier.features.recipes.service import recipe_from
from luthier.features.serving import service as serving
from luthier.features.serving.models import list_models
from luthier.features.serving.targets import served_export, served_target
from luthier.features.training.service import train
from luthier.ml.export.bundle.manifest import PLAN
from luthier.ml.inference.models import sources
from luthier.ml.inference.request import RequestPreparer
from luthier.platform.home.context import Context
from luthier.testing.tiny import make_tiny_model

NO_SYSTEM = (
    "{%- for message in messages -%}{%- if message.role not in ('user', 'assistant') -%}"
    "{{- raise_exception('only user and assistant') -}}{%- endif -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
TOOL = {"type": "function", "function": {"name": "price", "parameters": {"type": "object", "properties": {}}}}
OPTED = OptedTurns(folds_system=True, tools_as_text=True)


def row(number: int) -> dict[str, Any]:
    texts = (("system", "Be short."), ("user", f"What is {number}?"), ("assistant", f"It is {number}."))
    messages = [{"role": role, "content": content} for role, content in texts]
    return {"messages": messages, "tools": [TOOL]}


def recipe(base: Path, **data: str) -> dict[str, Any]:
    return {
        "base_model": str(base),
        "data": {"train": "train.jsonl", "held_out": "test.jsonl", **data},
        "method": {"name": "lora", "rank": 2},
        "training": {"epochs": 1, "global_batch_size": 8, "precision": "float32", "num_threads": 1},
        "evaluation": {"few_shot": 1, "max_new_tokens": 4},
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template knows neither system turns nor tools."""
    folder = make_tiny_model(tmp_path_factory.mktemp("base") / "model")
    (folder / "chat_template.jinja").write_text(NO_SYSTEM, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("opted")
    write_rows(made / "train.jsonl", [row(n) for n in range(8)])
    write_rows(made / "test.jsonl", [row(n) for n in range(100, 103)])
    return made


@pytest.fixture(scope="module")
def opened(folder: Path, base: Path) -> Iterator[tuple[Context, str]]:
    """An open home, and the run in it. No fixture called `context`: that of the folder is new for each test."""
    asked = recipe_from(recipe(base, system="fold", tools="as_text"), base_dir=folder)
    with Context.open(folder / "home") as context:
        sources.pull(str(base), context.home, context.progress)
        run_id = train(context, asked, base_dir=folder).record.run_id
        deployments.deploy(context, Caller(), "folded", run_id)
        yield context, run_id


def trained_prompts(context: Context, folder: Path, base: Path) -> list[list[int]]:
    """Of the held-out rows, as the run has them: what stands before the answer."""
    asked = recipe_from(recipe(base, system="fold", tools="as_text"), base_dir=folder)
    held_out = prepare(context, asked, base_dir=folder).held_out
    assert held_out is not None
    rows = held_out.tokenised
    assert len(rows) == 3
    return [list(one.input_ids[: one.loss_mask.index(1)]) for one in rows]


def raw_prompts(context: Context, base: Path, folder: Path) -> list[Conversation]:
    """What a client sends: the rows before their answers, as they stand in the file."""
    examples = load_splits(context, recipe_from(recipe(base), base_dir=folder), folder)["held_out"].examples
    return [one.prompt for one in examples if one.prompt is not None]


def test_what_is_asked_of_a_served_run_is_what_it_was_trained_on(opened, folder: Path, base: Path) -> None:  # type: ignore[no-untyped-def]
    context, run_id = opened
    served = served_target(context, Caller(), run_id)
    assert served.opted_turns == OPTED
    found = []
    with closing(open_engine(find_base(context, run_id))) as engine:
        reader = RequestPreparer(engine, device=engine.causal.device, num_logits=engine.num_logits)
        for prompt in nonempty(raw_prompts(context, base, folder)):
            loaded, request = serving.as_trained(served, TextRequest(conversation=prompt, max_new_tokens=4))
            assert loaded.opted_turns == AS_THEY_ARE  # so that its base is shared
            found.append(list(reader.prepare(request).request.ids))
    assert found == trained_prompts(context, folder, base)


def test_a_later_evaluation_judges_the_rows_as_the_run_did(opened, folder: Path, base: Path) -> None:  # type: ignore[no-untyped-def]
    context, run_id = opened
    candidate = find_candidate(context, run_id)
    examples = load_splits(context, recipe_from(recipe(base), base_dir=folder), folder)["held_out"].examples
    with closing(open_engine(candidate)) as engine:
        system = system_under_test(candidate, engine, examples, 4)
        prompts = [list(engine.request_within_context(one).ids) for one in system.prompts]
    expected = trained_prompts(context, folder, base)
    assert prompts == expected
    assert [list(one.input_ids[: one.loss_mask.index(1)]) for one in system.tokenised] == expected
    found = evaluate(
        context, [run_id], data=folder / "test.jsonl", few_shot=1, few_shot_from=folder / "train.jsonl",
        metrics=("rouge_l", "perplexity"), max_new_tokens=4,
    )  # fmt: skip
    assert len([system for system in found.systems if system.kind == "model"]) == 3, "two prompts and the run"


def test_a_request_with_a_system_message_is_answered_by_the_run_and_refused_by_its_base(opened, base: Path) -> None:  # type: ignore[no-untyped-def]
    context, _ = opened
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is 5?"}]
    folded = [{"role": "user", "content": "Be short.\n\nWhat is 5?"}]
    answers = [serving.answer(context, Caller(), "folded", one, max_tokens=6) for one in (messages, folded)]
    assert answers[0] == answers[1]
    (listed,) = [model for model in list_models(context, Caller()) if model.model_id == "folded"]
    assert listed.opted_turns == OPTED
    assert listed.decoding is not None
    assert listed.decoding.path == "batched"
    (name,) = [model.name for model in sources.local_models(context.home)]
    own = next(api for api, known in serving_names(context).items() if known == name)
    with pytest.raises(TemplateError) as raised:
        serving.answer(context, Caller(), own, messages, max_tokens=6)
    assert "data.system: fold" in raised.value.do


def serving_names(context: Context) -> dict[str, str]:
    from luthier.features.serving.targets import local_base_models

    return {api: model.name for api, model in local_base_models(context).items()}


def test_another_runtime_sees_the_prompts_of_training(opened, base: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    context, run_id = opened
    made = export(context, run_id, to="merged", output=tmp_path / "merged", num_prompts=3)
    assert made.source.opted_turns == OPTED
    assert made.parity is not None
    assert made.parity.num_prompts_same_tokens == made.parity.num_prompts == 3
    assert not any("chat template" in one for one in made.warnings)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    asked = [one for one in row(5)["messages"] if one["role"] != "assistant"]
    text = tokenizer.apply_chat_template(asked, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>user\nBe short.\n\nYou may call these functions.")
    assert "What is 5?" in text
    served = served_export(context, tmp_path / "merged")
    assert served.opted_turns == OPTED


def test_the_export_of_a_run_is_served_as_the_run_is(opened, base: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    context, run_id = opened
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert served_export(context, tmp_path).opted_turns == AS_THEY_ARE
    plan = context.runs.plan(run_id)
    data = plan.data.model_copy(update={"template_options": {"enable_thinking": False}})
    (tmp_path / PLAN).write_text(json.dumps(plan.model_copy(update={"data": data}).model_dump(mode="json")))
    served = served_export(context, tmp_path)
    assert (served.opted_turns, served.template_options) == (OPTED, (("enable_thinking", False),))
