"""Second pass: which of the changed rows go, and why. A duplicate never goes for a row that does not stay itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from luthier.core.errors import RequestError
from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped
from luthier.ml.data.audit.conflicting_completion import prompts_of, rows_at_odds
from luthier.ml.data.audit.duplicates import THRESHOLD, comparable_texts
from luthier.ml.data.audit.run import load_checks
from luthier.ml.data.audit.table import AuditTable, with_rows
from luthier.ml.data.dedup.equal_values import column_digests, first_positions, matches
from luthier.ml.data.dedup.near_duplicates import near_clusters
from luthier.ml.data.dedup.shingles import jaccard, jaccards, shingles_of
from luthier.ml.data.files.row_frames import TextColumn
from luthier.ml.data.repair.request import Action, Note, Notes, RepairRequest, add_note, lines_of
from luthier.ml.data.text.normalise import normalised
from luthier.ml.data.text.words import I64

_NEAR_AT_ONCE = 5_000
_MAX_COMPARED = 100
_CONTAMINATION = {
    "exact": "says the same as a row of the held-out file",
    "near": "says nearly the same as a row of the held-out file",
    "ngram": "shares long passages with the held-out file",
    "same_prompt": "has a prompt of the held-out file",
    "same_source": "comes from a document of the held-out file",
}


def removals(request: RepairRequest, table: AuditTable, gone: Notes, found: Sequence[Finding] | None) -> Notes:
    """Which rows are removed and why, besides those in `gone`.

    Rows are first checked individually. Then contradictions, copies and near-duplicates are sought among what is left,
    in this order, so that the row for which another one goes always stays.

    Args:
        request: what to repair, and how.
        table: of the changed rows, under the lines and the name of the original.
        gone: rows that are removed already, by line.
        found: what the checks find in it, where that is known already; None runs them.
    """
    notes: Notes = {}
    audit = replace(request.audit, table=_without(table, gone))
    one_by_one = [action for action in request.actions if action.kind == "remove" and action.id not in _AMONG_ROWS]
    findings = found if found is not None else _run(audit, one_by_one)
    for action in one_by_one:
        _judge(action, findings, notes, audit)
    for name, look in _AMONG_ROWS.items():
        if request.has(name) and not _is_clean(request, name, found):
            # Without the rows that go already: a duplicate of such a row must stay.
            left = replace(audit, table=_without(audit.table, notes))
            for line, other, said in look(left):
                reason, by_line = (said.format(row=row) for row in (audit.table.id_of(other), f"line {other}"))
                add_note(notes, line, Note(name, reason, by_line))
    return notes


def _is_clean(request: RepairRequest, name: str, found: Sequence[Finding] | None) -> bool:
    """Whether it is known that nothing is to be found: taking rows away brings no new copies or contradictions.

    The check of near-duplicates leaves copies out, so it is enough only where these are removed too.
    """
    if found is None or (name == "near_duplicate" and not request.has("exact_duplicate")):
        return False
    return all(finding.check != name for finding in found)


def _without(table: AuditTable, gone: Notes) -> AuditTable:
    if not gone:
        return table
    lines = np.fromiter(gone, dtype=np.uint32, count=len(gone))
    return with_rows(table, table.rows.where(~np.isin(table.lines, lines)))


def _run(audit: AuditRequest, actions: Sequence[Action]) -> list[Finding]:
    found: list[Finding] = []
    for name, check in load_checks(list(dict.fromkeys(action.check for action in actions))).items():
        if isinstance(answer := check(audit), Skipped):
            continue  # reported by the audit of the original
        found.extend(one for one in answer if one.check == name)
    return found


def _judge(action: Action, findings: Sequence[Finding], notes: Notes, audit: AuditRequest) -> None:
    if action.check == "contamination":
        twins = _exact_twins(audit)
        for finding in findings:
            if action.is_about(finding):
                for line in finding.lines:
                    kind = str(finding.details.get("kind"))
                    twin = f", {twins[line]}" if kind == "exact" and line in twins else ""
                    add_note(notes, line, Note(action.id, _CONTAMINATION[kind] + twin))
        return
    problems = {problem.line: problem for problem in reversed(audit.table.problems)}
    for line in lines_of(findings, action):
        reason = action.reason
        if action.check == "schema":
            known = problems.get(line)
            reason = "has no assistant turn that is learned" if known is None else _said(known.field, known.reason)
        add_note(notes, line, Note(action.id, reason))


def _said(field: str, reason: str) -> str:
    return f"field {field!r} {reason}" if field else reason


def _exact_twins(audit: AuditRequest) -> dict[int, str]:
    """For each row that is in the held-out file the id of the row there."""
    if audit.held_out is None:
        return {}
    here, there = audit.table, audit.held_out
    # The first of equal rows is the one whose id goes into the reason.
    found = matches(*(column_digests(one.rows, "content_key") for one in (here, there)))
    pairs = zip(here.lines[found.positions].tolist(), there.lines[found.others].tolist(), strict=True)
    return {line: there.id_of(other) for line, other in pairs}


# The row that goes, the row for which it goes, and why, with {row} for the latter.
_Twin = tuple[int, int, str]


def _exact(audit: AuditRequest) -> Iterator[_Twin]:
    lines, first = audit.table.lines, first_positions(audit.table.rows, beside="learned_key")
    copies = np.flatnonzero(first != np.arange(len(first)))
    for line, other in zip(lines[copies].tolist(), lines[first[copies]].tolist(), strict=True):
        yield line, other, "says the same as {row}"


def _near(audit: AuditRequest) -> Iterator[_Twin]:
    """Near-duplicates with the same answer and tools. A row with others stays, and its own likes go for it."""
    table = audit.table
    texts, _ = comparable_texts(table)
    made = near_clusters(texts, threshold=THRESHOLD, progress=audit.progress)
    # By kept row and own answer and tools the rows that stay, since one of these is not that of the kept row.
    stays: dict[tuple[int, str], list[int]] = defaultdict(list)
    lines = table.lines
    dropped = np.flatnonzero(made.kept != np.arange(len(made.kept)))
    for start in range(0, len(dropped), _NEAR_AT_ONCE):  # some at a time: rows may be on disk
        places = dropped[start : start + _NEAR_AT_ONCE]
        mine = table.rows.take(places, "line", "completion", "tools_key").rows()
        theirs = table.rows.take(made.kept[places], "line", "completion", "tools_key").rows()
        others: list[tuple[int, int, str]] = []
        for at, (line, answer, tools), (kept_line, kept_answer, kept_tools) in zip(
            places.tolist(), mine, theirs, strict=True
        ):
            if tools == kept_tools and _same_answer(answer, kept_answer):
                yield line, kept_line, _near_reason(float(made.similarities[at]))
            else:
                # A line feed, which no normalised text has.
                others.append((at, line, f"{normalised(answer or '')}\n{tools}"))
        yield from _near_among_others(lines, texts, others, made.kept, stays)


def _near_among_others(
    lines: npt.NDArray[np.uint32],
    texts: TextColumn,
    others: Sequence[tuple[int, int, str]],
    kept: I64,
    stays: dict[tuple[int, str], list[int]],
) -> Iterator[_Twin]:
    """Of rows that differ from the kept row they are near to in answer or tools, those with a like that does not.

    Args:
        lines: of all rows of the table.
        texts: the texts to compare rows by.
        others: position and line of the rows, and their answers (normalised) with their tools.
        kept: the kept row of each row of the table.
        stays: by kept row and answer the first 100 rows that stay; those that stay of `others` are added.
    """
    if not others:
        return
    known = {other for at, _, answer in others for other in stays.get((int(kept[at]), answer), ())}
    wanted = np.asarray(sorted(known | {at for at, _, _ in others}), dtype=np.int64)
    # Each set once: a row may be compared with a hundred others.
    shingles = shingles_of(texts.take(wanted), spill=texts.rows.spill)
    for at, line, answer in others:
        staying = stays[int(kept[at]), answer]
        if staying:
            ones = np.searchsorted(wanted, [at] * len(staying))
            similarities = jaccards(shingles, ones, shingles, np.searchsorted(wanted, staying))
            best = int(similarities.argmax())  # the first row of equally similar ones
            if similarities[best] >= THRESHOLD:
                yield line, int(lines[staying[best]]), _near_reason(float(similarities[best]))
                continue
        # Rows made from a template may all stay. As in `near_clusters`, each is compared with the first hundred alone,
        # or the time would grow with the square of their number.
        if len(staying) < _MAX_COMPARED:
            staying.append(at)


def _near_reason(similarity: float) -> str:
    return f"near-duplicate (Jaccard {similarity:.2f}) of {{row}}"


def _same_answer(one: str | None, other: str | None) -> bool:
    return normalised(one or "") == normalised(other or "") or jaccard(one or "", other or "") >= THRESHOLD


def _conflicting(audit: AuditRequest) -> Iterator[_Twin]:
    """Of the rows of a prompt, those that the strict majority contradicts; where there is none, all."""
    at_odds = rows_at_odds(audit.table, prompts_of(audit.table))
    lines = audit.table.lines[at_odds.positions].tolist()
    prompts: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for line, prompt, answer in zip(lines, at_odds.prompts.tolist(), at_odds.answers.tolist(), strict=True):
        prompts[prompt].append((line, answer))
    for rows in prompts.values():
        counts = Counter(answer for _, answer in rows)
        most, num = counts.most_common(1)[0]
        if 2 * num > len(rows):
            first = next(line for line, answer in rows if answer == most)
            said = f"answers the prompt of {{row}} differently from {num} of its {len(rows)} rows do"
            yield from ((line, first, said) for line, answer in rows if answer != most)
        else:
            # The first row that answers otherwise is the first of all, or the first one that differs from that.
            first, its_answer = rows[0]
            second = next(line for line, answer in rows if answer != its_answer)
            for line, answer in rows:
                other = second if answer == its_answer else first
                yield line, other, "answers the prompt of {row} differently, and no answer has a majority"


_AMONG_ROWS = {"conflicting_completion": _conflicting, "exact_duplicate": _exact, "near_duplicate": _near}


def check_can_run(skipped: dict[str, str], actions: Sequence[Action]) -> None:
    """Check that every check that was requested by name could be run.

    Args:
        skipped: why checks were not run, by id.
        actions: that are to be taken.

    Raises:
        RequestError: such a check could not be run.
    """
    for action in actions:
        if not action.is_default and action.check in skipped:
            raise RequestError(
                f"{action.id} cannot be repaired: {skipped[action.check]}",
                expected="what the check needs",
                do="give it (--model, --against), or leave this id out",
            )
