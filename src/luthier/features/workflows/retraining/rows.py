"""Rows for retraining a deployed model: those of its last run, and answers reviewed since.

review queue, rating panels -> reviewed rows -> held-out ones split off -> joined with the rows of the last run
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.dataset import Example, Split
from luthier.core.errors import ConflictError, DataError
from luthier.core.plan import Plan
from luthier.core.records.traffic import ReviewItem, is_of_calls
from luthier.core.workflows.pipeline import Pipeline
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import DatasetVersion
from luthier.features.evaluations.evaluated_rows import group_names, grouping_of
from luthier.features.feedback.accepted_rows import CALLS_TOOLS, learning
from luthier.features.model_cards.service import rows_by_digest
from luthier.features.planning.data_sources import recipe_of
from luthier.features.planning.training_data import Part, load_splits
from luthier.ml.data.rows.chat_rows import chat_row
from luthier.platform.home.context import Context

HELD_OUT_SHARE: Final = 0.2
"""Share of the reviewed rows held out from training."""
_BLOCK: Final = 1 << 20
_TITLES: Final = {"train": "rows", "held_out": "held-out"}


@dataclass(slots=True)
class Reviewed:
    """Reviewed answers as chat rows; only the newest of equal prompts.

    Attributes:
        rows: The rows.
        left_out: Number of answers without a row, by reason.
        by_source: Number of rows by source.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    by_source: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Joined:
    """Training rows and held-out rows.

    Attributes:
        old: Training rows of the last run.
        new: Reviewed training rows.
        old_held_out: Held-out rows of the last run.
        new_held_out: Reviewed held-out rows.
        validation: Validation rows of the last run.
        num_replaced: Rows of the last run that were dropped, as a reviewed row has the same prompt.
        left_out: Reviewed rows in neither split, by reason.
    """

    old: tuple[dict[str, Any], ...]
    new: tuple[dict[str, Any], ...]
    old_held_out: tuple[dict[str, Any], ...]
    new_held_out: tuple[dict[str, Any], ...]
    validation: tuple[dict[str, Any], ...]
    num_replaced: int
    left_out: Mapping[str, int]


Splits = Mapping[Split, tuple[dict[str, Any], ...]]


def reviewed_rows(
    context: Context, caller: Caller, model: str, *, from_traffic: bool, panels: Sequence[str] = ()
) -> Reviewed:
    """Reviewed answers of a model as training rows.

    Only the last answer of a conversation is learned: the earlier ones are unreviewed model outputs. Of two rows with
    the same prompt the last decision counts.

    Args:
        context: The home.
        caller: The caller, whose project is used.
        model: The deployment.
        from_traffic: Include answers sampled from the traffic and accepted unchanged; otherwise only corrections and
            answers with good ratings.
        panels: Rating panels whose preferred answers are learned.

    Raises:
        NotFoundError: A panel does not exist.
    """
    from luthier.features.feedback.review import accepted
    from luthier.features.human_eval.files import preference_pairs

    found = Reviewed()
    # By time of decision: `_keep_newest` keeps the last of the rows with one prompt.
    items = sorted(accepted(context, caller.project_id, model), key=lambda item: item.decided_at or 0.0)
    for item in items:
        # Learning the model's own answers teaches nothing new and reinforces its faults, so it must be requested.
        if item.source == "traffic" and item.correction is None and not from_traffic:
            found.left_out["sampled from traffic, and --from-traffic was not given"] += 1
        else:
            _add(found, _row_of(item), item.source)
    for panel in panels:
        pairs = preference_pairs(context, caller, panel)
        found.left_out.update(pairs.left_out)
        for pair in pairs.rows:
            prompt = pair["prompt"]
            # A prompt of a panel is a text or a conversation.
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            _add(found, learning(messages, pair["chosen"]) | {"panel_id": panel}, "panel")
    _keep_newest(found)
    return found


def rows_of_run(context: Context, plan: Plan) -> Splits:
    """The rows of a run by split, as chat rows; with their groups, if they have some.

    Raises:
        ConflictError: They are streamed, or not conversations with an answer.
    """
    recipe = recipe_of(plan)
    if recipe.data.streaming:
        raise ConflictError(
            "the run was trained on streamed rows, which are not kept",
            expected="a run whose training rows are files: the next one is trained on them and on the corrections",
            do="make the next version manually: luthier feedback list, and a recipe with the corrections as a source",
        )
    found = load_splits(context, recipe, Path())
    kinds = {part.source.shape for split, part in found.items() if split == "train"}
    # Corrections are answers, which do not fit into such rows.
    if kinds & {"text", "preference", "unpaired"}:
        raise ConflictError(
            f"the run was trained on {', '.join(sorted(kinds))} rows",
            expected="rows with a prompt and the answer that is learned: corrections are such",
            do="make the next version manually: luthier feedback list, luthier data",
        )
    names: tuple[Split, ...] = ("train", "validation", "held_out")
    num_open = sum(not example.has_answer for split in names if split in found for example in found[split].examples)
    # Their answers are stand-ins, which a version of the dataset would hold as if somebody had written them.
    if num_open:
        raise ConflictError(
            f"{num_open:,} rows of the run end with a prompt and have no answer",
            expected="rows with a prompt and the answer that is learned: corrections are such",
            do="make the next version manually: luthier feedback list, and a recipe with the corrections as a source",
        )
    groups = _groups_of_splits({name: found[name] for name in names if name in found}, grouping_of(plan))
    return {
        split: tuple(_as_row(one, groups[split].get(one.id)) for one in found[split].examples if _is_whole(one))
        for split in groups
    }


