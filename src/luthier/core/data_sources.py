"""Sources of rows: files of this machine and remote ones, as a recipe names them and as a plan records them.

A remote source is `hub:ORG/DATASET[@REVISION][/CONFIG or FILE][[SPLIT]]`, or an address that begins with `https://`,
`s3://`, `gs://` or `az://`. It is downloaded once; the plan holds the revision and the digests of what was read.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from luthier.core.dataset import DatasetProfile, Split
from luthier.core.errors import RequestError
from luthier.core.frozen_model import FrozenModel

if TYPE_CHECKING:
    from luthier.core.plan import DataPlan

HUB: Final = "hub:"
_AZURE: Final = ("az", "abfs", "abfss")
_AZURE_HOST: Final = (".dfs.core.windows.net", ".blob.core.windows.net")
OBJECT_STORES: Final = ("s3://", "gs://", *(f"{scheme}://" for scheme in _AZURE))
"""How addresses begin that a driver of fsspec reads."""
_SCHEMES: Final = (HUB, "https://", "http://", *OBJECT_STORES)
WORKBOOK_SUFFIXES: Final = (".xlsx", ".xlsm", ".xls", ".ods")
DATA_SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet", *WORKBOOK_SUFFIXES)
"""Of files of rows; `ml/data/files/source.py` says which format each is."""
MAX_SOURCES: Final = 32
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
"""Hosts that need no encryption."""
_HUB_NAME: Final = re.compile(
    r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<rest>[^\[\]@]+))?(?:\[(?P<split>[\w.-]+)\])?",
    re.ASCII,
)
_SLICE: Final = re.compile(r"\[[\w.-]+(?:\[[^\]]*:[^\]]*\]|\+)[^/]*\]")
"""Of a split as the library `datasets` slices and adds them: `[train[:1000]]`, `[train[:10%]]`, `[train+test]`."""
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_. -]+")
MAX_NAME: Final = 60
_HUB_FORM: Final = "hub:ORGANISATION/DATASET, with @REVISION, /CONFIG or /FILE, and [SPLIT] where they are needed"

SourceName = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_. -]*$")]


def is_remote(path: str) -> bool:
    """Whether a recipe names something to download, and no path."""
    return path.startswith(_SCHEMES)


def is_hub_source(path: str) -> bool:
    """Whether a text is the whole name of a dataset of the hub, or of a part of one."""
    return _HUB_NAME.fullmatch(path) is not None


def is_pattern(path: str) -> bool:
    """Whether a recipe names the files of this machine that match a pattern, such as `data/*.parquet`."""
    return "*" in path and not is_remote(path)


def without_queries(document: Any) -> Any:
    """A document with the addresses of remote sources as others may read them: a query may hold a signature."""
    if isinstance(document, dict):
        return {key: without_queries(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [without_queries(value) for value in document]
    return document.partition("?")[0] if isinstance(document, str) and is_remote(document) else document


class SourceRecipe(FrozenModel):
    """One of several sources of training rows.

    Attributes:
        path: a file, the files that match a pattern such as `data/*.parquet`, or a remote source:
            `hub:org/dataset/config[split]`, `https://`, `s3://`, `gs://` or `az://`.
        name: what plans, charts and verdicts call it; the name of its file where it is left out.
        weight: its share of an epoch, compared with the weights of the other sources, of which each has one, too.
        fraction: how much of its rows is used, in the order of a stable hash.
        rows: how many of its rows are used, in that order.
        columns: field of the shape to column of this source; in place of `data.columns`.
    """

    form: ClassVar[str] = "a mapping with path, and weight, fraction, rows or columns where they are needed"

    path: Annotated[str, Field(min_length=1)]
    name: SourceName | None = None
    weight: Annotated[float, Field(gt=0, le=1e6)] | None = None
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    rows: Annotated[int, Field(ge=1)] | None = None
    columns: dict[str, str] | None = None

    @model_validator(mode="after")
    def _one_selection(self) -> SourceRecipe:
        if self.fraction is not None and self.rows is not None:
            raise ValueError("fraction or rows, not both: each of them says how much of the source is used")
        if self.columns is not None and "group" in self.columns:
            raise ValueError("columns without group: data.group_by names the field that keeps rows of all sources")
        return self


def _comparable(sources: tuple[SourceRecipe, ...]) -> tuple[SourceRecipe, ...]:
    # Not by a length of the type: pydantic would report it of a list whose items are wrong, too.
    if not 1 <= len(sources) <= MAX_SOURCES:
        raise ValueError(f"1 to {MAX_SOURCES} sources")
    if 0 < sum(one.weight is not None for one in sources) < len(sources):
        raise ValueError("a weight for each source or for none: weights compare the sources with each other")
    names = [one.name for one in sources if one.name is not None]
    if len(set(names)) < len(names):
        raise ValueError("a different name for each source")
    return sources


def _unweighted(sources: tuple[SourceRecipe, ...]) -> tuple[SourceRecipe, ...]:
    if any(one.weight is not None for one in sources):
        raise ValueError("sources without weights: rows that evaluate count once each")
    return sources


def _kind_of_rows(given: Any) -> str:
    return "sources" if isinstance(given, list | tuple) else "plain"


_Sources = Annotated[
    tuple[SourceRecipe, ...],
    AfterValidator(_comparable),
    Field(json_schema_extra={"minItems": 1, "maxItems": MAX_SOURCES}),
]
TrainingRows = Annotated[
    Annotated[str, Tag("plain")] | Annotated[_Sources, Tag("sources")], Discriminator(_kind_of_rows)
]
"""A file, a remote source or a list of sources; its type decides, so that an error is about one of them."""
JudgingRows = Annotated[
    Annotated[str | Annotated[float, Field(gt=0.0, lt=1.0)], Tag("plain")]
    | Annotated[_Sources, AfterValidator(_unweighted), Tag("sources")],
    Discriminator(_kind_of_rows),
]
"""As `TrainingRows`, or a share of the training rows."""


class SourceFile(FrozenModel):
    """A file that rows were read from.

    Attributes:
        name: the last part of its path; of several that match a pattern the path below its folder.
        sha256: the digest of its content; empty of a streamed remote file.
        num_bytes: its size.
        num_rows: rows in it.
        place: of an object that matches a pattern: its path in the store.
        stamp: the ETag or date of change of that object.
    """

    name: str
    sha256: str
    num_bytes: int
    num_rows: int
    place: str = ""
    stamp: str = ""


class SourcePlan(FrozenModel):
    """A source as a plan has it: where it is, what was read, and where its rows are in the file of the split.

    Attributes:
        split: what its rows are for.
        name: what charts and verdicts call it.
        path: as the recipe names it.
        revision: of a remote source: the commit of a dataset on the hub, or the ETag or date of change of a file; None
            for a file of this machine.
        files: what was read, in order.
        first_row: the number of its first row in the file of the split, from 1 on.
        num_rows: its rows in that file.
        weight: its share compared with those of the other sources; None where every row counts once.
        num_epoch_rows: its rows in an epoch, repeated ones included, before rows are left out as too long; None for
            splits that are not trained on.
        is_streamed: whether its rows are read while the run trains; how many it has is then not known, and 0 here.
        fraction: of a streamed source: how much of its rows is used; None for all.
        max_rows: of a streamed source: how many of its first rows are used; None for all.
    """

    split: Split
    name: str
    path: str
    revision: str | None = None
    files: tuple[SourceFile, ...]
    first_row: int
    num_rows: int
    weight: float | None = None
    num_epoch_rows: int | None = None
    is_streamed: bool = False
    fraction: float | None = None
    max_rows: int | None = None

    @property
    def summary(self) -> str:
        """Its rows, its share of an epoch and its revision: `faq: 20 rows, weight 3: 34 rows in an epoch`."""
        is_part = self.num_rows < self.num_file_rows
        parts = [f"{self.num_rows:,} of {self.num_file_rows:,} rows" if is_part else f"{self.num_rows:,} rows"]
        if self.is_streamed:
            parts = ["1 file, streamed" if len(self.files) == 1 else f"{len(self.files):,} files, streamed"]
            parts += [f"{self.fraction:.4g} of its rows"] if self.fraction is not None else []
            parts += [f"its first {self.max_rows:,} rows"] if self.max_rows is not None else []
            parts += [f"weight {self.weight:g}"] if self.weight is not None else []
        if self.weight is not None and self.num_epoch_rows is not None:
            parts.append(f"weight {self.weight:g}: {self.num_epoch_rows:,} rows in an epoch")
        if self.revision:
            parts.append(self.revision)
        # The query of an address may hold a signature.
        place = f" ({self.path.partition('?')[0]})" if is_remote(self.path) else ""
        return f"{self.name}{place}: {', '.join(parts)}"

    @property
    def num_file_rows(self) -> int:
        """Rows of its files, of which `num_rows` are used."""
        return sum(file.num_rows for file in self.files)


def not_in_hash(sources: Sequence[SourcePlan]) -> Any:
    """What of them the hash of a plan leaves out, in pydantic's form: all, or all but weights and where rows are.

    Their content is in the digests of the splits; how they are weighted is nowhere else.
    """
    decides = {"first_row", "num_rows", "weight"} if any(one.weight is not None for one in sources) else set()
    return {"__all__": set(SourcePlan.model_fields) - decides} if decides else True


def mixed_sources(sources: Iterable[SourcePlan], split: str = "train") -> tuple[SourcePlan, ...]:
    """The sources of a split where it has several; empty for one file."""
    found = tuple(one for one in sources if one.split == split)
    return found if len(found) > 1 else ()


def sources_of(data: DataPlan, profile: DatasetProfile | None) -> tuple[SourcePlan, ...]:
    """The sources of the rows of a split: its own, or those of the training rows that it was cut from.

    None where there is one alone, and for texts that are packed, whose blocks hold pieces of several sources.
    """
    if profile is None or profile.packed is not None:
        return ()
    is_cut = profile.sha256 == data.train.sha256
    return mixed_sources(data.sources, "train" if is_cut else profile.split)


def source_place(sources: Sequence[SourcePlan], row_id: str) -> int:
    """Which of the sources of a split a row comes from.

    Args:
        sources: of one split, in order.
        row_id: `FILE:LINE` in the file of the split, or `FILE:LINE#NUMBER` of an answer that was drawn to its prompt.
    """
    line = int(row_id.rpartition(":")[2].partition("#")[0])
    return bisect_right([one.first_row for one in sources], line) - 1


def without_data_suffix(name: str) -> str:
    """`orders.jsonl.gz` -> `orders`."""
    plain = name.removesuffix(".gz")
    return next((plain.removesuffix(end) for end in DATA_SUFFIXES if plain.lower().endswith(end)), plain)


def names_of(sources: Sequence[SourceRecipe]) -> list[str]:
    """A different name for each source: the given one, else that of the file or the dataset."""
    taken = {one.name for one in sources if one.name is not None}
    found: list[str] = []
    for one in sources:
        name = one.name or default_name(one.path)
        number, base = 2, name
        while one.name is None and name in taken:
            name, number = f"{base} {number}", number + 1
        taken.add(name)
        found.append(name)
    return found


def default_name(path: str) -> str:
    """What a source without a name is called: letters, digits, `_`, `.`, `-` and blanks."""
    if path.startswith(HUB):
        dataset = parse_hub_dataset(path)
        parts = [dataset.repo.partition("/")[2], dataset.config, dataset.file and PurePosixPath(dataset.file).name]
        parts += [dataset.split] if dataset.split not in (None, "train") else []
        text = " ".join(without_data_suffix(part) for part in parts if part)
    else:
        place = urlsplit(path).path if is_remote(path) else path.replace("\\", "/")
        text = without_data_suffix(place.rstrip("/").rpartition("/")[2])
        if is_pattern(path) and not _NOT_IN_A_NAME.sub("-", text).strip(" -"):  # `faq/*.jsonl` is called faq
            text = next((part for part in reversed(place.split("/")[:-1]) if part and "*" not in part), text)
    return _NOT_IN_A_NAME.sub("-", text)[:MAX_NAME].strip(" -") or "rows"


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset on the hub, or part of it.

    Attributes:
        repo: `org/name`.
        revision: a branch, tag or commit; None for the newest.
        config: the name of a configuration; None for the only one, the one that the card marks as the
            default, or the one called `default`.
        file: a data file of the repository; None for those of a split.
        split: None for `train`.
    """

    repo: str
    revision: str | None = None
    config: str | None = None
    file: str | None = None
    split: str | None = None

    @property
    def text(self) -> str:
        """As a recipe names it."""
        rest = "".join(f"/{part}" for part in (self.config, self.file) if part)
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB}{self.repo}{revision}{rest}" + (f"[{self.split}]" if self.split else "")

    def at(self, revision: str) -> HubDataset:
        """The same at a commit."""
        return replace(self, revision=revision)


