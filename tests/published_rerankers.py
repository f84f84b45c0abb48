"""Tiny rerankers in the folders in which such models are published: a layer for the score, or the logits of tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from luthier.ml.inference.models.loading import load_tokenizer

YES, NO = 301, 302
"""Tokens of the tiny tokenizer that stand for relevant and irrelevant."""
PAIR_TEMPLATE = (
    "{%- set task = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first"
    " | default('Find the document.') -%}"
    "<|im_start|>system\n{{ task }}<|im_end|>\n<|im_start|>user\n"
    "Query: {{ (messages | selectattr('role', 'eq', 'query') | first).content }}\n"
    'Document: {{ (messages | selectattr("role", "eq", "document") | first).content }}<|im_end|>\n'
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)


def make_reranker(
    base: Path, folder: Path, form: Literal["score", "yes_no", "yes", "named"], *, template: bool = False
) -> Path:
    """Write a copy of a tiny model as a published reranker.

    Args:
        base: The tiny model.
        folder: Does not exist yet.
        form: `score` has a layer for it; `yes_no` and `yes` name tokens in a part of sentence-transformers, `named` in
            config.json.
        template: Whether its chat template writes pairs, and no conversation.
    """
    shutil.copytree(base, folder)
    config: Any = AutoConfig.from_pretrained(base)
    if form == "score":
        (folder / "model.safetensors").unlink()
        config.num_labels = 1
        config.pad_token_id = load_tokenizer(base).pad_token_id or 0
        torch.manual_seed(7)
        model: Any = AutoModelForSequenceClassification.from_config(config)
        model.model.load_state_dict(AutoModel.from_pretrained(base, dtype=torch.float32).state_dict())
        with torch.no_grad():
            model.score.weight.normal_()
        model.save_pretrained(folder)
    elif form == "named":
        tokenizer = load_tokenizer(base)
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        words = [tokenizer.decode([one]) for one in (NO, YES)]
        settings |= {"classifier_from_token": words, "method": "from_2_way_softmax"}
        (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    else:
        parts = [{"idx": 0, "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
        kind = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
        parts.append({"idx": 1, "path": "1_LogitScore", "type": kind})
        (folder / "modules.json").write_text(json.dumps(parts), encoding="utf-8")
        (folder / "1_LogitScore").mkdir()
        tokens = {"true_token_id": YES, "false_token_id": NO if form == "yes_no" else None}
        (folder / "1_LogitScore" / "config.json").write_text(json.dumps(tokens), encoding="utf-8")
    if template:
        tokenizer = load_tokenizer(base)
        tokenizer.chat_template = PAIR_TEMPLATE
        tokenizer.save_pretrained(folder)
    return folder