def _groups_of_splits(parts: Mapping[Split, Part], grouped_by: str | None) -> dict[Split, dict[str, str]]:
    """The group of each row by split: for all rows, or for none; one that no group is named for is one by itself."""
    own: dict[Split, dict[str, str]] = {
        split: {one.id: one.group for one in part.examples if one.group is not None}
        if grouped_by is None
        else group_names(part.examples, part.path, grouped_by)
        for split, part in parts.items()
    }
    if not any(own.values()):
        return own
    alone = {split: {one.id: f"{split} {one.id}" for one in part.examples} for split, part in parts.items()}
    return {split: alone[split] | own[split] for split in parts}


def fresh_rows(reviewed: Sequence[dict[str, Any]], old: Splits) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Reviewed rows that the last run has not seen, and the number of others by reason."""
    from luthier.ml.data.text.normalise import content_key

    seen = {content_key(example_of(row)) for row in old["train"]}
    # By the whole content: a correction is a new answer to an old prompt.
    unseen = [row for row in reviewed if content_key(example_of(row)) not in seen]
    # By the prompt only: training on another answer to a held-out prompt would still leak the question.
    fresh = without_prompts(unseen, [*old.get("held_out", ()), *old.get("validation", ())])
    left_out = {
        "was learned by the last run already": len(reviewed) - len(unseen),
        "has the prompt of a held-out row": len(unseen) - len(fresh),
    }
    return fresh, {reason: num for reason, num in left_out.items() if num}


def without_prompts(rows: Sequence[dict[str, Any]], barred: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose prompts do not occur among the others."""
    from luthier.ml.data.text.normalise import prompt_key

    keys = {prompt_key(example_of(row)) for row in barred}
    return [row for row in rows if prompt_key(example_of(row)) not in keys]


def example_of(row: Mapping[str, Any]) -> Example:
    """A chat row as an example.

    Raises:
        BadFieldError: A field of the row is missing or cannot be used.
    """
    from luthier.ml.data.rows.chat_rows import chat_conversation

    return Example(id="row", conversation=chat_conversation(dict(row)))


