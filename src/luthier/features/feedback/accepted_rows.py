"""Use case: accepted answers of the review queue become the next version of a dataset, without held-out rows.

accepted items not added yet -> rows in the shape of the dataset -> without what held-out rows say -> the next version

The rows of a version stay as they are, except those that a correction replaces: a prompt with its old answer and its
correction would teach both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.access import Caller
from luthier.core.dataset import Example, Row
from luthier.core.errors import ConflictError, DataError, LuthierError
from luthier.core.ids import sha256_bytes
from luthier.core.ports import track
from luthier.core.records.traffic import ReviewItem, is_of_calls
from luthier.core.system.files import file_lock, scratch_folder
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.decided_rows import detected_shape
from luthier.features.datasets.derived_versions import OF_SPLIT
from luthier.features.datasets.rows import open_rows
from luthier.features.datasets.store import Dataset, DatasetVersion
from luthier.features.feedback.review import accepted
from luthier.ml.data.rows.outputs import json_line
from luthier.platform.files import service as files
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.rows.row_index import RowIndex
    from luthier.ml.data.rows.shapes import Decision

MAX_COMPARED_ROWS: Final = 50_000
"""Of a file with more rows, rows with equal prompts are not searched; near-duplicates of held-out rows always are."""
_DETAIL: Final = "review_ids"
_LEARNED: Final = "review_learned"
"""In the details of a version: a digest of the answer that was added, by review id."""
CALLS_TOOLS: Final = "it calls tools, and the log does not have the definitions of the tools"
"""Why an accepted answer is no row: it would teach the JSON in which the log keeps calls."""
_DIGEST_CHARACTERS: Final = 16
_FROM_ELSEWHERE: Final = ("split", "import", "documents")
"""Versions of these origins hold none of the rows of the version before."""
_MAX_TARGETS: Final = 50
_LOCK_SECONDS: Final = 30.0
_FILENAME: Final = "reviewed.jsonl"


@dataclass(frozen=True, slots=True)
class Target:
    """A dataset to which accepted answers can be added.

    Attributes:
        dataset: The dataset.
        version: Its newest version.
        num_new: Accepted answers that were not added to it yet.
    """

    dataset: Dataset
    version: DatasetVersion
    num_new: int


@dataclass(frozen=True, slots=True)
class AddedRows:
    """What became of the accepted answers.

    Attributes:
        version: The version that was made.
        num_added: Rows that are new in it.
        num_replaced: Rows of the version before with the prompt of a new one, which are left out.
        left_out: Accepted answers that are not in it, by reason.
        cautions: What was not checked.
    """

    version: DatasetVersion
    num_added: int
    num_replaced: int
    left_out: Mapping[str, int]
    cautions: Sequence[str]


@dataclass(slots=True)
class _Candidates:
    """Rows that may be added, by review id, with digests of their answers, and those that may not, by reason."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    learned: dict[str, str] = field(default_factory=dict)
    examples: dict[str, Example] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    cautions: list[str] = field(default_factory=list)

    def drop(self, review_id: str, reason: str) -> None:
        del self.rows[review_id], self.examples[review_id]
        self.left_out[reason] += 1


def targets(context: Context, caller: Caller, model: str | None = None) -> list[Target]:
    """Datasets of the caller's project that are trained on, the newest 50; those with reviewed answers come first.

    Args:
        context: The home.
        caller: The caller, whose project is used.
        model: Only answers of this model; None for all.
    """
    items = accepted(context, caller.project_id, model)
    found = []
    for dataset, version in context.datasets.list(caller.project_id)[:_MAX_TARGETS]:
        # An accepted answer in them would be trained on and tested with.
        if _side(context, caller, version) in ("held_out", "validation"):
            continue
        known = _added_before(context.datasets.versions(dataset.dataset_id))
        has_any = any(one.review_id in known for one in items)
        found.append((not has_any, Target(dataset, version, sum(_is_new(one, known) for one in items))))
    return [target for _, target in sorted(found, key=lambda pair: pair[0])]


def add_accepted(context: Context, caller: Caller, dataset_id: str, model: str | None = None) -> AddedRows:
    """Make the next version of a dataset, with all accepted answers that were not added to it yet.

    Raises:
        NotFoundError: No such dataset.
        ConflictError: It is a held-out or validation side of a split, its rows have another shape than answers to
            prompts, nothing can be added, or another version was added meanwhile.
        DataError: Its file cannot be read.
    """
    # Two people who press the button together must not add the same answers twice, nor each to the same version: the
    # rows of one would not be in the newest one.
    with file_lock(context.home / "reviewed-rows.lock", what="adding rows", timeout_seconds=_LOCK_SECONDS):
        dataset, versions = dataset_versions.show_dataset(context, caller, dataset_id)
        newest = versions[0]
        side = _side(context, caller, newest)
        if side in ("held_out", "validation"):
            raise ConflictError(
                f"{dataset.name!r} is the {side.replace('_', '-')} side of a split",
                expected="a dataset that is trained on: new held-out rows would change what models are evaluated on",
                do="choose the training side, or another dataset",
            )
        known = _added_before(versions)
        items = [one for one in accepted(context, caller.project_id, model) if _is_new(one, known)]
        rows = open_rows(context, caller, newest)
        shape = detected_shape(rows, newest.columns)
        found = _candidates(dataset, items, shape, _first_fields(rows))
        _without_leaks(context, caller, found)
        replaced = _without_known(rows, shape, found)
        _refuse_nothing(dataset, items, found)
        return _added(context, caller, newest, rows, found, replaced)


