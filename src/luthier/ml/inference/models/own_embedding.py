"""How a published embedding model makes its vectors: which states, and what is put around each text.

Such a model is a folder with the files of sentence-transformers beside its weights: `modules.json` lists its parts,
`1_Pooling/config.json` names the states, and `config_sentence_transformers.json` holds the prompts. Its tokenizer may
end every text with a token, whose state is then the vector. Read in another way, the model is far worse than it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ModelSourceError
from luthier.core.task_head import Pooling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_POOLINGS: Final[Mapping[str, Pooling]] = {"mean_tokens": "mean", "lasttoken": "last", "mean": "mean"}
_QUERY_PROMPTS: Final = ("query", "search_query", "s2p_query", "web_search_query", "Retrieval-query")
_POOLING_FOLDER: Final = "1_Pooling"
_COMPUTED: Final = ("Transformer", "Pooling", "Normalize")
"""Parts that are computed here; vectors have length 1 in any case, so that `Normalize` changes nothing."""
_DOCUMENT_PROMPTS: Final = ("document", "passage", "search_document", "corpus", "Retrieval-document")


@dataclass(frozen=True, slots=True)
class OwnEmbedding:
    """What the files of a model say about its vectors.

    Attributes:
        pooling: which states a vector is made of.
        query_prompt: text before each query.
        document_prompt: text before each document.
    """

    pooling: Pooling
    query_prompt: str = ""
    document_prompt: str = ""


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
    settings = _read(place / "config_sentence_transformers.json")
    prompts = settings.get("prompts")
    named = {str(name): str(text) for name, text in prompts.items()} if isinstance(prompts, dict) else {}
    default = named.get(str(settings.get("default_prompt_name")), "")
    found = OwnEmbedding(pooling, _first(named, _QUERY_PROMPTS, default), _first(named, _DOCUMENT_PROMPTS, default))
    if (found.query_prompt or found.document_prompt) and _read(_pooling_file(place)).get("include_prompt") is False:
        raise _not_computed('pooling without the tokens of the prompt ("include_prompt": false)')
    return found


def own_ending(tokenizer: PreTrainedTokenizerFast) -> str:
    """The token that a tokenizer puts behind every text by itself; empty for most."""
    backend = tokenizer.backend_tokenizer
    bare, whole = (backend.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    for before in (list[int](), whole[:1]):
        if whole[:-1] == [*before, *bare]:
            return str(tokenizer.convert_ids_to_tokens(whole[-1]))
    return ""


def _pooling(place: Path) -> Pooling | None:
    parts = _parts(place)
    kinds = [kind for kind, _ in parts]
    if further := [kind for kind in kinds if kind not in _COMPUTED]:
        raise _not_computed(f"the part {further[0]}, which modules.json lists")
    settings = _read(_pooling_file(place))
    modes = [key.removeprefix("pooling_mode_") for key, value in settings.items() if value is True]
    modes = [mode for mode in modes if f"pooling_mode_{mode}" in settings]
    if isinstance(named := settings.get("pooling_mode"), str):  # as newer versions write it
        modes = [named]
    if not modes and "Pooling" not in kinds:
        return None
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise _not_computed(f"pooling {' + '.join(modes)}" if modes else "no readable file of the pooling")
    if _read(place / "sentence_bert_config.json").get("do_lower_case") is True:
        raise _not_computed("texts in lower case (do_lower_case)")
    return _POOLINGS[modes[0]]


def _parts(place: Path) -> list[tuple[str, str]]:
    """Kind and folder of each part that `modules.json` lists, such as `Pooling`; empty without the file."""
    try:
        listed = json.loads((place / "modules.json").read_text(encoding="utf-8"))
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


def _first(prompts: Mapping[str, str], names: tuple[str, ...], default: str) -> str:
    return next((prompts[name] for name in names if name in prompts), default)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
