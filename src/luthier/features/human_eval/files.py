"""Use cases: ratings as files (CSV, Parquet, Label Studio), ratings imported from there, and preference pairs.

Label Studio tasks name no system, and the answers of a pair have an order that was drawn once for all who rate there.
In a pairwise panel a preference pair is what more than half of the raters preferred; with scores it is two answers to
one row whose means differ by at least one point, of which no rater scored the worse one higher. What is left out is
counted.

Sources: Label Studio's guide, "Label Studio JSON format of annotated tasks".
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import ValidationError

from luthier.core.access import Caller
from luthier.core.errors import DataError, RequestError, RowProblem, library_reason, validation_reason
from luthier.core.ids import new_id
from luthier.core.json_limits import json_utf8, loads
from luthier.core.ports import track
from luthier.core.results.human_eval import (
    MAX_COMMENT_CHARACTERS,
    Preference,
    Rater,
    Rating,
    RatingItem,
    RatingPanel,
    RatingRow,
    RatingsTable,
    columns_of,
)
from luthier.core.results.suite import Criterion
from luthier.core.text.spreadsheet import csv_line, text_cell
from luthier.features.human_eval.items import has_forgotten_text
from luthier.features.human_eval.rating_view import shown_first
from luthier.features.human_eval.service import panel_report, ratings_table
from luthier.platform.audit_log.service import record
from luthier.platform.db.stored_texts import FORGOTTEN
from luthier.platform.home.context import Context

FileFormat = Literal["csv", "parquet", "json"]
FILE_FORMATS: Final[tuple[FileFormat, ...]] = get_args(FileFormat)
_ELSEWHERE: Final = "label studio"
"""Represents the rater where the order of two answers is drawn once for all."""
_CHOICES: Final = {"Answer 1": 0, "Answer 2": 1, "Tie": 2}


@dataclass(frozen=True, slots=True)
class Imported:
    """The outcome of an import.

    Attributes:
        num_ratings: Ratings that were stored.
        raters: The names of their raters.
        num_skipped: Annotations that their raters had cancelled.
    """

    num_ratings: int
    raters: tuple[str, ...]
    num_skipped: int


def export_panel(context: Context, project_id: str, panel_id: str, file_format: FileFormat) -> bytes:
    """All ratings, as the content of a file.

    Raises:
        NotFoundError: The project has no such panel.
    """
    table = ratings_table(context, project_id, panel_id)
    if file_format == "csv":
        return _csv(table)
    if file_format == "parquet":
        return _parquet(table)
    panel = context.rating_panels.get(project_id, panel_id)
    tasks = _tasks(panel, context.rating_panels.items(panel_id), table)
    return json_utf8(tasks, indent=1) + b"\n"


def format_of(path: Path) -> FileFormat:
    """The format of a file's name.

    Raises:
        RequestError: The name ends in none of the formats.
    """
    found = next((one for one in FILE_FORMATS if path.suffix == f".{one}"), None)
    if found is None:
        raise RequestError(
            f"the file {path.name}",
            expected="a name that ends in .csv, .parquet, or .json for Label Studio",
            do="choose such a name",
        )
    return found


def import_label_studio(context: Context, caller: Caller, panel_id: str, content: bytes, name: str) -> Imported:
    """Take in ratings from an export of Label Studio: all of them, or none.

    Args:
        context: The home.
        caller: Whose project it is.
        panel_id: The panel.
        content: The content of the file.
        name: The file's, for messages.

    Raises:
        DataError: The content is no such export, or names items, choices or raters that the panel cannot have.
        NotFoundError: There is none in the project.
        ConflictError: The panel is closed.
    """
    panel = context.rating_panels.get(caller.project_id, panel_id)
    tasks = _loaded(content, name)
    # By name: Label Studio knows raters by names only, and a second import must find the same ones.
    people = {rater.name: rater for rater in context.rating_panels.raters(panel_id)}
    known, said, problems, num_skipped = set(people), {}, [], 0
    for number, task in enumerate(track(context.progress, "Reading annotations", tasks, "tasks"), start=1):
        for annotation in _annotations(task):
            if annotation.get("was_cancelled"):
                num_skipped += 1
                continue
            try:
                item = _item_of(panel, task)
                rater_name = _rater_of(annotation)
                rater = people.get(rater_name) or Rater(
                    rater_id=new_id("rater"), panel_id=panel_id, name=rater_name, has_link=False
                )
                rating = _rating(panel, item, rater.rater_id, annotation)
            except ValueError as error:  # ValidationError is one
                problems.append(_problem(name, number, task, error))
                continue
            people[rater_name] = rater
            # Keyed by rater and item: of several annotations of one task by one person the last counts.
            said[rater.rater_id, item] = rating
    # Nothing is stored before this point: an import is whole or not at all.
    if problems or not said:
        raise DataError(
            f"{len(problems)} annotations of {name} are not ratings of this panel, {len(said)} are",
            expected="an export (JSON) of a project that was made of this panel's tasks",
            do=f"make the tasks with: luthier human-eval export {panel_id} -o tasks.json, and annotate those",
            problems=problems,
        )
    raters = tuple(sorted({one.name for one in people.values() if any(who == one.rater_id for who, _ in said)}))
    new = [rater for rater_name, rater in people.items() if rater_name not in known]
    with context.database.transaction():
        context.rating_panels.keep_all(panel_id, new, list(said.values()))
        record(context, caller, "panel.imported", panel_id, {"num_ratings": len(said), "raters": list(raters)})
    return Imported(len(said), raters, num_skipped)


def _csv(table: RatingsTable) -> bytes:
    lines = [csv_line(RatingRow.model_fields)]
    for row in table.rows:
        # Comments and names come from raters, whom a link alone may have let in.
        cells = row.model_dump().values()
        lines.append(csv_line(text_cell(value) if isinstance(value, str) else value for value in cells))
    return "".join(lines).encode()


def _parquet(table: RatingsTable) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"item": pa.int64(), "seconds": pa.float64(), "rated_at": pa.float64()}
    kinds |= dict.fromkeys(("is_check", "passed"), pa.bool_()) | dict.fromkeys(get_args(Criterion), pa.int64())
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in RatingRow.model_fields])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns_of(table.rows), schema=schema), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _tasks(panel: RatingPanel, items: Sequence[RatingItem], table: RatingsTable) -> list[dict[str, Any]]:
    said = table.by_item()
    tasks = []
    for item in items:
        texts = [answer.text for answer in item.answers]
        # A fixed pseudo-rater: one file of tasks is annotated by all, so the order cannot differ by person.
        turned = shown_first(panel, _ELSEWHERE, item.item) == "b"
        shown = texts[::-1] if turned else texts
        data = {"panel_id": panel.panel_id, "item": item.item, "prompt": item.prompt}
        data |= {f"answer_{place}": text for place, text in enumerate(shown, start=1)}
        annotations = [_annotation(row, turned) for row in said.get(item.item, ())]
        tasks.append({"data": data, "annotations": annotations})
    return tasks


def _annotation(row: RatingRow, turned: bool) -> dict[str, Any]:
    results = []
    if row.preference is not None:
        place = "Tie" if row.preference == "tie" else "Answer 2" if (row.preference == "b") != turned else "Answer 1"
        results.append(_result("preference", "choices", {"choices": [place]}))
    for criterion in get_args(Criterion):
        if (score := row.score(criterion)) is not None:
            results.append(_result(criterion, "rating", {"rating": score}))
    if row.comment:
        results.append(_result("comment", "textarea", {"text": [row.comment]}))
    when = datetime.fromtimestamp(row.rated_at, UTC).isoformat()
    return {"rater": row.rater, "created_at": when, "lead_time": row.seconds, "result": results}


def _result(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": "prompt", "type": kind, "value": value}


def _loaded(content: bytes, name: str) -> list[dict[str, Any]]:
    try:
        tasks = loads(content.decode("utf-8-sig"), max_values=0)
    except ValueError as error:
        raise DataError(
            f"{name} is not JSON: {library_reason(error)}",
            expected="an export of Label Studio, JSON",
            do="export it again",
        ) from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DataError(
            f"{name} is not a list of tasks",
            expected="an export of Label Studio, JSON (not JSON-MIN)",
            do="export it again",
        )
    return tasks


def _annotations(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = task.get("annotations", [])
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _item_of(panel: RatingPanel, task: Mapping[str, Any]) -> int:
    data = task.get("data")
    found = data if isinstance(data, dict) else {}
    if found.get("panel_id") != panel.panel_id:
        raise ValueError(f"is of panel {str(found.get('panel_id'))[:60]!r}, not of {panel.panel_id}")
    item = found.get("item")
    # `type is`, not isinstance: JSON's true would be item 1.
    if type(item) is not int or not 0 <= item < panel.num_items:
        raise ValueError(f"item {str(item)[:20]!r} is not one of the {panel.num_items} of the panel")
    return item


def _rater_of(annotation: Mapping[str, Any]) -> str:
    """Our own name for them, their address, or their number there."""
    # `rater` is the field of our own tasks; Label Studio writes `completed_by`, as a number or as an object.
    who = annotation.get("rater") or annotation.get("completed_by")
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    if who is None or isinstance(who, list | dict):
        raise ValueError("names no rater (completed_by)")
    name = f"label studio {who}" if isinstance(who, int) else str(who).strip()
    if not 0 < len(name) <= 100 or not name.isprintable():
        raise ValueError(f"its rater has the name {name[:40]!r}")
    return name


def _rating(panel: RatingPanel, item: int, rater_id: str, annotation: Mapping[str, Any]) -> Rating:
    """Raises ValueError for a result that this panel does not ask for."""
    given: dict[str, Any] = {}
    for result in annotation.get("result") or ():
        if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
            raise ValueError("has a result without a value")
        value, name = result["value"], str(result.get("from_name"))
        # One key each of the control tags Choices, TextArea and Rating.
        found = value.get("choices") or value.get("text") or value.get("rating")
        given[name] = found[0] if isinstance(found, list) and found else found
    first = shown_first(panel, _ELSEWHERE, item)
    comment = str(given.get("comment") or "").strip()[:MAX_COMMENT_CHARACTERS]
    common = {"item": item, "rater_id": rater_id, "comment": comment, "shown_first": first}
    common |= {"seconds": _lead_time(annotation), "rated_at": _moment(annotation)}
    if panel.kind == "pairwise":
        place = _CHOICES.get(str(given.get("preference")))
        if place is None:
            raise ValueError(f"preference {str(given.get('preference'))[:40]!r} is not one of {', '.join(_CHOICES)}")
        meant: tuple[Preference, ...] = ("a", "b", "tie") if first == "a" else ("b", "a", "tie")
        return Rating.model_validate({**common, "preference": meant[place]})
    missing = [name for name in panel.criteria if name not in given]
    if missing:
        raise ValueError(f"has no rating for {', '.join(missing)}")
    return Rating.model_validate({**common, "scores": {name: given[name] for name in panel.criteria}})


def _lead_time(annotation: Mapping[str, Any]) -> float | None:
    found = annotation.get("lead_time")
    # The bound refuses infinity and NaN, which Python's JSON reader accepts.
    return float(found) if isinstance(found, int | float) and 0 <= found < 1e9 else None


def _moment(annotation: Mapping[str, Any]) -> float:
    """When it was given, 0 where that is not stated."""
    try:
        return max(0.0, datetime.fromisoformat(str(annotation.get("created_at"))).timestamp())
    except (ValueError, OverflowError):
        return 0.0


def _problem(name: str, number: int, task: Mapping[str, Any], error: ValueError) -> RowProblem:
    reason = validation_reason(error.errors()[0]) if isinstance(error, ValidationError) else str(error)
    data = task.get("data")
    item = str(data.get("item", ""))[:20] if isinstance(data, dict) else ""
    return RowProblem(name, number, "annotations", f"item {item}" if item else "", reason)


MIN_GAP: Final = 1.0
"""Points between two means that make one answer the better one."""
_TURNS: Final = re.compile(r"\A\[(system|developer|user|assistant|tool|function)\] ")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Preference pairs.

    Attributes:
        rows: Rows in Luthier's preference shape.
        left_out: How many pairs were left out, by reason.
        caught: Raters whose ratings were left out.
    """

    rows: tuple[dict[str, Any], ...]
    left_out: dict[str, int]
    caught: tuple[str, ...] = ()