def parse_hub_dataset(text: str) -> HubDataset:
    """Read `hub:org/name@revision/config[split]`, or `hub:org/name/path/to/file.jsonl`.

    Raises:
        RequestError: it has another form.
    """
    found = _HUB_NAME.fullmatch(text)
    if found is None:
        raise RequestError(
            f"{text[:200]!r} names no dataset of the hub",
            expected=_HUB_FORM,
            do="name one split alone, such as [train]; a number or a share of its rows is `rows: 1000` or "
            "`fraction: 0.1` of a source in the list `data.train`, and a second split is a second source"
            if _SLICE.search(text)
            else "copy the name from the page of the dataset, for example hub:openai/gsm8k/main[train]",
        )
    rest, split = found["rest"], found["split"]
    is_file = rest is not None and rest.lower().removesuffix(".gz").endswith(DATA_SUFFIXES)
    parts = rest.split("/") if rest else []
    if (not is_file and len(parts) > 1) or (is_file and split) or not all(p not in ("", ".", "..") for p in parts):
        raise RequestError(
            f"{text[:200]!r} names no dataset of the hub: {rest!r} is neither a configuration nor a data file alone",
            expected=_HUB_FORM,
            do=f"name a configuration without '/', or a file that ends in {', '.join(DATA_SUFFIXES)}, without a split",
        )
    return HubDataset(found["repo"], found["revision"], None if is_file else rest, rest if is_file else None, split)


