"""axolotl's datasets: one file, with the columns of its type."""

from __future__ import annotations

from typing import Any, Final

from luthier.features.recipes.imports.row_sources import RowSource
from luthier.features.recipes.imports.translation import HubParts, Key, Translation, becomes, harmless, missing
from luthier.ml.data.rows.chat_rows import FLAGS

_TYPES_AS_THEY_ARE: Final = {
    "sft": ("alpaca", "alpaca_chat.load_default", "sharegpt", "alpaca_w_system.load"),
    "dpo": ("chatml.ultra", "llama3.ultra"),
    "orpo": ("chat_template.argilla",),
}
"""Types whose fields have the names that a recipe expects."""
_COLUMNS: Final = {
    "alpaca_chat.load_qa": {"prompt": "question", "completion": "answer"},
    "chatml.intel": {"prompt": "question"},
    "llama3.intel": {"prompt": "question"},
    "bradley_terry.chat_template": {"prompt": "input"},
}
_ROLES: Final = (
    ["user"], ["human"], ["human", "user"], ["user", "human"], ["assistant"], ["gpt"], ["gpt", "assistant"],
    ["assistant", "gpt"], ["system"], ["tool"],
)  # fmt: skip
"""Names of roles that rows may have in any case."""

OWN_TEMPLATES: Final = (
    "aya", "cohere", "command_a", "deepseek_v2", "deepseek_v3", "exaone", "exaone4", "falcon_h1", "gemma", "gemma3",
    "gemma3n", "gemma4", "gemma4_unified", "jamba", "llama3", "llama3_2_vision", "llama4", "mistral_v1",
    "mistral_v2v3", "mistral_v3_tekken", "mistral_v7_tekken", "nemotron_h", "phi_3", "phi_35", "phi_4", "pixtral",
    "qwen2_vl", "qwen3", "qwen3_5", "qwen_25",
)  # fmt: skip
"""Templates of axolotl that are those of a family of models."""
OWN_TEMPLATE_NOTE: Final = "the model's own chat template is used, not axolotl's copy of that of its family"
_HUB_PARTS: Final = HubParts("datasets.name", "datasets.split", "datasets.revision")
_TEST_PARTS: Final = HubParts("test_datasets.name", "test_datasets.split", "test_datasets.revision")
_PRETRAINING_PARTS: Final = HubParts("pretraining_dataset.name", "pretraining_dataset.split")

