"""The transformers class of a model folder, its language model, and its distinct kinds of layers.

A folder is a causal language model, or an image-text model as published (`Gemma3ForConditionalGeneration`): a config
with a `text_config` among others, different weight names, and towers for images and audio. Such a model is loaded,
trained and saved in its published form, so that the result loads wherever the original did; only its language model is
trained. The class follows from transformers' config mapping and the config's `architectures`, never from the name of a
model family.

torch and transformers are imported by the functions, not by this module.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ModelSourceError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""How images, sound and video become inputs. Without them other programs do not load a model with such towers."""
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""What transformers may load a tokenizer from. Older folders have no tokenizer.json, and vocab.json alone does not
load without merges.txt."""
TEMPLATES_FOLDER: Final = "additional_chat_templates"
"""The folder of chat templates beside the first one, such as one for tools."""
_TOWERS: Final = ("vision_config", "audio_config")
# The number of positions has several names where transformers does not map them to the first.
_CONTEXTS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "context_length",
)


def load_config(path: str | Path) -> PreTrainedConfig:
    """The config of a local transformers folder.

    Raises:
        ModelSourceError: no config.json, or an architecture that this version of transformers does not support.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ModelSourceError(
            f"{folder} has no config.json",
            expected="a transformers folder: config.json says what the model looks like",
            do="pull the model again, or point to the folder that contains config.json",
        )
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, PreTrainedConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise _unknown(f"{folder}/config.json", error) from error
    assert isinstance(config, PreTrainedConfig)
    return config


def config_of(entries: Mapping[str, Any]) -> PreTrainedConfig:
    """The config described by the entries of a config.json, including `model_type`.

    Raises:
        ModelSourceError: transformers does not know such a description.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, PreTrainedConfig

    values = dict(entries)
    kind = values.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind, **values)
    except (ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise _unknown(f"model_type {kind!r}", error) from error
    assert isinstance(config, PreTrainedConfig)
    return config


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a config that describes the language model: the config itself for most models.

    Raises:
        ModelSourceError: it describes several, and does not say which one generates the answers.
    """
    try:
        return config.get_text_config(decoder=True)
    except ValueError as error:
        raise _unknown(f"config of model_type {config.model_type!r}", error) from error


def context_tokens(config: PreTrainedConfig) -> int:
    """The longest text that a model supports, in tokens; `sys.maxsize` if unlimited.

    State-space models and models whose attention decays with distance have no such number in their config.
    """
    text = text_config(config)
    for name in _CONTEXTS:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return sys.maxsize


def num_embeddings(config: PreTrainedConfig) -> int:
    """Rows of the input embedding, which are the usable token ids; `sys.maxsize` where the config has no number."""
    value = getattr(text_config(config), "vocab_size", None)
    return value if isinstance(value, int) and value > 0 else sys.maxsize


def padding_id(model: PreTrainedModel, asked: int | None) -> int:
    """The id that pads rows, whose states are never read: `asked`, or 0 where the model has no embedding for it.

    Some configs write -1 for none, and some tokenizers name a padding token for which no embedding was ever added.
    """
    num_embeddings = int(model.get_input_embeddings().weight.shape[0])
    return asked if asked is not None and 0 <= asked < num_embeddings else 0


def is_composite(config: PreTrainedConfig) -> bool:
    """Whether the config describes other parts besides a language model, such as an image tower."""
    return text_config(config) is not config or any(name in config.sub_configs for name in _TOWERS)


def auto_class(config: PreTrainedConfig) -> Any:
    """The auto class of transformers that maps the config to its model: the causal one, otherwise the image-text one.

    Both may support a composite config. Then `architectures`, which transformers writes into every saved folder, names
    the class that the weights were saved from; without it the image-text class is used, as published.

    Raises:
        ModelSourceError: neither supports it, or it is an encoder-decoder model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    kinds = [AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM]
    known = [kind for kind in kinds if type(config) in kind._model_mapping]
    if not known or config.is_encoder_decoder:
        why = "an encoder and a decoder" if config.is_encoder_decoder else "no causal or image-text model"
        raise ModelSourceError(
            f"model_type {config.model_type!r} is {why} of transformers",
            expected="a model that continues the text that it is given: a causal or an image-text model",
            do="choose another model",
        )
    saved = set(config.architectures or ())
    for kind in known:
        if any(one.__name__ in saved for one in _classes(kind, config)):
            return kind
    # Without `architectures`: the causal class would silently drop the towers, so the full class is used.
    if text_config(config) is not config and known[0] is AutoModelForCausalLM and len(known) > 1:
        return known[1]
    return known[0]


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class with which a folder with this config is loaded.

    Raises:
        ModelSourceError: it is not a causal or image-text model of transformers, or it is an encoder-decoder model.
    """
    classes = _classes(auto_class(config), config)
    saved = set(config.architectures or ())
    return next((one for one in classes if one.__name__ in saved), classes[0])


