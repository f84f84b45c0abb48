"""Facts about a transformers folder without loading its weights: files, digests, sizes, parameters, and packing.

That weights are packed (AWQ, GPTQ, compressed-tensors, FP8 and others) is read from `config.json`, or from the file of
their own that early AutoGPTQ and AutoAWQ wrote. vLLM computes with such weights; transformers needs a package for each
kind, which Luthier does not bring, so the engine transformers and training reject them.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.errors import ModelSourceError, library_reason
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_document, sha256_file
from luthier.core.records.base_model import LocalModel
from luthier.ml.inference.models.structure import context_length, read_json, read_structure

_TITLES: Final = {
    "awq": "AWQ", "gptq": "GPTQ", "compressed-tensors": "compressed-tensors", "fp8": "FP8", "fbgemm_fp8": "FP8",
    "bitsandbytes": "bitsandbytes", "mxfp4": "MXFP4", "hqq": "HQQ", "torchao": "torchao",
}  # fmt: skip
_FIXED_BITS: Final = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4}
OWN_PACKING_FILES: Final = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Where early AutoGPTQ and AutoAWQ described the packing, with the method; their `config.json` says nothing of it."""
_PACKED_TENSOR: Final = ".qweight"


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """What `quantization_config` of a model says.

    Attributes:
        method: `quant_method`, or "unknown".
        num_bits: of a weight; None where it is not said, or differs among matrices.
        group_size: weights that share a scale; None for a row, a whole matrix, or where it is not said.
        activation_bits: what activations are rounded to; None where they are not.
        described_in: the file that says so.
    """

    method: str
    num_bits: int | None = None
    group_size: int | None = None
    activation_bits: int | None = None
    described_in: str = "config.json"

    @property
    def phrase(self) -> str:
        """For people: `AWQ, 4 bits in groups of 128`."""
        title = _TITLES.get(self.method, self.method)
        bits = "" if self.num_bits is None else f", {self.num_bits} bits"
        group = "" if self.group_size is None else f" in groups of {self.group_size}"
        activations = "" if self.activation_bits is None else f", activations in {self.activation_bits}"
        return f"{title}{bits}{group}{activations}"

    @property
    def before_vllm(self) -> str:
        """What is to be changed first, since vLLM finds out about weights by `config.json` alone; empty if nothing."""
        if self.described_in == "config.json":
            return ""
        return (
            f"add the content of {self.described_in} to config.json as quantization_config, with "
            f'"quant_method": "{self.method}"'
        )


def packed_weights(folder: Path) -> PackedWeights | None:
    """How the weights of a transformers folder are packed; None for plain weights, and where no config is readable."""
    config = _document(folder / "config.json")  # what loads the model reports the error
    return None if config is None else packing_of(config) or _described_beside(folder)


def _described_beside(folder: Path) -> PackedWeights | None:
    """What a file beside `config.json` says of weights that are packed."""
    for name, method in OWN_PACKING_FILES.items():
        if (found := _document(folder / name)) is not None and _has_packed_tensors(folder):
            bits, group = found.get("bits", found.get("w_bit")), found.get("group_size", found.get("q_group_size"))
            named = str(found.get("quant_method") or method)
            return PackedWeights(named, _count(bits), _count(group), described_in=name)
    return None


def _has_packed_tensors(folder: Path) -> bool:
    """Whether the weights are packed, since a file may have stayed beside plain ones; true where none are here yet."""
    files = sorted(folder.glob("*.safetensors"))
    try:
        return not files or any(name.endswith(_PACKED_TENSOR) for file in files for name in tensor_shapes(file))
    except (ModelSourceError, OSError):  # what loads the model reports it
        return False


