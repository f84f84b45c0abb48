"""What a model can do and how long its context is, read from its folder without loading it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from luthier.core.errors import LuthierError
from luthier.core.stream import Served
from luthier.core.task_head import TaskHeadKind

Capability = Literal[
    "chat",
    "completions",
    "messages",
    "tools",
    "structured_outputs",
    "thinking",
    "embeddings",
    "classify",
    "moderations",
    "score",
]
CAPABILITIES: Final[tuple[Capability, ...]] = get_args(Capability)
_OF_TEXT: Final = frozenset({"chat", "completions", "messages", "tools", "structured_outputs"})
_OF_HEADS: Final[dict[TaskHeadKind, frozenset[str]]] = {
    "classify": frozenset({"classify", "moderations"}),
    "regress": frozenset({"classify"}),
    "rank": frozenset({"score"}),
    "embed": frozenset({"embeddings"}),
}
# As in `ml.inference.models.structure.context_length`, which loads the library of the models.
_LENGTHS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "context_length",
)
_THOUGHT_WORDS: Final = ("think", "thought", "reason", "analysis", "reflect")
_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def capabilities_of(served: Served, head: TaskHeadKind | None) -> dict[Capability, bool]:
    """Which requests a model answers.

    Args:
        served: The model in loadable form.
        head: Of the model; None for one that writes text.
    """
    if head is not None:
        able = _OF_HEADS[head]
    else:
        able = _OF_TEXT
        if served.for_vectors.engine == "transformers":
            able |= {"embeddings"}
        if thinks(served):
            able |= {"thinking"}
    return {name: name in able for name in CAPABILITIES}


def context_tokens_of(served: Served) -> int | None:
    """The most tokens of prompt and answer together; None where the files do not say it.

    A trained prompt of an adapter takes its part of the context.
    """
    config = _json(Path(served.path) / "config.json")
    text = config.get("text_config")
    if isinstance(text, dict):
        config = config | text
    length: int | None = next((config[name] for name in _LENGTHS if type(config.get(name)) is int), None)
    if length is None or served.adapter_path is None:
        return length
    num_virtual = _json(Path(served.adapter_path) / "adapter_config.json").get("num_virtual_tokens")
    return length - (num_virtual if type(num_virtual) is int else 0)


def thinks(served: Served) -> bool:
    """Whether the chat template of a model has a place for thoughts, with the options that it was trained with."""
    # An adapter is saved with the tokenizer that it was trained with.
    for folder in (served.adapter_path, served.path):
        template, tokens = _template_in(folder) if folder else ("", {})
        if template:
            break
    else:
        return False
    # A place for thoughts has a name in the template. Most have none, and the probe renders it dozens of times.
    if not any(word in template.lower() for word in _THOUGHT_WORDS):
        return False
    from luthier.ml.inference.models.templates.thinking_probe import measured_format

    try:
        return measured_format(template, tokens, dict(served.template_options)) is not None
    except LuthierError:  # a template that fails is an error for requests to that model alone
        return False


def _template_in(folder: str) -> tuple[str, dict[str, str]]:
    config = _json(Path(folder) / "tokenizer_config.json")
    tokens = {name: config.get(name) for name in _TOKENS}
    # A token is a text, or an object with its text.
    words = {name: one.get("content") if isinstance(one, dict) else one for name, one in tokens.items()}
    known = {name: one for name, one in words.items() if isinstance(one, str)}
    template = _text(Path(folder) / "chat_template.jinja") or config.get("chat_template")
    return (template, known) if isinstance(template, str) else ("", known)


def _json(file: Path) -> dict[str, Any]:
    """The object in a file; empty where it is missing or damaged: loading the model reports that."""
    try:
        found = json.loads(_text(file))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(file: Path) -> str:
    try:
        changed_at = file.stat().st_mtime_ns
    except OSError:
        return ""
    return _read(str(file), changed_at)


@lru_cache(maxsize=256)
def _read(file: str, _changed_at: int) -> str:
    """Lists of models are asked for often, and their files rarely change."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def settled_template(path: str, asked: Literal["auto", "chat", "plain"]) -> Literal["auto", "chat", "plain"]:
    """`auto` as the kind that the folder of a model has; `auto` where its tokenizer cannot be read, and where only
    rendering shows it: templates of rerankers need not write conversations."""
    from luthier.ml.inference.models.templates.loaded_templates import names_pairs

    if asked != "auto":
        return asked
    folder = Path(path)
    if names_pairs(_template_in(path)[0]):
        return "auto"
    if (folder / "chat_template.jinja").is_file():
        return "chat"
    config = folder / "tokenizer_config.json"
    try:
        has_own = config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    except ValueError:  # the engine will report the error
        return "auto"
    return "chat" if has_own else "plain"
