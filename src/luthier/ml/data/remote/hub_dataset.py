"""A dataset on the hub as plain data files: those of a split, at one commit. No code of the repository is run.

The files are found as `datasets` finds them (Hugging Face, "Structure your repository" and "Data files configuration"):
by the configurations in the dataset's card, else by the names of files and folders. Of a dataset without files in a
format that can be read, such as one that is loaded by a script, the hub's own conversion to Parquet is taken, which is
in the branch `refs/convert/parquet`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError

from luthier.core.data_sources import DATA_SUFFIXES, HubDataset
from luthier.core.errors import DataSourceError, LuthierError, NotFoundError
from luthier.core.system.download import RemoteFile, RemoteSource
from luthier.ml.inference.models.hub import endpoint, explained, is_passing, open_at

Configs = dict[str, dict[str, list[str]]]
"""Paths of data files by configuration and split."""

_TIMEOUT_SECONDS: Final = 30.0
_CONVERTED: Final = "refs/convert/parquet"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CONVERTED_PATH: Final = re.compile(r"(?P<config>[^/]+)/(?P<split>[^/]+)/\d{4,}\.parquet")
_PARTIAL_SPLIT: Final = "partial-"
_KEYWORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD: Final = re.compile(r"data/(?P<split>[\w.]+)-\d{5}-of-\d{5}\.[\w.]+")
_NO_ROWS: Final = ("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
"""Files about a dataset, as `datasets` and its `save_to_disk` write them beside the rows."""
_OTHER_PACKING: Final = (".bz2", ".lz4", ".xz", ".zst")
"""Compressions that `datasets` reads and Luthier does not."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """A repository at a commit: its files by path, and the configurations and the licence of its card."""

    commit: str
    files: dict[str, Any]
    configs: Sequence[Mapping[str, Any]]
    licence: str = ""

    @property
    def data_files(self) -> list[str]:
        """The paths of files in a format that can be read, in order."""
        return sorted(path for path in self.files if is_data_file(path))

    @property
    def row_files(self) -> list[str]:
        """The same and those of rows in a compression that is not read: they belong to a split, too."""
        return sorted(path for path in self.files if is_data_file(_unpacked(path)))


def is_data_file(path: str) -> bool:
    """Whether a path ends as a data file does; what is hidden, or about the dataset, is none."""
    *folders, name = path.split("/")
    is_hidden = any(part.startswith((".", "_")) for part in (*folders, name))
    return not is_hidden and name not in _NO_ROWS and name.lower().removesuffix(".gz").endswith(DATA_SUFFIXES)


def _unpacked(path: str) -> str:
    """The path without the end of a compression that is not read."""
    return path[: path.rindex(".")] if path.lower().endswith(_OTHER_PACKING) else path


def look_up_dataset(dataset: HubDataset) -> RemoteSource:
    """The files of a split, or one file, at the commit that the revision is resolved to.

    Raises:
        NotFoundError: no such dataset, revision, configuration, split or file, or it is private.
        DataSourceError: gated, offline, no answer, or a dataset that only its own code could load.
    """
    listing = _listed(dataset, dataset.revision or "main")
    if dataset.file is not None:
        if dataset.file not in listing.files:
            raise _not_there(dataset, "file", dataset.file, listing.data_files)
        return _source(dataset, listing, [dataset.file], listing.licence)
    script = f"{dataset.repo.partition('/')[2]}.py"
    # Of the card: the branch of the conversion has none.
    default = next((str(one.get("config_name")) for one in listing.configs if one.get("default") is True), None)
    configs, licence = Configs(), listing.licence
    if script not in listing.files:
        configs = configs_of(listing.row_files, listing.configs)
    if not configs:
        listing, configs = _converted(dataset, listing, script)
    if dataset.config is None and len(configs) > 1 and default in configs:
        # Named from here on: the conversion has no card that a resumed run could find it in.
        dataset = replace(dataset, config=default)
    chosen = _chosen(dataset, configs)
    if not all(is_data_file(path) for path in chosen):
        # Without the files that cannot be read, rows of the split would be missing, and nobody would notice.
        listing, configs = _converted(dataset, listing, script)
        chosen = _chosen(dataset, configs)
    return _source(dataset, listing, chosen, licence)


def configs_of(paths: Sequence[str], card: Sequence[Mapping[str, Any]]) -> Configs:
    """The data files by configuration and split: by the card where it names them, else by their paths.

    Args:
        paths: of all data files, in order.
        card: `configs` of the dataset's card; empty where it has none.
    """
    if card:
        found = {str(entry.get("config_name", "default")): _of_card(paths, entry) for entry in card}
        return {config: splits for config, splits in found.items() if splits}
    converted: Configs = {}
    for path in paths:
        if match := _CONVERTED_PATH.fullmatch(path):
            converted.setdefault(match["config"], {}).setdefault(match["split"], []).append(path)
    if converted and sum(len(files) for splits in converted.values() for files in splits.values()) == len(paths):
        return converted
    splits = _by_name(paths)
    return {"default": splits} if splits else {}


def _of_card(paths: Sequence[str], entry: Mapping[str, Any]) -> dict[str, list[str]]:
    """The splits of one configuration of a card."""
    folder = str(entry.get("data_dir") or "").strip("/")
    inside = [path for path in paths if not folder or path.startswith(f"{folder}/")]
    named = entry.get("data_files")
    if named is None:
        return _by_name(inside)
    entries = named if isinstance(named, list) else [named]
    found: dict[str, list[str]] = {}
    for one in entries:
        is_split = isinstance(one, Mapping)
        split = str(one.get("split", "train")) if is_split else "train"
        patterns = one.get("path", []) if is_split else one
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        full = [f"{folder}/{pattern}" if folder else str(pattern) for pattern in patterns]
        matching = [path for path in inside if any(_matches(path, pattern) for pattern in full)]
        if matching:
            found.setdefault(split, []).extend(path for path in matching if path not in found.get(split, []))
    return found


def _matches(path: str, pattern: str) -> bool:
    """Whether a path fits a pattern of a card, as `datasets` reads it: `*` ends at a folder, `**` is any number."""
    if path == pattern:
        return True
    names = path.split("/")
    # How many of the names the parts of the pattern so far can have taken.
    taken = {0}
    for part in pattern.split("/"):
        if part == "**":
            taken = {num for first in taken for num in range(first, len(names) + 1)}
        else:
            taken = {num + 1 for num in taken if num < len(names) and fnmatch.fnmatchcase(names[num], part)}
    return len(names) in taken


def _by_name(paths: Sequence[str]) -> dict[str, list[str]]:
    """The splits by the words in names of files, else of folders; where no name has such a word all are `train`."""
    shards = {path: match["split"] for path in paths if (match := _SHARD.fullmatch(path))}
    if shards and len(shards) == len(paths):
        found: dict[str, list[str]] = {}
        for path, split in shards.items():
            found.setdefault(split, []).append(path)
        return found
    for is_by_name in (True, False):
        found = {}
        for path in paths:
            place = PurePosixPath(path)
            if (split := _split_in((place.name if is_by_name else str(place.parent)).lower())) is not None:
                found.setdefault(split, []).append(path)
        if found:
            return found
    return {"train": list(paths)} if paths else {}


def _split_in(name: str) -> str | None:
    words = set(re.split(r"[-._ /0-9]+", name))
    return next((split for split, known in _KEYWORDS.items() if words & set(known)), None)


def _chosen(dataset: HubDataset, configs: Configs) -> list[str]:
    """The files of the split that was named, of the configuration that was named."""
    config = dataset.config or (next(iter(configs)) if len(configs) == 1 else "default")
    if config not in configs:
        raise _not_there(dataset, "configuration", dataset.config or "", list(configs))
    splits, split = configs[config], dataset.split or "train"
    if split not in splits:
        if f"{_PARTIAL_SPLIT}{split}" in splits:
            raise DataSourceError(
                f"the hub has converted only the first rows of split {split!r} of {dataset.repo}",
                expected="the whole split: rows that are missing would go unnoticed",
                do=f"name a data file of the repository, {dataset.at('').text.partition('[')[0]}/FILE, or download it",
            )
        raise _not_there(dataset, "split", split, list(splits))
    return splits[split]


def _not_there(dataset: HubDataset, what: str, name: str, there: Sequence[str]) -> NotFoundError:
    shown = ", ".join(sorted(there)[:20]) or "none"
    came = f"dataset {dataset.repo} has no {what} {name!r}" if name else f"dataset {dataset.repo} has several {what}s"
    example = sorted(there)[0] if there else what.upper()
    form = f"hub:{dataset.repo}/{dataset.config + '/' if dataset.config else ''}[{example}]".replace("/[", "[")
    return NotFoundError(
        came,
        expected=f"one of: {shown}" + (f" and {len(there) - 20} more" if len(there) > 20 else ""),
        do=f"write for example {form if what == 'split' else f'hub:{dataset.repo}/{example}'}",
    )


def _converted(dataset: HubDataset, listing: _Listing, script: str) -> tuple[_Listing, Configs]:
    """The hub's conversion to Parquet, which exists for the newest commit alone."""
    found = None
    if dataset.revision is None:
        try:
            found = _listed(dataset, _CONVERTED)
        except NotFoundError as error:
            if not isinstance(error.__cause__, RevisionNotFoundError):
                raise
    configs = configs_of(found.data_files, ()) if found is not None else {}
    if found is not None and configs:
        return found, configs
    if script in listing.files:
        raise DataSourceError(
            f"dataset {dataset.repo} is loaded by its own code, {script}",
            expected=f"data files in a format that can be read ({', '.join(DATA_SUFFIXES)}), or the hub's conversion "
            "to Parquet: code of a repository is not run on this machine",
            do="ask its makers for Parquet files, or run the script where you trust it and save the rows as JSONL",
        )
    if unread := [path for path in listing.row_files if not is_data_file(path)]:
        others = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        raise DataSourceError(
            f"{unread[0]}{others} of dataset {dataset.repo} cannot be read",
            expected=f"files that end in {', '.join(DATA_SUFFIXES)}, each also with .gz, or the hub's conversion to "
            "Parquet, which is of the newest revision alone",
            do="leave out the revision" if dataset.revision else "download and unpack the files, and name them",
        )
    raise DataSourceError(
        f"dataset {dataset.repo} has no data files in a format that can be read",
        expected=f"files that end in {', '.join(DATA_SUFFIXES)}, each also with .gz",
        do="download and convert it, and name the file",
    )


