"""Smaller models derived from a model: a subset of its layers with weights, or a small random copy of its architecture.

Layer pruning: layers to keep, "15" or "0,2,4-29" -> the teacher in float32 with its adapter merged -> the renumbered
layers -> a transformers folder, reloaded and compared with the teacher with the same layers skipped.

Small copy: experiments on it take seconds, not hours. The architecture is preserved: kinds of layers, scales, caps,
activation, layout of heads and experts. Sizes are reduced: layers to the shortest prefix with one of each kind, the
hidden size and the number of heads by one factor, feed-forward layers, experts, vocabulary, windows and chunks to small
numbers. An architecture may not allow every reduction, so configs are tried from the smallest to the widest, and the
caller takes the first that runs.

Sources: Sanh et al., 2019, "DistilBERT", arXiv:1910.01108, section 3; Shleifer & Rush, 2020, "Pre-trained Summarization
Distillation", arXiv:2010.13002, section 3.1 (students from evenly spaced layers of the teacher).
"""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import LuthierError, ModelSourceError, RequestError
from luthier.ml.inference.models.architecture import empty_model, layers_of, prefix_length, text_config
from luthier.ml.inference.models.structure import read_json

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

PREFIX: Final = "layers:"
LAYERS: Final = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*", re.ASCII)
_FEWEST: Final = 2
# Per-layer entries of a config, and entries that list layer numbers.
_ONE_A_LAYER: Final = ("layer_types", "no_rope_layers", "mlp_layer_types", "num_attention_heads_per_layer")
_LAYER_NUMBERS: Final = ("mlp_only_layers",)
_OWN_FILES: Final = ("config.json", "luthier.json", "manifest.json")
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOLERANCE: Final = 1e-4
_NUM_PROBED_TOKENS: Final = 24


def choose_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """The layers to keep of `num_layers`, counted from 0: a number ("15") is evenly spread and includes the first and
    the last layer; a list ("0,2,4-29") is taken literally.

    Raises:
        RequestError: any other text: fewer than two layers, all of them, missing, repeated or unordered ones; or the
            model has too few layers.
    """
    if num_layers <= _FEWEST:
        raise RequestError(
            f"layers {text} of a model that has {num_layers}",
            expected=f"a model with more than {_FEWEST} layers, of which at least {_FEWEST} are kept",
            do="choose a deeper model, or another base model unchanged",
        )
    if LAYERS.fullmatch(text) is None:
        raise RequestError(
            f"layers {text!r}",
            expected="how many to keep (15), or which (0,2,4-29), counted from 0",
            do=f"keep half of them, say: {PREFIX}{max(_FEWEST, num_layers // 2)}",
        )
    if text.isdigit():
        kept = _spread(int(text), num_layers)
    else:
        kept = tuple(number for part in text.split(",") for number in _range(part, num_layers))
    if len(kept) < _FEWEST or len(kept) >= num_layers or kept[-1] >= num_layers or list(kept) != sorted(set(kept)):
        raise RequestError(
            f"layers {text} of a model that has {num_layers}",
            expected=f"from {_FEWEST} to {num_layers - 1} of the layers 0 to {num_layers - 1}, each once, in order",
            do=f"keep half of them, say: {PREFIX}{max(_FEWEST, num_layers // 2)}",
        )
    return kept


def layers_text(kept: Sequence[int]) -> str:
    """(0, 2, 4, 5, 6) -> "0,2,4-6"."""
    runs: list[list[int]] = []
    for number in kept:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def write_student(base_path: Path, adapter_path: Path | None, text: str, folder: Path) -> tuple[int, ...]:
    """Write the student of a teacher into an existing empty folder.

    Weights keep their stored dtype; merged ones are float32. Tokenizer, template, generation config and
    licences are copied.

    Args:
        base_path: folder of the teacher's base.
        adapter_path: adapter that is first merged into the base, in float32; None for none.
        text: the layers to keep, in the format of `choose_layers`.
        folder: where the student is written.

    Returns:
        The kept layers, counted from 0.

    Raises:
        RequestError: impossible layers.
        ModelSourceError: the layers of the architecture cannot be removed separately, or the folder does not load.
    """
    import torch

    from luthier.ml.inference.models.architecture import load_config, text_config
    from luthier.ml.inference.models.loading import load_model
    from luthier.ml.inference.models.merging import merged_model
    from luthier.ml.inference.models.quiet import quiet_transformers

    num_layers = int(getattr(text_config(load_config(base_path)), "num_hidden_layers", 0))
    kept = choose_layers(text, num_layers)
    if adapter_path is None:
        model = load_model(base_path, dtype="float32", attention="sdpa")
    else:
        model = merged_model(base_path, adapter_path, dtype="float32")
    probe = torch.arange(_NUM_PROBED_TOKENS).remainder(model.config.get_text_config().vocab_size)[None]
    name, layers = _find_layers(model, num_layers, base_path)
    # Before the layers are removed: the expected output of the smaller model.
    with _skipped(layers, kept), torch.inference_mode():
        expected = model(input_ids=probe, use_cache=False).logits
    _keep(model, name, layers, kept)
    stored = None if adapter_path is not None else _stored_type(base_path)
    with quiet_transformers():
        (model if stored is None else model.to(stored)).save_pretrained(str(folder))
    for file in base_path.iterdir():
        is_weights = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
        if file.is_file() and not is_weights and file.name not in _OWN_FILES and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    del model
    _prove(folder, probe, expected, base_path)
    return kept


