"""Rows are read once for all recipes that make the same of them, and again for those that do not."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.dataset import sequence_notes
from luthier.core.errors import RecipeError, TemplateError
from luthier.core.ports import SilentProgress
from luthier.features.models.resolve import find_base, open_engine, system_under_test
from luthier.features.planning.data_sources import recipe_of
from luthier.features.planning.evaluation_plan import training_examples
from luthier.features.planning.service import prepare, prepare_again
from luthier.features.planning.training_data import TrainingDataLoader
from luthier.features.recipes.service import recipe_from
from luthier.features.training.service import train
from luthier.ml.data.tokenise.loss_mask import tokenise_sides
from luthier.platform.home.context import Context


@pytest.fixture
def make(tiny_model, tmp_path):
    rows = [{"prompt": f"say {n}", "completion": f"word{n % 7}"} for n in range(30)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def recipe(**training: Any):
        method = training.pop("method", {"name": "lora", "rank": 4})
        data = {"train": "train.jsonl", "validation": 0.2} | training.pop("data", {})
        training = {"num_threads": 1, "precision": "float32"} | training
        document = {"base_model": str(tiny_model), "data": data, "method": method, "training": training}
        return recipe_from(document, base_dir=tmp_path)

    return recipe


def test_what_rows_do_not_depend_on_shares_them(make, tmp_path) -> None:
    data_loader = TrainingDataLoader()
    with Context.open(tmp_path / "home") as context:
        first = data_loader.of(context, make(), Path())
        for changed in (
            {"learning_rate": 0.01},
            {"epochs": 3, "global_batch_size": 4, "schedule": "linear", "weight_decay": 0.1},
            {"method": {"name": "dora", "rank": 8}},
            {"validate_every_steps": 2},
        ):
            assert data_loader.of(context, make(**changed), Path()) is first
        for changed in (
            {"seed": 3},
            {"data": {"validation": 0.4}},
            {"data": {"split_seed": 1}},
            {"max_length_tokens": 64},
            {"overlong": "drop"},
            {"method": {"name": "prompt_tuning", "num_virtual_tokens": 4}},
        ):
            assert data_loader.of(context, make(**changed), Path()) is not first, changed


def test_a_plan_is_the_same_with_shared_rows(make, tmp_path) -> None:
    data_loader = TrainingDataLoader()
    with Context.open(tmp_path / "home") as context:
        prepare(context, make(), base_dir=Path(), data_loader=data_loader)
        for changed in ({"learning_rate": 0.01}, {"epochs": 2, "method": {"name": "dora", "rank": 2}}):
            shared = prepare(context, make(**changed), base_dir=Path(), data_loader=data_loader)
            alone = prepare(context, make(**changed), base_dir=Path())
            assert shared.plan.hash == alone.plan.hash
            assert shared.train.tokenised == alone.train.tokenised


# Earlier turns lose their thoughts, and the last one has one, empty where the row has none.
_REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture
def rewriting(tiny_model, tmp_path):
    """A recipe of rows of one and two turns for a model whose template rewrites earlier turns."""
    folder = shutil.copytree(tiny_model, tmp_path / "rewriting")
    (folder / "chat_template.jinja").write_text(_REWRITES)
    rows = []
    for n in range(24):
        turns = [("user", f"What comes after {n}?"), ("assistant", f"{n + 1}")]
        turns += [("user", "And then?"), ("assistant", f"Then {n + 2}.")] if n % 3 else []
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def recipe(**sections: Any):
        document = {
            "base_model": str(folder),
            "data": {"train": "chats.jsonl"} | sections.pop("data", {}),
            "method": {"name": "lora", "rank": 2, "dropout": 0.0},
            "training": {"num_threads": 1, "precision": "float32", "global_batch_size": 8, "micro_batch_tokens": 200}
            | sections.pop("training", {}),
        }
        return recipe_from(document | sections, base_dir=tmp_path)

    return recipe


def test_rows_that_are_cut_stay_one_example_and_the_plan_says_how_many_and_why(rewriting, tmp_path) -> None:
    with Context.open(tmp_path / "home") as context:
        prepared = prepare(context, rewriting(), base_dir=Path())
    profile = prepared.plan.data.train
    assert (profile.num_examples, profile.num_cut, profile.num_sequences) == (24, 16, 40)
    assert [len(unit) for unit in prepared.train.units] == [1 if n % 3 == 0 else 2 for n in range(24)]
    assert prepared.plan.training.num_steps_per_epoch == 3
    notes = dict(sequence_notes(profile))
    assert "24 train rows are 40 sequences; 16 of them" in notes["cut_rows"]
    assert "rewrites" in notes["cut_rows"]
    assert "40 of 40 train sequences answer at once" in notes["answers_without_thought"]
    assert "enable_thinking" in notes["answers_without_thought"]


def test_rows_that_are_joined_are_one_sequence_and_the_plan_says_what_inference_would_not_show(
    rewriting, tmp_path
) -> None:
    joins = {"reset_template": "training", "held_out": "chats.jsonl", "allow_leakage": True}
    with Context.open(tmp_path / "home") as context:
        cut = prepare(context, rewriting(), base_dir=Path())
        joined = prepare(context, rewriting(data=joins), base_dir=Path())
        again = prepare(context, rewriting(data=joins), base_dir=Path())
    profile = joined.plan.data.train
    assert (profile.num_examples, profile.num_joined, profile.num_cut, profile.num_sequences) == (24, 16, 0, 0)
    assert all(len(unit) == 1 for unit in nonempty(joined.train.units))
    assert profile.num_trained_tokens == cut.plan.data.train.num_trained_tokens
    assert profile.num_tokens < cut.plan.data.train.num_tokens
    assert profile.joined_differs == (r'"<think>\n\n</think>\n\n" added',)
    note = dict(sequence_notes(profile))["joined_rows"]
    assert note.startswith("16 of 24 train rows are one sequence")
    assert profile.joined_differs[0] in note
    assert joined.plan.sources["data.reset_template"].source == "asked"
    assert "16 of 24" in joined.plan.sources["data.reset_template"].why
    assert joined.plan.hash != cut.plan.hash
    assert (again.plan.hash, again.train.tokenised) == (joined.plan.hash, joined.train.tokenised)  # from the cache
    held_out = joined.plan.data.held_out  # judged behind the prompts of inference
    assert (held_out.num_joined, held_out.num_cut) == (0, 16)


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        ({"name": "pretraining"}, "plain text"),
        ({"name": "grpo", "rewards": [{"metric": "token_f1"}]}, "draws its answers"),
    ],
)
def test_answers_are_joined_only_where_they_are_learned(rewriting, tmp_path, objective, why) -> None:
    with Context.open(tmp_path / "home") as context, pytest.raises(RecipeError, match=why) as caught:
        prepare(context, rewriting(data={"reset_template": "training"}, objective=objective), base_dir=Path())
    assert "remove data.reset_template" in caught.value.do


def test_template_options_are_in_the_plan_and_change_what_is_written(rewriting, tmp_path) -> None:
    with Context.open(tmp_path / "home") as context:
        plain = prepare(context, rewriting(), base_dir=Path())
        off = prepare(context, rewriting(data={"template_options": {"enable_thinking": False}}), base_dir=Path())
        with pytest.raises(RecipeError, match="never reads") as caught:
            prepare(context, rewriting(data={"template_options": {"enable_thinkin": False}}), base_dir=Path())
        with pytest.raises(RecipeError, match="takes for true"):
            prepare(context, rewriting(data={"template_options": {"enable_thinking": "no"}}), base_dir=Path())
    assert off.plan.data.template_options == {"enable_thinking": False}
    assert off.template.options == {"enable_thinking": False}
    assert off.plan.hash != plain.plan.hash
    assert off.plan.data.train.num_skipping_thought == 0
    assert caught.value.do == "write enable_thinking"


def test_what_is_opted_into_is_written_for_training_and_for_judging(tiny_model, tmp_path) -> None:
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Which wood?"},
            {"role": "assistant", "content": "Spruce.", "reasoning_content": "It is light."},
        ]
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    data = {"train": "rows.jsonl", "held_out": "rows.jsonl", "allow_leakage": True}
    with Context.open(tmp_path / "home") as context:

        def made(**opted: str):
            document = {"base_model": str(tiny_model), "data": data | opted, "evaluation": {"few_shot": 0}}
            return prepare(context, recipe_from(document, base_dir=tmp_path), base_dir=Path())

        with pytest.raises(TemplateError, match="writes none") as caught:
            made()
        assert "data.reasoning: as_text" in caught.value.do
        prepared = made(system="fold", reasoning="as_text")
    assert prepared.plan.data.system == "fold"
    assert prepared.held_out is not None
    for split in (prepared.train, prepared.held_out):
        user, answer = split.examples[0].conversation.messages
        assert user.content == "Be brief.\n\nWhich wood?"
        assert answer.content == "<think>\nIt is light.\n</think>\n\nSpruce."


def test_answers_that_are_drawn_begin_behind_the_prompt_of_inference(rewriting, tmp_path) -> None:
    objective = {"name": "grpo", "rewards": [{"metric": "token_f1", "weight": 1.0}], "max_new_tokens": 4}
    with Context.open(tmp_path / "home") as context:
        prepared = prepare(context, rewriting(objective=objective), base_dir=Path())
    assert {len(unit) for unit in prepared.train.units} == {1}
    for example, (row,) in zip(prepared.train.examples, prepared.train.units, strict=True):
        prompt, _ = prepared.template.encode(prepared.template.render(example.prompt, add_generation_prompt=True))
        assert list(row.input_ids[: row.num_prompt_tokens]) == prompt


def test_training_with_shared_beginnings_learns_the_same_from_rows_that_are_cut(rewriting, tmp_path) -> None:
    losses = {}
    with Context.open(tmp_path / "home") as context:
        for shares in (True, False):
            outcome = train(context, rewriting(training={"shared_prefix": shares, "epochs": 1}), base_dir=Path())
            losses[shares] = outcome.as_json()["train_loss"]
            assert outcome.as_json()["status"] == "succeeded"
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_a_run_is_judged_as_it_was_trained_all_answers_of_a_row_together(rewriting, tmp_path) -> None:
    options = {"enable_thinking": False}
    recipe = rewriting(
        data={"held_out": "chats.jsonl", "allow_leakage": True, "template_options": options},
        evaluation={"few_shot": 0, "metrics": ["perplexity"]},
        training={"max_steps": 1},
    )
    with Context.open(tmp_path / "home") as context:
        outcome = train(context, recipe, base_dir=Path())
        base = find_base(context, outcome.as_json()["run_id"])
        assert base.template_options == options
        with closing(open_engine(base)) as engine:
            assert engine.template.options == options
            examples = prepare(context, recipe, base_dir=Path()).held_out.examples
            system = system_under_test(base, engine, examples, 4)
            scores = system.scores(SilentProgress())
            units = [tokenise_sides(example, engine.template) for example in examples]
            alone = [engine.score(unit, SilentProgress()) for unit in units]
    assert {len(unit) for unit in units} == {1, 2}
    for score, parts in nonempty(zip(scores, alone, strict=True)):
        assert score.num_tokens == sum(part.num_tokens for part in parts)
        assert score.nll_nats == pytest.approx(sum(part.nll_nats for part in parts), rel=1e-4)


def test_a_share_keeps_the_rows_of_a_document_together_and_the_plan_says_so(make, tmp_path) -> None:
    rows = [
        {"prompt": f"say {n}", "completion": f"word{n % 7}", "provenance": {"file": f"{n // 5}.pdf", "source_row": n}}
        for n in range(60)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = make()
    with Context.open(tmp_path / "home") as context:
        made = prepare(context, recipe, base_dir=Path())
        assert made.plan.recipe.data.group_by == "provenance.file"
        assert made.plan.data.train.shape_reason.endswith("; rows of one document (provenance.file) stay on one side")
        assert made.validation is not None
        # Lines count from 1.
        documents = [
            {(int(one.id.rpartition(":")[2]) - 1) // 5 for one in side.examples}
            for side in (made.train, made.validation)
        ]
        assert documents[0].isdisjoint(documents[1])
        again = prepare_again(context, made.plan)
        assert [one.id for one in again.validation.examples] == [one.id for one in made.validation.examples]
        # The plan of a run from before has none, and its shares stay what they were.
        data = made.plan.recipe.data.model_copy(update={"group_by": None})
        before = made.plan.model_copy(update={"recipe": made.plan.recipe.model_copy(update={"data": data})})
        assert recipe_of(before).data.group_by is None
        assert training_examples(context, recipe_of(before)) != training_examples(context, recipe_of(made.plan))
