"""A tiny random Llama with a real tokenizer: a base model that is made offline in well under a second.

Everything about it is real (byte-level BPE with offsets, a chat template with tools, a safetensors folder); only the
weights are random. It replaces a base model in tests of data flow, where the quality of the answers does not matter.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from luthier.core.errors import RequestError
from luthier.ml.inference.models.quiet import quiet_transformers

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
        # The usual 0.02 makes so narrow a model repeat its last token for ever.
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The caller's random state stays: making a model must not change what a test draws.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
