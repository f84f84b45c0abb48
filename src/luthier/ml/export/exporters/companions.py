"""What travels beside the weights in every format: tokenizer, chat template, stop tokens, generation config."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.conversation import Conversation, Message
from luthier.core.json_limits import json_utf8
from luthier.core.opted_turns import OptedTurns
from luthier.core.records.export import ExportSource
from luthier.ml.export.exporters.exported_template import ExportedTemplate, exported_template
from luthier.ml.inference.models.chat_template import ChatTemplate

_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_PROBE: Final = Conversation(messages=(Message(role="user", content="Which wood?"),))


@dataclass(frozen=True, slots=True)
class Turns:
    """How an export writes and ends turns.

    Attributes:
        template: of the source, with its options.
        stop_ids: the tokens that end an answer, the template's own first.
        stops: their texts.
        beginning: the text of the token that every prompt begins with, or empty.
        settings: the generation config.
        opted: which turns were rewritten in training.
        notes: what users must do so that the export sees turns as in training, a sentence each.
    """

    template: ChatTemplate
    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    beginning: str
    settings: dict[str, Any]
    opted: OptedTurns
    notes: tuple[str, ...]


def source_template(source: ExportSource) -> ChatTemplate:
    """The chat template of a source with the options that it was trained with.

    Raises:
        NotFoundError, ModelSourceError: the folder or its tokenizer is missing or damaged.
        RequestError, TemplateError: the template cannot be used.
    """
    return ChatTemplate.load(source.base_path, source.template, options=source.template_options)


def template_of_export(source: ExportSource, template: ChatTemplate) -> ExportedTemplate:
    """The chat template of an export of this source.

    Args:
        source: the model.
        template: the source's.

    Raises:
        RequestError: the options cannot be put into it.
    """
    # A chat template that leaves the beginning out does so on purpose (`ChatTemplate.encode`).
    own = _own_text(template) if template.kind == "chat" else _plain_layout(template, _beginning(template))
    return exported_template(template, source.opted_turns, own)


def write_companions(source: ExportSource, target: Path) -> Turns:
    """Put the tokenizer of the source's base into `target`, with the template and the stop tokens that it was run with.

    The plain layout, for which a base model has no template of its own, is written as one, so that other runtimes,
    which do not know it, see the tokens that were trained on. Options of the template, and turns that were rewritten in
    training, are written into the template (`exported_template`).

    Raises:
        NotFoundError, ModelSourceError: the folder or its tokenizer is missing or damaged.
        RequestError, TemplateError: the template cannot be used, or its options cannot be put into it.
    """
    base = Path(source.base_path)
    template = source_template(source)
    for name in _FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    beginning = _beginning(template)
    exported = template_of_export(source, template)
    (target / "chat_template.jinja").write_text(exported.text, encoding="utf-8")
    config_file = target / "tokenizer_config.json"
    config = _read(config_file)
    # Two templates in one folder: which one a runtime reads would depend on its version.
    if config.pop("chat_template", None) is not None:  # the file above is the one that counts
        _write(config_file, config)
    settings = _generation_config(base, template)
    _write(target / "generation_config.json", settings)
    stops = tuple(template.tokenizer.convert_ids_to_tokens(list(template.end_of_turn_ids)))
    return Turns(template, template.end_of_turn_ids, stops, beginning, settings, source.opted_turns, exported.notes)


def _own_text(template: ChatTemplate) -> str:
    """The text of a chat template; of one that has another for tools, both in one."""
    texts = template.tokenizer.chat_template
    if isinstance(texts, dict) and {"default", "tool_use"} <= texts.keys():
        # Runtimes other than transformers know one template only.
        return f"{{%- if tools %}}\n{texts['tool_use']}{{%- else %}}\n{texts['default']}{{%- endif %}}"
    return str(template.tokenizer.get_chat_template())


def _beginning(template: ChatTemplate) -> str:
    """The text of the token that every prompt begins with; empty where there is none."""
    ids, _ = template.encode(template.render(_PROBE, add_generation_prompt=True))
    bos = template.tokenizer.bos_token_id
    return str(template.tokenizer.bos_token) if bos is not None and ids[:1] == [bos] else ""


def _plain_layout(template: ChatTemplate, beginning: str) -> str:
    # JSON strings are jinja strings: quotes and backslashes in a token are escaped.
    end = json.dumps(template.end_of_turn, ensure_ascii=False)
    return ("{{- " + json.dumps(beginning, ensure_ascii=False) + " -}}" if beginning else "") + (
        "{%- for message in messages -%}"
        "{{- message.content -}}"
        "{%- if message.role == 'assistant' -%}{{- " + end + " -}}{%- else -%}{{- '\\n' -}}{%- endif -%}"
        "{%- endfor -%}"
    )


def _generation_config(base: Path, template: ChatTemplate) -> dict[str, Any]:
    """The base's own settings, with every token that ends an answer."""
    config = _read(base / "generation_config.json")
    ids = list(template.end_of_turn_ids)
    config["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    if config.get("pad_token_id") is None and template.tokenizer.pad_token_id is not None:
        config["pad_token_id"] = template.tokenizer.pad_token_id
    return config


def _read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return document


def _write(file: Path, document: dict[str, Any]) -> None:
    file.write_bytes(json_utf8(document, indent=2, sort_keys=True) + b"\n")