def check_remote(path: str) -> None:
    """Check the form of a remote source, without a connection.

    Raises:
        RequestError: it is malformed, unencrypted, or holds a password.
    """
    if path.startswith(HUB):
        parse_hub_dataset(path)
        return
    try:
        parts = urlsplit(path)
        _ = parts.port  # read only where it is asked for
    except ValueError as error:
        raise RequestError(
            f"rows at {path.partition('?')[0][:200]}, which is not an address: {error}",
            expected="the address of a data file, such as https://HOST/train.jsonl",
            do="correct the host or the port",
        ) from error
    # Azure's form abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/FILE holds no credentials.
    names_account = parts.scheme in _AZURE and (parts.hostname or "").endswith(_AZURE_HOST) and parts.password is None
    if (parts.username or parts.password) and not names_account:
        raise RequestError(
            f"an address of rows at {parts.hostname} holds a user name or a password",
            expected="an address without credentials: recipes and plans are stored, shown and shared",
            do="take them out; credentials of object stores are read from the environment",
        )
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise RequestError(
            f"rows at {path[:200]}, which is not encrypted",
            expected="an address that begins with https://",
            do="use https://, or download the file and name its path",
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise RequestError(
            f"rows at {path[:200]}, which names no file",
            expected="the address of a data file, such as https://HOST/train.jsonl or s3://BUCKET/train.parquet",
            do="name one file; of an object store also a pattern, such as s3://BUCKET/rows/*.parquet",
        )


def pinned_paths(named: Mapping[str, str], sources: Iterable[SourcePlan]) -> dict[str, str]:
    """Datasets of the hub at the commits that a plan has recorded, so that a run that is resumed reads the same rows.

    Args:
        named: what a recipe names, by key.
        sources: of the plan.

    Returns:
        Key -> the name with the commit, for those that have one.
    """
    commits = {one.path: one.revision for one in sources if one.revision and one.path.startswith(HUB)}
    return {key: parse_hub_dataset(path).at(commits[path]).text for key, path in named.items() if path in commits}