def add_to_new_dataset(context: Context, caller: Caller, name: str, model: str | None = None) -> AddedRows:
    """Make a dataset of all accepted answers, as conversations.

    Raises:
        RequestError: The name is not allowed.
        ConflictError: The name is taken, or nothing can be added.
    """
    items = accepted(context, caller.project_id, model)
    found = _candidates(None, items, None, {})
    _without_leaks(context, caller, found)
    _refuse_nothing(None, items, found)
    file = dataset_versions.keep_rows(context, caller, _lines(found.rows.values()), _FILENAME)
    try:
        _, version = dataset_versions.create_dataset(
            context, caller, name, file, origin="review", note=_note(model), details=_details(found, None, 0)
        )
    except LuthierError:  # the name cannot be, or is taken
        files.delete_file(context, caller.project_id, file.file_id)
        raise
    return AddedRows(version, len(found.rows), 0, dict(found.left_out), tuple(found.cautions))


def learning(messages: Sequence[Mapping[str, Any]], answer: str) -> dict[str, Any]:
    """A chat row of which only the answer is learned: a model wrote the earlier ones, and nobody has checked them."""
    before = [{**message, "weight": 0} if message.get("role") == "assistant" else dict(message) for message in messages]
    return {"messages": [*before, {"role": "assistant", "content": answer}]}


def _side(context: Context, caller: Caller, version: DatasetVersion) -> str:
    """Which side of a split or of a retraining a version is; empty for none."""
    chain = list(dataset_versions.ancestry(context, caller, version))
    made = next((one for one in chain if one.origin == "split"), None)
    if made is not None and made.details.keys() >= OF_SPLIT:
        return str(made.details["side"])
    # The rows that a retraining holds out, and whatever was made of them.
    return next((str(one.details["side"]) for one in chain if "side" in one.details), "")


def _added_before(versions: Sequence[DatasetVersion]) -> dict[str, str]:
    """Review ids of the answers in the newest version, each with its digest; empty where none was noted.

    Those that were added to a version from which the newest one was not made are not in its rows.
    """
    by_number, found = {one.number: one for one in versions}, dict[str, str]()
    version = max(versions, key=lambda one: one.number, default=None)
    while version is not None:
        learned = version.details.get(_LEARNED, {})
        for review_id in version.details.get(_DETAIL, ()):
            # Of an answer that was corrected again the newer one counts, which comes first here.
            found.setdefault(review_id, learned.get(review_id, ""))
        parent = None if version.origin in _FROM_ELSEWHERE else version.parent
        version = None if parent is None else by_number.get(parent)
    return found


def _is_new(item: ReviewItem, known: Mapping[str, str]) -> bool:
    """Whether an answer was not added yet, or is another one since: its author or a reviewer has corrected it again."""
    return known.get(item.review_id) not in ("", _digest(item))


def _digest(item: ReviewItem) -> str:
    return sha256_bytes(item.learned.encode("utf-8", "surrogatepass"))[:_DIGEST_CHARACTERS]


def _candidates(
    dataset: Dataset | None, items: Sequence[ReviewItem], shape: Decision | None, first: Mapping[str, Any]
) -> _Candidates:
    """Rows in the shape of the dataset; of two with the same prompt that of the later decision."""
    from luthier.ml.data.files.bad_field import BadFieldError
    from luthier.ml.data.rows.formats import example_of
    from luthier.ml.data.text.normalise import prompt_key

    found, by_prompt = _Candidates(), dict[str | None, str]()
    name, mapping = ("chat", {}) if shape is None else (shape.shape, shape.mapping)
    if dataset is not None and (shape is None or name not in ("chat", "sharegpt", "prompt_completion", "alpaca")):
        what = "no shape that all of them have" if shape is None else f"the shape {name.replace('_', ' and ')}"
        raise ConflictError(
            f"the rows of {dataset.name!r} have {what}",
            expected="conversations, or columns for a prompt and its answer, as accepted answers have",
            do="choose another dataset, or create a new one from the accepted answers",
        )
    for item in sorted(items, key=lambda one: one.decided_at or 0.0):
        fields, reason = _fields_of(item, name, mapping, first)
        if fields is None:
            found.left_out[reason] += 1
            continue
        try:
            example = example_of(Row("reviewed", 1, fields), name, mapping, None)
        except BadFieldError as error:
            found.left_out[f"cannot be read: {error.field} {error.reason}"[:200]] += 1
            continue
        # In the order of decisions, so what is there is the earlier one.
        key = prompt_key(example)
        if key in by_prompt:
            found.drop(by_prompt[key], "the same prompt was decided again later")
        by_prompt[key] = item.review_id
        found.rows[item.review_id], found.examples[item.review_id] = fields, example
        found.learned[item.review_id] = _digest(item)
    return found


