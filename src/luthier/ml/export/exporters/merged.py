"""Merged weights: one transformers folder that needs neither the base nor PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, cast

from transformers import PreTrainedModel

from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.core.task_head import is_task_model
from luthier.ml.export.exporters.companions import Turns, write_companions
from luthier.ml.export.exporters.older_config import write_older_names
from luthier.ml.inference.models.architecture import PROCESSOR_FILES
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.merging import check_room, merged_model
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.ml.inference.models.structure import read_json

Width = Literal["float32", "float16", "bfloat16"]


def write(source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path) -> list[str]:
    """Write the model as safetensors in that precision, with tokenizer, template and generation config.

    An adapter is merged in float32 and rounded once; a model without one is rounded from its own files. Memory: 4 bytes
    per weight.

    Args:
        source: the model.
        target: an empty folder.
        precision: `float32`, `bfloat16` or `float16`.
        progress: shows the work.
        tools: the folder of third-party programs; not used here.

    Returns:
        Sentences that users must know.

    Raises:
        RequestError: a trained prompt, or weights beyond the range of float16.
        NotFoundError, ModelSourceError: base or adapter is missing or damaged.
    """
    del tools
    turns = write_model(source, target, cast("Width", precision), progress)
    complete_folder(source, target)
    return list(turns.notes)


def write_model(source: ExportSource, target: Path, width: Width, progress: Progress) -> Turns:
    """The same for formats that start from a transformers folder; returns how the export writes and ends turns."""
    title = "Writing the weights" if source.adapter_path is None else "Merging the adapter"
    with progress.task(title, 2, "steps") as task:
        model = whole_model(source, width)
        task.advance()
        # A check on this machine may have set eager attention (`use_proved_attention`), which is not part of the model.
        model.config._attn_implementation = "sdpa"
        with quiet_transformers():
            model.save_pretrained(str(target))
        task.advance()
    return finish_folder(source, target)


def finish_folder(source: ExportSource, target: Path) -> Turns:
    """Write tokenizer, template and end tokens beside saved weights; returns how the export writes and ends turns."""
    config_file = target / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # a place on this machine
    turns = write_companions(source, target)
    config["eos_token_id"] = turns.stop_ids[0] if len(turns.stop_ids) == 1 else list(turns.stop_ids)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    return turns


def complete_folder(source: ExportSource, target: Path) -> None:
    """Add what other programs read beside a whole model: older names in its config, and how images become inputs."""
    base = Path(source.base_path)
    write_older_names(target, base)
    for name in PROCESSOR_FILES:
        if (base / name).is_file():
            settings = read_json(base / name)
            settings.pop("chat_template", None)  # the file with the template of training is used
            text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
            (target / name).write_text(text, encoding="utf-8", newline="\n")


def whole_model(source: ExportSource, width: Width) -> PreTrainedModel:
    """The base with the merged adapter, or the whole model, in that precision on the CPU."""
    if source.adapter_path is not None:
        return merged_model(
            source.base_path,
            source.adapter_path,
            dtype=width,
            quantisation=source.quantisation,
            packed_from=source.precision,
        )
    writes = not is_task_model(source.base_path)
    if width == "float16":
        model = load_model(source.base_path, dtype="float32", attention="sdpa", writes=writes)
        # float16 ends at 65,504: a larger weight would silently become infinite.
        check_room(model)
        return model.half()
    return load_model(source.base_path, dtype=width, attention="sdpa", writes=writes)