DATASET_KEYS: Final[dict[str, Key]] = {
    "datasets": becomes("data.train", "data.template", note="one dataset; several are sources"),
    "datasets.path": becomes("data.train", note="a file; org/name: hub:org/name"),
    "datasets.name": becomes("data.train", note="hub:org/name/config"),
    "datasets.split": becomes("data.train", note="hub:org/name[split]; train[:1000], train[:10%]: rows, fraction"),
    "datasets.revision": becomes("data.train", note="hub:org/name@revision"),
    "datasets.data_files": becomes("data.train", note="files, where path is json, csv or parquet; else files of the "
                                   "dataset"),
    "datasets.type": becomes("data.columns", note="alpaca, sharegpt, chat_template, completion, and the types with "
                             "fields; others need --set data.columns"),
    "datasets.field": becomes("data.columns", note="text, of the type completion"),
    "datasets.field_messages": becomes("data.columns", note="messages or conversations"),
    "datasets.message_property_mappings": becomes("data.columns", note="role and content, or from and value"),
    "datasets.message_field_role": becomes("data.columns", note="role, or from"),
    "datasets.message_field_content": becomes("data.columns", note="content, or value"),
    "datasets.message_field_training": becomes("data.columns",
                                               note="train, loss or weight, which every message may have"),
    "datasets.field_tools": becomes("data.columns", note="tools"),
    "datasets.field_chosen": becomes("data.columns", note="chosen"),
    "datasets.field_rejected": becomes("data.columns", note="rejected"),
    "datasets.type.field_system": becomes("data.columns", note="system"),
    "datasets.type.field_instruction": becomes("data.columns", note="prompt"),
    "datasets.type.field_output": becomes("data.columns", note="completion"),
    "datasets.type.field_prompt": becomes("data.columns", note="prompt"),
    "datasets.type.field_chosen": becomes("data.columns", note="chosen"),
    "datasets.type.field_rejected": becomes("data.columns", note="rejected"),
    "datasets.type.field_completion": becomes("data.columns", note="completion"),
    "datasets.type.field_label": becomes("data.columns", note="label"),
    "datasets.roles_to_train": becomes("objective.name", note="[assistant]; others are refused"),
    "datasets.train_on_eos": becomes("objective.name", note="turn; others are refused"),
    "datasets.chat_template": becomes("data.template", note="as chat_template"),
    "test_datasets": becomes("data.validation", note="one dataset; several are sources"),
    "test_datasets.path": becomes("data.validation", note="a file; org/name: hub:org/name"),
    "test_datasets.name": becomes("data.validation", note="hub:org/name/config"),
    "test_datasets.split": becomes("data.validation", note="as datasets.split"),
    "test_datasets.revision": becomes("data.validation", note="hub:org/name@revision"),
    "pretraining_dataset": becomes("data.train", "objective.name", note="one dataset: pretraining"),
    "pretraining_dataset.path": becomes("data.train", "objective.name", note="pretraining"),
    "pretraining_dataset.name": becomes("data.train", note="hub:org/name/config"),
    "pretraining_dataset.split": becomes("data.train", note="as datasets.split"),
    "pretraining_dataset.text_column": becomes("data.columns", note="text"),
    **harmless("how the file is written follows from its name", "datasets.ds_type",
               "test_datasets.ds_type", "pretraining_dataset.type"),
    **harmless("a test file is read as the training file", "test_datasets.type", "test_datasets.field_messages",
               "test_datasets.message_property_mappings"),
    **harmless("thoughts are found in the rows", "datasets.field_thinking", "datasets.split_thinking",
               "datasets.template_thinking_key"),
    **missing("code of a dataset is never run", "datasets.trust_remote_code"),
    **missing("a part of the rows; see data.subset", "datasets.shards", "datasets.shards_idx",
              "datasets.preprocess_shards", "pretraining_dataset.skip", off=(0,)),
    **missing("a message is learned as a whole or not at all: its field `train`, `loss` or `weight`",
              "datasets.message_field_training_detail", off=("",)),
    **missing("the end of a turn is learned where the answer is", "datasets.train_on_eot", off=("turn",)),
    **missing("other names of roles; rename them in the rows", "datasets.roles", "datasets.roles.user",
              "datasets.roles.assistant", "datasets.roles.system", "datasets.roles.tool",
              off=({}, [], *_ROLES)),
    **missing("rows are changed while they are read", "datasets.input_transform", "datasets.input_format",
              "datasets.drop_system_message", "datasets.conversation", off=(False, "")),
    **missing("a chat template of the file: put it into the model's folder", "datasets.chat_template_jinja", off=("",)),
    **missing("a frame of text around the fields: write it into the rows", "datasets.type.format",
              "datasets.type.no_input_format", "datasets.type.system_prompt", "datasets.type.system_format",
              "datasets.type.prompt_format", "datasets.type.chosen_format", "datasets.type.rejected_format",
              "datasets.type.completion_format",
              off=("", "{instruction}", "{prompt}", "{chosen}", "{rejected}", "{completion}", "{system}")),
    **missing("an input in addition to the instruction: join them in the rows", "datasets.type.field_input", off=("",)),
}  # fmt: skip


def put_datasets(t: Translation, objective: str) -> None:
    """The training rows, the validation rows, and the columns.

    Args:
        t: The translation, with the keys of the file.
        objective: The recipe's objective.
    """
    if objective == "pretraining":
        _put_pretraining(t)
        return
    if t.has("datasets"):
        _put_several(t, "datasets", "data.train", objective)
    else:
        t.put_loaded("data.train", "datasets.path", "datasets.data_files", _HUB_PARTS)
        _put_columns(t, objective)
    if t.take("test_datasets") is not None:
        _put_several(t, "test_datasets", "data.validation", objective)
    elif (test := t.take("test_datasets.path")) is not None:
        t.put_hub_rows("data.validation", test, "test_datasets.path", _TEST_PARTS)


def _put_several(t: Translation, key: str, place: str, objective: str) -> None:
    """Several datasets as sources, each with the columns of its type; every key of each has its own outcome."""
    given = t.take(key)
    if place in t.settled:
        t.put(place, None, key)
        return
    found: list[RowSource] = []
    templates: list[Any] = []
    for number, one in enumerate(given):
        inner = t.part({"datasets": one})
        inner.put_loaded(place, "datasets.path", "datasets.data_files", _HUB_PARTS)
        _put_columns(inner, objective)
        t.take_over(inner, "datasets.", f"{key}[{number}].")
        rows = inner.recipe.get(place)
        own = [{"path": rows}] if isinstance(rows, str) else rows or []
        columns = inner.recipe.get("data.columns")
        found += [RowSource(**source, columns=columns) for source in own]
        templates.append(inner.recipe.get("data.template"))
    if any(template != templates[0] for template in templates):
        t.refuse(key, "plain texts together with conversations: a recipe has one template for all rows", set_by=place)
    elif found:
        t.put_sources(place, found, key)
        if templates[0] is not None and place == "data.train":
            t.put("data.template", templates[0], key)


def _put_pretraining(t: Translation) -> None:
    key = "pretraining_dataset" if t.has("pretraining_dataset") else "pretraining_dataset.path"
    if isinstance(t.take(key), list):
        t.refuse(key, "several datasets: give the recipe a list of sources", set_by="data.train")
    else:
        t.put_hub_rows("data.train", t.take(key, ""), key, _PRETRAINING_PARTS)
    if (column := t.take("pretraining_dataset.text_column")) is not None:
        t.put("data.columns", {"text": column}, "pretraining_dataset.text_column")