def _fields_of(
    item: ReviewItem, shape: str, mapping: Mapping[str, str], first: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, str]:
    """The fields of a row, or why the answer does not fit the columns."""
    if is_of_calls(item.learned):
        return None, CALLS_TOOLS
    chat = learning(item.messages, item.learned)["messages"]

    def column(name: str) -> str:
        return mapping.get(name, name)

    if shape == "chat":
        return {column("messages"): chat}, ""
    systems = [one for one in item.messages if one.get("role") in ("system", "developer")]
    users = [one for one in item.messages if one.get("role") == "user"]
    is_plain = all(isinstance(one.get("content"), str) for one in item.messages)
    if not is_plain or len(users) != 1 or len(systems) + 1 != len(item.messages) or len(systems) > 1:
        return None, "is a conversation of several turns, for which the dataset has no columns"
    asked, system = str(users[0]["content"]), str(systems[0]["content"]) if systems else ""
    if shape == "sharegpt":
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": item.learned}]
        return {column("conversations"): [*([{"from": "system", "value": system}] if system else []), *turns]}, ""
    if system and column("system") not in first:
        return None, "has a system prompt, for which the dataset has no column"
    # Only columns that the first row has: new ones would change the shape that the dataset is read by.
    extra = {column("system"): system} if column("system") in first else {}
    if shape == "alpaca":
        given = {column("input"): ""} if column("input") in first else {}
        return {column("instruction"): asked, **given, column("output"): item.learned, **extra}, ""
    # A list there means that prompts are turns; the new row has to be of the same type.
    prompt = first.get(column("prompt"))
    if isinstance(prompt, list):
        turns = [{"role": "user", "content": asked}]
        return {
            column("prompt"): turns,
            column("completion"): [{"role": "assistant", "content": item.learned}],
            **extra,
        }, ""
    return {column("prompt"): asked, column("completion"): item.learned, **extra}, ""


def _first_fields(rows: RowIndex) -> Mapping[str, Any]:
    row = rows.row(0) if rows.num_rows else None
    return row.fields if isinstance(row, Row) else {}


def _without_leaks(context: Context, caller: Caller, found: _Candidates) -> None:
    """Leave out what a held-out or validation row of the project says, with its prompt or nearly so."""
    held_out = [
        (dataset, version)
        for dataset, version in context.datasets.list(caller.project_id)
        if _side(context, caller, version) in ("held_out", "validation")
    ]
    if not found.rows or not held_out:
        if not held_out:
            found.cautions.append("the project has no held-out rows, so none were compared")
        return
    beside = context.settings.file_cache_folder.parent
    beside.mkdir(parents=True, exist_ok=True)
    with scratch_folder(beside, "reviewed-") as folder:
        for dataset, version in track(context.progress, "Comparing with held-out rows", held_out, "datasets"):
            if found.rows:
                _without_leaks_to(context, caller, found, dataset, version, folder / _FILENAME)


def _without_leaks_to(
    context: Context, caller: Caller, found: _Candidates, dataset: Dataset, version: DatasetVersion, place: Path
) -> None:
    from luthier.features.datasets.data_files import AuditOptions, audit

    # Written in the order of ids: line n of the audited file is the answer ids[n - 1].
    ids = list(found.rows)
    place.write_bytes(b"".join(_lines(_as_chat(found.examples[one]) for one in ids)))
    try:
        barred = _prompts_of(open_rows(context, caller, version), version.columns)
        against = dataset_versions.path_of(context, caller, version)
        options = AuditOptions(against=against, against_mapping=version.columns, only=("contamination",))
        audited = audit(context, place, options).audit
    except DataError as error:
        found.cautions.append(f"{dataset.name} could not be compared: {error.came}")
        return
    leaking = {line for one in audited.findings if one.severity == "error" for line in one.lines}
    if isinstance(barred, str):
        found.cautions.append(f"{dataset.name} {barred}: equal prompts were not searched")
    for line, review_id in enumerate(ids, 1):
        is_barred = not isinstance(barred, str) and _prompt(found.examples[review_id]) in barred
        if line in leaking or is_barred:
            found.drop(review_id, f"is a held-out row of {dataset.name}, or nearly so")