def _document(file: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if it is absent, unreadable or no object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def packing_of(config: dict[str, Any]) -> PackedWeights | None:
    """The same for the content of a `config.json`."""
    text = config.get("text_config")
    found = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not isinstance(found, dict):
        return None
    method = str(found.get("quant_method") or "unknown")
    if method == "compressed-tensors":
        return _compressed_tensors(found)
    if method == "bitsandbytes":
        bits = 4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None
        return PackedWeights(method, bits)
    rounds_activations = method in ("fp8", "fbgemm_fp8")
    return PackedWeights(
        method,
        _count(found.get("bits")) or _FIXED_BITS.get(method),
        _count(found.get("group_size")),
        8 if rounds_activations else None,
    )


def _compressed_tensors(found: dict[str, Any]) -> PackedWeights:
    groups = found.get("config_groups")
    schemes = [one for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []
    weights = [one.get("weights") or {} for one in schemes]
    inputs = [one.get("input_activations") or {} for one in schemes]
    return PackedWeights(
        "compressed-tensors",
        _only([_count(one.get("num_bits")) for one in weights]),
        _only([_count(one.get("group_size")) for one in weights]),
        _only([_count(one.get("num_bits")) for one in inputs]),
    )


def _only(values: list[int | None]) -> int | None:
    """The value that all have; None where they differ."""
    return values[0] if values and len(set(values)) == 1 else None


def _count(value: object) -> int | None:
    """A positive number; -1 means a whole row."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_LARGEST_HEADER_BYTES = 100_000_000  # The format's own limit (safetensors README, "Format").


class WeightFile(FrozenModel):
    """One safetensors file at the registration of the model.

    Attributes:
        sha256: of its content.
        num_bytes: its size.
        modified_ns: modification time, in nanoseconds since 1970.
    """

    sha256: str
    num_bytes: int
    modified_ns: int


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, sorted by name.

    With an index file these are the files that it names; otherwise every safetensors file directly in the folder.

    Raises:
        ModelSourceError: there is none (pickles are reported but never loaded), or one is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        raise no_safetensors(str(folder), pickles)
    for name in names:
        # An index is untrusted: no path may lead out of the folder.
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelSourceError(
                f"{folder}: weight file {name!r} is missing",
                expected="every file that model.safetensors.index.json names, in the folder itself",
                do="copy or pull the model again",
            )
    return [folder / name for name in names]


def refuse_links_out(folder: Path) -> None:
    """Raise ModelSourceError for a file of a model folder, other than weights, that links outside of it.

    Such files are copied into exports and students: a link to a private key would be published. The hub client's cache
    stores the files of `snapshots/COMMIT` in `blobs` next to it, which is allowed.
    """
    own = folder.resolve()
    inside = [own] + ([own.parent.parent / "blobs"] if own.parent.name == "snapshots" else [])
    for file in sorted(folder.rglob("*")):
        if not file.is_symlink() or file.suffix == ".safetensors":
            continue
        try:
            target = file.resolve()
        except (OSError, RuntimeError):  # a circular link, which cannot be opened
            continue
        if not any(place in target.parents for place in inside):
            raise ModelSourceError(
                f"{file} is a link to {target}, outside of the model's folder",
                expected="files of the folder itself: they are copied into exports",
                do="put the file there in place of the link, if it is part of the model",
            )


def no_safetensors(where: str, pickles: list[str]) -> ModelSourceError:
    """The error for a model without safetensors; mentions pickles, which could run any code."""
    if pickles:
        return ModelSourceError(
            f"{where} holds weights only as pickles ({', '.join(pickles[:3])}{', ...' if len(pickles) > 3 else ''})",
            expected="safetensors: a pickle can run any code when it is opened, so Luthier never opens one",
            do="choose a revision or a repository with *.safetensors files, or convert it on a machine you can lose",
        )
    return ModelSourceError(
        f"{where} holds no safetensors file",
        expected="a transformers folder: config.json, tokenizer files and *.safetensors",
        do="check the name; a GGUF model is named by the path of its .gguf file",
    )


def check_config(folder: Path) -> dict[str, Any]:
    """The model's config; rejected if Luthier cannot train it.

    Raises:
        ModelSourceError: no config.json, custom code (`auto_map`), or already quantised weights.
    """
    config = read_json(folder / "config.json")
    if "auto_map" in config:
        raise ModelSourceError(
            f"{folder}/config.json requires custom Python code (auto_map: {', '.join(sorted(config['auto_map']))})",
            expected="an architecture that transformers itself knows; Luthier never runs code that comes with a model",
            do="choose a variant without custom code, or delete auto_map if transformers knows the architecture by now",
        )
    if (packed := packing_of(config) or _described_beside(folder)) is not None:
        before = f"{packed.before_vllm}, then " if packed.before_vllm else ""
        raise ModelSourceError(
            f"{folder} holds weights that are quantised already ({packed.phrase})",
            expected="the model's weights in full or half precision",
            do="name the same model in 16 bits, which can be trained, evaluated and exported, and which "
            f"method.name: qlora quantises itself; vLLM serves this one: {before}luthier serve FOLDER --engine vllm",
        )
    return config


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, from its header; the length is checked against the file.

    Raises:
        ModelSourceError: not a safetensors file, or truncated.
    """
    num_bytes = file.stat().st_size
    try:
        with file.open("rb") as stream:
            # The format: 8 bytes length, little-endian, the JSON header, then the tensors without gaps.
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(num_bytes, _LARGEST_HEADER_BYTES):
                raise ValueError(f"header of {length} bytes in a file of {num_bytes}")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if end != num_bytes:
            raise ValueError(f"{num_bytes} bytes on disk, {end} announced in the header")
        return {name: tuple(tensor["shape"]) for name, tensor in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelSourceError(
            f"{file} is damaged: {library_reason(error)}",
            expected="a whole safetensors file",
            do="copy or pull the model again",
        ) from error


def count_parameters(folder: Path, config: dict[str, Any]) -> int:
    """All weights of the model; a tied output layer counts once even if it is stored twice."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        shapes |= tensor_shapes(file)
    if config.get("tie_word_embeddings", _text_config(config).get("tie_word_embeddings", False)):
        shapes.pop("lm_head.weight", None)
    return sum(math.prod(shape) for shape in shapes.values())


def inventory(folder: Path) -> dict[str, WeightFile]:
    """Digest, size and modification time of every weight file."""
    found = {}
    for file in weight_files(folder):
        status = file.stat()
        found[file.name] = WeightFile(
            sha256=sha256_file(file), num_bytes=status.st_size, modified_ns=status.st_mtime_ns
        )
    return found


def weights_digest(files: dict[str, str]) -> str:
    """The digest of a model, over the document {file name: sha256}."""
    return sha256_document(files)


def describe(
    folder: Path,
    *,
    name: str,
    source: Literal["catalog", "hub", "folder", "gguf", "layers"],
    licence: str,
    files: dict[str, WeightFile],
) -> LocalModel:
    """The LocalModel document of a transformers folder; the tokenizer is loaded, the weights are not.

    Args:
        folder: of the model.
        name: as it was asked for.
        source: where it is from.
        licence: as its source states it.
        files: its weight files, by name.

    Raises:
        ModelSourceError: the folder is damaged, needs custom code, or has no fast tokenizer.
        TemplateError: its chat template cannot end a turn.
    """
    config = check_config(folder)
    structure = read_structure(str(folder))
    from luthier.ml.inference.models.templates.chat_template import (
        ChatTemplate,  # imports torch, which listing models does not need
    )

    # A template that cannot end a turn, or takes too long, is detected now rather than in a training run.
    template = ChatTemplate.load(folder, is_new=True)
    return LocalModel(
        name=name,
        source=source,
        path=str(folder),
        sha256=weights_digest({file: weight.sha256 for file, weight in files.items()}),
        licence=licence,
        architecture=(config.get("architectures") or ["unknown"])[0],
        num_parameters=count_parameters(folder, config),
        num_embedding_parameters=structure.vocabulary_size * structure.hidden_size,
        context_length_tokens=context_length(str(folder)),
        vocabulary_size=structure.vocabulary_size,
        has_chat_template=template.kind == "chat",
        template_sha256=template.sha256,
        num_bytes=sum(weight.num_bytes for weight in files.values()),
    )


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part that describes the language model; multimodal configs nest it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config
