"""axolotl's keys for how the base model and its tokenizer are loaded, and what of the model is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from luthier.core.system.files import expanded
from luthier.features.recipes.imports.translation import Key, Translation, becomes, harmless, missing

_ENDS: Final = {
    "aya": "<|END_OF_TURN_TOKEN|>", "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek_v3": "<｜end▁of▁sentence｜>",
    "exaone": "[|endofturn|]", "exaone4": "[|endofturn|]", "falcon_h1": "<|im_end|>", "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>", "gemma3n": "<end_of_turn>", "gemma4": "<turn|>", "gemma4_unified": "<turn|>",
    "jamba": "<|eom|>", "llama3": "<|eot_id|>", "llama3_2_vision": "<|eot_id|>", "llama4": "<|eot|>",
    "nemotron_h": "<|im_end|>", "phi_3": "<|end|>", "phi_35": "<|end|>", "phi_4": "<|im_end|>",
    "qwen2_vl": "<|im_end|>", "qwen3": "<|im_end|>", "qwen3_5": "<|im_end|>", "qwen_25": "<|im_end|>",
}  # fmt: skip
"""What templates of axolotl that never read `eos_token` write behind an answer."""
_LLAMA_2: Final = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_OWN_TOKENS: Final = (
    (re.compile(r"(codellama/CodeLlama|openlm-research/open_llama|(meta-llama|NousResearch)/Llama-2)-?\w.*"), _LLAMA_2),
)  # fmt: skip
"""Names on the hub of models whose tokenizer is known to have these tokens."""
_TOKENS: Final = ("eos_token", "bos_token", "unk_token")
_WHOLE_TEXT_MODEL: Final = frozenset(("model.language_model", "lm_head", "embed_tokens"))

MODEL_KEYS: Final[Mapping[str, Key]] = MappingProxyType({
    **{f"special_tokens.{name}": becomes("base_model", note="the model's own; others are refused") for name in _TOKENS},
    "quantize_moe_experts": becomes("method.quantisation", note="matrices of the experts that are in one tensor keep "
                                    "16 bits"),
    "unfrozen_parameters": becomes("method.name", note="full: the whole language model; others are refused"),
    "model_quantization_config": becomes("base_model", note="with dequantize: the model of 16 bits"),
    "model_quantization_config_kwargs.dequantize": becomes("base_model", note="true; false is refused"),
    "tokenizer_use_mistral_common": becomes("data.template", note="true: chat"),
    **harmless("padding is never learned", "special_tokens.pad_token"),
    **harmless("the end of each answer is learned, as the chat template writes it", "eot_tokens"),
    **harmless("it pads the embeddings with rows that belong to no token, for speed; here the model keeps its own",
               "resize_token_embeddings_to_32x"),
    **harmless("how embeddings of added tokens begin, and none are added", "mean_resizing_embeddings"),
    **harmless("PEFT itself finds how a matrix is stored", "lora_fan_in_fan_out"),
    **harmless("axolotl 0.18.0 does not read it; for the loss of routers see objective.router_aux_loss",
               "model_config"),
    **harmless("axolotl 0.18.0 has no such key, and trains as without it", "eta_min", "adam_eps", "full_finetune",
               "base_model_ignore_patterns"),
    **missing("tokens in addition to the tokenizer's own", "special_tokens.additional_special_tokens", "tokens",
              "added_tokens_overrides", off=([], {})),
    **missing("rows of the embeddings are removed", "shrink_embeddings"),
    **missing("another tokenizer than the model's own", "tokenizer_config", off=("",)),
    **missing("training begins with random weights", "reinit_weights"),
    **missing("the adapter begins with the error of the quantisation (LoftQ)", "peft.loftq_config.loftq_bits"),
    **missing("experts as separate matrices, of a base that is stored with them", "llama4_linearized_experts"),
    **missing("weights of 1.58 bits", "use_onebitllms"),
    **missing("weights that stay in 4 or 8 bits in their own format while an adapter is trained", "nvfp4_merge_aware",
              "nvfp4_merge_aware_start_step", "dsv4_fp4_grouped_mode", "dsv4_fp8_nonexpert_mode",
              off=(False, "", 0)),
    **missing("4 bits are nf4 with double quantisation here", "bnb_config_kwargs", "gptq",
              off=(False, {}, {"bnb_4bit_use_double_quant": True}, {"bnb_4bit_quant_type": "nf4"},
                   {"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_type": "nf4"})),
})  # fmt: skip


def put_model_keys(t: Translation) -> None:
    """Translate these keys, after the rows and the method.

    Args:
        t: The translation, with the recipe's rows, template and method.
    """
    _put_tokens(t)
    _put_weights(t)
    _put_mistral_common(t)


def _put_mistral_common(t: Translation) -> None:
    """Conversations that mistral-common writes, which the model's own chat template writes here."""
    key = "tokenizer_use_mistral_common"
    if not t.take(key, False):
        t.same(key, "off")
    elif t.recipe.get("data.template") == "plain" or t.recipe.get("objective.name") == "pretraining":
        t.same(key, "plain texts are read without a chat template")
    else:
        t.put("data.template", "chat", key, note="the model's own chat template and tokenizer.json")
        if "data.template" not in t.settled:
            t.note(
                f"{key}: mistral-common writes the conversations there, and the model's own chat template does here. "
                "It may add a system message to rows without one; a model without tokenizer.json and "
                "chat template is refused by `luthier plan`"
            )


