"""LLaMA-Factory's datasets: the entries of dataset_info.json as sources of rows, with the columns of their format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from luthier.core.data_sources import is_remote
from luthier.core.errors import LuthierError, RecipeError
from luthier.features.recipes.imports.row_sources import ELSEWHERE, NOT_ROWS, RowSource, is_row_file
from luthier.features.recipes.imports.translation import Translation

INFO_FILE: Final = "dataset_info.json"
_COLUMNS: Final = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "system": "system",
               "history": "history", "chosen": "chosen", "rejected": "rejected"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools", "chosen": "chosen",
                 "rejected": "rejected"},
    "openai": {"messages": "messages", "tools": "tools"},
}  # fmt: skip
"""Column of dataset_info.json -> field of a shape, by formatting."""
_DEFAULTS: Final = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_TAGS: Final = {
    "role_tag": ("from", "role"), "content_tag": ("value", "content"), "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"), "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call",), "system_tag": ("system",),
}  # fmt: skip


def put_datasets(t: Translation, stage: str) -> None:
    """The training and the validation rows, with their columns.

    Args:
        t: The translation, with the keys of the file.
        stage: Of LLaMA-Factory.
    """
    limit = t.take("max_samples")
    folder = str(t.take("dataset_dir", "data"))
    t.same("dataset_dir", "where dataset_info.json is")
    is_share = "data.subset" in t.settled
    columns: dict[str, str] = {}
    is_known, is_limited = True, False
    for key, place in (("dataset", "data.train"), ("eval_dataset", "data.validation")):
        given = t.take(key)
        if given is None:
            if key == "dataset":
                t.refuse(key, "no rows are named", set_by=place)
                is_known = False
            continue
        if place in t.settled:
            t.put(place, None, key)
            is_known = is_known and key != "dataset"
            continue
        names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
        found = _sources(t, names, folder, stage, None if is_share else limit)
        if isinstance(found, str):
            t.refuse(key, found, set_by=place)
            is_known = False
            continue
        is_part = limit is not None and not is_share and any(one.rows is not None for one in found)
        is_limited = is_limited or is_part
        keys = [key, "max_samples"] if is_part else [key]
        if place == "data.train":
            columns = _put_training(t, found, keys)
        else:
            # Those of the training rows are for all sources that have none of their own.
            own = [None if (one.columns or {}) == columns else one.columns or {} for one in found]
            t.put_sources(place, [replace(one, columns=some) for one, some in zip(found, own, strict=True)], *keys)
    if limit is not None and (is_share or not is_known):
        note = "a number of rows of each dataset: name rows of sources, or a share (1,000 of 4,000 rows: [0, 0.25])"
        t.refuse("max_samples", note, set_by="data.subset")
    elif not is_limited:
        t.same("max_samples", "no dataset has more rows")


def _put_training(t: Translation, found: Sequence[RowSource], keys: Sequence[str]) -> dict[str, str]:
    """The training rows; returns the columns that the recipe has for all sources."""
    if len(found) > 1:
        t.put_sources("data.train", found, *keys)
        return {}
    columns = found[0].columns or {}
    t.put_sources("data.train", [replace(found[0], columns=None)], *keys)
    if columns:
        t.put("data.columns", columns, keys[0])
    return columns


def _sources(t: Translation, names: Sequence[str], folder: str, stage: str, limit: int | None) -> list[RowSource] | str:
    """The datasets of these names, or the reason why one of them is no source."""
    if not t.reads_files:
        return ELSEWHERE
    if folder.startswith("REMOTE:"):
        return f"{INFO_FILE} is in a dataset of the hub: download it, and name its folder in dataset_dir"
    info_file = None if folder == "ONLINE" else _find_info(t, Path(folder))
    if info_file is None and folder != "ONLINE":
        return f"no {INFO_FILE} in {folder}, which names the dataset's file"
    found = []
    for name in names:
        info = {"hf_hub_url": name} if info_file is None else _read_info(info_file, name)
        one = _source(t, info, Path(folder) if info_file is None else info_file.parent, stage, limit)
        if isinstance(one, str):
            return f"the dataset {name}: {one}"
        found.append(one)
        if info.get("formatting", "alpaca") == "alpaca" and stage != "pt":
            t.note("LLaMA-Factory joins instruction and input by a line break; Luthier by a blank line")
    return found


def _find_info(t: Translation, folder: Path) -> Path | None:
    places = [base / folder / INFO_FILE for base in (t.folder, Path.cwd(), *t.folder.parents)]
    return next((place for place in places if place.is_file()), None)


def _read_info(info_file: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(info_file.read_text(encoding="utf-8"))[name])
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{info_file} has no dataset {name!r}: {error}",
            expected="a JSON object with the datasets by name",
            do="correct the file, or give the rows with --set data.train=FILE",
        ) from error


def _source(t: Translation, info: dict[str, Any], folder: Path, stage: str, limit: int | None) -> RowSource | str:
    """A dataset with its columns and the number of its rows that are used, or the reason why it is none."""
    if strange := _strange_parts(info):
        return strange
    found = _place(t, info, folder)
    if isinstance(found, str):
        return found
    found = replace(found, columns=_columns_of(info, stage) or None)
    wanted = info.get("num_samples")
    most = min((number for number in (wanted, limit) if number is not None), default=None)
    if most is None:
        return found
    if is_remote(found.path):
        return replace(found, rows=most, note="a remote source, which the plan refuses where it has fewer rows")
    num_rows = _num_rows(t.target / found.path, wanted or most)
    if num_rows is not None and wanted is not None and num_rows < wanted:
        return f"num_samples is {wanted:,} of {num_rows:,} rows, which repeats rows: see weights in docs/sources.md"
    return found if num_rows is not None and num_rows <= most else replace(found, rows=most)


def _place(t: Translation, info: dict[str, Any], folder: Path) -> RowSource | str:
    """Where the rows are, in the order of precedence of LLaMA-Factory."""
    if (name := info.get("hf_hub_url")) is not None:
        if info.get("folder") is not None:
            return "a folder of a dataset of the hub: name a file of it, such as hub:org/name/folder/rows.parquet"
        return t.row_finder().source(str(name), config=info.get("subset") or "", split=info.get("split") or "")
    if "ms_hub_url" in info or "om_hub_url" in info:
        return "a dataset of ModelScope or openMind: save it as JSONL"
    if "script_url" in info:
        return "a script that loads rows, which is never run: save them as JSONL"
    if (address := info.get("cloud_file_name")) is not None:
        return RowSource(address, "a remote source") if is_remote(address) and is_row_file(address) else NOT_ROWS
    file = str(info.get("file_name") or "")
    return RowSource(*t.row_finder().file(str((folder / file).absolute()))) if is_row_file(file) else NOT_ROWS


def _num_rows(path: Path, most: int) -> int | None:
    """How many rows a file has, counted to one more than `most`; None where it cannot be read."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    try:
        return sum(1 for _ in islice(read_rows(open_source(path)), most + 1))
    except (LuthierError, OSError):
        return None  # the plan reads it and says what is wrong with it


