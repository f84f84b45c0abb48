"""The adapter alone, for engines with one base and many adapters: as PEFT files, and as GGUF if possible.

llama.cpp applies a GGUF adapter to a GGUF base without merging. It computes W x + (alpha / rank) B (A x) with one
alpha for the whole file and the rank of each pair of matrices (src/llama-adapter.h). If modules have scales of their
own (rsLoRA, ranks by AdaLoRA), the remaining factor is multiplied into B. In files of the Llama family the rows of q
and k are ordered differently than in transformers, as their rotary embedding pairs neighbours. The rows of their B are
reordered too; A, which reads the layer's input, is unchanged.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.core.conversation import AS_THEY_ARE
from luthier.core.errors import RequestError
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.ml.export.exporters.companions import Turns, write_companions
from luthier.ml.export.exporters.gguf import MODELFILE, context_in_ollama, modelfile
from luthier.ml.inference.models.catalog import entries
from luthier.ml.inference.models.structure import read_json

_PREFIX: Final = "base_model.model."
_PAIR: Final = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")


class NotPlainError(Exception):
    """The adapter cannot be written as GGUF; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class _Family:
    """The llama.cpp name of a transformers architecture. permutes: the rows of q and k are reordered."""

    arch: gguf.MODEL_ARCH
    permutes: bool


_FAMILIES: Final = {
    "LlamaForCausalLM": _Family(gguf.MODEL_ARCH.LLAMA, permutes=True),
    "MistralForCausalLM": _Family(gguf.MODEL_ARCH.LLAMA, permutes=True),
    "Qwen2ForCausalLM": _Family(gguf.MODEL_ARCH.QWEN2, permutes=False),
    "Qwen3ForCausalLM": _Family(gguf.MODEL_ARCH.QWEN3, permutes=False),
    "GemmaForCausalLM": _Family(gguf.MODEL_ARCH.GEMMA, permutes=False),
    "Gemma2ForCausalLM": _Family(gguf.MODEL_ARCH.GEMMA2, permutes=False),
    "Gemma3ForCausalLM": _Family(gguf.MODEL_ARCH.GEMMA3, permutes=False),
}


