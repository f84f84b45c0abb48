"""A text-classification model from a transformers folder, as a function from texts to probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForSequenceClassification

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.ml.inference.models.weights import check_config, weight_files

_TOXIC: Final = ("toxic", "toxicity", "hate", "hateful", "hate speech", "hatespeech", "offensive", "abusive", "abuse")
_BATCH_TEXTS: Final = 16
_MAX_TOKENS: Final = 512
_MAX_CHARACTERS: Final = 20_000

TextClassifier = Callable[[Sequence[str]], list[float]]


def load_text_classifier(folder: Path, *, toxic_label: str | None = None) -> TextClassifier:
    """A function that returns the toxicity probability of each text, on the CPU, independent of the order of texts.

    Probabilities of mutually exclusive labels are summed; for other models (multi-label, or with a single output) the
    largest counts. Texts are truncated to the model's context, at most 512 tokens.

    Args:
        folder: of the model.
        toxic_label: the label that means toxic; None uses the labels with such names (toxic, hate, offensive ...).

    Raises:
        NotFoundError: no such folder.
        ModelSourceError: it is not a text classifier in safetensors without custom code; or no label means toxic, or
            `toxic_label` is not one of its labels.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"{folder}: no such folder", expected="the folder of a text-classification model", do="check the path"
        )
    check_config(folder)
    weight_files(folder)
    model, tokenizer = _load(folder), load_tokenizer(folder)
    toxic = _toxic_labels(folder, {int(i): str(name) for i, name in model.config.id2label.items()}, toxic_label)
    is_multi_label = model.config.num_labels == 1 or model.config.problem_type == "multi_label_classification"
    most_tokens = min(_MAX_TOKENS, tokenizer.model_max_length, _positions(model))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id

    def classify(texts: Sequence[str]) -> list[float]:
        # Sorted by length, to minimise padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found = [0.0] * len(texts)
        for start in range(0, len(order), _BATCH_TEXTS):
            places = order[start : start + _BATCH_TEXTS]
            cut = [texts[place][:_MAX_CHARACTERS] for place in places]
            ids = tokenizer(cut, truncation=True, max_length=most_tokens)["input_ids"]
            # A text without tokens is scored as one padding token, alone or in a batch.
            inputs = tokenizer.pad({"input_ids": [row or [tokenizer.pad_token_id] for row in ids]}, return_tensors="pt")
            with torch.inference_mode():
                logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()
            scores = logits.sigmoid()[:, toxic].amax(-1) if is_multi_label else logits.softmax(-1)[:, toxic].sum(-1)
            for place, score in zip(places, scores.clamp(0, 1).tolist(), strict=True):
                found[place] = score
        return found

    return classify


def _load(folder: Path) -> Any:
    try:
        with quiet_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report below catches any mismatch
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        first = "\n".join(str(error).strip().splitlines()[:4])
        raise ModelSourceError(
            f"{folder}: the text classifier does not load: {type(error).__name__}: {first}",
            expected="a text-classification model that transformers loads from safetensors, without custom code",
            do="choose another model, or pull it again",
        ) from error
    wrong = sorted(str(item) for kind in ("missing_keys", "mismatched_keys") for item in report.get(kind) or ())
    if wrong:
        raise ModelSourceError(
            f"{folder}: weights are missing or of the wrong shape: {', '.join(wrong[:5])} ({len(wrong)} in all)",
            expected="a model that was trained to classify texts: with a classification head among its weights",
            do="choose a text-classification model; a base model has no such head and would answer at random",
        )
    return model.eval()


def _toxic_labels(folder: Path, labels: dict[int, str], toxic_label: str | None) -> list[int]:
    if toxic_label is not None:
        found = [index for index, name in labels.items() if name == toxic_label]
    else:
        plain = {index: name.casefold().replace("_", " ").replace("-", " ").strip() for index, name in labels.items()}
        found = [index for index, name in plain.items() if name in _TOXIC]
    if found:
        return found
    names = ", ".join(labels.values())
    if toxic_label is not None:
        raise ModelSourceError(
            f"{folder} has no label {toxic_label!r}", expected=f"one of its labels: {names}", do="correct the label"
        )
    raise ModelSourceError(
        f"{folder} has the labels {names}, and none of these names says toxic",
        expected=f"a label named like one of {', '.join(_TOXIC)}",
        do="name the toxic one with --toxic-label; see the model's card",
    )


def _positions(model: Any) -> int:
    """The number of usable positions; RoBERTa and its variants reserve the first ones for padding."""
    num = getattr(model.config, "max_position_embeddings", None) or _MAX_TOKENS
    is_offset = model.config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")
    return int(num) - (int(model.config.pad_token_id or 0) + 1 if is_offset else 0)