def _put_tokens(t: Translation) -> None:
    """Tokens with a role: those that the tokenizer has in any case, or that the chat template writes."""
    own, template, chosen = _own_tokens(t), str(t.given.get("chat_template")), {**t.recipe, **t.settled}
    if template not in _ENDS:
        template = str(t.given.get("datasets.chat_template"))
    for name in _TOKENS:
        key = f"special_tokens.{name}"
        if (token := t.take(key)) is None:
            continue
        if own.get(name) == token:
            t.same(key, "the tokenizer's own")
        elif name == "eos_token" and _ENDS.get(template) == token and chosen.get("data.template") == "chat":
            t.same(key, "the end of each answer is learned, as the chat template writes it")
        else:
            known = own.get(name)
            note = (
                f"the tokenizer's own is {known}, and another one is not chosen here"
                if known
                else "whether it is the tokenizer's own is not known here, and another one is not chosen"
            )
            t.refuse(key, note)


def _own_tokens(t: Translation) -> Mapping[str, str]:
    """The tokens of the base model's tokenizer by their role; none where they are not known."""
    name = str(t.given.get("base_model", ""))
    if "base_model" in t.settled:
        return {}
    if not (folder := t.folder / expanded(name)).is_dir() or not t.reads_files:
        return next((tokens for pattern, tokens in _OWN_TOKENS if pattern.fullmatch(name)), {})
    file = folder / "tokenizer_config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # the plan reads the folder and says what is wrong with it
    return {role: token for role in _TOKENS if (token := _content(found.get(role)))} if isinstance(found, dict) else {}


def _content(token: Any) -> str:
    """The text of a token, which tokenizers save alone or with its settings."""
    return str(token.get("content") or "") if isinstance(token, dict) else str(token or "")


def _put_weights(t: Translation) -> None:
    """How weights are stored while they are trained, and which of them are."""
    if t.take("quantize_moe_experts", False):
        if bits := {**t.recipe, **t.settled}.get("method.quantisation"):
            t.put("method.quantisation", bits, "quantize_moe_experts")
            t.note(
                "quantize_moe_experts: experts whose matrices are in one tensor keep 16 bits here. They are computed "
                "more exactly and take more memory, which the plan counts"
            )
    else:
        t.same("quantize_moe_experts", "off")
    kind, kwargs_key = t.take("model_quantization_config"), "model_quantization_config_kwargs.dequantize"
    if t.take(kwargs_key, False):
        for key in ("model_quantization_config", kwargs_key):
            t.same(
                key, "weights are dequantised to 16 bits; a base that is stored with fewer is refused by `luthier plan`"
            )
    elif kind is not None:
        note = "weights stay quantised without dequantize: true; see method.name: qlora"
        t.refuse("model_quantization_config", note, set_by="base_model")
    patterns = t.take("unfrozen_parameters") or []
    if not patterns:
        t.same("unfrozen_parameters", "none is named, so that none is frozen by it")
        return
    names = {re.sub(r"^\^|(\.?\*)?\$?$", "", str(pattern)) for pattern in patterns}
    is_whole = {"model.language_model", "lm_head"} <= names <= _WHOLE_TEXT_MODEL
    if t.recipe.get("method.name") != "full":
        t.refuse("unfrozen_parameters", "beside an adapter it decides about the adapter's weights, too")
    elif is_whole:
        t.same("unfrozen_parameters", "the whole language model; parts for images and sound are never trained")
    else:
        t.refuse("unfrozen_parameters", "parts of the model are frozen or trained by name")