def write_gguf_lora(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], base_path: Path, file: Path, *, name: str
) -> None:
    """Write a PEFT adapter as GGUF in float32.

    Args:
        tensors: content of `adapter_model.safetensors`, A [rank, in] and B [out, rank] of each module.
        config: content of `adapter_config.json`.
        base_path: folder of the base, for its dimensions.
        file: the file to write.
        name: display name of the model.

    Raises:
        NotPlainError: llama.cpp cannot represent the adapter.
    """
    base = read_json(base_path / "config.json")
    family = _family(base)
    pairs = _pairs(tensors, config)
    # llama.cpp divides by the rank in the file, the first dimension of A, regardless of the config.
    alphas = {module: _scale(module, config) * a.shape[0] for module, (a, _) in pairs.items()}
    # The most common value: most B then need no rescaling and are written as trained.
    alpha = _mode(list(alphas.values()))
    names = gguf.get_tensor_name_map(family.arch, int(base["num_hidden_layers"]))
    writer = gguf.GGUFWriter(str(file), gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for module, (a, b) in pairs.items():
        place = names.get_name(module + ".weight", try_suffixes=(".weight",))
        if place is None or not place.startswith("blk."):
            raise NotPlainError(f"it changes {module}, which llama.cpp adapts in no file")
        # llama.cpp multiplies by alpha / rank: a module's deviation from it is multiplied into B, [out, rank].
        up = b.float() * (alphas[module] / alpha)
        if family.permutes and (heads := _heads(module, base)):
            up = _as_neighbours(up, heads)
        writer.add_tensor(f"{place}.lora_a", a.float().contiguous().numpy())
        writer.add_tensor(f"{place}.lora_b", up.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _family(base: Mapping[str, Any]) -> _Family:
    architecture = (base.get("architectures") or ["an unnamed architecture"])[0]
    if architecture not in _FAMILIES:
        raise NotPlainError(f"the names of {architecture} in llama.cpp are not known here")
    return _FAMILIES[architecture]


def _pairs(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the module name in the base."""
    if config.get("peft_type") != "LORA":
        raise NotPlainError(f"it is not a low-rank adapter but {config.get('peft_type')}")
    for key, what in (
        ("use_dora", "lengths of rows (DoRA)"),
        ("lora_bias", "biases"),
        ("modules_to_save", "whole layers"),
    ):
        if config.get(key):
            raise NotPlainError(f"it has {what}, for which that file has no place")
    if config.get("bias", "none") != "none":
        raise NotPlainError("it has biases, for which that file has no place")
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _PAIR.match(name.removeprefix(_PREFIX))
        if match is None:
            raise NotPlainError(f"it holds {name}, for which that file has no place")
        found.setdefault(match["module"], {})[match["side"]] = tensor
    if incomplete := [module for module, sides in found.items() if len(sides) < 2]:
        raise NotPlainError(f"{incomplete[0]} has only one of its two matrices")
    return {module: (sides["A"], sides["B"]) for module, sides in found.items()}


def _scale(module: str, config: Mapping[str, Any]) -> float:
    """The factor by which PEFT multiplies B A."""
    rank = _of_module(module, config.get("rank_pattern"), config["r"])
    alpha = _of_module(module, config.get("alpha_pattern"), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else float(rank))


def _of_module(module: str, patterns: Mapping[str, Any] | None, default: float) -> float:
    """The value of the first pattern that matches the module, as in PEFT: by the whole name, or its last parts."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(default)


def _mode(values: list[float]) -> float:
    return max(sorted(set(values)), key=values.count)


def _heads(module: str, base: Mapping[str, Any]) -> int:
    """The number of heads in the rows of this module; 0 if the order is unchanged."""
    if module.endswith(".q_proj"):
        return int(base["num_attention_heads"])
    if module.endswith(".k_proj"):
        return int(base.get("num_key_value_heads") or base["num_attention_heads"])
    return 0


def _as_neighbours(rows: Tensor, num_heads: int) -> Tensor:
    """Rows [heads * width, r] with the two halves of each head, which transformers rotates together, interleaved."""
    width = rows.shape[0] // num_heads
    # [heads, 2, width / 2, r] to [heads, width / 2, 2, r]: row i of the first half next to row i of the second.
    halves = rows.reshape(num_heads, 2, width // 2, rows.shape[1])
    return torch.swapaxes(halves, 1, 2).reshape(rows.shape)


WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
GGUF: Final = "adapter.gguf"
_BASE: Final = "base.gguf"
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check(source: ExportSource, progress: Progress, tools: Path) -> None:
    """Reject a model without an adapter.

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
    """Write the PEFT folder with the base's tokenizer and template; `adapter.gguf` and a Modelfile if it can be made.

    The base is named by its public name, not by its path on this machine.

    Returns:
        What users must know, such as the reason for a missing `adapter.gguf`.

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
        # After the source's config is copied: its base path is a folder of this machine.
        config |= _base_of(source)
        (target / CONFIG).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n"
        )
        turns = write_companions(source, target)
        warnings += _notes(source, turns)
        task.advance()
        try:
            write_gguf_lora(tensors, config, Path(source.base_path), target / GGUF, name=source.name)
        except NotPlainError as reason:
            warnings.append(f"there is no {GGUF} for llama.cpp: {reason}; export with --to gguf to run it there")
        else:
            text = _modelfile(config, turns, context_in_ollama(source))
            (target / MODELFILE).write_text(text, encoding="utf-8", newline="\n")
        task.advance()
    return warnings


def _modelfile(config: Mapping[str, Any], turns: Turns, context_tokens: int | None) -> str:
    """A Modelfile that applies `adapter.gguf` to its base, whose GGUF file is not part of this export."""
    name = str(config["base_model_name_or_path"])
    beginning = (
        f"# {_BASE} is the base model {name} as GGUF, which is not in this folder. To make it:\n"
        f"#     luthier export BASE_MODEL --to gguf --output base && cp base/model.gguf {_BASE}\n"
        f"# Then: ollama create my-model -f {MODELFILE}\n"
    )
    return beginning + modelfile(_BASE, turns, adapter=GGUF, context_tokens=context_tokens)


def _notes(source: ExportSource, turns: Turns) -> list[str]:
    """What users who load it over its base must know: most engines take the base's template and plain weights."""
    notes = list(turns.notes)
    # The plain layout was asked for although the base has a template.
    is_other = turns.template.kind == "plain" and bool(turns.template.tokenizer.chat_template)
    if source.template_options or source.opted_turns != AS_THEY_ARE or is_other:
        where = "vllm serve --chat-template chat_template.jinja, llama-server --jinja --chat-template-file"
        notes.append(f"the chat template of this folder, not the base's, writes turns as in training: {where}")
    if source.quantisation is not None:
        notes.append(
            f"it was trained and proved over a base packed as {source.quantisation}, and answers differently over the "
            "same base in plain weights: --to merged has what packing has rounded"
        )
    return notes


def _base_of(source: ExportSource) -> dict[str, str | None]:
    """The base as PEFT searches for it: a hub repository with its revision, or a readable name."""
    entry = entries().get(source.base_name)
    hub = entry.hub if entry is not None else None
    if source.base_name.startswith("hub:"):
        hub = source.base_name.removeprefix("hub:")
    if not hub:
        return {"base_model_name_or_path": Path(source.base_name).name, "revision": None}
    repository, _, revision = hub.partition("@")
    return {"base_model_name_or_path": repository, "revision": revision or None}
