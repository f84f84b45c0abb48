"""How makers of models write conversations: their chat templates, and tokenizers that fit these.

The templates are read from the public data beside the project (`shared_data`); without it every model gets ChatML.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from tests.fixtures.shared_answers import shared_text
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from luthier.ml.inference.models.gguf.worker import one_reader
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.testing.tiny import CHAT_TEMPLATE

VOCABULARY: Final = 400
"""Tokens before the special ones of a maker: every byte, and merges."""

# Own text; what chat templates write between turns is in it, so that tokens may reach over line ends.
_TEXT: Final = """\
You are a helpful assistant. Answer the question in one short sentence.\n\nWhich wood is the front of a violin made of?
\n\nThe front of a violin is made of spruce, the back is made of maple.\n\nUser: and the glue?\n\nAssistant: hide glue.
{"type": "function", "function": {"name": "price", "description": "The price of a wood", "parameters": {}}}\n
{"name": "price", "arguments": {"wood": "spruce"}}\n\nThe price is 12.\n\nThinking: spruce is light, so it is spruce.
Grüße aus München, naïve café, señor, 日本語, привет. 12 + 34 = 46. system user assistant tool function developer\n
"""

# What templates mark turns and parts with. The first kind is a special token, the second an ordinary one of the
# vocabulary that is kept whole.
_SPECIAL: Final = re.compile(
    r"<\|[^|<>{}\s]+\|>|<｜[^｜<>{}]+｜>|<\|[a-z_\"]+>|<[a-z_\"]+\|>|\[/?[A-Z][A-Z_]+\]|\[gMASK\]|<sop>"
    r"|<(?:start|end)_of_(?:turn|image)>"
)
_KEPT_WHOLE: Final = re.compile(r"</?(?:think|tool_call|tool_response|arg_key|arg_value)>")


@dataclass(frozen=True, slots=True)
class Maker:
    """A maker's template and the tokens around it.

    template: a file of `chat_templates`; None for ChatML. eos: the tokenizer's; stops: the generation config's, where
    these are more. vocabulary: bytes or pieces (SentencePiece), made here; else a file of `vocabularies`. adds_bos:
    whether the tokenizer puts bos before every text by itself. strips: whether special tokens, but for bos and
    eos, swallow the space and the line ends behind them.
    """

    template: str | None
    eos: str
    pad: str
    bos: str | None = None
    stops: tuple[str, ...] = ()
    vocabulary: str = "bytes"
    adds_bos: bool = False
    strips: bool = False


_ENDOFTEXT, _IM_END = "<|endoftext|>", "<|im_end|>"
_DEEPSEEK_BOS, _DEEPSEEK_EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_LLAMA_STOPS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


def _chatml(template: str | None, vocabulary: str = "bytes") -> Maker:
    return Maker(template, eos=_IM_END, pad=_ENDOFTEXT, stops=(_IM_END, _ENDOFTEXT), vocabulary=vocabulary)


def _llama(template: str) -> Maker:
    return Maker(template, "<|eot_id|>", "<|finetune_right_pad_id|>", "<|begin_of_text|>", _LLAMA_STOPS, adds_bos=True)


def _gemma(template: str, turn_end: str) -> Maker:
    return Maker(template, "<eos>", "<pad>", "<bos>", ("<eos>", turn_end), "pieces", adds_bos=True)


def _mistral(template: str, vocabulary: str = "bytes") -> Maker:
    return Maker(template, "</s>", "<pad>", "<s>", vocabulary=vocabulary, adds_bos=True)


def _deepseek(template: str, vocabulary: str = "bytes") -> Maker:
    return Maker(template, _DEEPSEEK_EOS, _DEEPSEEK_EOS, _DEEPSEEK_BOS, vocabulary=vocabulary, adds_bos=True)


def _phi(vocabulary: str) -> Maker:
    stops = ("<|end|>", "<|assistant|>", _ENDOFTEXT)
    return Maker("microsoft-Phi-3.5-mini-instruct.jinja", _ENDOFTEXT, _ENDOFTEXT, "<s>", stops, vocabulary, strips=True)


MAKERS: Final[dict[str, Maker]] = {
    "chatml": _chatml(None),
    "chatml_pieces": _chatml(None, "pieces"),
    "chatml_gpt2": _chatml(None, "ggml-vocab-gpt-2.gguf"),
    "deepseek_coder": _deepseek("deepseek-ai-DeepSeek-V3.1.jinja", "ggml-vocab-deepseek-coder.gguf"),
    "deepseek_r1": _deepseek("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja"),
    "deepseek_v31": _deepseek("deepseek-ai-DeepSeek-V3.1.jinja"),
    "gemma2": _gemma("google-gemma-2-2b-it.jinja", "<end_of_turn>"),
    "gemma3": _gemma("google-gemma-3.jinja", "<end_of_turn>"),
    "gemma4": _gemma("google-gemma-4-31B-it.jinja", "<turn|>"),
    "glm46": Maker("GLM-4.6.jinja", _ENDOFTEXT, _ENDOFTEXT, stops=(_ENDOFTEXT, "<|user|>", "<|observation|>")),
    "gpt_oss": Maker(
        "openai-gpt-oss-120b.jinja", "<|return|>", _ENDOFTEXT, "<|startoftext|>", ("<|return|>", _ENDOFTEXT, "<|call|>")
    ),
    "granite33": Maker("ibm-granite-granite-3.3-2B-Instruct.jinja", "<|end_of_text|>", "<|end_of_text|>"),
    "hermes3": Maker(
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", _IM_END, "<|end_of_text|>", "<|begin_of_text|>", (),
        adds_bos=True,
    ),
    "kimi_k2": Maker("Kimi-K2-Instruct.jinja", _IM_END, "[PAD]", "[BOS]"),
    "lfm25": Maker("LFM2.5-Instruct.jinja", _IM_END, "<|pad|>", "<|startoftext|>", adds_bos=True),
    "llama31": _llama("meta-llama-Llama-3.1-8B-Instruct.jinja"),
    "llama32": _llama("meta-llama-Llama-3.2-3B-Instruct.jinja"),
    "ministral3": _mistral("mistralai-Ministral-3-14B-Reasoning-2512.jinja"),
    "mistral_nemo": _mistral("mistralai-Mistral-Nemo-Instruct-2407.jinja"),
    "mistral_small": _mistral("Mistral-Small-3.2-24B-Instruct-2506.jinja"),
    "mistral_spm": _mistral("mistralai-Mistral-Nemo-Instruct-2407.jinja", "ggml-vocab-llama-spm.gguf"),
    "nemotron3": Maker("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja", _IM_END, "<unk>", "<s>", ("</s>", _IM_END)),
    "phi35": _phi("ggml-vocab-phi-3.gguf"),
    "phi35_small": _phi("pieces"),
    "qwen25": _chatml("Qwen-Qwen2.5-7B-Instruct.jinja"),
    "qwen3": _chatml("Qwen-Qwen3-0.6B.jinja"),
    "qwen3_2507": _chatml("Qwen3-Instruct-2507.jinja"),
    "qwen3_coder": _chatml("Qwen3-Coder.jinja"),
    "qwen3_vl": _chatml("Qwen3-VL.jinja"),
    "qwen35": _chatml("Qwen3.5-4B.jinja"),
    "qwq": _chatml("Qwen-QwQ-32B.jinja"),
}  # fmt: skip


def shared_folder() -> Path:
    """Where the public data lies, as the fixture `shared_data` has it; it need not be there."""
    return Path(os.environ.get("LUTHIER_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def template_text(maker: Maker) -> str:
    """The maker's template, or ChatML where the public data is not there."""
    file = shared_folder() / "chat_templates" / str(maker.template)
    return file.read_text(encoding="utf-8") if maker.template and file.is_file() else CHAT_TEMPLATE


