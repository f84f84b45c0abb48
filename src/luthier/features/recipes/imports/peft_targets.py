"""The matrices that PEFT gives an adapter where a file names none: by the architecture of the model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from luthier.core.system.files import expanded
from luthier.features.recipes.imports.translation import Translation

_QUERIES_AND_VALUES: Final = ("q_proj", "v_proj")
TARGETS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "stablelm",
                     "opt", "gptj", "gpt_neo"), _QUERIES_AND_VALUES),
    **dict.fromkeys(("gpt_neox", "falcon", "bloom"), ("query_key_value",)),
    "gpt2": ("c_attn",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
}  # fmt: skip
"""`model_type` of config.json -> what PEFT 0.21 chooses for LoRA."""
_FAMILIES: Final = (
    (r"Qwen/Qwen(1\.5|2|2\.5|3)-((Math|Coder)-)?[\d.]+B(?!.*-A[\d.]+B)(-.+)?", "qwen2"),
    (r"(meta-llama|NousResearch)/(Meta-)?Llama-(2|3|3\.\d)-\d+[bB](?!.*Vision)(-.+)?", "llama"),
    (r"mistralai/Mistral-7B-.+", "mistral"),
    (r"HuggingFaceTB/SmolLM2?-\d+(\.\d+)?[MB](-.+)?", "llama"),
    (r"deepseek-ai/DeepSeek-R1-Distill-(Qwen|Llama)-\d+(\.\d+)?B", "llama"),
    (r"google/gemma-(2-)?\d+b(-it)?", "gemma"),
    (r"facebook/opt-.+", "opt"),
    (r"EleutherAI/(pythia|gpt-neox)-.+", "gpt_neox"),
)
"""Names on the hub -> an architecture with the same matrices as theirs."""


def default_targets(t: Translation, key: str) -> tuple[str, ...]:
    """The matrices that PEFT chooses for the model of a file; empty where its architecture is not known.

    Args:
        t: The translation, with the keys of the file.
        key: Their key of the base model.
    """
    from luthier.ml.inference.models import catalog

    given = t.settled.get("base_model")
    base, name = (t.folder, str(t.given.get(key, ""))) if given is None else (t.target, str(given))
    name = re.sub(r"^hub:|@.*$", "", name)
    if t.reads_files and (folder := base / expanded(name)).is_dir():
        return TARGETS.get(_model_type(folder), ())
    if (known := catalog.entries().get(name)) is not None:
        return TARGETS.get(str(known.config.get("model_type")), ())
    # The whole name has to match: a variant such as a mixture of experts has other matrices.
    family = next((kind for pattern, kind in _FAMILIES if re.fullmatch(pattern, name)), "")
    return TARGETS.get(family, ())


def _model_type(folder: Path) -> str:
    try:
        found: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # the plan reads the folder and says what is wrong with it
    return str(found.get("model_type", "")) if isinstance(found, dict) else ""
