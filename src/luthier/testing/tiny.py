"""Tiny models made offline: a random Llama with a real tokenizer, a reasoning model, and GGUF files.

Everything about the Llama is real (byte-level BPE with offsets, a chat template with tools, a safetensors folder);
only the weights are random. It replaces a base model in tests of data flow, where the quality of the answers does not
matter.

The thinker answers every prompt with the same thought and the same answer, overfitted in a few seconds; its template
is one of two that behave as those of makers do.

The GGUF files (a Llama and LoRA adapters) are written without a converter, laid out as llama.cpp's own converters do
it: it rotates neighbouring pairs where transformers rotates the two halves of a head, so the rows of the query and
key projections are reordered, and with them the rows of B of an adapter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.ml.inference.accelerator import seed_random
from luthier.ml.inference.models.loading import load_model, load_tokenizer
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)
_NUM_BYTES = 256
_NUM_HEADS, _NUM_KEY_VALUE_HEADS = 4, 2

# What the tokenizer learns its merges from. Own text; enough distinct words for a vocabulary of about 600.
_TEXT = """\
A luthier builds and repairs stringed instruments: violins, cellos, guitars and lutes.
The front of a violin is made of spruce, because spruce is light and stiff along the grain.
The back, the ribs and the neck are made of maple, which is harder and reflects the sound.
A small wooden post stands between the front and the back; moving it by a millimetre changes the tone.
Question: which wood is used for the front? Answer: spruce. Question: and for the back? Answer: maple.
The customer asked whether the repair was worth its price, and the luthier answered honestly.
def area(width, height): return width * height
def mean(values): return sum(values) / len(values)
for number in range(10): print(number, number * number)
SELECT name, price FROM instruments WHERE year > 1900 AND maker = 'unknown' ORDER BY price;
{"name": "get_weather", "arguments": {"city": "Cremona", "unit": "celsius"}}
{"role": "assistant", "content": "It is sunny in Cremona today, 24 degrees and no wind."}
You are a helpful assistant. Answer in one short sentence. Use a tool when you need one.
user asks, assistant answers, tool returns, system instructs.
Glue made from hide is weak against heat and moisture, so a joint can be opened again without harm.
Strings of gut sound warm and go out of tune; strings of steel sound bright and stay in tune.
Grüße aus München, naïve café, señor, 日本語, привет.
"""

# ChatML with tools. Turns are `<|im_start|>role\n...<|im_end|>\n`; a turn is never altered by a later one.
CHAT_TEMPLATE = """\
{%- set ns = namespace(first=0) -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages and messages[0].role in ('system', 'developer') -%}
{%- set ns.first = 1 -%}
{{- messages[0].content + '\\n' -}}
{%- endif -%}
{{- 'Tools, one a line:\\n' -}}
{%- for tool in tools -%}{{- (tool.function if tool.function is defined else tool) | tojson + '\\n' -}}{%- endfor -%}
{{- 'Call one by <call>{"name": ..., "arguments": {...}}</call>.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages[ns.first:] -%}
{{- '<|im_start|>' + ('system' if message.role == 'developer' else message.role) + '\\n' -}}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{%- if message.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<call>{"name": ' + call.function.name | tojson + ', "arguments": ' + call.function.arguments | tojson -}}
{{- '}</call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def make_tiny_model(
    folder: Path,
    *,
    vocabulary: int = 384,
    layers: int = 2,
    hidden: int = 32,
    seed: int = 0,
    chat: bool = True,
    context_length_tokens: int = 512,
) -> Path:
    """Write a tiny random Llama as a transformers folder and return the folder.

    Equal arguments give equal bytes. Weights are float32 with tied embeddings, 4 heads and 2 key-value heads.
    `chat=False` makes a base model: no chat template, end of text as the end token, as base models have it.

    Raises:
        RequestError: a vocabulary under 259 or over what the built-in text yields, or a width not divisible by 8.
    """
    if hidden % (2 * _NUM_HEADS):
        raise RequestError(
            f"hidden={hidden}", expected=f"a multiple of {2 * _NUM_HEADS} (heads of even width)", do="pass 32 or 64"
        )
    tokenizer = _make_tokenizer(vocabulary, chat=chat)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=_NUM_HEADS,
        num_key_value_heads=_NUM_KEY_VALUE_HEADS,
        max_position_embeddings=context_length_tokens,
        tie_word_embeddings=True,
        # The usual 0.02 makes so narrow a model repeat its last token forever.
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The caller's random state stays: making a model must not change what a test draws.
    with torch.random.fork_rng(devices=[]):
        seed_random(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _make_tokenizer(vocabulary: int, *, chat: bool) -> PreTrainedTokenizerFast:
    smallest = _NUM_BYTES + len(_SPECIAL_TOKENS)
    if vocabulary < smallest:
        raise RequestError(
            f"vocabulary={vocabulary}",
            expected=f"at least {smallest}: one token a byte and {len(_SPECIAL_TOKENS)} special ones",
            do="pass a larger vocabulary",
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS],
        show_progress=False,
    )
    # Special tokens come first in the vocabulary, then the 256 bytes, then merges.
    backend.train_from_iterator(_TEXT.splitlines(keepends=True), trainer)
    if backend.get_vocab_size() != vocabulary:
        raise RequestError(
            f"vocabulary={vocabulary}",
            expected=f"at most {backend.get_vocab_size()}: the built-in text yields no more merges",
            do="pass a smaller vocabulary",
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        # Chat models end a turn, base models a text: generation stops at this token.
        eos_token=END_OF_TURN if chat else END_OF_TEXT,
        pad_token=END_OF_TEXT,
        extra_special_tokens=list(_SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


THOUGHT: Final = "It is light."
ANSWER: Final = "Spruce."
WRITTEN: Final = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
"""What the model writes where its template leaves the thought to it; without the first line where it opens it."""

_TURNS: Final = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' and message.reasoning_content -%}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
"""
_SHUT: Final = "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}"
THINKING_TEMPLATE: Final = (
    _TURNS + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}" + _SHUT + "{%- endif -%}{%- endif -%}"
)
"""The model opens its thought, unless `enable_thinking` is false: then the prompt holds an empty one."""
OPENING_TEMPLATE: Final = (
    _TURNS
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    + _SHUT
    + "{%- else -%}{{- '<think>\\n' -}}{%- endif -%}{%- endif -%}"
)
"""The generation prompt opens the thought, unless `enable_thinking` is false."""

_QUESTIONS: Final = (
    "Which wood?", "Which wood is used for the front of a violin?", "Hi", "What comes after 205?",
    *(f"Which wood, of {number}?" for number in range(4)),
)  # fmt: skip
_STEPS: Final = 120


def make_tiny_thinker(
    folder: Path, template: str | None = THINKING_TEMPLATE, *, written: str = WRITTEN, context_length_tokens: int = 512
) -> Path:
    """Write the model as a transformers folder and return the folder.

    Args:
        folder: Where it goes.
        template: The chat template; None for the tiny model's own, which knows no thoughts.
        written: What the model has to write after the header of its turn; it learns what the generation prompt leaves
            to it.
        context_length_tokens: Its context.
    """
    make_tiny_model(folder, context_length_tokens=context_length_tokens)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    loaded = ChatTemplate.load(folder)
    rows = []
    for options in ({}, {"enable_thinking": False}):
        for question in _QUESTIONS:
            asked = Conversation(messages=(Message(role="user", content=question),))
            prompt = loaded.with_options(options).render(asked, add_generation_prompt=True)
            # What the generation prompt has begun: nothing, an open thought, or an empty one that is closed.
            begun = prompt.rpartition("assistant")[2].strip()
            rest = written[len("<think>\n") :] if begun == "<think>" else ANSWER if begun else written
            rows.append((loaded.ids(prompt), [*loaded.ids(rest), loaded.end_of_turn_ids[0]]))
    _overfit(folder, rows)
    return folder


def make_tiny_judge(folder: Path) -> Path:
    """Write a model that answers nearly every prompt with `1` or `0`, and return the folder.

    Its random weights decide which one: texts that differ get different scores, and the same text always the same one.
    """
    make_tiny_model(folder, seed=1)
    with quiet_transformers(), torch.no_grad():
        tokenizer = load_tokenizer(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        width = model.config.hidden_size
        draw = torch.Generator().manual_seed(2)  # gives both about equally often
        one, zero = (tokenizer.convert_tokens_to_ids(digit) for digit in "10")
        # The direction that a digit leaves in the hidden state is that of the end token: an answer has one digit.
        ending, choice = torch.linalg.qr(torch.randn(width, 2, generator=draw)).Q.T
        model.model.embed_tokens.weight[[one, zero]] = 50 * ending
        head = torch.zeros_like(model.lm_head.weight)
        # Opposite rows: whichever is positive is above all other tokens, which are 0.
        head[one], head[zero], head[tokenizer.eos_token_id] = 4 * choice, -4 * choice, ending
        model.lm_head.weight = torch.nn.Parameter(head)
        model.config.tie_word_embeddings = False
        model.save_pretrained(folder)
    return folder


def _overfit(folder: Path, rows: list[tuple[list[int], list[int]]]) -> None:
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        seed_random(0)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        # ids, labels: [rows, width]. -100 is ignored by the loss: prompts and padding are not learned. Padding is on
        # the right, so a causal model needs no attention mask for the tokens before it.
        width = max(len(prompt) + len(rest) for prompt, rest in rows)
        ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
        for row, (prompt, rest) in enumerate(rows):
            ids[row, : len(prompt) + len(rest)] = torch.tensor([*prompt, *rest])
            labels[row, len(prompt) : len(prompt) + len(rest)] = torch.tensor(rest)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model.train()
        for _ in range(_STEPS):
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval().save_pretrained(folder)


def write_tiny_gguf(
    folder: Path, target: Path, *, pre: str = "gpt-2", precision: Literal["float32", "bfloat16"] = "bfloat16"
) -> Path:
    """Write a Llama in a transformers folder with a byte-level tokenizer as a GGUF of 32 bits a weight; returns target.

    Args:
        folder: The transformers folder.
        target: The file to write.
        pre: The name of llama.cpp's pre-tokenizer.
        precision: What the weights are rounded to before.
    """
    model, tokenizer = load_model(folder, dtype=precision, attention="sdpa"), load_tokenizer(folder)
    config = model.config
    out = gguf.GGUFWriter(target, "llama")
    out.add_license("cc0-1.0")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_scaling(out, config)
    out.add_rope_dimension_count(config.head_dim)
    out.add_vocab_size(config.vocab_size)
    bpe = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    specials = set(tokenizer.all_special_ids)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokenizer.convert_ids_to_tokens(list(range(config.vocab_size))))
    # 3 is CONTROL, 1 is NORMAL in llama.cpp's enumeration of token types.
    out.add_token_types([3 if number in specials else 1 for number in range(config.vocab_size)])
    out.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_pad_token_id(tokenizer.pad_token_id)
    out.add_add_bos_token(False)
    if tokenizer.chat_template:
        out.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        # Tied embeddings: llama.cpp takes the head from `token_embd`.
        if name != "lm_head.weight":
            out.add_tensor(
                names.get_name(name, try_suffixes=(".weight",)), _in_pairs(name, tensor.float().numpy(), config)
            )
    return _written(out, target)


def _add_scaling(out: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    """Write how a model scales its rotary frequencies, as llama.cpp's converter does."""
    rope = config.rope_parameters
    if rope["rope_type"] in ("linear", "yarn"):
        out.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        out.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        out.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        # One divisor a frequency: 1 for short waves, the factor for long ones, and in between a mean of the two rates.
        waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, config.head_dim, 2) / config.head_dim)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        share = np.clip((rope["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
        out.add_tensor("rope_freqs.weight", (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32))


def write_tiny_gguf_adapter(folder: Path, adapter: Path, target: Path) -> Path:
    """Write a LoRA adapter in a PEFT folder over that base as a GGUF in 32 bits; returns target."""
    config = load_model(folder, dtype="float32", attention="sdpa").config
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    out = gguf.GGUFWriter(target, "llama")
    out.add_type("adapter")
    out.add_string(gguf.Keys.Adapter.TYPE, "lora")
    out.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, array in load_file(adapter / "adapter_model.safetensors").items():
        plain, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        values = array.astype(np.float32)
        if side == "lora_B":
            values = _in_pairs(plain, values, config)
        out.add_tensor(f"{names.get_name(plain)}.weight.{side.lower()}", values)
    return _written(out, target)


def _in_pairs(name: str, array: NDArray[np.float32], config: PretrainedConfig) -> NDArray[np.float32]:
    for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if kind in name:
            # [heads * d, in] -> [heads, 2, d / 2, in] -> [heads, d / 2, 2, in] -> [heads * d, in]: halves become
            # neighbouring pairs.
            array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
    return np.ascontiguousarray(array)


def _written(out: gguf.GGUFWriter, target: Path) -> Path:
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return target
