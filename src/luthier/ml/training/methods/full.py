"""Full fine-tuning: every weight is trained that the class of the model does not freeze."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from luthier.core.ids import sha256_document, sha256_file
from luthier.ml.inference.models.architecture import (
    PROCESSOR_FILES,
    TEMPLATES_FOLDER,
    TOKENIZER_FILES,
    frozen_parameters,
)
from luthier.ml.training.methods.base_dropout import published_dropout
from luthier.ml.training.methods.protocol import PlainMethod

_COMPANIONS = (*TOKENIZER_FILES, "chat_template.jinja", "generation_config.json", *PROCESSOR_FILES)


class Full(PlainMethod):
    """Trains all weights but those that the model's class freezes; the result is a complete model folder."""

    folder_name: ClassVar[str] = "model"

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:  # noqa: ARG002
        """Every parameter is trained that may be; nothing is random."""
        module: nn.Module = model.requires_grad_(True)
        frozen = frozen_parameters(model)
        for name, parameter in module.named_parameters():
            # They steer what has no gradient, such as the choice of experts: weight decay alone would move them.
            if name in frozen:
                parameter.requires_grad_(False)
        return module

    def save(self, model: nn.Module, base_path: Path, folder: Path) -> str:
        """Write a transformers folder: the trained weights with the base's tokenizer, template and other settings."""
        assert isinstance(model, PreTrainedModel)
        attention = model.config._attn_implementation
        # The written config must not name our own attention, which other programs do not know.
        model.config._attn_implementation = "sdpa"
        with published_dropout(model):
            model.save_pretrained(str(folder))
        model.config._attn_implementation = attention
        for name in _COMPANIONS:
            if (base_path / name).is_file() and not (folder / name).exists():
                shutil.copyfile(base_path / name, folder / name)
        # Templates for tools, which transformers reads from a folder of their own.
        if (base_path / TEMPLATES_FOLDER).is_dir():
            shutil.copytree(base_path / TEMPLATES_FOLDER, folder / TEMPLATES_FOLDER, dirs_exist_ok=True)
        weights = sorted(folder.glob("*.safetensors"))
        return (
            sha256_file(weights[0]) if len(weights) == 1 else sha256_document({w.name: sha256_file(w) for w in weights})
        )
