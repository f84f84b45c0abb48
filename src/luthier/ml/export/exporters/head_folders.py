"""Models with a task head as folders for other libraries: sentence-transformers, and classifiers of transformers.

    sentence_transformers     the body, the pooling, then a Dense layer (the head) or Normalize (embed): every kind
    sequence_classification   AutoModelForSequenceClassification: classify, regress and rank. The classes of causal
                              models have no bias: it is moved into the bias of the last norm where the model has one,
                              and the model is refused where it has none

Temperature, scale and offset become part of the head's matrix and bias, so that readers need not know them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.core.task_head import HEAD_DOCUMENT, TaskHead
from luthier.ml.export.exporters.companions import write_companions
from luthier.ml.export.exporters.merged import Width, whole_model
from luthier.ml.export.exporters.older_config import write_older_names
from luthier.ml.inference.models.architecture import context_tokens, language_model, load_config, num_embeddings
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.own_reranker import pair_template
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.ml.inference.models.task_head import TaskHeadLayer, load_task_head
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MODULES: Final = "sentence_transformers.models"
_PROBES: Final = ("The front is spruce.", "¿De qué color es el ébano?\n\n17 + 25 = 42")


def folded(head: TaskHead, layer: TaskHeadLayer) -> tuple[Tensor, Tensor]:
    """Matrix [outputs, width] and bias [outputs] in float32, including temperature, scale and offset.

    They give logits (classify, rank), or the number in the unit of the training rows.
    """
    weight, bias = layer.weight.detach().float(), layer.bias.detach().float()
    if head.kind == "regress":
        return weight * head.scale, bias * head.scale + head.offset
    return weight / head.temperature, bias / head.temperature


def write_sentence_transformers(
    source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path
) -> list[str]:
    """Write a folder that `SentenceTransformer(folder)` opens.

    Vectors have length 1 (embed). Classes, relevance and numbers are the output of a Dense layer: logits, to which the
    reader applies softmax or sigmoid, or the number.

    Raises:
        RequestError: a trained prompt, or an architecture that `AutoModel` cannot open.
        NotFoundError, ModelSourceError: base, adapter or head is missing or damaged.
    """
    del tools
    head, layer = load_task_head(source.folder)
    body = _body(source, precision, progress)
    with quiet_transformers():
        body.save_pretrained(str(target))
    write_older_names(target, Path(source.base_path))
    notes = head_companions(source, target, head, context_tokens(body.config))
    width = head.width
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modes = {"cls_token": False, "mean_tokens": False, "max_tokens": False, "mean_sqrt_len_tokens": False}
    modes |= {"weightedmean_tokens": False, "lasttoken": False}
    modes["mean_tokens" if head.kind == "embed" and head.pooling == "mean" else "lasttoken"] = True
    pooling = {f"pooling_mode_{name}": value for name, value in modes.items()}
    _write(target / "1_Pooling" / "config.json", {"word_embedding_dimension": width, "include_prompt": True} | pooling)
    if layer is None:
        modules.append(("2_Normalize", "Normalize"))
        # The library opens every listed folder, and this module has no settings.
        _write(target / "2_Normalize" / "config.json", {})
    else:
        modules.append(("2_Dense", "Dense"))
        weight, bias = folded(head, layer)
        settings = {"in_features": width, "out_features": head.num_outputs, "bias": True}
        _write(
            target / "2_Dense" / "config.json", settings | {"activation_function": "torch.nn.modules.linear.Identity"}
        )
        tensors = {"linear.weight": weight.contiguous(), "linear.bias": bias.contiguous()}
        save_file(tensors, target / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    _write(
        target / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"{_MODULES}.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ],
    )
    _write(
        target / "sentence_bert_config.json",
        {
            "max_seq_length": min(head.max_tokens or sys.maxsize, context_tokens(body.config) - 1),
            "do_lower_case": False,
        },
    )
    prompts = {"query": head.query_prompt, "document": head.document_prompt} if head.kind == "embed" else {}
    _write(
        target / "config_sentence_transformers.json",
        {
            "prompts": prompts,
            # The prompt that Luthier uses by default.
            "default_prompt_name": "document" if prompts and head.document_prompt else None,
            "similarity_fn_name": "cosine",
        },
    )
    return notes


def write_sequence_classification(
    source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path
) -> list[str]:
    """Write a folder that `AutoModelForSequenceClassification.from_pretrained(folder)` opens.

    Raises:
        RequestError: a trained prompt, an architecture without such a class, or a head whose bias has no place in it.
        NotFoundError, ModelSourceError: base, adapter or head is missing or damaged.
    """
    del tools
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    head, layer = load_task_head(source.folder)
    assert layer is not None
    body = _body(source, precision, progress)
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(body.config), None)
    weight, bias = folded(head, layer)
    config = body.config
    labels = list(head.labels) or [head.kind]
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = _problem_type(head)
    with torch.device("meta"):
        model = None if kind is None else kind(config)
    place = getattr(model, "score", None)
    if model is None or not isinstance(place, nn.Linear) or place.weight.shape != weight.shape:
        raise RequestError(
            f"{source.name}: transformers has no class with a head over {type(body).__name__}",
            expected="an architecture of AutoModelForSequenceClassification with one linear layer, called score",
            do="export with --to sentence_transformers or --to onnx",
        )
    if place.bias is None:
        _move_bias(source, body, weight, bias)
    setattr(model, model.base_model_prefix, body)
    score = nn.Linear(head.width, head.num_outputs, bias=place.bias is not None, dtype=_DTYPES[precision])
    with torch.no_grad():
        score.weight.copy_(weight)
        if score.bias is not None:
            score.bias.copy_(bias)
    model.score = score
    notes = head_companions(source, target, head, context_tokens(body.config))
    # Rows are padded on the right, and the last token before the padding is used.
    config.pad_token_id = load_tokenizer(target).pad_token_id
    with quiet_transformers():
        model.save_pretrained(str(target))
    write_older_names(target, Path(source.base_path))
    return notes


def _body(source: ExportSource, precision: ExportPrecision, progress: Progress) -> PreTrainedModel:
    """The model body with the adapter merged."""
    from transformers import MODEL_MAPPING, PreTrainedModel

    with progress.task("Merging the adapter" if source.adapter_path else "Reading the weights", 1, "steps") as task:
        body = language_model(whole_model(source, cast("Width", precision)))
        task.advance()
    if not isinstance(body, PreTrainedModel) or MODEL_MAPPING.get(type(body.config), None) is not type(body):
        raise RequestError(
            f"{source.name}: AutoModel does not open {type(body).__name__} by itself",
            expected="a plain language model",
            do="export with --to onnx, or serve it with luthier serve",
        )
    body.config._attn_implementation = "sdpa"
    return body


def head_companions(source: ExportSource, target: Path, head: TaskHead, context: int, gives: str = "") -> list[str]:
    """Write tokenizer, template and the head's document; returns what users must know.

    The tokenizer makes the same tokens of a text as in training.

    Args:
        source: The model.
        target: The folder of the export.
        head: The head of the model.
        context: Context length of the model in tokens.
        gives: The output of the export; empty for that of the head's matrix.

    Raises:
        RequestError: A reranker reads pairs as the tokenizer of its base joins them, which no single text shows.
    """
    turns = write_companions(source, target)
    if head.pair_format != "turns" and pair_template(turns.template.tokenizer) is None:
        raise RequestError(
            f"{source.name}: it reads pairs as the tokenizer of its base joins them, which no single text shows",
            expected="a reranker whose chat template writes the pair",
            do="serve it with luthier serve, or put the format of its card into chat_template.jinja of the base",
        )
    # It configures generation, which this model does not do.
    (target / "generation_config.json").unlink(missing_ok=True)
    settings_file = target / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    settings["padding_side"] = "right"
    settings["pad_token"] = _padding(turns.template, num_embeddings(load_config(source.base_path)))
    settings["model_max_length"] = context - 1
    _write(settings_file, settings)
    if not _same_tokens(target, head, turns.template):
        # The template writes the beginning-of-text token, so the tokenizer must not add it again.
        settings |= {"add_bos_token": False, "add_eos_token": False}
        _write(settings_file, settings)
        backend = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
        backend["post_processor"] = _ending(turns.template, head.end_text) if head.end_text else None
        (target / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False), encoding="utf-8", newline="\n")
    _write(target / HEAD_DOCUMENT, head.model_dump(mode="json"))
    return _notes(head, gives)


def _padding(template: ChatTemplate, known: int) -> str:
    """A token that never ends a text: transformers classifiers find the last token that is not padding.

    Args:
        template: The template, with the tokenizer.
        known: Rows of the embedding matrix; a token beyond it could not be read.
    """
    tokenizer, ends = template.tokenizer, {template.tokenizer.eos_token_id, *template.end_of_turn_ids}

    def is_usable(token: str) -> bool:
        number: Any = tokenizer.convert_tokens_to_ids(token)
        return bool(number not in ends and number < known)

    if tokenizer.pad_token is not None and is_usable(tokenizer.pad_token):
        return str(tokenizer.pad_token)
    others = [token for token in tokenizer.all_special_tokens if is_usable(token)]
    return str((others or [tokenizer.eos_token])[-1])


def _same_tokens(folder: Path, head: TaskHead, template: ChatTemplate) -> bool:
    tokenizer = load_tokenizer(folder)
    texts = _PROBES if head.kind == "embed" else tuple(_prompt_text(template, text) for text in _PROBES)
    return all(tokenizer(text).input_ids == template.ids(text + head.end_text) for text in texts)


def _ending(template: ChatTemplate, text: str) -> dict[str, Any]:
    """What a tokenizer.json says to have one token put behind every text."""
    number = int(template.tokenizer.convert_tokens_to_ids(text))
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": text, "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": text, "type_id": 0}}]
    token = {"id": text, "ids": [number], "tokens": [text]}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {text: token}}


def _prompt_text(template: ChatTemplate, text: str) -> str:
    """A text as the only user turn, up to the start of an answer."""
    turn = Conversation(messages=(Message(role="user", content=text),))
    return template.render(turn, add_generation_prompt=True)


def _move_bias(source: ExportSource, body: PreTrainedModel, weight: Tensor, bias: Tensor) -> None:
    """Move a head's bias into the bias of the last norm: W (s + d) = W s + b with W d = b.

    Raises:
        RequestError: the last norm has no bias, and the head has one.
    """
    if not bias.any():
        return
    norms = [one for _, one in body.named_children() if isinstance(one, nn.LayerNorm) and one.bias is not None]
    shift = torch.linalg.lstsq(weight.double(), bias.double()[:, None]).solution[:, 0] if len(norms) == 1 else None
    if shift is None or not torch.allclose(weight.double() @ shift, bias.double(), atol=1e-6):
        raise RequestError(
            f"{source.name}: its head has a bias, for which transformers' classifier over {type(body).__name__} has "
            "no place",
            expected="an architecture whose last norm has a bias (GPT-2, OPT and the like)",
            do="export with --to sentence_transformers or --to onnx, which contain the head unchanged",
        )
    with torch.no_grad():
        norms[0].bias.add_(shift.to(norms[0].bias.dtype))


def _problem_type(head: TaskHead) -> str:
    if head.kind == "classify":
        return "multi_label_classification" if head.is_multi_label else "single_label_classification"
    return "regression" if head.kind == "regress" else "multi_label_classification"


def _notes(head: TaskHead, given: str) -> list[str]:
    """What users must know before they use it."""
    if head.kind == "embed":
        return []
    turns = "messages, add_generation_prompt=True"
    if head.kind == "rank":
        turns = "[the query as user, the document as assistant]"
        if head.pair_format != "turns":
            before = f"{json.dumps(head.query_prompt, ensure_ascii=False)} as system, " if head.query_prompt else ""
            opens = ", add_generation_prompt=True" if head.pair_format == "own_opened" else ""
            turns = f"[{before}the query as query, the document as document]{opens}"
    gives = {"classify": "logits: apply softmax", "rank": "a logit: apply sigmoid", "regress": "the number"}[head.kind]
    if head.is_multi_label:
        gives = "logits: apply sigmoid"
    return [f"it reads the text of tokenizer.apply_chat_template({turns}, tokenize=False), and gives {given or gives}"]


def _write(path: Path, document: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