@dataclass(slots=True)
class _Making:
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, item: RatingItem, chosen: str, rejected: str) -> None:
        if has_forgotten_text(item) or FORGOTTEN in (chosen, rejected):
            self.left_out["its texts were forgotten"] += 1
        elif not chosen.strip() or not rejected.strip():
            self.left_out["an answer is empty"] += 1
        elif chosen.strip() == rejected.strip():
            self.left_out["both answers are the same text"] += 1
        # `readable` joins turns as "[role] text"; such a text as one user turn would teach a format no client sends.
        elif not item.messages and _TURNS.match(item.prompt):
            self.left_out["the prompt has several turns, of which the evaluation kept only the text"] += 1
        else:
            prompt: Any = item.prompt
            if item.messages:
                prompt = [message.model_dump(mode="json", exclude_defaults=True) for message in item.messages]
            self.rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})


def preference_pairs(context: Context, caller: Caller, panel_id: str, *, with_caught: bool = False) -> Pairs:
    """Pairs of what people prefer.

    Args:
        context: The home.
        caller: Whose project it is.
        panel_id: The panel.
        with_caught: Also from raters who seem not to read.

    Raises:
        NotFoundError: The project has no such panel.
    """
    panel = context.rating_panels.get(caller.project_id, panel_id)
    table = ratings_table(context, caller.project_id, panel_id).real
    caught = () if with_caught else panel_report(context, caller, panel_id).caught
    # Before votes are counted: raters who do not read would decide items by chance.
    table = table.without(caught)
    items = {item.item: item for item in context.rating_panels.items(panel_id) if item.check is None}
    making = _Making()
    if panel.num_same:
        making.left_out["both answers are the same text"] += panel.num_same
    if panel.kind == "pairwise":
        _from_votes(items.values(), table, making)
    else:
        _from_scores(panel, list(items.values()), table, making)
    return Pairs(tuple(making.rows), dict(making.left_out), caught)