def _strange_parts(info: dict[str, Any]) -> str:
    """What a dataset has that no shape has; empty where it has nothing."""
    tags, columns = info.get("tags", {}), info.get("columns", {})
    wrong = [f"{tag}: {value}" for tag, value in tags.items() if value not in _TAGS.get(tag, ())]
    if wrong:
        return f"other names of roles ({', '.join(wrong)}): rename them in the rows"
    if media := [name for name in ("images", "videos", "audios") if name in columns]:
        return f"{', '.join(media)}: rows are text here"
    if "kto_tag" in columns and "messages" in columns:
        return "conversations with a label: write the last answer as completion, and what is before it as prompt"
    return ""


def _columns_of(info: dict[str, Any], stage: str) -> dict[str, str]:
    """data.columns of a dataset, without the columns that have the name of their field."""
    names = dict(info.get("columns", {}))
    formatting = str(info.get("formatting", "alpaca"))
    if stage == "pt":
        return {"text": names.get("prompt", "instruction")}
    fields = dict(_COLUMNS.get(formatting, _COLUMNS["alpaca"]))
    if info.get("ranking"):
        # The shape of pairs: what was asked, then two answers.
        fields |= {"prompt": "prompt", "query": "input", "messages": "prompt"}
        fields.pop("response", None)
    if "kto_tag" in names:
        fields |= {"prompt": "prompt", "response": "completion", "kto_tag": "label"}
        fields.pop("query", None)
    given = {name: column for name, column in _DEFAULTS.items() if name in fields and not names} | names
    return {fields[name]: column for name, column in given.items() if name in fields and fields[name] != column}
