"""What the files of a published embedding model or reranker say: which states are read, what is written around a text
and where a score comes from.

An embedding model is a folder with the files of sentence-transformers beside its weights. A reranker is a folder whose
weights have a layer for one score (`score.weight`, as transformers saves a sequence classifier over a causal model), or
one whose files say by the logits of which tokens it answers: a `LogitScore` part of sentence-transformers, or
`classifier_from_token` in config.json, as vLLM reads it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.errors import ModelSourceError

Pooling = Literal["last", "mean"]
"""Which states a head reads: that of the last token, or the mean over all tokens."""

PairFormat = Literal["turns", "own", "own_opened"]
"""How a reranker reads a pair. `turns`: the query as the user's turn, the document as the assistant's. `own`: as the
files of its base say: the chat template with the roles `query` and `document` where it has them, else both texts as the
tokenizer joins pairs. `own_opened`: `own`, with the template's generation prompt."""

PUBLISHED_HEAD: Final = "modules.json"
"""Of sentence-transformers: lists the parts of a published embedding model or reranker."""
SCORE_WEIGHT: Final = "score.weight"
_SETTINGS: Final = "config_sentence_transformers.json"
_INPUTS: Final = "sentence_bert_config.json"
_POOLINGS: Final[Mapping[str, Pooling]] = {"mean_tokens": "mean", "lasttoken": "last", "mean": "mean"}
_QUERY_PROMPTS: Final = ("query", "search_query", "s2p_query", "web_search_query", "Retrieval-query")
_DOCUMENT_PROMPTS: Final = ("document", "passage", "search_document", "corpus", "Retrieval-document")
_POOLING_FOLDER: Final = "1_Pooling"
_COMPUTED: Final = ("Transformer", "Pooling", "Normalize")
_OUTPUT_LAYERS: Final = ("lm_head", "embed_out", "output", "output_layer")
_LOGIT_CHANGES: Final = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""Settings by which logits are not states times the output layer."""
_METHODS: Final = {1: ("no_post_processing",), 2: ("from_2_way_softmax",)}
_LARGEST_HEADER_BYTES: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class OwnEmbedding:
    """What the files of a model say about its vectors.

    Attributes:
        pooling: which states a vector is made of.
        query_prompt: text before each query.
        document_prompt: text before each document.
        is_normalised: whether a vector has length 1: whether `modules.json` lists `Normalize`. True without that file.
        max_tokens: how many tokens of a text are read, special ones included; None for as many as the context has.
        dimensions: lengths to which a vector may be cut; empty where the files name none.
        has_any_dimension: whether it may be cut to any length.
    """

    pooling: Pooling
    query_prompt: str = ""
    document_prompt: str = ""
    is_normalised: bool = True
    max_tokens: int | None = None
    dimensions: tuple[int, ...] = ()
    has_any_dimension: bool = False


@dataclass(frozen=True, slots=True)
class OwnReranker:
    """What the files of a model say about its score of a pair: a layer for it, or the logits of tokens.

    Attributes:
        tokens: those whose logit is the score, or whose logits are, the first without the second: ids, or texts. Empty
            where the weights have a layer, `score.weight`.
        pair_format: how a pair is read.
        instruction: what is written before a pair: as a system turn where the chat template writes pairs, else before
            the query.
    """

    tokens: tuple[int | str, ...] = ()
    pair_format: PairFormat = "own"
    instruction: str = ""


def own_embedding(folder: str | Path) -> OwnEmbedding | None:
    """How the model of a folder makes vectors; None where its files do not say it.

    Args:
        folder: of a base model.

    Raises:
        ModelSourceError: they describe vectors that are not computed here: other states, or further layers.
    """
    place = Path(folder)
    pooling = _pooling(place)
    if pooling is None:
        return None
    named, default = _prompts(place)
    dimensions, has_any = _dimensions(read_document(place / "config.json"))
    kinds = [kind for kind, _ in _parts(place)]
    found = OwnEmbedding(
        pooling,
        _first(named, _QUERY_PROMPTS, default),
        _first(named, _DOCUMENT_PROMPTS, default),
        is_normalised=not kinds or "Normalize" in kinds,
        max_tokens=_max_tokens(place),
        dimensions=dimensions,
        has_any_dimension=has_any,
    )
    if (found.query_prompt or found.document_prompt) and read_document(_pooling_file(place)).get(
        "include_prompt"
    ) is False:
        raise _not_computed('pooling without the tokens of the prompt ("include_prompt": false)')
    return found


def own_reranker(folder: str | Path) -> OwnReranker | None:
    """How the model of a folder scores a query with a document; None where its files do not say that it does.

    Args:
        folder: of a base model.

    Raises:
        ModelSourceError: they describe a score that is not computed here.
    """
    place = Path(folder)
    config = read_document(place / "config.json")
    if not config:
        return None
    tokens = _score_tokens(place, config)
    if tokens is None and not _has_score_layer(place, config):
        return None
    if tokens and (changed := [name for name in _LOGIT_CHANGES if text_part(config).get(name) not in (None, 1, 1.0)]):
        raise ModelSourceError(
            f"a reranker by the logits of tokens, whose config.json sets {changed[0]}",
            expected="logits that are the last state times the output layer: others are not computed here",
            do="choose another reranker, or train this model with objective: {name: rank}",
        )
    processing = read_document(place / _INPUTS).get("processing_kwargs")
    written = processing.get("chat_template") if isinstance(processing, dict) else None
    opens = isinstance(written, dict) and written.get("add_generation_prompt") is True
    return OwnReranker(tokens or (), "own_opened" if opens else "own", _prompts(place)[1])


def is_reranker(folder: str | Path) -> bool:
    """Whether the files of a folder are those of a published reranker, of whatever score."""
    # First what most folders lack: lists of models ask this of each.
    if not _has_file(folder, PUBLISHED_HEAD) and not _may_score(f"{folder}{os.sep}config.json"):
        return False
    try:
        return own_reranker(folder) is not None
    except ModelSourceError:
        return True


def _has_file(folder: str | Path, name: str) -> bool:
    # A text in place of a path: for a list of a thousand models paths take longer than the look at the disk.
    return os.path.isfile(f"{folder}{os.sep}{name}")  # noqa: PTH113


def _may_score(config: str) -> bool:
    """Whether a config.json names tokens of a score, or a class with a layer for it."""
    try:
        status = os.stat(config)  # noqa: PTH116
    except OSError:
        return False
    return _names_score(config, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=4096)
def _names_score(config: str, *_version: int) -> bool:
    """As `_may_score`, of one version of a file: a list of a thousand models reads each of them once."""
    document = read_document(Path(config))
    named = text_part(document).get("classifier_from_token", document.get("classifier_from_token"))
    return named is not None or bool(_sequence_classes(document))


def only_embeds(folder: str | Path) -> bool:
    """Whether a folder has the files of an embedding model, and weights without the layer that would write text."""
    # First what most folders lack: lists of models ask this of each.
    if not (_has_file(folder, PUBLISHED_HEAD) or _has_file(folder, f"{_POOLING_FOLDER}{os.sep}config.json")):
        return False
    if read_document(Path(folder) / "config.json").get("tie_word_embeddings") is not False:
        return False  # the embeddings are that layer, too
    return lacks_output_layer(folder)


def lacks_output_layer(folder: str | Path) -> bool:
    """Whether the weights of a folder can be read and have no layer of their own that writes text."""
    names = _tensor_names(Path(folder))
    return bool(names) and not any(name.split(".")[-2:-1] == [layer] for name in names for layer in _OUTPUT_LAYERS)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def read_document(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _score_tokens(place: Path, config: Mapping[str, Any]) -> tuple[int | str, ...] | None:
    """The tokens whose logits are the score; None where the files name none."""
    folder = next((path for kind, path in _parts(place) if kind == "LogitScore"), None)
    if folder is not None:
        settings = read_document(place / Path(folder).name / "config.json")
        given = [settings.get("true_token_id"), settings.get("false_token_id")]
        ids = tuple(one for one in given if isinstance(one, int) and not isinstance(one, bool))
        if not isinstance(given[0], int) or (len(ids) == 1 and given[1] is not None):
            raise _no_score(f"true_token_id {given[0]!r} and false_token_id {given[1]!r} in {folder}/config.json")
        return ids
    named = text_part(config).get("classifier_from_token", config.get("classifier_from_token"))
    if named is None:
        return None
    if not isinstance(named, list) or len(named) not in _METHODS or not all(isinstance(one, str) for one in named):
        raise _no_score(f"classifier_from_token {named!r} in config.json")
    method = config.get("method", text_part(config).get("method"))
    if method is not None and method not in _METHODS[len(named)]:
        raise _no_score(f"method {method!r} with classifier_from_token {named!r} in config.json")
    # vLLM lists the token of irrelevant documents first.
    return tuple(reversed(named))


def _has_score_layer(place: Path, config: Mapping[str, Any]) -> bool:
    return bool(_sequence_classes(config)) and score_rows(place) == 1


def _sequence_classes(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    kinds = named if isinstance(named, list) else []
    return [str(one) for one in kinds if str(one).endswith("ForSequenceClassification")]


def score_rows(folder: str | Path) -> int:
    """The outputs of the layer `score.weight` of a folder's weights; 0 where there is none."""
    place = Path(folder)
    listed = read_document(place / "model.safetensors.index.json").get("weight_map")
    name = listed.get(SCORE_WEIGHT) if isinstance(listed, dict) else "model.safetensors"
    shape = (_tensors(place / Path(str(name)).name).get(SCORE_WEIGHT) or {}).get("shape") if name else None
    return int(shape[0]) if isinstance(shape, list) and len(shape) == 2 else 0