@lru_cache(maxsize=64)
def _tokenizer_text(name: str) -> str:
    """The whole of a maker's tokenizer as JSON: it takes seconds for a real vocabulary."""
    maker = MAKERS[name]
    backend = _backend(maker.vocabulary)
    template = template_text(maker)
    own = [token for token in (maker.bos, maker.eos, maker.pad, *maker.stops) if token is not None]
    if template == CHAT_TEMPLATE or "tool_use" in str(maker.template):
        own += [_ENDOFTEXT, "<|im_start|>", _IM_END]
    special = dict.fromkeys([*own, *_SPECIAL.findall(template)])
    backend.add_special_tokens(
        [
            AddedToken(
                token, special=True, normalized=False, rstrip=maker.strips and token not in (maker.bos, maker.eos)
            )
            for token in special
        ]
    )
    kept = dict.fromkeys(token for token in _KEPT_WHOLE.findall(template) if token not in special)
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in kept])
    if maker.adds_bos and maker.bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{maker.bos}:0 $A:0",
            pair=f"{maker.bos}:0 $A:0 {maker.bos}:1 $B:1",
            special_tokens=[(maker.bos, backend.token_to_id(maker.bos))],
        )
    return str(backend.to_str())


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a maker, with the template in it."""
    maker = MAKERS[name]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_text(name)),
        eos_token=maker.eos,
        pad_token=maker.pad,
        bos_token=maker.bos,
        clean_up_tokenization_spaces=False,
    )
    text = template_text(maker)
    # one that is for tools alone is published beside a default one
    tokenizer.chat_template = (
        {"default": CHAT_TEMPLATE, "tool_use": text} if "tool_use" in str(maker.template) else text
    )
    return tokenizer


def stop_ids(name: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What ends a generation, as the maker's generation config says it."""
    maker = MAKERS[name]
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in maker.stops or (maker.eos,)]