def _without_known(rows: RowIndex, shape: Decision | None, found: _Candidates) -> set[int]:
    """Leave out what the version says already; returns the lines with a prompt that gets a new answer."""
    from luthier.ml.data.text.normalise import content_key

    assert shape is not None
    if rows.num_rows > MAX_COMPARED_ROWS:
        found.cautions.append(
            f"the dataset has over {MAX_COMPARED_ROWS:,} rows: those with the prompt of a new one were not searched"
        )
        return set()
    contents = {content_key(example): one for one, example in found.examples.items()}
    prompts = {_prompt(example): one for one, example in found.examples.items()}
    replaced: dict[int, str] = {}
    for line, example in _examples_of(rows, shape):
        key, prompt = content_key(example), _prompt(example)
        if key in contents and contents[key] in found.rows:
            found.drop(contents[key], "is in the dataset already")
        elif prompt is not None and prompt in prompts:
            replaced[line] = prompts[prompt]
    # Only where the new answer is really added: another row may have had the very same answer.
    return {line for line, review_id in replaced.items() if review_id in found.rows}


def _prompts_of(rows: RowIndex, columns: Mapping[str, str]) -> set[str | None] | str:
    """The digests of all prompts of a file, or why they are not known, to be said after its name."""
    if rows.num_rows > MAX_COMPARED_ROWS:
        return f"has over {MAX_COMPARED_ROWS:,} rows"
    shape = detected_shape(rows, columns)
    if shape is None:
        return "has no columns that are known as prompts"
    return {_prompt(example) for _, example in _examples_of(rows, shape)} - {None}


def _examples_of(rows: RowIndex, shape: Decision) -> Iterator[tuple[int, Example]]:
    from luthier.ml.data.files.bad_field import BadFieldError
    from luthier.ml.data.rows.formats import example_of

    for position in range(rows.num_rows):
        row = rows.row(position)
        if isinstance(row, Row):
            try:
                yield row.line, example_of(row, shape.shape, shape.mapping, None)
            except BadFieldError:
                continue  # a row that cannot be learned has no prompt to compare


def _prompt(example: Example) -> str | None:
    from luthier.ml.data.text.normalise import prompt_key

    return prompt_key(example)


def _as_chat(example: Example) -> dict[str, Any]:
    assert example.conversation is not None
    turns = [one.model_dump(mode="json", exclude_defaults=True) for one in example.conversation.messages]
    return {"messages": turns}


def _refuse_nothing(dataset: Dataset | None, items: Sequence[ReviewItem], found: _Candidates) -> None:
    if found.rows:
        return
    reasons = "; ".join(f"{num:,}: {reason}" for reason, num in found.left_out.items())
    into = "a dataset" if dataset is None else repr(dataset.name)
    raise ConflictError(
        f"of {len(items):,} accepted answers none can be added to {into}{f' ({reasons})' if reasons else ''}",
        expected="an accepted answer that is new to the dataset and in no held-out rows",
        do="review more answers, or choose another dataset",
    )


def _added(
    context: Context,
    caller: Caller,
    newest: DatasetVersion,
    rows: RowIndex,
    found: _Candidates,
    replaced: set[int],
) -> AddedRows:
    stem = newest.filename.split(".", 1)[0] or "rows"
    file = dataset_versions.keep_rows(context, caller, _joined(rows, replaced, found), f"{stem}.jsonl")
    version = dataset_versions.add_version(
        context,
        caller,
        newest.dataset_id,
        file,
        origin="review",
        parent=newest.number,
        note=f"{len(found.rows):,} accepted answers added",
        details=_details(found, newest.number, len(replaced)),
        is_next=True,
    )
    return AddedRows(version, len(found.rows), len(replaced), dict(found.left_out), tuple(found.cautions))


def _joined(rows: RowIndex, replaced: set[int], found: _Candidates) -> Iterator[bytes]:
    """The rows as they were, byte for byte, without those that are replaced; then the new ones."""
    for line, pieces in rows.pieces():
        if line not in replaced:
            first = next(pieces)
            # In a copied index what could not be read is a JSON text with the reason; rows are objects.
            if not (rows.is_copy and first.startswith(b'"')):
                yield first
                yield from pieces
    yield from _lines(found.rows.values())


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        yield json_line(row) + b"\n"


def _details(found: _Candidates, parent: int | None, num_replaced: int) -> dict[str, Any]:
    counted = {"added": len(found.rows), "replaced": num_replaced, "left_out": dict(found.left_out)}
    learned = {review_id: found.learned[review_id] for review_id in sorted(found.rows)}
    return {_DETAIL: list(learned), _LEARNED: learned, "from_version": parent} | counted


def _note(model: str | None) -> str:
    return "accepted answers" if model is None else f"accepted answers of {model}"[:1000]
