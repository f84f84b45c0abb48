"""`luthier import`: a file of another tool becomes a recipe, and every key of it gets an outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.aliases import new_key
from luthier.core.errors import RecipeError, RequestError, library_reason
from luthier.features.recipes.file import FileKind, read_recipe_file
from luthier.features.recipes.imports import axolotl, llama_factory, openai, trl, unsloth
from luthier.features.recipes.imports.translation import Entry, Key, Translation
from luthier.features.recipes.service import override_value, recipe_from, value_at, with_values, write_text

_FILE: Final = FileKind(
    word="file to import",
    needs="a mapping of keys",
    begin="give the file that the other tool is started with",
    hint="give a YAML or JSON file",
    refuse=RequestError,
    has_switch_words=True,  # all of these tools read YAML with PyYAML
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool whose files are read.

    Attributes:
        title: Its name, for people.
        version: The version whose keys and defaults are known.
        keys: Its table of keys.
        signs: Keys that files of this tool have and those of the others have not.
        prepared: Puts a file's keys into the form of the table.
    """

    title: str
    version: str
    keys: Mapping[str, Key]
    signs: frozenset[str]
    prepared: Callable[[dict[str, Any]], dict[str, Any]] = dict


TOOLS: Final = {
    "axolotl": Tool(
        "axolotl", axolotl.VERSION, axolotl.KEYS,
        frozenset(("base_model", "datasets", "micro_batch_size", "sequence_len", "adapter", "num_epochs")),
        axolotl.prepared,
    ),
    "llama_factory": Tool(
        "LLaMA-Factory", llama_factory.VERSION, llama_factory.KEYS,
        frozenset(("stage", "finetuning_type", "dataset", "template", "cutoff_len", "lora_target", "lora_rank")),
    ),
    "trl": Tool(
        "TRL", trl.VERSION, trl.KEYS,
        frozenset(("dataset_name", "use_peft", "lora_r", "dataset_train_split", "attn_implementation")),
    ),
    "unsloth": Tool("Unsloth", unsloth.VERSION, unsloth.KEYS, frozenset(unsloth.SECTIONS), unsloth.prepared),
    "openai": Tool(
        "OpenAI", openai.VERSION, openai.KEYS, frozenset(("training_file", "validation_file", "fine_tuned_model"))
    ),
}  # fmt: skip
"""Tools by the name that `--from` takes."""
_NEEDED: Final = {
    "axolotl": "base_model", "llama_factory": "model_name_or_path", "trl": "model_name_or_path",
    "unsloth": "from_pretrained", "openai": "training_file",
}  # fmt: skip
"""The key without which a file is none of that tool."""


