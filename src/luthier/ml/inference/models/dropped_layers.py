"""A smaller model out of a larger one: some of its transformer layers, with their weights, and all that is around them.

Which layers to keep, "15" or "0,2,4-29" -> the teacher in float32, its adapter merged -> the layers, renumbered ->
a transformers folder, loaded again and compared with the teacher with the same layers skipped.

Students made like this, from evenly spaced layers of the teacher: Sanh et al., 2019, "DistilBERT", arXiv:1910.01108,
section 3; Shleifer & Rush, 2020, "Pre-trained Summarization Distillation", arXiv:2010.13002, section 3.1.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ModelSourceError, RequestError
from luthier.ml.inference.models.weights import read_json

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

PREFIX: Final = "layers:"
LAYERS: Final = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*", re.ASCII)
_FEWEST: Final = 2
# What a config says once a layer, and what names layers by their number.
_ONE_A_LAYER: Final = ("layer_types", "no_rope_layers", "mlp_layer_types")
_LAYER_NUMBERS: Final = ("mlp_only_layers",)
_OWN_FILES: Final = ("config.json", "luthier.json", "manifest.json")
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOLERANCE: Final = 1e-4
_NUM_PROBED_TOKENS: Final = 24


def choose_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """The layers to keep of `num_layers`, counted from 0: a number ("15"), evenly spread with the first and the last of
    them, or those named ("0,2,4-29").

    Raises:
        RequestError: anything else: fewer than two, all of them, one that is not there, twice or out of order; and a
            model that has no layer to spare.
    """
    if num_layers <= _FEWEST:
        raise RequestError(
            f"layers {text} of a model that has {num_layers}",
            expected=f"a model with more than {_FEWEST} layers, of which at least {_FEWEST} are kept",
            do="choose a deeper model, or another base model as it is",
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

    Weights keep the type that they are stored in, merged ones are float32. Tokenizer, template, generation config and
    licences are copied.

    Args:
        base_path: folder of the teacher's base.
        adapter_path: what is merged into the base first, in float32; None takes the base as it is.
        text: the layers to keep, as `choose_layers` takes them.
        folder: where the student is written.

    Returns:
        The layers that were kept, counted from 0.

    Raises:
        RequestError: impossible layers.
        ModelSourceError: an architecture whose layers cannot be taken out alone, or a folder that does not load.
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
    # Before the layers are taken out: what the smaller model must compute.
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
        # Not in ascending order, or too few: the caller's check refuses it with the full message.
        return (0,) * min(count, _FEWEST)  # refused by the caller
    steps, last = count - 1, num_layers - 1
    # place * last / steps, rounded to the nearest in whole numbers: the same on every machine.
    return tuple((2 * place * last + steps) // (2 * steps) for place in range(count))


def _range(part: str, num_layers: int) -> list[int]:
    first, _, last = part.partition("-")
    if last and int(last) < int(first):
        return [int(first), int(last)]  # out of order: refused by the caller
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
    """Inside this block the other layers hand on what they are given, as if they were not there."""

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
    # Layers keep their old `layer_idx` in memory; names in the file are renumbered, and loading sets it again.
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
    """Check that the folder computes what the teacher computes with those layers skipped: config and weights agree."""
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
        expected="a decoder whose layers are one list and stand alone, as those of Llama, Qwen and Gemma",
        do="take a smaller model of the same family as the student instead",
    )