def _listed(dataset: HubDataset, revision: str) -> _Listing:
    explain = partial(_explained, dataset, revision)
    try:
        api = HfApi(endpoint=endpoint())
        info = api.dataset_info(dataset.repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS)
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise (explain(error, "") or error) from error
    # A commit identifies its content: a hub that returns another one is broken or hostile.
    is_right = info.sha is not None and _COMMIT.fullmatch(info.sha) is not None
    if not is_right or (_COMMIT.fullmatch(revision) and info.sha != revision):
        raise DataSourceError(
            f"{endpoint()} states {str(info.sha)[:100]!r} as the commit of {dataset.repo}@{revision}",
            expected="exactly the requested commit, as 40 or 64 hexadecimal digits",
            do="use a hub or mirror that speaks the whole API (HF_ENDPOINT)",
        )
    card = info.card_data.get("configs") if info.card_data else None
    configs = [entry for entry in card or () if isinstance(entry, Mapping)] if isinstance(card, list) else []
    files = {sibling.rfilename: sibling for sibling in info.siblings or []}
    return _Listing(str(info.sha), files, configs, _licence(info.card_data.license if info.card_data else None))


def _licence(stated: Any) -> str:
    """As the card states it: one name, or several. The text is of the dataset's makers, so it is cut."""
    names = stated if isinstance(stated, list) else [stated] if stated else []
    return ", ".join(str(name) for name in names)[:200]


