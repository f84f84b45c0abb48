"""An adapter as files that PEFT loads, the same bytes each time."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from luthier.core.digest import sha256_file

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors by the names of PEFT's files, without those of the base."""
    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return tensors


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: PeftConfig, base_path: Path) -> str:
    """Write both files of an adapter folder; returns the digest of the weights."""
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    saved = copy.deepcopy(config)
    saved.inference_mode = True
    saved.base_model_name_or_path = str(base_path)
    saved.save_pretrained(str(folder))
    document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name in ("target_modules", "feedforward_modules", "target_parameters"):
        # PEFT keeps names in a set, whose order changes from process to process.
        if isinstance(document.get(name), list):
            document[name] = sorted(document[name])
    (folder / CONFIG).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sha256_file(folder / WEIGHTS)