def split_reviewed(
    context: Context, folder: Path, rows: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Reviewed training rows, reviewed held-out rows, and the reason if there are no held-out ones.

    Near-duplicate rows stay in one split (`data.split_file`, which verifies it).
    """
    from luthier.features.datasets.data_files import SplitOptions, split
    from luthier.ml.data.rows.outputs import write_rows

    # The split works on files, and its verification names them.
    write_rows(rows, folder / "reviewed.jsonl")
    options = SplitOptions(folder=folder / "split", validation=0.0, held_out=HELD_OUT_SHARE, force=True)
    try:
        split(context, folder / "reviewed.jsonl", options)
    except DataError as error:
        # Too few rows to split: all are learned, and only the old held-out rows are used.
        return list(rows), [], error.came
    sides = [read_jsonl(folder / "split" / f"{name}.jsonl") for name in ("train", "held_out")]
    return sides[0], sides[1], ""


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file written by this pipeline."""
    # Not splitlines: it also splits at U+2028 and U+0085, which JSON leaves unescaped inside a text.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def joined(context: Context, folder: Path, old: Splits, fresh: Sequence[dict[str, Any]]) -> Joined:
    """Combine reviewed rows with those of the last run.

    A fifth of the reviewed rows whose prompt the last run has not seen is held out. No reviewed training row is a
    near-duplicate of a held-out one (as the audit finds contamination), and no old row has the prompt of a reviewed
    one, which corrects it.

    Args:
        context: The home.
        folder: For intermediate files.
        old: The rows of the last run.
        fresh: The result of `fresh_rows`.

    Raises:
        ConflictError: No rows are left to learn.
    """
    old_held_out = old.get("held_out", ())
    left_out: Counter[str] = Counter()
    unknown = without_prompts(fresh, old["train"])
    # By identity: rows are unhashable dicts, and `without_prompts` returns the same objects.
    names = {id(row) for row in unknown}
    new, new_held_out, why_none = split_reviewed(context, folder, unknown) if unknown else ([], [], "none is new")
    # Rows with a training prompt can only be learned: in the evaluation they would favour the last run.
    new = [*(row for row in fresh if id(row) not in names), *new]
    if why_none:
        left_out[f"none was held out: {why_none}"] = 0
    clean = _uncontaminated(context, folder, new, [*old_held_out, *new_held_out])
    left_out["says nearly what a held-out row says"] = len(new) - len(clean)
    if not clean:
        raise ConflictError(
            f"of {len(fresh):,} reviewed rows none is left to learn from",
            expected="rows that are not held out",
            do="review more: luthier feedback list, and the page /review",
        )
    # An old answer together with its correction would teach both.
    kept = without_prompts(old["train"], fresh)
    # If old rows have a group, each new row gets its own: `group_by` needs the field in every row, of each file.
    if any("group" in row for row in old["train"]):
        clean, new_held_out = _with_own_groups(clean), _with_own_groups(new_held_out, first=len(clean))
    return Joined(
        old=tuple(kept),
        new=tuple(clean),
        old_held_out=tuple(old_held_out),
        new_held_out=tuple(new_held_out),
        validation=old.get("validation", ()),
        num_replaced=len(old["train"]) - len(kept),
        left_out={reason: num for reason, num in left_out.items() if num or reason.startswith("none")},
    )


def _with_own_groups(rows: Sequence[dict[str, Any]], *, first: int = 0) -> list[dict[str, Any]]:
    """The rows, each with a group that no other has. first: the number of the first row of a panel."""
    return [
        row | {"group": row.get("review_id") or f"{row.get('panel_id')} {at}"} for at, row in enumerate(rows, first)
    ]


def _uncontaminated(
    context: Context, folder: Path, rows: list[dict[str, Any]], held_out: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    from luthier.features.datasets.data_files import AuditOptions, audit
    from luthier.ml.data.rows.outputs import write_rows

    if not rows or not held_out:
        return rows
    write_rows(rows, folder / "new.jsonl")
    write_rows(held_out, folder / "held_out.jsonl")
    options = AuditOptions(against=folder / "held_out.jsonl", only=("contamination",))
    found = audit(context, folder / "new.jsonl", options).audit.findings
    leaking = {line for one in found if one.severity == "error" for line in one.lines}
    return [row for line, row in enumerate(rows, start=1) if line not in leaking]


def stored_version(context: Context, caller: Caller, pipeline: Pipeline, path: Path, before: str) -> DatasetVersion:
    """Store a file as the next version of the dataset with the previous rows, or as a new dataset; made once.

    Args:
        context: The home.
        caller: The caller, whose project is used.
        pipeline: The retraining. The details of the version name it, its run and the composition of the rows.
        path: `train.jsonl` or `held_out.jsonl` of the retraining.
        before: The digest of the rows of the last run; empty if none.
    """
    model, side = pipeline.asked["model"], path.stem
    known = rows_by_digest(context, caller, [before]).get(before) if before else None
    title = f"{model} {_TITLES[side]}"
    dataset = known[0] if known is not None else context.datasets.find(caller.project_id, title)
    versions = context.datasets.versions(dataset.dataset_id) if dataset is not None else ()
    for version in versions:
        if (version.details.get("retrain"), version.details.get("side", side)) == (pipeline.pipeline_id, side):
            return version
    rows = pipeline.came("rows")
    counted = {key: rows[key] for key in ("by_source", "num_old", "num_new", "num_replaced")}
    # The side: what is held out here is nothing to train on later, either (`feedback/accepted_rows.py`).
    details = {"retrain": pipeline.pipeline_id, "model": model, "from_run": pipeline.asked["run_id"], "side": side}
    with path.open("rb") as source:
        file = dataset_versions.keep_rows(context, caller, iter(lambda: source.read(_BLOCK), b""), path.name)
    note = f"reviewed rows of {model}"
    if dataset is None:
        made = dataset_versions.create_dataset(
            context, caller, title, file, origin="review", note=note, details=details | counted
        )
        return made[1]
    return dataset_versions.add_version(
        context,
        caller,
        dataset.dataset_id,
        file,
        origin="review",
        parent=known[1].number if known is not None else versions[0].number,
        note=note,
        details=details | counted,
        columns={},  # these are chat rows, whatever columns the earlier rows had
    )


def _row_of(item: ReviewItem) -> dict[str, Any]:
    return learning(item.messages, item.learned) | {"review_id": item.review_id, "exchange_id": item.exchange_id}


def _add(found: Reviewed, row: dict[str, Any], source: str) -> None:
    from luthier.ml.data.files.bad_field import BadFieldError

    try:
        example_of(row)
    except BadFieldError as error:
        found.left_out[f"cannot be read: {error.field} {error.reason}"[:200]] += 1
        return
    answer = row["messages"][-1]["content"]
    if reason := CALLS_TOOLS if is_of_calls(answer) else "" if answer.strip() else "the answer is empty":
        found.left_out[reason] += 1
        return
    found.rows.append(row | {"source": source})
    found.by_source[source] += 1


def _keep_newest(found: Reviewed) -> None:
    from luthier.ml.data.text.normalise import prompt_key

    # Rows are in the order of their decisions, and the last one of a key is kept.
    newest = {prompt_key(example_of(row)): row for row in found.rows}
    if num := len(found.rows) - len(newest):
        found.left_out["the same prompt was decided again later"] += num
    found.rows = list(newest.values())
    found.by_source = Counter(row["source"] for row in found.rows)


def _is_whole(example: Example) -> bool:
    return example.conversation is not None


def _as_row(example: Example, group: str | None) -> dict[str, Any]:
    assert example.conversation is not None
    row = chat_row(example.conversation)
    return row if group is None else row | {"group": group}
