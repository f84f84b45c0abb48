"""Datasets as other tools name them: of the hub, several at once, and the first rows of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.errors import RecipeError
from luthier.features.recipes.imports.service import Imported, import_recipe


def made(tmp_path: Path, document: dict[str, Any], **more: Any) -> Imported:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return import_recipe(path, target=tmp_path, **more)


def refusals(tmp_path: Path, document: dict[str, Any], **more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        made(tmp_path, document, **more)
    return caught.value.came


def rows_file(tmp_path: Path, name: str, num_rows: int) -> None:
    lines = [json.dumps({"instruction": f"question {number}", "output": "yes"}) for number in range(num_rows)]
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def axolotl(*datasets: dict[str, Any], **more: Any) -> dict[str, Any]:
    document = {"base_model": "org/base", "datasets": list(datasets), "micro_batch_size": 2, "learning_rate": 1e-4}
    return document | more


def llama_factory(tmp_path: Path, info: dict[str, Any], **more: Any) -> dict[str, Any]:
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return {"model_name_or_path": "org/base", "stage": "sft", "dataset": ",".join(info), "template": "qwen"} | more


def unsloth(**rows: Any) -> dict[str, Any]:
    return {"from_pretrained": {"model_name": "org/base"}, "get_peft_model": {"r": 8}, "load_dataset": rows}


@pytest.mark.parametrize(
    ("split", "source"),
    [
        ("train[:20%]", {"path": "hub:org/rows", "fraction": 0.2}),
        ("train[:1000]", {"path": "hub:org/rows", "rows": 1000}),
        ("test[:5%]", {"path": "hub:org/rows[test]", "fraction": 0.05}),
    ],
)
def test_the_first_rows_of_a_dataset_become_as_many_rows_and_the_import_says_which(
    tmp_path: Path, split: str, source: dict[str, Any]
) -> None:
    trl = {"model_name_or_path": "org/base", "dataset_name": "org/rows", "dataset_train_split": split}
    for found in (
        made(tmp_path, axolotl({"path": "org/rows", "type": "alpaca", "split": split})),
        made(tmp_path, unsloth(path="org/rows", split=split)),
        made(tmp_path, trl, trainer="sft"),
    ):
        assert found.keys["data"]["train"] == [source]
        assert any("hash of each row" in note for note in found.notes)


def test_a_share_of_all_rows_is_all_rows_and_of_a_file_some(tmp_path: Path) -> None:
    rows_file(tmp_path, "rows.jsonl", 4)
    whole = made(tmp_path, axolotl({"path": "rows.jsonl", "type": "alpaca", "split": "train[:100%]"}))
    assert whole.keys["data"]["train"] == "rows.jsonl"
    some = made(tmp_path, axolotl({"path": "rows.jsonl", "type": "alpaca", "split": "train[:50%]"}))
    assert some.keys["data"]["train"] == [{"path": "rows.jsonl", "fraction": 0.5}]


@pytest.mark.parametrize("split", ["train[10%:20%]", "train+test", "train[-5:]", "train[:0]", "train[:120%]"])
def test_other_parts_of_a_split_are_refused_by_name(tmp_path: Path, split: str) -> None:
    came = refusals(tmp_path, axolotl({"path": "org/rows", "type": "alpaca", "split": split}))
    assert split in came
    assert "data.train=..." in came


def test_several_datasets_of_axolotl_are_sources_with_the_columns_of_their_types(tmp_path: Path) -> None:
    rows_file(tmp_path, "own.jsonl", 2)
    found = made(
        tmp_path,
        axolotl(
            {"path": "own.jsonl", "type": "alpaca"},
            {"path": "org/talks", "type": "chat_template", "field_messages": "talks", "split": "train[:100]"},
            {"path": "org/asked", "name": "main", "type": {"field_instruction": "q", "field_output": "a"}},
            chat_template="tokenizer_default",
            test_datasets=[{"path": "org/asked", "split": "test", "type": {"field_instruction": "q"}}],
        ),
    )
    assert found.keys["data"]["train"] == [
        {"path": "own.jsonl"},
        {"path": "hub:org/talks", "rows": 100, "columns": {"messages": "talks"}},
        {"path": "hub:org/asked/main", "columns": {"prompt": "q", "completion": "a"}},
    ]
    assert found.keys["data"]["validation"] == [{"path": "hub:org/asked[test]", "columns": {"prompt": "q"}}]
    assert "columns" not in found.keys["data"]
    outcomes = {entry.key: entry.outcome for entry in found.entries}
    assert outcomes["datasets"] == outcomes["datasets[1].split"] == outcomes["datasets[2].name"] == "translated"
    assert outcomes["datasets[0].type"] == "harmless"


def test_of_several_datasets_the_key_that_is_refused_is_named_with_its_number(tmp_path: Path) -> None:
    rows_file(tmp_path, "own.jsonl", 2)
    first = {"path": "own.jsonl", "type": "alpaca"}
    came = refusals(tmp_path, axolotl(first, {"path": "org/rows", "type": "alpaca", "shards": 4}))
    assert "datasets[1].shards: 4" in came
    assert "one template" in refusals(tmp_path, axolotl(first, {"path": "org/texts", "type": "completion"}))
    found = made(tmp_path, axolotl(first, {"path": "org/rows", "type": "x"}), overrides=["data.train=own.jsonl"])
    assert found.keys["data"]["train"] == "own.jsonl"


@pytest.mark.parametrize(
    ("rows", "source"),
    [
        ({"data_files": "data/train.jsonl"}, "hub:org/rows/data/train.jsonl"),
        ({"data_files": {"train": "a.csv"}, "split": "train"}, "hub:org/rows/a.csv"),
        ({"data_files": ["a.jsonl", "b.jsonl"]}, [{"path": "hub:org/rows/a.jsonl"}, {"path": "hub:org/rows/b.jsonl"}]),
        ({"data_files": "a.jsonl", "revision": "v1"}, "hub:org/rows@v1/a.jsonl"),
        ({"data_files": "a.jsonl", "split": "train[:9]"}, [{"path": "hub:org/rows/a.jsonl", "rows": 9}]),
    ],
)
def test_data_files_of_a_dataset_of_the_hub_are_files_of_it(tmp_path: Path, rows: dict[str, Any], source: Any) -> None:
    rows_file(tmp_path, "a.jsonl", 1)  # a file of this name here is none of the dataset
    assert made(tmp_path, axolotl({"path": "org/rows", "type": "alpaca", **rows})).keys["data"]["train"] == source
    assert made(tmp_path, unsloth(path="org/rows", **rows)).keys["data"]["train"] == source


def test_files_of_a_kind_are_those_of_this_machine_or_an_address(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        rows_file(tmp_path, name, 1)
    several = made(tmp_path, axolotl({"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "type": "alpaca"}))
    assert several.keys["data"]["train"] == [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    address = "https://host/rows.jsonl"
    assert made(tmp_path, unsloth(path="json", data_files=address)).keys["data"]["train"] == address
    parts = refusals(tmp_path, axolotl({"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "split": "train[:5]"}))
    assert "several files" in parts
    assert "one file of rows" in refusals(tmp_path, unsloth(path="org/rows", data_files="data/*.parquet"))


def test_pretraining_and_test_rows_of_axolotl_may_be_of_the_hub(tmp_path: Path) -> None:
    texts = {"path": "org/texts", "name": "en", "split": "train[:1%]", "text_column": "content"}
    found = made(tmp_path, axolotl(pretraining_dataset=[texts], max_steps=10) | {"datasets": None})
    assert found.keys["data"]["train"] == [{"path": "hub:org/texts/en[train]", "fraction": 0.01}]
    assert found.keys["data"]["columns"] == {"text": "content"}
    tests = [{"path": "org/rows", "split": "test"}]
    found = made(tmp_path, axolotl({"path": "org/rows", "type": "alpaca"}, test_datasets=tests))
    assert found.keys["data"]["validation"] == "hub:org/rows[test]"


INFO: dict[str, Any] = {
    "own": {"file_name": "own.jsonl"},
    "talks": {
        "hf_hub_url": "org/talks", "subset": "en", "split": "train_sft", "formatting": "sharegpt",
        "columns": {"messages": "talk"}, "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                                                  "assistant_tag": "assistant"},
    },
}  # fmt: skip


def test_datasets_of_llama_factory_are_sources_and_max_samples_limits_each(tmp_path: Path) -> None:
    document = llama_factory(tmp_path, INFO)
    rows_file(tmp_path / "data", "own.jsonl", 30)
    talks = {"path": "hub:org/talks/en[train_sft]", "columns": {"conversations": "talk"}}
    assert made(tmp_path, document).keys["data"]["train"] == [{"path": "data/own.jsonl"}, talks]
    limited = made(tmp_path, document | {"max_samples": 20})
    assert limited.keys["data"]["train"] == [{"path": "data/own.jsonl", "rows": 20}, talks | {"rows": 20}]
    assert any("hash of each row" in note for note in limited.notes)
    # A file that has no more rows is used whole: a source with fewer rows than it asks for would be refused.
    enough = made(tmp_path, document | {"max_samples": 30, "dataset": "own"})
    assert enough.keys["data"]["train"] == "data/own.jsonl"
    assert {entry.key: entry.outcome for entry in enough.entries}["max_samples"] == "harmless"
    share = made(tmp_path, document | {"max_samples": 20}, overrides=["data.subset=[0, 0.5]"])
    assert share.keys["data"]["train"] == [{"path": "data/own.jsonl"}, talks]


def test_one_dataset_of_llama_factory_has_the_columns_of_the_recipe(tmp_path: Path) -> None:
    document = llama_factory(tmp_path, INFO, dataset="talks", eval_dataset="own")
    rows_file(tmp_path / "data", "own.jsonl", 3)
    found = made(tmp_path, document)
    assert found.keys["data"] == {
        "train": "hub:org/talks/en[train_sft]",
        "columns": {"conversations": "talk"},
        # The columns of the training rows are not those of this file.
        "validation": [{"path": "data/own.jsonl", "columns": {}}],
        "template": "chat",
    }


def test_num_samples_of_llama_factory_are_rows_of_a_source(tmp_path: Path) -> None:
    rows = {"file_name": "own.jsonl", "num_samples": 5}
    document = llama_factory(tmp_path, {"own": rows})
    rows_file(tmp_path / "data", "own.jsonl", 9)
    assert made(tmp_path, document).keys["data"]["train"] == [{"path": "data/own.jsonl", "rows": 5}]
    rows_file(tmp_path / "data", "own.jsonl", 4)
    assert "5 of 4 rows" in refusals(tmp_path, document)


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"ms_hub_url": "org/rows"}, "ModelScope"),
        ({"script_url": "loader"}, "never run"),
        ({"hf_hub_url": "org/rows", "folder": "python"}, "a folder of a dataset"),
        ({"file_name": "rows"}, "save the rows as JSONL"),
        ({"file_name": "a.json", "formatting": "sharegpt", "columns": {"messages": "m", "kto_tag": "l"}}, "completion"),
    ],
)
def test_what_is_no_source_is_refused_with_the_reason(tmp_path: Path, info: dict[str, Any], reason: str) -> None:
    came = refusals(tmp_path, llama_factory(tmp_path, {"rows": info}))
    assert "the dataset rows" in came
    assert reason in came


def test_datasets_of_llama_factory_without_a_file_of_datasets(tmp_path: Path) -> None:
    document = llama_factory(tmp_path, {}, dataset="org/rows", dataset_dir="ONLINE")
    assert made(tmp_path, document).keys["data"]["train"] == "hub:org/rows"
    assert "download it" in refusals(tmp_path, document | {"dataset_dir": "REMOTE:org/rows"})
    cloud = llama_factory(tmp_path, {"rows": {"cloud_file_name": "s3://bucket/rows.jsonl"}})
    assert made(tmp_path, cloud).keys["data"]["train"] == "s3://bucket/rows.jsonl"


def test_a_file_from_the_network_names_no_rows(tmp_path: Path) -> None:
    rows_file(tmp_path, "own.jsonl", 1)
    for document in (
        axolotl({"path": "own.jsonl", "type": "alpaca"}, {"path": "org/rows", "type": "alpaca"}),
        llama_factory(tmp_path, INFO),
        unsloth(path="json", data_files=["own.jsonl"]),
    ):
        came = refusals(tmp_path, document, reads_files=False)
        assert "rows of another machine" in came
        assert str(tmp_path) not in came.partition(" has ")[2]


def test_families_templates_and_ends_of_turns_of_axolotl(tmp_path: Path) -> None:
    rows = {"path": "org/rows", "type": "chat_template"}
    found = made(tmp_path, axolotl(rows, chat_template="gemma3", eot_tokens=["<end_of_turn>"]))
    assert found.keys["data"]["template"] == "chat"
    outcomes = {entry.key: entry for entry in found.entries}
    assert "the model's own" in outcomes["chat_template"].note
    assert outcomes["eot_tokens"].outcome == "harmless"
    assert "chat_template: 'chatml'" in refusals(tmp_path, axolotl(rows, chat_template="chatml"))
    texts = {"path": "org/rows", "type": "completion"}
    assert made(tmp_path, axolotl(texts, chat_template="gemma3")).keys["data"]["template"] == "plain"


def test_a_pattern_of_modules_stays_a_pattern(tmp_path: Path) -> None:
    pattern = r"model.language_model.layers.[\d]+.(mlp|self_attn).(up|down|q|k)_proj"
    more = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_modules": pattern}
    found = made(tmp_path, axolotl({"path": "org/rows", "type": "alpaca"}, **more))
    assert found.keys["method"]["targets"] == f"re:{pattern}"
