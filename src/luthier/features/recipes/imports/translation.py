"""One file of another tool on its way to a recipe: every key of it gets exactly one outcome.

A key that is in no table of its tool is unknown, and a key that a translator neither used nor explained is refused: a
forgotten key cannot become a silent one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.data_sources import is_remote
from luthier.core.system.files import expanded
from luthier.features.recipes.imports.row_sources import (
    ELSEWHERE,
    NOT_ROWS,
    NOTE_OF_FIRST_ROWS,
    PATH_STARTS,
    RowFinder,
    RowSource,
    is_row_file,
    path_from,
    recipe_value,
)

_FILE_KINDS: Final = ("json", "csv", "parquet", "text", "arrow")
"""Names of `load_dataset` for files of a kind, beside datasets of the hub."""
Kind = Literal["translated", "harmless", "missing"]
Outcome = Literal["translated", "default", "harmless", "set", "missing", "unknown", "left_out"]


@dataclass(frozen=True, slots=True)
class Key:
    """A key of another tool.

    Attributes:
        kind: `translated` into `places`; `harmless`, since it does not change what is trained; `missing`: it does, and
            a recipe has nothing for it.
        places: The recipe's keys that it becomes.
        note: How it is converted, why it is harmless, or what is missing.
        off: Of a missing key, the values that leave training as it is.
    """

    kind: Kind
    places: tuple[str, ...] = ()
    note: str = ""
    off: tuple[Any, ...] = ()


def becomes(*places: str, note: str = "") -> Key:
    """A key that is translated."""
    return Key("translated", places, note)


def harmless(note: str, *names: str) -> dict[str, Key]:
    """Keys that do not change what is trained, all for one reason."""
    return {name: Key("harmless", (), note) for name in names}


def missing(note: str, *names: str, off: tuple[Any, ...] = (False,)) -> dict[str, Key]:
    """Keys that change what is trained and have no counterpart, except where their value is in `off`."""
    return {name: Key("missing", (), note, off) for name in names}


@dataclass(frozen=True, slots=True)
class Entry:
    """The outcome of one key.

    Attributes:
        key: Its dotted name in the file; of a default, the name that the file leaves out.
        value: What the file has; of a default, what the other tool takes.
        outcome: `translated`, `default` (a silent default of the other tool, written out), `harmless`, `set` (by
            `--set`), `left_out` (by `--allow-missing`), and the refused ones: `missing` and `unknown`.
        places: The recipe's keys with the values that they got.
        note: The reason, or how the value was converted.
        set_by: Of a refused key, the recipe's key that would settle it by `--set`.
    """

    key: str
    value: Any
    outcome: Outcome
    places: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    set_by: str = ""

    @property
    def is_refused(self) -> bool:
        """Whether the import ends because of this key."""
        return self.outcome in ("missing", "unknown")

    def as_json(self) -> dict[str, Any]:
        """The entry for `--json`."""
        return {
            "key": self.key, "value": self.value, "outcome": self.outcome, "recipe": self.places, "note": self.note,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class HubParts:
    """The keys that say which part of a dataset of the hub; empty where a tool has no such key.

    Attributes:
        config: The key of its configuration.
        split: The key of its split.
        revision: The key of its branch, tag or commit.
    """

    config: str
    split: str
    revision: str = ""


class Translation:
    """What is known so far of the recipe that a file becomes.

    Args:
        keys: The table of the tool.
        given: The file's keys.
        settled: Dotted keys of the recipe with the values of `--set`; they take precedence.
        folder: The folder of the file.
        target: The folder that paths of the recipe count from.
        num_devices: Devices that the file is run on, for batch sizes.
        reads_files: Whether paths in it may name files of this machine; False for a file of a caller over the network,
            who must not learn which paths exist here.
    """

    def __init__(
        self,
        keys: Mapping[str, Key],
        given: Mapping[str, Any],
        *,
        settled: Mapping[str, Any],
        folder: Path,
        target: Path,
        num_devices: int,
        reads_files: bool = True,
    ) -> None:
        self.keys, self.settled, self.folder, self.target = keys, settled, folder, target
        self.num_devices, self.reads_files = num_devices, reads_files
        self.given = dict(_flat(given, keys))
        self.recipe: dict[str, Any] = {}
        self.notes: list[str] = []
        self._entries: dict[str, Entry] = {}
        self.taken: list[str] = []

    def has(self, key: str) -> bool:
        """Whether the file sets a key to something."""
        return self.given.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether the file sets a key to null, which is more than leaving it out: its default does not hold."""
        return key in self.given and self.given[key] is None

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key of the table; the default where the file leaves it out or empty."""
        if self.keys[key].kind != "translated":
            raise KeyError(f"{key} is not a key that can be translated")
        if self.has(key):
            self.taken.append(key)
        return self.given[key] if self.has(key) else default

    def put(self, place: str, value: Any, *keys: str, default: Any = None, note: str = "") -> None:
        """Set a key of the recipe, because of these keys of the file.

        Args:
            place: The recipe's dotted key.
            value: Its value.
            keys: The keys that it follows from; those that the file leaves out are noted as defaults of the tool.
            default: The value of the tool for the keys that the file leaves out; by key where they differ.
            note: How it was converted.
        """
        outcome: Outcome = "translated"
        if any(place == name or place.startswith(f"{name}.") for name in self.settled):
            value, outcome, note = self.settled.get(place), "set", f"{place} is set by --set"
        else:
            self.recipe[place] = value
        for key in keys:
            if self.has(key):
                before = self._entries.get(key)
                places = {**(before.places if before else {}), place: value}
                notes = [text for text in (before.note if before else "", note) if text]
                self._enter(Entry(key, self.given[key], outcome, places, "; ".join(dict.fromkeys(notes))))
            elif outcome == "translated" and not any(self.has(other) for other in keys):
                silent = default[key] if isinstance(default, dict) else default
                self._enter(Entry(key, silent, "default", {place: value}, note))

    def same(self, key: str, note: str) -> None:
        """Note that the value of a key leaves training as it is."""
        if self.has(key) and key not in self._entries:
            self._enter(Entry(key, self.given[key], "harmless", {}, note))

    def leave_open(self, key: str, note: str) -> None:
        """Note what a key that the file sets to null means: the recipe's own key is left out.

        Args:
            key: The key.
            note: What it means.
        """
        self._enter(Entry(key, None, "harmless", {}, note))

    def withdraw(self, place: str, note: str) -> None:
        """Take a key of the recipe back; the keys of the file that it came from are not needed."""
        if self.recipe.pop(place, None) is None:
            return
        for entry in list(self._entries.values()):
            if place in entry.places and entry.key in self.given:
                places = {name: value for name, value in entry.places.items() if name != place}
                outcome: Outcome = entry.outcome if places else "harmless"
                self._enter(Entry(entry.key, entry.value, outcome, places, note))

    def refuse(self, key: str, note: str, *, set_by: str = "") -> None:
        """Refuse a key, unless `--set` settles it. A key that the file leaves out may be refused, too."""
        if set_by and set_by in self.settled:
            if self.has(key):
                self._enter(Entry(key, self.given[key], "set", {set_by: self.settled[set_by]}, "set by --set"))
            return
        self._enter(Entry(key, self.given.get(key), "missing", {}, note, set_by))

    def entries(self) -> list[Entry]:
        """Every key of the file with its outcome, in the file's order, then the defaults that were written out."""
        for key, value in self.given.items():
            if key not in self._entries:
                self._enter(self._rest(key, value))
        defaults = [entry for key, entry in self._entries.items() if key not in self.given]
        return [self._entries[key] for key in self.given] + defaults

    def _rest(self, key: str, value: Any) -> Entry:
        known = self.keys.get(key)
        # A section that the table has by its keys, such as `hyperparameters: {}` of a job that leaves all to defaults.
        is_empty_section = value == {} and any(name.startswith(f"{key}.") for name in self.keys)
        if value is None or is_empty_section:
            return Entry(key, value, "harmless", {}, "empty")
        if known is None:
            return Entry(key, value, "unknown", {}, "it is in no list of this tool's keys")
        if known.kind == "harmless":
            return Entry(key, value, "harmless", {}, known.note)
        if known.kind == "missing":
            # `0 == False` in Python: a number that is 0 counts as off, too.
            is_off = any(value == off for off in known.off)
            return Entry(key, value, "harmless", {}, "off") if is_off else Entry(key, value, "missing", {}, known.note)
        return Entry(key, value, "missing", {}, "it has no effect with the other keys of this file")

    def _enter(self, entry: Entry) -> None:
        self._entries[entry.key] = entry

    def part(self, given: Mapping[str, Any]) -> Translation:
        """A translation of some keys alone, such as those of one of several datasets.

        Args:
            given: These keys.
        """
        return Translation(
            self.keys, given, settled=self.settled, folder=self.folder, target=self.target,
            num_devices=self.num_devices, reads_files=self.reads_files,
        )  # fmt: skip

    def take_over(self, part: Translation, prefix: str, place: str) -> None:
        """Enter the keys of a part under their own names.

        Args:
            part: As of `part`, whose keys are settled.
            prefix: What their names begin with there.
            place: What they begin with here.
        """
        for entry in part.entries():
            self._enter(replace(entry, key=place + entry.key.removeprefix(prefix)))
        for note in part.notes:
            self.note(note)

    def row_finder(self) -> RowFinder:
        """Where its files are looked for."""
        return RowFinder(self.folder, self.target, self.reads_files)

    def put_hub_rows(self, place: str, value: Any, key: str, parts: HubParts) -> None:
        """A dataset of the hub or a file, or the first rows of one.

        Args:
            place: The recipe's key of the rows.
            value: What the file has.
            key: The file's key for it.
            parts: The keys of the file that say which part of the dataset.
        """
        keys = [name for name in (parts.config, parts.split, parts.revision) if name]
        config, split, revision = (
            str(self.take(name, "")) if name else "" for name in (parts.config, parts.split, parts.revision)
        )
        found = self.row_finder().source(str(value), config=config, split=split, revision=revision)
        used = [name for name in keys if self.has(name)]
        if isinstance(found, str):
            self.refuse(key, found, set_by=place)
        elif is_remote(found.path):
            self.put_sources(place, [found], key, *used)
        else:
            self.put_sources(place, [found], key, *([parts.split] if found.is_part else []))
        for name in used:
            self.same(name, "which part of a hub's dataset, and the rows are a file")

    def put_loaded(self, place: str, key: str, files_key: str, parts: HubParts) -> None:
        """The rows of a call of `load_dataset`: a dataset of the hub or a file, or some of its data files.

        Args:
            place: The recipe's key of the rows.
            key: The file's key of the dataset, or of the kind of its files (`json`).
            files_key: The file's key of data files.
            parts: The keys of the file that say which part of the dataset.
        """
        name, files = str(self.take(key, "")), self.take(files_key)
        if files is None:
            self.put_hub_rows(place, name, key, parts)
            return
        if isinstance(files, dict) and len(files) == 1:
            files = next(iter(files.values()))  # by the name of the split
        names = [files] if isinstance(files, str) else list(files)
        given = {part: str(self.take(part, "")) if part else "" for part in (parts.split, parts.revision)}
        split, is_kind = given[parts.split], name in _FILE_KINDS
        found: list[RowSource] = []
        for one in map(str, names):
            source = (
                self.row_finder().source(one, split=split)
                if is_kind
                else self.row_finder().source(name, split=split, revision=given[parts.revision], file=one)
            )
            if isinstance(source, str):
                self.refuse(files_key, source, set_by=place)
                break
            found.append(source)
        if len(found) > 1 and any(one.is_part for one in found):
            self.refuse(files_key, f"{split} of several files: give each source its rows or fraction", set_by=place)
        elif found and len(found) == len(names):
            used = [] if is_kind else [key]
            used += [parts.split] if found[0].is_part else []
            used += [parts.revision] if given[parts.revision] and not is_kind else []
            self.put_sources(place, found, files_key, *used)
        elif not names:
            self.refuse(files_key, "no file is named", set_by=place)
        self.same(key, "the kind of the files")
        for part in (parts.config, parts.split, parts.revision):
            if part:
                self.same(part, "the files are named")

    def put_sources(self, place: str, sources: Sequence[RowSource], *keys: str) -> None:
        """Datasets as the rows of a split.

        Args:
            place: The recipe's key of the rows.
            sources: At least one.
            keys: The keys of the file that they follow from.
        """
        notes = "; ".join(dict.fromkeys(one.note for one in sources if one.note))
        self.put(place, recipe_value(sources), *keys, note=notes)
        if any(one.is_part for one in sources) and place not in self.settled:
            self.note(NOTE_OF_FIRST_ROWS)

    def note(self, text: str) -> None:
        """Something that differs although every key was translated, said once."""
        if text not in self.notes:
            self.notes.append(text)

    def put_rows(self, place: str, value: Any, key: str) -> None:
        """A file of rows; the name of a dataset on a hub is refused."""
        name = str(value)
        if not self.reads_files:
            self.refuse(key, ELSEWHERE, set_by=place)
            return
        if not is_row_file(name):
            self.refuse(key, NOT_ROWS, set_by=place)
            return
        path, note = self.row_finder().file(name)
        self.put(place, path, key, note=note)

    def put_model(self, value: Any, key: str, revision_key: str = "") -> None:
        """A base model: a folder, or a name on the hub."""
        name = str(value)
        revision = self.take(revision_key) if revision_key else None
        packed = ("-bnb-4bit", "-bnb-nf4-bf16", "-gptq", "-awq", "-int4", "-fp8", "-nvfp4", "-mxfp4")
        if name.lower().endswith(packed):
            note = "its weights are quantised already: name the model of 16 bits, and quantise by method.name: qlora"
            self.refuse(key, note, set_by="base_model")
        elif not self.reads_files and name.startswith(PATH_STARTS):
            self.refuse(key, "a folder of another machine: choose a base model", set_by="base_model")
        elif name.startswith(PATH_STARTS) or (self.reads_files and (self.folder / name).is_dir()):
            self.put("base_model", path_from(self.target, self.folder / expanded(name)), key)
        elif name.count("/") == 1:
            where = f"hub:{name}@{revision}" if revision else f"hub:{name}"
            self.put("base_model", where, key, *([revision_key] if revision else []))
        else:
            self.refuse(key, "no folder, and no name of the form org/name", set_by="base_model")


def _flat(given: Mapping[str, Any], keys: Mapping[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Sections as dotted keys, except where the table has a section whole, such as a grader."""
    for name, value in given.items():
        place = f"{prefix}{name}"
        has_inner = place not in keys or any(key.startswith(f"{place}.") for key in keys)
        if isinstance(value, Mapping) and value and has_inner:
            yield from _flat(value, keys, f"{place}.")
        else:
            yield place, value
