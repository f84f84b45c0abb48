"""Files of other tools become recipes, and every key of them has exactly one outcome."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.vacuous import nonempty

from luthier.core.errors import RecipeError, RequestError
from luthier.core.graders import Reward
from luthier.features.recipes.imports.service import TOOLS, Imported, import_recipe, read_keys, recognise
from luthier.features.recipes.imports.translation import Translation

FILES = Path(__file__).with_name("files")
ROOT = Path(__file__).resolve().parents[4]
SETTINGS = {"openai": ("base_model=smollm2-135m-instruct", "data.train=support.jsonl")}
NAMES = {
    "axolotl": "axolotl.yaml",
    "llama_factory": "llama_factory.yaml",
    "trl": "trl.yaml",
    "unsloth": "unsloth.yaml",
    "openai": "openai.json",
}


def imported(tool: str, **more: Any) -> Imported:
    return import_recipe(FILES / NAMES[tool], target=FILES, overrides=SETTINGS.get(tool, ()), **more)


def made(tmp_path: Path, document: dict[str, Any], **more: Any) -> Imported:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return import_recipe(path, target=tmp_path, **more)


def refusals(tmp_path: Path, document: dict[str, Any], **more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        made(tmp_path, document, **more)
    return caught.value.came


def axolotl(**more: Any) -> dict[str, Any]:
    rows = {"path": "rows.jsonl", "type": "alpaca"}
    return {"base_model": "org/base", "datasets": [rows], "micro_batch_size": 2, "learning_rate": 1e-4} | more


def trl(**more: Any) -> dict[str, Any]:
    return {"model_name_or_path": "org/base", "dataset_name": "rows.jsonl"} | more


TRAINING = {
    "axolotl": {"global_batch_size": 8, "epochs": 3.0, "learning_rate": 2e-4, "lr_schedule": "cosine",
                "warmup_fraction": 0.1, "optimizer": {"name": "adamw_8bit"}, "weight_decay": 0.01,
                "max_grad_norm": 1.0, "max_length_tokens": 1024, "on_overlong": "drop", "batch_order": "shuffled",
                "gradient_checkpointing": True, "precision": "auto", "early_stopping_patience": 0, "seed": 42},
    "llama_factory": {"global_batch_size": 8, "epochs": 3.0, "learning_rate": 1e-4, "lr_schedule": "cosine",
                      "warmup_fraction": 0.1, "optimizer": {"name": "adamw"}, "weight_decay": 0.0,
                      "max_grad_norm": 1.0, "max_length_tokens": 1024, "on_overlong": "truncate",
                      "batch_order": "shuffled", "precision": "bfloat16", "validate_every_steps": 500,
                      "checkpoint_every_steps": 500, "early_stopping_patience": 0, "seed": 42},
    "trl": {"global_batch_size": 16, "epochs": 1.0, "learning_rate": 2e-5, "lr_schedule": "constant",
            "warmup_fraction": 0.03, "optimizer": {"name": "adamw"}, "weight_decay": 0.0, "max_grad_norm": 1.0,
            "max_length_tokens": 1024, "on_overlong": "truncate", "batch_order": "shuffled",
            "early_stopping_patience": 0, "seed": 42},
    "unsloth": {"global_batch_size": 8, "max_steps": 50, "learning_rate": 2e-4, "lr_schedule": "linear",
                "warmup_steps": 5, "optimizer": {"name": "adamw_8bit"}, "weight_decay": 0.001,
                "max_grad_norm": 1.0, "max_length_tokens": 1024, "on_overlong": "truncate",
                "batch_order": "shuffled", "gradient_checkpointing": True, "early_stopping_patience": 0,
                "seed": 3407},
    "openai": {"epochs": 3.0, "global_batch_size": 4, "seed": 817},
}  # fmt: skip
METHODS = {
    "axolotl": {"name": "lora", "rank": 8, "alpha": 16.0, "dropout": 0.05, "targets": "all-linear"},
    "llama_factory": {"name": "lora", "rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
    "trl": {"name": "lora", "rank": 32, "alpha": 16.0, "dropout": 0.05, "targets": ["q_proj", "v_proj"]},
    "unsloth": {"name": "qlora", "rank": 16, "alpha": 16.0, "dropout": 0.0, "quantisation": "nf4",
                "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "openai": None,
}  # fmt: skip
DATA = {
    "axolotl": {"train": "support.jsonl", "columns": {"conversations": "conversations"}, "template": "chat",
                "validation": 0.05},
    "llama_factory": {"train": "support.jsonl", "template": "chat", "validation": 0.1},
    "trl": {"train": "support.jsonl"},
    "unsloth": {"train": "support.jsonl", "template": "chat"},
    "openai": {"train": "support.jsonl"},
}  # fmt: skip


@pytest.mark.parametrize("tool", list(NAMES))
def test_a_file_of_each_tool_becomes_the_recipe_that_trains_the_same(tool: str) -> None:
    found = imported(tool)
    assert found.tool == tool
    assert found.keys["training"] == TRAINING[tool]
    assert found.keys.get("method") == METHODS[tool]
    assert found.keys["data"] == DATA[tool]
    assert found.keys["objective"]["name"] == "sft"


@pytest.mark.parametrize("tool", list(NAMES))
def test_every_key_of_a_file_has_exactly_one_outcome(tool: str) -> None:
    def leaves(value: Any) -> int:
        return sum(map(leaves, value.values())) if isinstance(value, dict) and value else 1

    found = imported(tool)
    written = [entry for entry in found.entries if entry.outcome != "default"]
    given = read_keys(FILES / NAMES[tool])
    if tool == "axolotl":
        given = given | {"datasets": given["datasets"][0]}
        # One key of the table, though its value is a mapping.
        given["datasets"] = given["datasets"] | {"message_property_mappings": 1}
    assert len(written) == leaves(given)
    assert max(Counter(entry.key for entry in found.entries).values()) == 1
    for entry in nonempty(found.entries):
        assert entry.places or entry.note, entry


@pytest.mark.parametrize("tool", list(NAMES))
def test_the_page_of_a_tool_is_made_of_its_table(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docsite")
    page = importlib.import_module("moving_pages")
    assert list(page.PAGES) == list(TOOLS)
    found = (page.FOLDER / f"{tool}.md").read_text(encoding="utf-8")
    assert found == page.text(tool), "run `python docsite/moving_pages.py`"
    assert all(f"`{key}`" in found for key in nonempty(TOOLS[tool].keys))


def test_every_key_that_a_table_calls_translated_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: set[int] = set()
    take = Translation.take

    def recorded(self: Translation, key: str, default: Any = None) -> Any:
        taken.add((id(self.keys), key))  # type: ignore[arg-type]
        return take(self, key, default)

    monkeypatch.setattr(Translation, "take", recorded)
    more: dict[str, list[dict[str, Any]]] = {
        "axolotl": [
            axolotl(**{"rl": rl, "adapter": adapter, "datasets": [{"path": "a.jsonl", "type": kind}], **extra})
            for rl, adapter, kind, extra in (
                ("dpo", "lora", "chat_template", {}), ("kto", None, "completion", {}), ("simpo", "lora", "alpaca", {}),
                ("grpo", None, "alpaca", {}), (None, None, "alpaca", {"reward_model": True}),
                ("orpo", None, "alpaca", {}),
                (None, "lora", "chat_template", {}), (None, "lora", "x", {"datasets": [1, 2]}),
                (None, None, "x", {"pretraining_dataset": {"path": "a.jsonl"}}),
                (None, None, "alpaca", {"test_datasets": [{"path": "a.jsonl"}]}),
                (None, None, "x", {"pretraining_dataset": ["a.jsonl", "b.jsonl"]}),
                (None, None, "x", {"context_parallel_size": 2}),
            )
        ],
        "llama_factory": [
            {"model_name_or_path": "org/base", "dataset": "x", **extra}
            for extra in (
                {"stage": "dpo", "pref_loss": "simpo"}, {"stage": "dpo", "pissa_init": True},
                {"stage": "kto", "loraplus_lr_ratio": 16}, {"stage": "sft"},
            )
        ],
        "trl": [trl(use_peft=True)],
        "unsloth": [{"from_pretrained": {"model_name": "org/base"}}],
        "openai": [
            {"training_file": "f", "method": {"type": kind}} for kind in ("supervised", "dpo", "reinforcement")
        ],
    }  # fmt: skip
    for tool, documents in nonempty(more.items()):
        for document in documents:
            for trainer in ("sft", "dpo", "kto", "reward", "grpo") if tool == "trl" else (None,):
                with contextlib.suppress(RecipeError):
                    made(tmp_path, document, tool=tool, trainer=trainer)
        keys = TOOLS[tool].keys
        unread = {key for key, known in keys.items() if known.kind == "translated" and (id(keys), key) not in taken}
        assert not unread


def test_an_unknown_key_is_refused_by_name_and_may_be_left_out(tmp_path: Path) -> None:
    came = refusals(tmp_path, axolotl(made_up_switch=True))
    assert "made_up_switch: True" in came
    found = made(tmp_path, axolotl(made_up_switch=True), allowed=["made_up_switch"])
    assert [entry.outcome for entry in found.entries if entry.key == "made_up_switch"] == ["left_out"]


def test_leaving_out_a_key_that_is_not_refused_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--allow-missing num_epochs"):
        made(tmp_path, axolotl(num_epochs=1), allowed=["num_epochs"])


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"train_on_inputs": True}, "train_on_inputs"),
        ({"relora": True}, "relora"),
        ({"lr_scheduler": "cosine_with_restarts"}, "lr_scheduler"),
        ({"lr_scheduler": "cosine_with_min_lr"}, "lr_scheduler_kwargs"),
        ({"lr_scheduler": "linear", "lr_scheduler_kwargs": {"min_lr": 1e-5}}, "lr_scheduler_kwargs"),
        ({"sample_packing": True, "rl": "dpo"}, "sample_packing"),
        ({"adapter": "lora", "lora_alpha": 16, "lora_target_linear": True}, "lora_r"),
        ({"datasets": [{"path": "rows", "type": "alpaca"}]}, "datasets.path"),
        ({"datasets": [{"path": "./org/rows", "type": "alpaca"}]}, "datasets.path"),
        ({"datasets": [{"path": "org/rows", "split": "train[10%:]", "type": "alpaca"}]}, "datasets.path"),
        ({"datasets": [{"path": "a.jsonl"}, {"path": "b.jsonl", "type": "completion"}]}, "datasets"),
        ({"datasets": [{"path": "a.jsonl", "type": "metharme"}]}, "datasets.type"),
        ({"val_set_size": 500}, "val_set_size"),
        (
            {"datasets": [{"path": "a.jsonl", "type": "chat_template", "message_field_training": "learn"}]},
            "datasets.message_field_training",
        ),
        ({"rl": "simpo"}, "cpo_alpha"),
        ({"rl": "dpo", "dpo_loss_type": ["aot"]}, "dpo_loss_type"),
        ({"rl": "dpo", "dpo_loss_type": ["sigmoid", "sft"], "dpo_loss_weights": [1, 0.2]}, "dpo_loss_weights"),
        ({"rl": "simpo", "cpo_alpha": 0}, "simpo_gamma"),
        ({"adapter": "qlora", "peft_use_dora": True}, "peft_use_dora"),
    ],
)
def test_what_changes_training_and_has_no_counterpart_is_refused(
    tmp_path: Path, more: dict[str, Any], key: str
) -> None:
    lines = [line.strip() for line in refusals(tmp_path, axolotl(**more)).splitlines()[1:]]
    assert any(line.startswith((f"{key}:", f"{key} ")) for line in lines), lines


def test_the_field_of_turns_that_are_learned_is_read_by_its_usual_names(tmp_path: Path) -> None:
    rows = {"path": "a.jsonl", "type": "chat_template", "message_field_training": "train"}
    found = made(tmp_path, axolotl(datasets=[rows]))
    assert {entry.key: entry.outcome for entry in found.entries}["datasets.message_field_training"] == "harmless"


def test_settings_of_the_machine_and_of_what_is_shown_are_not_needed(tmp_path: Path) -> None:
    more = {
        "flex_attn_compile_kwargs": {"dynamic": False}, "use_swanlab": True, "processor_type": "AutoProcessor",
        "vllm": {"gpu_memory_utilization": 0.5}, "generate_samples": True, "expert_parallel_size": 2,
    }  # fmt: skip
    outcomes = {entry.key: entry.outcome for entry in made(tmp_path, axolotl(**more)).entries}
    assert {outcomes[key] for key in more} == {"harmless"}


def test_what_a_grpo_of_axolotl_leaves_out_of_the_loss(tmp_path: Path) -> None:
    document = axolotl(rl="grpo", trl={"mask_truncated_completions": True, "epsilon": 0.2, "num_generations": 2})
    found = made(tmp_path, document, overrides=["objective.rewards=[exact_match]"])
    assert found.keys["objective"]["mask_truncated"] is True


def test_several_updates_of_axolotl(tmp_path: Path) -> None:
    document = axolotl(rl="grpo", max_steps=8, trl={"num_iterations": 2, "epsilon": 0.1, "num_generations": 2})
    found = made(tmp_path, document, overrides=["objective.rewards=[exact_match]"]).keys
    assert (found["objective"]["num_iterations"], found["objective"]["clip_ratio_high"]) == (2, 0.1)
    assert found["training"]["max_steps"] == 4


def test_an_off_switch_without_a_counterpart_is_not_refused(tmp_path: Path) -> None:
    found = made(tmp_path, axolotl(relora=False, lora_model_dir=None))
    assert {entry.key: entry.outcome for entry in found.entries}["relora"] == "harmless"


def test_setting_the_recipes_key_settles_a_refusal_and_takes_precedence(tmp_path: Path) -> None:
    document = axolotl(sample_packing=True, warmup_steps=10, num_epochs=4)
    settings = ["training.global_batch_size=24", "training.warmup_fraction=0.05", "training.epochs=1"]
    found = made(tmp_path, document, overrides=settings)
    training = found.keys["training"]
    assert (training["global_batch_size"], training["warmup_fraction"], training["epochs"]) == (24, 0.05, 1)
    outcomes = {entry.key: entry.outcome for entry in found.entries}
    assert {outcomes[key] for key in ("sample_packing", "warmup_steps", "num_epochs")} == {"set"}


def test_the_batch_is_the_product_of_rows_accumulation_and_devices(tmp_path: Path) -> None:
    found = made(tmp_path, axolotl(gradient_accumulation_steps=4), num_devices=8)
    assert found.keys["training"]["global_batch_size"] == 2 * 4 * 8


def test_a_batch_with_devices_that_may_share_rows_is_refused(tmp_path: Path) -> None:
    shared = trl(parallelism_config={"tp_size": 4})
    assert "devices that share rows are one copy" in refusals(tmp_path, shared, trainer="sft", num_devices=8)
    assert made(tmp_path, trl(parallelism_config={}), trainer="sft", num_devices=8)


def test_the_batch_size_of_axolotl_stands_for_its_accumulated_steps(tmp_path: Path) -> None:
    found = made(tmp_path, axolotl(micro_batch_size=2, batch_size=9), num_devices=2)
    assert found.keys["training"]["global_batch_size"] == 2 * (9 // 2) * 2
    with pytest.raises(RecipeError, match="batch_size"):  # axolotl refuses both, too
        made(tmp_path, axolotl(gradient_accumulation_steps=2, batch_size=9))


def test_activation_checkpointing_is_the_new_name_of_gradient_checkpointing(tmp_path: Path) -> None:
    found = made(tmp_path, trl(activation_checkpointing=True), trainer="sft")
    assert found.keys["training"]["gradient_checkpointing"] is True


@pytest.mark.parametrize(("is_frozen", "outcome"), [(False, "harmless"), (True, "left_out")])
def test_a_file_of_llama_factory_with_keys_of_the_machine(tmp_path: Path, is_frozen: bool, outcome: str) -> None:
    more = {"freeze_language_model": is_frozen, "enable_torch_profiler": True, "upcast_layernorm": True}
    document = {"model_name_or_path": "org/base", "stage": "sft", "dataset": "pairs", "lora_target": "all", **more}
    overrides = ["data.train=rows.jsonl", "data.template=chat"]
    found = made(tmp_path, document, overrides=overrides, allowed=["freeze_language_model"] if is_frozen else [])
    outcomes = {entry.key: entry.outcome for entry in found.entries}
    assert [outcomes[key] for key in more] == [outcome, "harmless", "harmless"]


@pytest.mark.parametrize(
    ("parts", "source"),
    [
        ({}, "hub:org/rows"),
        ({"split": "train"}, "hub:org/rows"),
        ({"split": "test"}, "hub:org/rows[test]"),
        ({"name": "main", "split": "train"}, "hub:org/rows/main[train]"),
        ({"name": "main", "revision": "v1.0"}, "hub:org/rows@v1.0/main"),
    ],
)
def test_a_dataset_of_the_hub_becomes_a_remote_source(tmp_path: Path, parts: dict[str, str], source: str) -> None:
    found = made(tmp_path, axolotl(datasets=[{"path": "org/rows", "type": "alpaca", **parts}]))
    assert found.keys["data"]["train"] == source
    if "revision" not in parts:
        keys = {"name": "dataset_config", "split": "dataset_train_split"}
        given = {keys[name]: value for name, value in parts.items()}
        assert made(tmp_path, trl(dataset_name="org/rows", **given), trainer="sft").keys["data"]["train"] == source


def test_rows_of_this_machine_are_no_dataset_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    (tmp_path / "org" / "rows").mkdir()
    file = made(tmp_path, axolotl(datasets=[{"path": "org/rows.jsonl", "split": "train", "type": "alpaca"}]))
    assert file.keys["data"]["train"] == "org/rows.jsonl"
    assert "a hub or a folder" in refusals(tmp_path, axolotl(datasets=[{"path": "org/rows", "type": "alpaca"}]))


def test_a_reward_model_of_axolotl_is_a_ranking(tmp_path: Path) -> None:
    rows = {"path": "pairs.jsonl", "type": "bradley_terry.chat_template"}
    document = axolotl(reward_model=True, num_labels=1, center_rewards_coefficient=0.01, datasets=[rows])
    found = made(tmp_path, document)
    assert found.keys["objective"] == {"name": "rank", "center_rewards_coefficient": 0.01}
    assert found.keys["data"]["columns"] == {"prompt": "input"}


def test_warmup_steps_stay_steps_and_a_share_a_share(tmp_path: Path) -> None:
    training = made(tmp_path, axolotl(warmup_steps=10, max_steps=200, num_epochs=3)).keys["training"]
    assert (training["warmup_steps"], training["max_steps"]) == (10, 200)
    assert not {"epochs", "warmup_fraction"} & training.keys()
    training = made(tmp_path, axolotl(warmup_steps=10, num_epochs=3)).keys["training"]
    assert (training["warmup_steps"], training["epochs"]) == (10, 3.0)
    training = made(tmp_path, trl(warmup_steps=0.1), trainer="sft").keys["training"]
    assert training["warmup_fraction"] == 0.1
    assert "warmup_steps" not in training
    found = made(tmp_path, axolotl(warmup_ratio=0.2), overrides=["training.warmup_steps=4"]).keys["training"]
    assert found["warmup_steps"] == 4
    assert "warmup_fraction" not in found


@pytest.mark.parametrize(
    ("document", "more", "ratio"),
    [
        (axolotl(cosine_min_lr_ratio=0.1), {}, 0.1),
        (axolotl(lr_scheduler="linear", cosine_min_lr_ratio=0.1), {}, None),
        (axolotl(lr_scheduler="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.2}), {}, 0.2),
        (
            trl(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-6}, learning_rate=1e-5),
            {"trainer": "sft"},
            0.1,
        ),
        (trl(lr_scheduler_type="cosine", lr_scheduler_kwargs={}), {"trainer": "sft"}, None),
    ],
)
def test_where_the_learning_rate_ends(
    tmp_path: Path, document: dict[str, Any], more: dict[str, Any], ratio: float | None
) -> None:
    assert made(tmp_path, document, **more).keys["training"].get("min_lr_ratio") == (ratio and pytest.approx(ratio))


def test_a_cosine_that_ends_where_it_begins_is_constant(tmp_path: Path) -> None:
    training = made(tmp_path, axolotl(cosine_min_lr_ratio=1.0, warmup_steps=5)).keys["training"]
    assert (training["lr_schedule"], training["warmup_steps"]) == ("constant", 5)
    assert "min_lr_ratio" not in training


def test_defaults_that_change_training_are_written_out(tmp_path: Path) -> None:
    found = made(tmp_path, trl(), trainer="sft")
    training = found.keys["training"]
    assert (training["learning_rate"], training["lr_schedule"], training["epochs"]) == (2e-5, "linear", 3.0)
    assert training["warmup_fraction"] == 0.0
    assert found.keys["method"] == {"name": "full"}
    silent = {entry.key: entry.value for entry in found.entries if entry.outcome == "default"}
    assert silent["per_device_train_batch_size"] == 8
    assert silent["learning_rate"] == 2e-5


@pytest.mark.parametrize(
    ("trainer", "more", "objective"),
    [
        ("dpo", {"beta": 0.2}, {"name": "dpo", "beta": 0.2}),
        ("dpo", {"loss_type": ["ipo"]}, {"name": "ipo", "beta": 0.1}),
        ("dpo", {"loss_type": "apo_zero"}, {"name": "dpo", "loss_type": "apo_zero", "beta": 0.1}),
        ("dpo", {"loss_type": ["robust"], "label_smoothing": 0.1},
         {"name": "dpo", "loss_type": "robust", "label_smoothing": 0.1, "beta": 0.1}),
        ("dpo", {"loss_type": ["robust"]}, {"name": "dpo", "loss_type": "sigmoid", "beta": 0.1}),
        # TRL 1 does not read it with sigmoid
        ("dpo", {"label_smoothing": 0.1}, {"name": "dpo", "beta": 0.1}),
        ("kto", {"desirable_weight": 1.3}, {"name": "kto", "beta": 0.1, "desirable_weight": 1.3,
                                            "undesirable_weight": 1.0}),
        ("reward", {}, {"name": "rank"}),
        ("reward", {"center_rewards_coefficient": 0.01}, {"name": "rank", "center_rewards_coefficient": 0.01}),
    ],
)  # fmt: skip
def test_trainers_of_preferences(tmp_path: Path, trainer: str, more: dict[str, Any], objective: dict[str, Any]) -> None:
    assert made(tmp_path, trl(**more), trainer=trainer).keys["objective"] == objective


@pytest.mark.parametrize(
    ("more", "objective"),
    [
        ({"dpo_loss_type": ["apo_down"], "dpo_beta": 0.3}, {"name": "dpo", "beta": 0.3, "loss_type": "apo_down"}),
        ({"dpo_loss_type": ["ipo"]}, {"name": "ipo", "beta": 0.1}),
        ({"dpo_loss_type": ["exo_pair"], "dpo_label_smoothing": 0.001},
         {"name": "dpo", "beta": 0.1, "loss_type": "exo_pair", "label_smoothing": 0.001}),
        ({"dpo_label_smoothing": 0.1}, {"name": "dpo", "beta": 0.1}),
    ],
)  # fmt: skip
def test_losses_of_axolotl_are_those_of_the_trl_that_it_is_built_on(
    tmp_path: Path, more: dict[str, Any], objective: dict[str, Any]
) -> None:
    assert made(tmp_path, axolotl(rl="dpo", **more)).keys["objective"] == objective


@pytest.mark.parametrize(
    ("more", "objective"),
    [
        ({}, {"name": "dpo", "beta": 0.1}),
        ({"pref_loss": "simpo", "pref_beta": 2.0}, {"name": "simpo", "beta": 2.0, "gamma": 0.5}),
        # its cross-entropy is over the answer alone, where the default here is that of the authors: the whole row
        ({"pref_loss": "orpo"}, {"name": "orpo", "beta": 0.1, "nll_over": "answer"}),
        ({"pref_ftx": 0.5}, {"name": "dpo", "beta": 0.1, "nll_weight": 0.5}),
        ({"pref_loss": "hinge", "dpo_label_smoothing": 0.1}, {"name": "dpo", "beta": 0.1, "loss_type": "hinge"}),
        ({"dpo_label_smoothing": 0.1}, {"name": "dpo", "beta": 0.1, "label_smoothing": 0.1}),
        ({"pref_loss": "orpo", "pref_ftx": 0}, {"name": "orpo", "beta": 0.1, "nll_over": "answer"}),
    ],
)
def test_losses_of_llama_factory(tmp_path: Path, more: dict[str, Any], objective: dict[str, Any]) -> None:
    document = {"model_name_or_path": "org/base", "stage": "dpo", "dataset": "pairs", **more}
    found = made(tmp_path, document | {"dataset_dir": str(FILES / "data")}, overrides=["data.template=chat"])
    assert found.keys["objective"] == objective


@pytest.mark.parametrize(
    ("more", "adamw_rate_factor"),
    [({}, None), ({"use_muon": True}, 1.0), ({"optim": "muon"}, 1.0), ({"use_muon": True, "optim": "lion"}, None)],
)
def test_muon_of_another_trainer_has_one_rate_for_all_weights(
    tmp_path: Path, more: dict[str, Any], adamw_rate_factor: float | None
) -> None:
    document = {"model_name_or_path": "org/base", "finetuning_type": "full", "dataset": "support", **more}
    found = made(tmp_path, document | {"dataset_dir": str(FILES / "data")}, overrides=["data.template=chat"])
    assert found.keys["training"]["optimizer"].get("adamw_rate_factor") == adamw_rate_factor


@pytest.mark.parametrize(
    ("more", "warmup"),
    [
        ({}, {"warmup_steps": 7}),
        ({"lr_scheduler_type": "linear"}, {"warmup_steps": 7}),
        ({"optim": "adamw_torch"}, {"warmup_fraction": 0.0}),
    ],
)
def test_schedule_free_warms_up_with_a_constant_schedule_too(
    tmp_path: Path, more: dict[str, Any], warmup: dict[str, Any]
) -> None:
    given = {"lr_scheduler_type": "constant", "optim": "schedule_free_adamw", "warmup_steps": 7, **more}
    training = made(tmp_path, trl(**given), trainer="sft").keys["training"]
    assert training["lr_schedule"] == given["lr_scheduler_type"]
    assert training["optimizer"] == {"name": "adamw" if "adamw_torch" in more.values() else "schedule_free_adamw"}
    assert {name: value for name, value in training.items() if name.startswith("warmup")} == warmup
    ours = made(tmp_path, axolotl(lr_scheduler="constant", optimizer="schedule_free_adamw", warmup_steps=7))
    assert ours.keys["training"]["warmup_steps"] == 7


def test_trl_turns_dropout_off_for_preferences(tmp_path: Path) -> None:
    document = trl(use_peft=True, lora_dropout=0.1, lora_target_modules="all-linear")
    assert made(tmp_path, document, trainer="dpo").keys["method"]["dropout"] == 0.0
    assert made(tmp_path, document, trainer="sft").keys["method"]["dropout"] == 0.1


def test_grpo_counts_prompts_where_trl_counts_answers(tmp_path: Path) -> None:
    document = trl(num_generations=4, gradient_accumulation_steps=2, loss_type="grpo", beta=0.04)
    found = made(tmp_path, document, overrides=["objective.rewards=[exact_match]"])
    assert found.keys["training"]["global_batch_size"] == 8 * 2 // 4
    assert found.keys["objective"] == {
        "name": "grpo", "num_generations": 4, "max_new_tokens": 512, "temperature": 1.0, "kl_coef": 0.04,
        "normalize_advantages": True, "loss_weighting": "sample", "rewards": ["exact_match"],
    }  # fmt: skip
    assert "reward_funcs" in refusals(tmp_path, document)
    document["mask_truncated_completions"] = True
    found = made(tmp_path, document, overrides=["objective.rewards=[exact_match]"])
    assert found.keys["objective"]["mask_truncated"] is True


def test_a_file_of_trl_without_its_trainer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--trainer sft"):
        made(tmp_path, trl())


def test_columns_of_pairs_come_from_dataset_info(tmp_path: Path) -> None:
    document = {
        "model_name_or_path": "org/base", "stage": "dpo", "dataset": "pairs", "dataset_dir": str(FILES / "data"),
        "template": "alpaca",
    }  # fmt: skip
    found = made(tmp_path, document, overrides=["data.template=chat"])
    assert found.keys["data"] == {
        "train": str(FILES / "data" / "pairs.jsonl"),
        "columns": {"prompt": "question", "chosen": "better", "rejected": "worse"},
        "template": "chat",
    }
    assert "template: 'alpaca'" in refusals(tmp_path, document)
    elsewhere = made(tmp_path, document | {"stage": "sft", "dataset": "elsewhere", "template": "llama3"})
    assert elsewhere.keys["data"]["train"] == "hub:org/rows"


def test_quantised_weights_are_no_base_model(tmp_path: Path) -> None:
    document = {
        "from_pretrained": {"model_name": "unsloth/llama-3-8b-bnb-4bit"}, "load_dataset": {"path": "rows.jsonl"},
    }  # fmt: skip
    assert "quantised already" in refusals(tmp_path, document)


@pytest.mark.parametrize(
    ("document", "came"),
    [
        ({"learning_rate": 1e-4}, "has the keys of no tool"),
        ({"learning_rate": 1e-4, "output_dir": "out"}, "has arguments of transformers.TrainingArguments"),
        ({"model": {"_component_": "torchtune.models.gemma.lora_gemma_2b"}}, "is a configuration of torchtune"),
        ({"model": {"name": "x"}, "output_dir": "out"}, "has the keys of no tool"),
        ({"base_model": "a/b", "data": {"train": "x.jsonl"}}, "is a recipe of Luthier already"),
        ({"base_model": "a/b", "training_file": "f"}, "has keys of axolotl and openai"),
    ],
)
def test_a_file_that_cannot_be_recognised_is_refused(document: dict[str, Any], came: str) -> None:
    with pytest.raises(RequestError, match=came):
        recognise(Path("config.yaml"), document)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"micro_batch_size": "auto"}, "micro_batch_size: 'auto'"),
        ({"num_epochs": "many"}, "num_epochs"),
        ({"val_set_size": [1]}, "val_set_size"),
        ({"weight_decay": {}}, "weight_decay"),
        ({"datasets": 5}, "datasets"),
    ],
)
def test_a_value_of_another_kind_is_an_error_that_names_its_place(
    tmp_path: Path, more: dict[str, Any], key: str
) -> None:
    with pytest.raises(RequestError) as caught:
        made(tmp_path, axolotl(**more))
    assert key in caught.value.came


def test_a_count_of_rows_is_settled_by_a_share(tmp_path: Path) -> None:
    document = {"model_name_or_path": "org/base", "stage": "sft", "dataset": "rows", "max_samples": 1000}
    assert "max_samples: 1000" in refusals(tmp_path, document)
    found = made(tmp_path, document, overrides=["data.train=rows.jsonl", "data.subset=[0, 0.25]"])
    assert found.keys["data"]["subset"] == [0, 0.25]
    assert {entry.key: entry.outcome for entry in found.entries}["max_samples"] == "set"


def test_empty_keys_and_plug_ins_that_only_speed_up_are_not_needed(tmp_path: Path) -> None:
    liger = "axolotl.integrations.liger.LigerPlugin"
    found = made(tmp_path, axolotl(special_tokens=None, plugins=[liger], liger_rope=True))
    outcomes = {entry.key: entry.outcome for entry in found.entries}
    assert {outcomes[key] for key in ("special_tokens", "plugins", "liger_rope")} == {"harmless"}
    several = [liger, "axolotl.integrations.kernels.KernelsPlugin", "axolotl.integrations.swanlab.SwanLabPlugin"]
    assert {entry.key: entry.outcome for entry in made(tmp_path, axolotl(plugins=several)).entries}["plugins"] == (
        "harmless"
    )
    assert "plugins" in refusals(tmp_path, axolotl(plugins=[liger, "mine.Plugin"]))


def test_the_number_of_checkpoints_that_axolotl_keeps_stays_a_whole_number(tmp_path: Path) -> None:
    assert made(tmp_path, axolotl(save_total_limit=2)).keys["training"]["keep_checkpoints"] == 2


WANDB = {"wandb_project": "mails", "wandb_entity": "team", "wandb_name": "second", "wandb_log_model": "checkpoint"}
MLFLOW = {"use_mlflow": True, "mlflow_experiment_name": "mails", "mlflow_tracking_uri": "https://u:secret@host/x"}
NO_TRACKER: Any = object()


@pytest.mark.parametrize(
    ("document", "tracking"),
    [
        (trl(report_to="none"), []),
        (trl(report_to=["wandb", "tensorboard"], run_name="second", logging_dir="logs", project="mails"),
         [{"name": "tensorboard", "run_name": "second", "location": "logs"}, {"name": "wandb", "run_name": "second"}]),
        (trl(report_to="trackio", project="mails", logging_dir="logs"), [{"name": "trackio", "project": "mails"}]),
        (trl(report_to=["mlflow", "comet_ml"]), ["mlflow"]),
        # The environment decides: the file names no tracker, or none that there is here.
        (trl(run_name="second"), NO_TRACKER),
        (trl(report_to="all", run_name="second"), NO_TRACKER),
        (trl(report_to="comet_ml"), NO_TRACKER),
        (axolotl(**WANDB, wandb_mode="offline", wandb_run_id="abc", mlflow_run_name="unused"),
         [{"name": "wandb", "project": "mails", "entity": "team", "run_name": "second", "artifacts": True}]),
        (axolotl(**MLFLOW, hf_mlflow_log_artifacts=False, use_tensorboard=True),
         [{"name": "mlflow", "project": "mails", "location": "https://host/x", "artifacts": False}, "tensorboard"]),
        (axolotl(**WANDB, wandb_mode="disabled"), NO_TRACKER),
        (axolotl(wandb_entity="team", trackio_project_name="", use_comet=True), NO_TRACKER),
    ],
)  # fmt: skip
def test_trackers_of_a_file_are_those_of_the_recipe(tmp_path: Path, document: dict[str, Any], tracking: Any) -> None:
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    found = made(tmp_path, document, **({"trainer": "sft"} if "dataset_name" in document else {}))
    assert found.keys.get("tracking", NO_TRACKER) == tracking
    assert "secret" not in found.text
    for entry in nonempty(found.entries):
        assert entry.places or entry.note, entry
    # What is set goes before the file.
    more = {"trainer": "sft"} if "dataset_name" in document else {}
    assert made(tmp_path, document, overrides=("tracking=[mlflow]",), **more).keys["tracking"] == ["mlflow"]


def test_trackers_of_all_tools_are_read_by_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"x": {"file_name": "x.jsonl"}}', encoding="utf-8")
    documents: dict[str, Any] = {
        "llama_factory": {"model_name_or_path": "org/base", "dataset": "x", "stage": "sft", "report_to": "wandb"},
        "unsloth": yaml.safe_load((FILES / NAMES["unsloth"]).read_text(encoding="utf-8")),
        "openai": yaml.safe_load((FILES / NAMES["openai"]).read_text(encoding="utf-8"))
        | {"integrations": [{"type": "wandb", "wandb": {"project": "mails", "name": "second", "tags": ["october"]}}]},
    }
    documents["unsloth"]["SFTTrainer"]["args"] |= {"report_to": "wandb"}
    found = {
        tool: made(tmp_path, document, tool=tool, overrides=SETTINGS.get(tool, ())).keys["tracking"]
        for tool, document in documents.items()
    }
    wandb = {"name": "wandb", "project": "mails", "run_name": "second", "tags": ["october"]}
    assert found == {"llama_factory": ["wandb"], "unsloth": ["wandb"], "openai": [wandb]}
    documents["openai"]["integrations"] *= 2
    refused = refusals(tmp_path, documents["openai"], tool="openai", overrides=SETTINGS["openai"])
    assert "integrations" in refused
    assert "--set tracking=" in refused


@pytest.mark.parametrize("empty", [{"hyperparameters": {}}, {"method": {"type": "supervised", "supervised": {}}}])
def test_a_section_without_keys_is_empty_and_not_unknown(tmp_path: Path, empty: dict[str, Any]) -> None:
    document = {"model": "gpt-4.1-nano", "training_file": "file-1"} | empty
    found = made(tmp_path, document, overrides=SETTINGS["openai"])
    ((key, note),) = [(entry.key, entry.note) for entry in found.entries if entry.value == {}]
    assert (key in ("hyperparameters", "method.supervised"), note) == (True, "empty")
    assert "training" not in found.keys
    refused = refusals(tmp_path, document | {"other": {}}, overrides=SETTINGS["openai"])
    assert "other: {}: it is in no list of this tool's keys" in refused


def test_switches_are_read_as_the_other_tool_reads_them(tmp_path: Path) -> None:
    """PyYAML takes `no` and `off` for false: as texts they would count as given, and choose other methods."""
    switches = "load_in_4bit: no\nload_in_8bit: off\npeft_use_dora: No\ngroup_by_length: OFF\nsample_packing: no\n"
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(axolotl(adapter="lora", lora_r=8, lora_alpha=16, lora_target_linear=True))
        + switches
        + "gradient_checkpointing: on\n"
    )
    found = import_recipe(path, target=tmp_path)
    assert (found.keys["method"]["name"], found.keys["training"]["batch_order"]) == ("lora", "shuffled")
    assert found.keys["training"]["gradient_checkpointing"] is True
    spelled = made(tmp_path, yaml.safe_load(path.read_text()))
    outcomes = [{entry.key: entry for entry in one.entries} for one in (found, spelled)]
    assert found.keys == spelled.keys
    assert outcomes[0] == outcomes[1]


def test_a_key_that_is_no_text_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("base_model: org/base\non: 1\n")
    with pytest.raises(RequestError, match="has the key True"):
        import_recipe(tmp_path / "config.yaml", target=tmp_path)


def test_a_grader_in_python_of_a_job_becomes_a_reward_that_runs_where_code_is_allowed(tmp_path: Path) -> None:
    grader = {"type": "python", "name": "own", "source": "def grade(sample, item): return 1.0", "image_tag": None}
    multi = {"type": "multi", "name": "both", "graders": {"own": grader}, "calculate_output": "own"}
    for one in (grader, multi):
        method = {"type": "reinforcement", "reinforcement": {"grader": one}}
        document = {"model": "org/base", "training_file": "rows.jsonl", "method": method}
        found = made(tmp_path, document)
        (reward,) = found.keys["objective"]["rewards"]
        assert [code.name for code in Reward.model_validate(reward).code] == ["own"]
        assert any("LUTHIER_PYTHON_GRADERS=true" in note for note in found.notes)


@pytest.mark.parametrize(
    ("document", "trainer"),
    [
        (axolotl(adapter="lora", lora_r=8, lora_alpha=16, lora_target_linear=True,
                 lora_modules_to_save=["embed_tokens", "lm_head"]), None),
        (axolotl(adapter="qlora", lora_r=8, lora_alpha=16, lora_target_modules=["q_proj"],
                 lora_modules_to_save=["embed_tokens", "lm_head"]), None),
        (trl(use_peft=True, lora_target_modules="all-linear", lora_modules_to_save=["embed_tokens", "lm_head"]), "sft"),
        ({"model_name_or_path": "org/base", "finetuning_type": "lora", "dataset": "support",
          "dataset_dir": str(FILES / "data"), "additional_target": "embed_tokens, lm_head"}, None),
        ({"from_pretrained": {"model_name": "org/base"}, "load_dataset": {"path": "rows.jsonl"},
          "get_peft_model": {"r": 8, "modules_to_save": ["embed_tokens", "lm_head"]}}, None),
        ({"from_pretrained": {"model_name": "org/base"}, "load_dataset": {"path": "rows.jsonl"},
          "get_peft_model": {"r": 8, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}}, None),
    ],
    ids=["axolotl", "axolotl-qlora", "trl", "llama_factory", "unsloth", "unsloth-targets"],
)  # fmt: skip
def test_modules_that_are_trained_in_whole_beside_an_adapter(
    tmp_path: Path, document: dict[str, Any], trainer: str | None
) -> None:
    more = {} if trainer is None else {"trainer": trainer}
    found = made(tmp_path, document, overrides=["data.template=chat"], **more)
    assert found.keys["method"]["modules_to_save"] == ["embed_tokens", "lm_head"]
    assert not {"embed_tokens", "lm_head"} & set(found.keys["method"]["targets"])