def _backend(vocabulary: str) -> Tokenizer:
    file = shared_folder() / "vocabularies" / vocabulary
    if vocabulary.endswith(".gguf") and file.is_file():
        # Seconds each: one process of a test run reads a vocabulary for all.
        return Tokenizer.from_str(shared_text(f"vocabulary {file}", lambda: _published(file)))
    return _trained("pieces" if vocabulary == "pieces" else "bytes")


def _published(file: Path) -> str:
    """The tokenizer in a GGUF file, as JSON."""
    with quiet_transformers(), one_reader():
        read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return str(read.backend_tokenizer.to_str())


def _trained(kind: Literal["bytes", "pieces"]) -> Tokenizer:
    """A small vocabulary of one's own: byte-level BPE, or SentencePiece's BPE with its fallback to bytes."""
    trained = Tokenizer(models.BPE(byte_fallback=kind == "pieces"))
    if kind == "bytes":
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.decoder = decoders.ByteLevel()
        first, alphabet = [], pre_tokenizers.ByteLevel.alphabet()
    else:
        trained.normalizer = normalizers.Replace(" ", "▁")
        trained.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        first, alphabet = (
            [f"<0x{byte:02X}>" for byte in range(256)],
            sorted(set(map(chr, range(33, 127))) | {"▁", "\n"}),
        )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY + (len(alphabet) if first else 0),
        initial_alphabet=alphabet,
        special_tokens=first,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained.train_from_iterator(_TEXT.splitlines(keepends=True), trainer)
    if not first:
        return trained
    return _as_published(trained)


def _as_published(trained: Tokenizer) -> Tokenizer:
    """As a SentencePiece vocabulary is published: no token is special, and a piece is made of any two parts of it."""
    document = json.loads(trained.to_str())
    # the bytes were special to the trainer alone: as special tokens they would be found in texts
    document["added_tokens"] = []
    model = document["model"]
    pieces = dict.fromkeys("".join(merge) for merge in model["merges"])
    splits = [(piece[:place], piece[place:]) for piece in pieces for place in range(1, len(piece))]
    model["merges"] = [split for split in splits if set(split) <= model["vocab"].keys()]
    return Tokenizer.from_str(json.dumps(document))