def _from_votes(items: Any, table: RatingsTable, making: _Making) -> None:
    said = table.by_item()
    for item in items:
        votes = Counter(row.preference for row in said.get(item.item, ()))
        if not votes:
            making.left_out["it has no rating"] += 1
            continue
        winner, num = votes.most_common(1)[0]
        # More than half of all votes, ties included: the largest group alone could be a minority.
        if num * 2 <= votes.total():
            making.left_out["raters disagree"] += 1
        elif winner == "tie":
            making.left_out["a tie"] += 1
        else:
            first, second = (answer.text for answer in item.answers)
            making.add(item, *((first, second) if winner == "a" else (second, first)))


def _from_scores(panel: RatingPanel, items: Sequence[RatingItem], table: RatingsTable, making: _Making) -> None:
    said = table.by_item()
    means = {number: _means(panel, rows) for number, rows in said.items()}
    by_row: dict[str, list[RatingItem]] = {}
    for item in items:
        by_row.setdefault(item.row_id, []).append(item)
    for together in by_row.values():
        for one, other in itertools.combinations(together, 2):
            gaps = _gaps(means.get(one.item, {}), means.get(other.item, {}))
            if not gaps:
                making.left_out["no rater has rated both answers"] += 1
                continue
            gap = sum(gaps) / len(gaps)
            if abs(gap) < MIN_GAP:
                making.left_out[f"less than {MIN_GAP:g} point apart"] += 1
            # A gap with the opposite sign of the mean: somebody preferred the other answer.
            elif min(gaps) * gap < 0 or max(gaps) * gap < 0:
                making.left_out["raters disagree"] += 1
            else:
                better, worse = (one, other) if gap > 0 else (other, one)
                making.add(one, better.answers[0].text, worse.answers[0].text)


def _means(panel: RatingPanel, rows: Sequence[RatingRow]) -> dict[str, float]:
    """Each rater's mean over the criteria."""
    found = {}
    for row in rows:
        scores = [score for name in panel.criteria if (score := row.score(name)) is not None]
        found[row.rater] = sum(scores) / len(scores)
    return found


def _gaps(one: dict[str, float], other: dict[str, float]) -> list[float]:
    """By how much each rater who rated both gave the first one more."""
    # Only raters of both: a strict rater who saw one answer would shift its mean.
    return [one[rater] - other[rater] for rater in one if rater in other]