def _spread(count: int, num_layers: int) -> tuple[int, ...]:
    if not _FEWEST <= count < num_layers:
        # Unordered or too few: the caller rejects it with the full message.
        return (0,) * min(count, _FEWEST)  # rejected by the caller
    steps, last = count - 1, num_layers - 1
    # place * last / steps, rounded in integer arithmetic: the same on every machine.
    return tuple((2 * place * last + steps) // (2 * steps) for place in range(count))


def _range(part: str, num_layers: int) -> list[int]:
    first, _, last = part.partition("-")
    if last and int(last) < int(first):
        return [int(first), int(last)]  # out of order: rejected by the caller
    return list(range(int(first), min(int(last or first), num_layers) + 1)) or [int(first)]


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _stored_type(base_path: Path) -> torch.dtype | None:
    import torch

    config = read_json(base_path / "config.json")
    name = str(config.get("dtype") or config.get("torch_dtype") or _text_part(config).get("dtype") or "float32")
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)


def _find_layers(model: PreTrainedModel, num_layers: int, base_path: Path) -> tuple[str, nn.ModuleList]:
    from torch import nn

    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == num_layers
        and name.rpartition(".")[2] in ("layers", "h")
    ]
    if len(found) != 1:
        raise _refused(base_path, f"{len(found)} lists of {num_layers} layers were found in it")
    return found[0]