_ARGUMENTS: Final = frozenset((
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate", "output_dir",
    "lr_scheduler_type", "warmup_steps", "warmup_ratio", "max_steps",
))  # fmt: skip
"""Arguments of transformers' trainer, at least two of them, where a file names no model."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A recipe that came from another tool.

    Attributes:
        tool: Its name, as `--from` takes it.
        version: The version whose keys and defaults were used.
        keys: The recipe's keys.
        entries: Every key of the file with its outcome, and the defaults that were written out.
        notes: What differs although every key was translated.
        base_model: The recipe's base model, a path as an absolute one.
    """

    tool: str
    version: str
    keys: dict[str, Any]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    base_model: str

    @property
    def text(self) -> str:
        """The recipe as YAML."""
        return write_text(self.keys, {})

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier import --json`."""
        return {
            "tool": self.tool,
            "version": self.version,
            "recipe": self.keys,
            "keys": [entry.as_json() for entry in self.entries],
            "notes": list(self.notes),
        }


class RefusedKeysError(RecipeError):
    """Keys of a file have no counterpart in a recipe.

    Attributes:
        entries: These keys, each with its reason and the key of the recipe that would settle it.
    """

    def __init__(self, came: str, *, expected: str, do: str, entries: Sequence[Entry]) -> None:
        super().__init__(came, expected=expected, do=do)
        self.entries = tuple(entries)

    def as_json(self) -> dict[str, Any]:
        """The error as a plain document, whose type stays that of every wrong recipe."""
        return super().as_json() | {"type": RecipeError.__name__}


def import_recipe(
    path: Path,
    *,
    target: Path,
    tool: str | None = None,
    trainer: str | None = None,
    overrides: Sequence[str] = (),
    allowed: Sequence[str] = (),
    num_devices: int = 1,
    reads_files: bool = True,
) -> Imported:
    """Translate a file of another tool.

    Args:
        path: YAML or JSON.
        target: The folder that the recipe will be in, from which its paths count.
        tool: Its name in `TOOLS`; None: by the keys of the file.
        trainer: Of TRL; None: by the keys of the file.
        overrides: Keys of the recipe, `data.train=rows.jsonl`; they take precedence and settle what was refused.
        allowed: Keys of the file that may be left out, although they have no counterpart.
        num_devices: Devices that the file is run on, for batch sizes.
        reads_files: Whether paths in it may name files of this machine; False for a file that came over the network.

    Raises:
        NotFoundError, RequestError: no such file, no keys in it, or the tool cannot be recognised.
        RefusedKeysError: Keys without a counterpart; all of them are listed.
        RecipeError: The recipe is wrong; all wrong places are listed.
    """
    given = read_keys(path)
    name = tool or recognise(path, given)
    kind = TOOLS[name]
    settled: dict[str, Any] = {}
    for override in overrides:
        override_value(settled, override)
    translation = Translation(
        kind.keys,
        kind.prepared(given),
        settled=_dotted(settled),
        folder=path.absolute().parent,
        target=target,
        num_devices=num_devices,
        reads_files=reads_files,
    )
    try:
        _translate(name, translation, trainer, given, path)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        # Values are of any kind: arithmetic on text or a list where a number belongs ends here.
        near = ", ".join(f"{key}: {translation.given[key]!r:.60}" for key in translation.taken[-2:])
        raise RequestError(
            f"{path} has a value of another kind than {kind.title} takes, near {near}: {library_reason(error)}",
            expected=f"values as {kind.version} takes them",
            do="correct the value",
        ) from error
    if not {"data.validation"} & (translation.recipe.keys() | translation.settled.keys()):
        translation.withdraw("training.validate_every_steps", "there are no validation rows")
    entries = _checked(path, kind, translation.entries(), allowed)
    keys = with_values({}, {place: value for place, value in translation.recipe.items() if value is not None})
    for override in overrides:
        override_value(keys, override)
    recipe = recipe_from(keys, base_dir=target)
    if value_at(keys, "data.validation") is not None and not translation.given.get("load_best_model_at_end"):
        translation.notes.append(f"with validation rows Luthier keeps the best step; {kind.title} keeps the last one")
    return Imported(name, kind.version, keys, tuple(entries), tuple(translation.notes), recipe.base_model)


def read_keys(path: Path) -> dict[str, Any]:
    """The keys of a file, unchecked.

    Raises:
        NotFoundError: There is no such file.
        RequestError: The file cannot be read, or holds no keys.
    """
    keys = read_recipe_file(path, _FILE).keys
    if (other := next((key for key in keys if not isinstance(key, str)), None)) is not None:
        raise RequestError(f"{path} has the key {other!r}", expected="keys that are texts", do="correct the key")
    return keys


def recognise(path: Path, given: Mapping[str, Any]) -> str:
    """The tool of a file, by the keys that only its files have.

    Raises:
        RequestError: no tool's keys, or those of several.
    """
    names = {key.removeprefix("FastLanguageModel.") for key in given}
    if {"base_model", "data"} <= names:
        raise RequestError(
            f"{path} is a recipe of Luthier already: it has base_model and data",
            expected="a file of another tool",
            do=f"show its plan: luthier plan {path}",
        )
    if unsloth.is_flat(given):
        return "unsloth"
    found = {name: len(kind.signs & names) for name, kind in TOOLS.items() if _NEEDED[name] in names}
    best = max(found.values(), default=0)
    names_of_best = [name for name, count in found.items() if count == best]
    if best == 0:
        _refuse_relative(path, given)
    if best == 0 or len(names_of_best) > 1:
        came = f"has keys of {' and '.join(names_of_best)}" if names_of_best else "has the keys of no tool"
        raise RequestError(
            f"{path} {came}: {', '.join(sorted(names)[:12])}",
            expected=f"a file of {', '.join(kind.title for kind in TOOLS.values())}",
            do=f"name the tool: --from {', '.join(TOOLS)}",
        )
    return names_of_best[0]


def _refuse_relative(path: Path, given: Mapping[str, Any]) -> None:
    """Say what to do with files that are well known and belong to none of the tools.

    Raises:
        RequestError: The file is one of torchtune, or has the arguments of a trainer alone.
    """
    if any(isinstance(part, Mapping) and "_component_" in part for part in given.values()):
        raise RequestError(
            f"{path} is a configuration of torchtune: its parts name code by _component_, which is never run",
            expected=f"a file of {', '.join(kind.title for kind in TOOLS.values())}",
            do="write a recipe: base_model (that of checkpointer), data.train (dataset), method.rank, alpha and "
            "targets (model), training.epochs, learning_rate (optimizer.lr) and global_batch_size (batch_size x "
            "gradient_accumulation_steps)",
        )
    if len(_ARGUMENTS.intersection(given)) > 1:
        raise RequestError(
            f"{path} has arguments of transformers.TrainingArguments, which name neither a model nor rows",
            expected="a model and rows beside them",
            do=f"name them: luthier import {path} --from trl --trainer sft --set base_model=hub:org/name "
            "--set data.train=rows.jsonl; for an adapter also --set method.name=lora",
        )


def _translate(name: str, translation: Translation, trainer: str | None, given: dict[str, Any], path: Path) -> None:
    if trainer is not None and name != "trl":
        raise RequestError(
            f"--trainer {trainer} with a file of {TOOLS[name].title}",
            expected="--trainer with a file of TRL, whose command names the trainer",
            do="leave it out",
        )
    if name == "trl":
        found = [trainer] if trainer else trl.trainers_of(given)
        if len(found) != 1:
            came = f"has keys of {' and '.join(found)}" if found else "has no key of one trainer alone"
            raise RequestError(
                f"{path} {came}",
                expected="a trainer of TRL, which its command names: trl sft --config FILE",
                do=f"name it: --trainer {', '.join(trl.TRAINERS)}",
            )
        trl.translate(translation, found[0])
        return
    {
        "axolotl": axolotl.translate,
        "llama_factory": llama_factory.translate,
        "unsloth": unsloth.translate,
        "openai": openai.translate,
    }[name](translation)


def _checked(path: Path, kind: Tool, entries: Sequence[Entry], allowed: Sequence[str]) -> list[Entry]:
    """The entries, with allowed keys as left out.

    Raises:
        RequestError: A key is allowed that is not refused.
        RefusedKeysError: A key has no counterpart and is not allowed.
    """
    refused = {entry.key: entry for entry in entries if entry.is_refused}
    if wrong := [key for key in allowed if key not in refused]:
        raise RequestError(
            f"--allow-missing {', '.join(wrong)}: not refused in {path}",
            expected=f"a refused key: {', '.join(refused) or 'there is none'}",
            do="leave the option out",
        )
    if left := [entry for key, entry in refused.items() if key not in allowed]:
        raise RefusedKeysError(
            "\n    ".join([f"{path} ({kind.title}) has {_count(len(left))} without a counterpart:", *map(_line, left)]),
            expected=f"keys of {kind.version} that a recipe has a counterpart for",
            do="set the recipe's key with --set KEY=VALUE where one is named; else correct the file, or leave the key "
            "out with --allow-missing KEY",
            entries=left,
        )
    return [
        Entry(entry.key, entry.value, "left_out", {}, entry.note) if entry.is_refused else entry for entry in entries
    ]


def _count(number: int) -> str:
    return "1 key" if number == 1 else f"{number} keys"


def _line(entry: Entry) -> str:
    value = f": {entry.value!r:.60}" if entry.value is not None else " (not in the file)"
    settle = f"; --set {entry.set_by}=..." if entry.set_by else ""
    return f"{entry.key}{value}: {entry.note}{settle}"


def _dotted(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Set keys by their dotted names: those of sections, and those of single values inside them."""
    found: dict[str, Any] = {}
    pending = [("", keys)]
    while pending:
        prefix, section = pending.pop()
        for name, value in section.items():
            place = new_key(f"{prefix}{name}")
            found[place] = value_at(keys, place)
            if isinstance(value, Mapping):
                pending.append((f"{place}.", value))
    return {place: value for place, value in found.items() if not isinstance(value, Mapping) or "columns" in place}
