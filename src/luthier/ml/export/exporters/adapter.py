"""The adapter alone, for engines that hold one base and many adapters: as PEFT files, and as GGUF where it can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import RequestError
from luthier.core.opted_turns import AS_THEY_ARE
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.ml.export.exporters.companions import Turns, write_companions
from luthier.ml.export.exporters.gguf_lora import NotPlainError, write_gguf_lora

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
GGUF: Final = "adapter.gguf"
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check(source: ExportSource, progress: Progress, tools: Path) -> None:
    """Refuse a model without an adapter.

    Raises:
        RequestError: it has none.
    """
    del progress, tools
    if source.adapter_path is None:
        raise RequestError(
            f"{source.name} has no adapter: it is a whole model",
            expected="a run that trained an adapter",
            do="export it with --to merged, or --to gguf",
        )


def write(source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path) -> list[str]:
    """Write the PEFT folder with the base's tokenizer and template beside it, and `adapter.gguf` where one can be made.

    The base is named as others know it, not by its place on this machine.

    Returns:
        What users must know, such as why there is no `adapter.gguf`.

    Raises:
        RequestError: a model without an adapter.
    """
    check(source, progress, tools)
    assert source.adapter_path is not None
    folder, warnings = Path(source.adapter_path), []
    with progress.task("Writing the adapter", 2, "steps") as task:
        tensors = {name: x.to(_DTYPES[precision]) for name, x in load_file(folder / WEIGHTS).items()}
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        # After the copy of the source's config: its base path is a folder of this machine.
        config |= _base_of(source)
        (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        warnings += _notes(source, write_companions(source, target))
        task.advance()
        try:
            write_gguf_lora(tensors, config, Path(source.base_path), target / GGUF, name=source.name)
        except NotPlainError as reason:
            warnings.append(f"there is no {GGUF} for llama.cpp: {reason}; export with --to gguf to run it there")
        task.advance()
    return warnings


def _notes(source: ExportSource, turns: Turns) -> list[str]:
    """What whoever loads it over its base must know of turns: most engines take the base's chat template."""
    if source.template_options or source.opted_turns != AS_THEY_ARE:
        where = "vllm serve --chat-template chat_template.jinja, llama-server --jinja --chat-template-file"
        return [*turns.notes, f"the chat template of this folder, not the base's, writes turns as in training: {where}"]
    return list(turns.notes)


def _base_of(source: ExportSource) -> dict[str, str | None]:
    """The base as PEFT looks for it: a repository of the hub with its revision, or a name that a person knows."""
    if not source.base_name.startswith("hub:"):
        return {"base_model_name_or_path": Path(source.base_name).name, "revision": None}
    repository, _, revision = source.base_name.removeprefix("hub:").partition("@")
    return {"base_model_name_or_path": repository, "revision": revision or None}