def _prompts(place: Path) -> tuple[dict[str, str], str]:
    """The prompts by their names, and the one that is used where none is named."""
    settings = read_document(place / _SETTINGS)
    prompts = settings.get("prompts")
    named = {str(name): str(text) for name, text in prompts.items()} if isinstance(prompts, dict) else {}
    return named, named.get(str(settings.get("default_prompt_name")), "")


def _dimensions(config: Mapping[str, Any]) -> tuple[tuple[int, ...], bool]:
    """The lengths that config.json names as vLLM reads it, falling, and whether any is allowed."""
    named = config.get("matryoshka_dimensions")
    sizes = {one for one in named if isinstance(one, int) and one > 0} if isinstance(named, list) else set[int]()
    return tuple(sorted(sizes, reverse=True)), not sizes and config.get("is_matryoshka") is True


def _max_tokens(place: Path) -> int | None:
    settings = read_document(place / _INPUTS)
    processing = settings.get("processing_kwargs")
    text = processing.get("text") if isinstance(processing, dict) else None
    given = (settings.get("max_seq_length"), text.get("max_length") if isinstance(text, dict) else None)
    sizes = [one for one in given if isinstance(one, int) and not isinstance(one, bool) and one > 0]
    return min(sizes, default=None)


def _pooling(place: Path) -> Pooling | None:
    parts = _parts(place)
    kinds = [kind for kind, _ in parts]
    if "LogitScore" in kinds:  # a reranker
        return None
    if further := [kind for kind in kinds if kind not in _COMPUTED]:
        raise _not_computed(f"the part {further[0]}, which modules.json lists")
    settings = read_document(_pooling_file(place))
    modes = [key.removeprefix("pooling_mode_") for key, value in settings.items() if value is True]
    modes = [mode for mode in modes if f"pooling_mode_{mode}" in settings]
    if isinstance(named := settings.get("pooling_mode"), str):  # as newer versions write it
        modes = [named]
    if not modes and "Pooling" not in kinds:
        return None
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise _not_computed(f"pooling {' + '.join(modes)}" if modes else "no readable file of the pooling")
    if read_document(place / _INPUTS).get("do_lower_case") is True:
        raise _not_computed("texts in lower case (do_lower_case)")
    return _POOLINGS[modes[0]]