@contextmanager
def _skipped(layers: nn.ModuleList, kept: Sequence[int]) -> Iterator[None]:
    """Within the block the other layers return their input unchanged."""

    def hand_on(_: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any], made: Any) -> Any:
        state = given[0] if given else keywords["hidden_states"]
        return (state, *made[1:]) if isinstance(made, tuple) else state

    hook: Callable[..., Any] = hand_on
    handles = [
        layer.register_forward_hook(hook, with_kwargs=True) for place, layer in enumerate(layers) if place not in kept
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(model: PreTrainedModel, name: str, layers: nn.ModuleList, kept: Sequence[int]) -> None:
    from torch import nn

    parent = model.get_submodule(name.rpartition(".")[0])
    # Layers keep their old `layer_idx` in memory; names in the file are renumbered, and loading sets it.
    setattr(parent, name.rpartition(".")[2], nn.ModuleList([layers[place] for place in kept]))
    config: PreTrainedConfig = model.config.get_text_config()
    for key in _ONE_A_LAYER:
        values = getattr(config, key, None)
        if isinstance(values, list) and len(values) == len(layers):
            setattr(config, key, [values[place] for place in kept])
    for key in _LAYER_NUMBERS:
        if numbers := getattr(config, key, None):
            setattr(config, key, [place for place, was in enumerate(kept) if was in numbers])
    config.num_hidden_layers = len(kept)


def _prove(folder: Path, probe: torch.Tensor, expected: torch.Tensor, base_path: Path) -> None:
    """Check that the folder computes the same as the teacher with those layers skipped."""
    import torch

    from luthier.ml.inference.models.loading import load_model

    student = load_model(folder, dtype="float32", attention="sdpa")
    with torch.inference_mode():
        said = student(input_ids=probe, use_cache=False).logits
    apart = float((said - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    if not apart <= _TOLERANCE:
        raise _refused(base_path, f"the smaller model differs from it by {apart:.2g} where it should be the same")


def _refused(base_path: Path, why: str) -> ModelSourceError:
    return ModelSourceError(
        f"layers cannot be taken out of {base_path}: {why}",
        expected="a decoder whose layers are one list and independent, as those of Llama, Qwen and Gemma",
        do="take a smaller model of the same family as the student instead",
    )


MAX_PARAMETERS: Final = 160_000_000
"""Maximum number of parameters of a copy."""
SPAN_TOKENS: Final = 16
_VOCABULARY: Final = 512
_FEED_FORWARD: Final = 64
_USUAL_RATIO: Final = 4
_EXPERTS: Final = 8
_NARROWEST: Final = 32
_EVEN: Final = 16
_HEADS: Final = ("num_attention_heads", "num_key_value_heads", "mamba_n_heads", "num_heads")
_NUMBERS: Final = ("layer", "indexes", "indices", "idx")
_SPANS: Final = ("window", "attention_chunk")
_FEED_FORWARD_NAMES: Final = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")


def scaled_down(
    config: PreTrainedConfig, *, keeps_vocabulary: bool = False, keeps_layers: bool = False
) -> Iterator[PreTrainedConfig]:
    """Small configs of the architecture, narrowest first; the given config is not modified.

    Args:
        config: of the full model.
        keeps_vocabulary: whether vocabulary and special tokens are unchanged.
        keeps_layers: whether the number of layers is unchanged.

    Raises:
        ModelSourceError: transformers cannot build the architecture.
    """
    model = empty_model(copy.deepcopy(config))
    found = layers_of(model)
    num_layers = None if found is None else len(found[2])
    num_kept = None if found is None or keeps_layers else prefix_length(model, found[2])
    for factor in _factors(text_config(config)):
        made = copy.deepcopy(config)
        parts = _parts(made)
        # Before any reduction: the ratio is restored once the new width is known.
        usual = _usual_feed_forward(text_config(made))
        for part in parts:
            is_text = part is text_config(made)
            _cut_layers(part, num_layers if is_text else None, num_kept if is_text else 1)
            _cut_sizes(part)
            if not keeps_vocabulary:
                _cut_vocabulary(part)
        _narrow(parts, text_config(made), factor)
        for key in usual:
            setattr(text_config(made), key, _USUAL_RATIO * text_config(made).hidden_size)
        yield made


def is_span(key: str) -> bool:
    """Whether an entry of a config says how many tokens a layer looks back at, or reads in one pass."""
    return any(word in key for word in _SPANS) and "layer" not in key  # `max_window_layers` counts layers


def _usual_feed_forward(text: Any) -> list[str]:
    """Entries that make feed-forward layers four times as wide as the hidden state, which some formats assume for some
    architectures (llama.cpp for GPT-2, Phi, Falcon)."""
    hidden = _read(text, "hidden_size")
    if type(hidden) is not int:
        return []
    named = [key for key in vars(text) if key.endswith(_FEED_FORWARD_NAMES)]
    return [key for key in named if getattr(text, key) == _USUAL_RATIO * hidden]


def _parts(config: PreTrainedConfig) -> list[Any]:
    """The config and its nested configs."""
    found = [config]
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None and hasattr(inner, "sub_configs"):
            found += _parts(inner)
    return found


def _factors(text: PreTrainedConfig) -> list[int]:
    """Common divisors of the hidden size and the number of heads, best first, then 1."""
    hidden = getattr(text, "hidden_size", None)
    heads = next((n for name in _HEADS if type(n := _read(text, name)) is int), None)
    if not isinstance(hidden, int) or heads is None:
        return [1]
    both = [f for f in range(2, heads + 1) if heads % f == 0 and hidden % f == 0 and hidden // f >= _NARROWEST]
    even = [f for f in both if hidden // f % _EVEN == 0]  # required by grouped matmul kernels
    # The others after them: a large vocabulary may leave an even copy too large (gpt-oss: 2,880 is 720 at the least).
    chosen = [group[place] for group in (even, both) for place in (-1, len(group) // 2, 0) if group]
    return [*dict.fromkeys(chosen), 1]


def _read(part: Any, name: str) -> Any:
    """An entry by its own or its mapped name; None if it has no single value."""
    try:
        return getattr(part, name, None)
    except (ValueError, AttributeError):
        return None


def _cut_layers(part: Any, num_layers: int | None, num_kept: int | None) -> None:
    """Reduce the number of layers, including per-layer lists and lists of layer numbers."""
    names = ("num_hidden_layers", "depth", "num_layers", "n_layer", "n_layers")
    name = next((n for n in names if type(getattr(part, n, None)) is int), None)
    if name is None or num_kept is None or getattr(part, name) <= num_kept:
        return
    num_layers = num_layers or getattr(part, name)
    for key, value in list(vars(part).items()):
        if not isinstance(value, (list, tuple)) or not value:
            continue
        if len(value) == num_layers and list(value) != list(range(num_layers)):
            setattr(part, key, list(value[:num_kept]))
        elif any(word in key for word in _NUMBERS) and all(type(number) is int for number in value):
            setattr(part, key, [number for number in value if number < num_kept])
    setattr(part, name, num_kept)


def _cut_sizes(part: Any) -> None:
    chosen = [v for k, v in vars(part).items() if type(v) is int and ("per_tok" in k or "topk" in k or "top_k" in k)]
    # A router cannot choose more experts than there are, and groups need two experts each.
    fewest = max(_EXPERTS, *chosen, 2 * (_read(part, "n_group") or 0), 0)
    context = _read(part, "max_position_embeddings")
    for key, value in list(vars(part).items()):
        if type(value) is not int or value <= 0:
            continue
        # A window as wide as the context hides nothing; a shorter one would.
        if is_span(key) and type(context) is int and value >= context:
            continue
        if key.endswith(_FEED_FORWARD_NAMES):
            setattr(part, key, min(value, _FEED_FORWARD))
        elif is_span(key):
            setattr(part, key, min(value, SPAN_TOKENS))
        elif "experts" in key and "tok" not in key and "shared" not in key:
            setattr(part, key, min(value, fewest))
        elif key.endswith(("max_position_embeddings", "n_positions")):
            setattr(part, key, min(value, 2048))


def _cut_vocabulary(part: Any) -> None:
    for key, value in list(vars(part).items()):
        if type(value) is int and value > 0 and (key.endswith("vocab_size") or "vocab_size_" in key):
            setattr(part, key, min(value, _VOCABULARY))
    vocabulary = getattr(part, "vocab_size", None)
    if isinstance(vocabulary, int):
        for number, key in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")):
            if getattr(part, key, None) is not None:
                setattr(part, key, number)


def _narrow(parts: list[Any], text: Any, factor: int) -> None:
    """Divide the hidden size, every entry of the same width, and the numbers of heads."""
    hidden = getattr(text, "hidden_size", None)
    if factor == 1 or not isinstance(hidden, int):
        return
    # The inner width of a state space is the total width of its heads and shrinks with their number.
    inner = _product(text, "mamba_n_heads", "mamba_d_head")
    for part in parts:
        for key, value in list(vars(part).items()):
            if type(value) is int and value in (hidden, inner) and not key.endswith("_heads"):
                setattr(part, key, value // factor)
    for key in _HEADS:
        if type(value := _read(text, key)) is int:
            setattr(text, key, max(1, value // factor))
    kept, keys = _read(text, "num_attention_heads"), _read(text, "num_key_value_heads")
    # Query heads are distributed evenly over key heads; one key head always works.
    if isinstance(kept, int) and isinstance(keys, int) and kept % keys:
        text.num_key_value_heads = 1


def _product(part: Any, *names: str) -> int | None:
    values = [_read(part, name) for name in names]
    return None if any(type(value) is not int for value in values) else math.prod(values)


FAILURES: Final = (
    LuthierError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    ImportError,
    AssertionError,
)
"""Exceptions caused by a reduction that an architecture does not allow."""


def small_copy(path: str, *, keeps_vocabulary: bool = False, keeps_layers: bool = False) -> PreTrainedModel | None:
    """The first small copy of a folder's architecture that runs, in float32; None if none does.

    Args:
        path: the folder.
        keeps_vocabulary: whether it keeps the vocabulary, so that the model's tokenizer fits.
        keeps_layers: whether it keeps the number of layers.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError

    from luthier.ml.inference.accelerator import seed_random
    from luthier.ml.inference.models.architecture import causal_model, empty_model, load_config
    from luthier.ml.inference.models.forward import text_inputs

    ids, full = torch.arange(3, 23)[None], load_config(path)
    # All layers where none can be left out: some configs say how many of them are of which part (Dory).
    kept = dict.fromkeys((keeps_layers, True))
    for config in chain.from_iterable(
        scaled_down(full, keeps_vocabulary=keeps_vocabulary, keeps_layers=keeps) for keeps in kept
    ):
        try:
            _check(config)
            if sum(p.numel() for p in empty_model(config).parameters()) > MAX_PARAMETERS:
                continue
            seed_random(0)
            model = empty_model(config, device="cpu", dtype=torch.float32).eval()
            causal = causal_model(model)
            with torch.no_grad():
                _make_distinct(model)
                logits = causal(input_ids=ids, **text_inputs(causal, ids)).logits
        except (*FAILURES, StrictDataclassError):  # not allowed by the architecture: the next config is wider
            continue
        if bool(logits.isfinite().all()):
            return model
    return None


def _check(config: PreTrainedConfig) -> None:
    """What transformers checks of a config when a model is saved."""
    if hasattr(config, "validate"):
        config.validate()


def _make_distinct(model: PreTrainedModel) -> None:
    """Standard deviation large enough that scales, caps and attention patterns affect the results."""
    import torch

    for parameter in model.parameters():
        noise = torch.randn(parameter.shape)
        if parameter.dim() >= 2:
            # Unit variance of sums over the inputs: states neither vanish nor explode.
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(noise * 0.05)