def _source(dataset: HubDataset, listing: _Listing, paths: Sequence[str], licence: str) -> RemoteSource:
    files = []
    for path in paths:
        sibling = listing.files[path]
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        # It becomes part of a path: a hub that states anything else is broken or hostile.
        is_digest = _SHA256.fullmatch(sha256) is not None if sha256 else bool(sibling.blob_id)
        if sibling.size is None or not is_digest:
            raise DataSourceError(
                f"{endpoint()} states no {'size' if sibling.size is None else 'digest'} for {path} of {dataset.repo}",
                expected="size and digest of every file",
                do="use a hub or mirror that speaks the whole API (HF_ENDPOINT)",
            )
        url = hf_hub_url(dataset.repo, path, repo_type="dataset", revision=listing.commit, endpoint=endpoint())
        git_id = None if sha256 else sibling.blob_id
        files.append(RemoteFile(PurePosixPath(path).name, sibling.size, partial(open_at, url), sha256, git_id))
    pinned = dataset.at(listing.commit).text
    explain = partial(_explained, dataset, listing.commit)
    return RemoteSource(listing.commit, tuple(files), explain, is_passing, pinned, licence, dataset.repo)


def _explained(dataset: HubDataset, revision: str, error: Exception, what: str) -> LuthierError | None:
    known = (httpx2.HTTPError, HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError)
    if not isinstance(error, known):
        return None
    return explained(dataset.repo, revision, error, what, kind="dataset")