def empty_model(config: PreTrainedConfig, *, device: str = "meta", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model with this config, with random weights on `device`, or without weights on torch's meta device.

    Args:
        config: of the model.
        device: "meta" builds the modules without weights.
        dtype: of its weights; None uses that of the config.

    Raises:
        ModelSourceError: it is not a causal or image-text model, or the library cannot build it (a package is missing).
    """
    import torch

    from luthier.ml.inference.models.quiet import quiet_transformers
    from luthier.ml.inference.models.unfilled import Unfilled

    kind = auto_class(config)
    chosen = {} if dtype is None else {"dtype": dtype}
    try:
        with torch.device(device), Unfilled(), quiet_transformers():
            model: PreTrainedModel = kind.from_config(config, trust_remote_code=False, **chosen)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, AssertionError) as error:
        raise _unknown(f"a model of model_type {config.model_type!r}", error) from error
    if device == "meta":
        # Building on the meta device does not tie shared weights, which would count them twice.
        model.tie_weights()
    return model


def frozen_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Names of the parameters that the model's own class freezes, such as the biases by which experts are chosen.

    A model that was read from a folder has lost that: transformers makes trainable parameters of all that it reads.
    """
    made = empty_model(model.config)
    return frozenset(name for name, parameter in made.named_parameters() if not parameter.requires_grad)


def causal_model(model: PreTrainedModel) -> PreTrainedModel:
    """The innermost module that computes logits of text: the model itself, or the causal model inside it.

    Llama 4 as published contains a complete causal model with its head next to its tower.
    """
    inner = model.get_decoder()
    if inner is model or not _has_head(inner):
        return model
    found: PreTrainedModel = inner
    return found


def language_model(model: PreTrainedModel) -> nn.Module:
    """The module that computes hidden states of text: everything between the ids and the output head."""
    from transformers import PreTrainedModel

    outer = causal_model(model)
    body: nn.Module = outer.get_decoder()
    if (body is outer and _has_head(outer)) or not isinstance(body, PreTrainedModel):
        # `get_decoder` of some models returns the model itself, or a head of that name (ModernBERT's decoder): the body
        # is then the child that is a model.
        body = next((child for child in outer.children() if isinstance(child, PreTrainedModel)), body)
    return body


def outside_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the modules of a composite model that do not process text: its towers and their projectors.

    They are frozen and get no adapter unless requested. Empty for a plain language model.
    """
    if not is_composite(model.config):
        return ()
    inside = {id(language_model(model)), id(model.get_output_embeddings())}
    found: list[str] = []

    def walk(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            own = f"{prefix}{name}"
            if id(child) in inside:
                continue
            # The language model is somewhere below: only its siblings are outside.
            if any(id(part) in inside for part in child.modules()):
                walk(f"{own}.", child)
            elif any(True for _ in child.parameters()):
                found.append(own)

    walk("", model)
    return tuple(found)


def _has_head(module: Any) -> bool:
    return hasattr(module, "get_output_embeddings") and module.get_output_embeddings() is not None


def _classes(kind: Any, config: PreTrainedConfig) -> tuple[type[PreTrainedModel], ...]:
    found = kind._model_mapping[type(config)]
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)


def _unknown(what: str, error: Exception) -> ModelSourceError:
    return ModelSourceError(
        f"{what} does not load: {' '.join(str(error).split())[:200]}",
        expected="a configuration that transformers knows, without custom code",
        do="pull the model again; if it stays, it needs another version of transformers",
    )


_FEWEST_LAYERS: Final = 2


def layers_of(base: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """The list of a model's layers, its parent module and its name; None if there is no single list."""
    from torch import nn

    body = language_model(base)
    num = getattr(text_config(base.config), "num_hidden_layers", None)
    for parent in body.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == num:
                return parent, name, child
    return None


def prefix_length(base: PreTrainedModel, layers: nn.ModuleList) -> int:
    """The number of leading layers that contain one of each kind."""
    kinds = [(_kind(layer), *said) for layer, said in zip(layers, _said_of_layers(base, len(layers)), strict=True)]
    # Up to the last first occurrence of a kind; at least two layers, so that one feeds another.
    return max(min(_FEWEST_LAYERS, len(kinds)), *(kinds.index(kind) + 1 for kind in set(kinds)))


def _said_of_layers(base: PreTrainedModel, num_layers: int) -> list[tuple[Any, ...]]:
    """The per-layer lists of the config, such as which layers have a window."""
    entries = [value for _, value in sorted(vars(text_config(base.config)).items()) if isinstance(value, (list, tuple))]
    # a list of all layer numbers does not distinguish layers
    listed = [e for e in entries if len(e) == num_layers and list(e) != list(range(num_layers))]
    return [tuple(str(entry[i]) for entry in listed) for i in range(num_layers)]


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """The signature of a layer: its modules and their plain settings, except layer numbers."""
    found = []
    for name, module in layer.named_modules():
        settings = tuple(
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, (bool, int, float, str, type(None))) and "layer_idx" not in key and key != "training"
        )
        if "experts." not in name:  # there may be hundreds of equal ones
            found.append((name, type(module).__name__, settings))
    return tuple(found)