def _parts(place: Path) -> list[tuple[str, str]]:
    """Kind and folder of each part that `modules.json` lists, such as `Pooling`; empty without the file."""
    try:
        listed = json.loads((place / PUBLISHED_HEAD).read_text(encoding="utf-8"))
        return [(str(one["type"]).rpartition(".")[2], str(one.get("path", ""))) for one in listed]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def _pooling_file(place: Path) -> Path:
    named = next((folder for kind, folder in _parts(place) if kind == "Pooling"), _POOLING_FOLDER)
    return place / (Path(named).name or _POOLING_FOLDER) / "config.json"


def _not_computed(what: str) -> ModelSourceError:
    return ModelSourceError(
        f"the files of the model describe vectors with {what}",
        expected="pooling mean or lasttoken, without layers behind it: other vectors are not computed here",
        do="choose another embedding model, or train vectors of this one with objective: {name: embed}",
    )


def _no_score(what: str) -> ModelSourceError:
    return ModelSourceError(
        f"the files of the model describe a score by {what}",
        expected="the token of relevant documents, and that of irrelevant ones or none: the score is the logit of the "
        "first, or that without the second",
        do="pull the model again, correct its file, or train it with objective: {name: rank}",
    )


def _first(prompts: Mapping[str, str], names: tuple[str, ...], default: str) -> str:
    return next((prompts[name] for name in names if name in prompts), default)


def _tensor_names(place: Path) -> list[str]:
    """Names of the weights of a folder; empty where they cannot be read."""
    listed = read_document(place / "model.safetensors.index.json").get("weight_map")
    if isinstance(listed, dict):
        return [str(name) for name in listed]
    return [name for name in _tensors(place / "model.safetensors") if name != "__metadata__"]


def _tensors(file: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file; empty where it cannot be read."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, _LARGEST_HEADER_BYTES)))
    except (OSError, ValueError, TypeError, struct.error):
        return {}
    return header if isinstance(header, dict) else {}