def _put_columns(t: Translation, objective: str) -> None:
    fields = {name: t.take(f"datasets.type.{name}") for name in (
        "field_system", "field_instruction", "field_output", "field_prompt", "field_chosen", "field_rejected",
        "field_completion", "field_label",
    )}  # fmt: skip
    kind = t.take("datasets.type")
    _put_learned(t)
    if any(fields.values()):
        names = {"field_instruction": "prompt", "field_output": "completion"}
        found = {names.get(name, name.removeprefix("field_")): value for name, value in fields.items() if value}
        t.put("data.columns", found, *(f"datasets.type.{name}" for name, value in fields.items() if value))
    elif kind is None or kind.startswith("alpaca:") or any(kind in types for types in _TYPES_AS_THEY_ARE.values()):
        t.same("datasets.type", "its fields have the names that a recipe expects")
        if kind is not None and kind.startswith("alpaca"):
            t.note(
                "axolotl writes a fixed frame of text around Alpaca rows; Luthier puts them into the model's chat "
                "template (data.template: auto), in training and in use"
            )
    elif kind in _COLUMNS:
        t.put("data.columns", _COLUMNS[kind], "datasets.type")
    elif kind == "completion":
        t.put("data.columns", {"text": t.take("datasets.field", "text")}, "datasets.type", "datasets.field")
        t.put("data.template", "plain", "datasets.type")
    elif kind in ("chat_template", "chat_template.default"):
        _put_messages(t, objective)
    else:
        t.refuse("datasets.type", "rows of this type have no shape here", set_by="data.columns")


def _put_messages(t: Translation, objective: str) -> None:
    mapping: Any = t.take("datasets.message_property_mappings", {})
    role = mapping.get("role") or t.take("datasets.message_field_role", "role")
    content = mapping.get("content") or t.take("datasets.message_field_content", "content")
    used = ["datasets.message_property_mappings", "datasets.message_field_role", "datasets.message_field_content"]
    used = [key for key in used if t.has(key)]
    field = t.take("datasets.field_messages", "messages")
    if (role, content) not in (("role", "content"), ("from", "value")) or set(mapping) - {"role", "content"}:
        for key in used:
            t.refuse(key, "messages have role and content, or from and value: rename them in the rows",
                     set_by="data.columns")  # fmt: skip
        return
    if objective in ("dpo", "ipo", "orpo", "simpo"):
        columns = {"prompt": field}
        for name in ("chosen", "rejected"):
            if (value := t.take(f"datasets.field_{name}", name)) != name:
                columns[name] = value
            t.same(f"datasets.field_{name}", "the name that a recipe expects") if value == name else None
    else:
        columns = {"conversations" if role == "from" or field == "conversations" else "messages": field}
        if (tools := t.take("datasets.field_tools")) not in (None, "tools"):
            columns["tools"] = tools
    keys = ["datasets.type", "datasets.field_messages", *used]
    keys += [f"datasets.field_{name}" for name in ("chosen", "rejected", "tools") if name in columns]
    t.put("data.columns", columns, *[key for key in keys if t.has(key)])
    put_template(t, "datasets.chat_template")


def _put_learned(t: Translation) -> None:
    if t.take("datasets.message_field_training") not in (None, "", "weight", *FLAGS):
        note = "it is read by the names weight, train and loss: rename it in the rows"
        t.refuse("datasets.message_field_training", note, set_by="data.columns")
    t.same("datasets.message_field_training", "it is read in every message of the rows")
    roles, eos = t.take("datasets.roles_to_train"), t.take("datasets.train_on_eos")
    if roles is not None and [*roles] not in (["assistant"], ["gpt"]):
        t.refuse("datasets.roles_to_train", "the assistant's turns alone are learned")
    t.same("datasets.roles_to_train", "the assistant's turns alone are learned")
    if eos not in (None, "turn"):
        t.refuse("datasets.train_on_eos", "the end of each answer is learned (turn)")
    t.same("datasets.train_on_eos", "the end of each answer is learned")


def put_template(t: Translation, key: str) -> None:
    """The chat template of all rows or of a dataset.

    Args:
        t: The translation, with the keys of the file.
        key: Their key of the template.
    """
    template = t.take(key)
    if t.has(key) and (t.recipe.get("data.template") == "plain" or t.recipe.get("objective.name") == "pretraining"):
        t.same(key, "plain texts are read without a chat template")
        return
    if template in ("tokenizer_default", "jinja"):
        t.put("data.template", "chat", key)
    elif template in OWN_TEMPLATES:
        t.put("data.template", "chat", key, note=OWN_TEMPLATE_NOTE)
    elif template is not None:
        note = "no model has this template as its own, or not every one; `--set data.template=chat` takes the model's"
        t.refuse(key, note, set_by="data.template")
