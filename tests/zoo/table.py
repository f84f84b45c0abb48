"""What the walks of all families came out as: one table, for people and for docs/models.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

Outcomes = Sequence[Mapping[str, Any]]

BEGIN: Final = "<!-- table of the zoo: written by `make zoo` -->"
END: Final = "<!-- end of the table of the zoo -->"
_FOLDER: Final = re.compile(r"/\S*/work/model")
_SIGNS: Final = {
    "works": "yes", "refused": "refused", "refused late": "late", "wrong": "WRONG", "raw exception": "RAW",
    "killed": "KILLED", "not run": "not run",
}  # fmt: skip


def show(found: Mapping[str, Outcomes]) -> None:
    """Print what does not work, and the counts."""
    for name, outcomes in found.items():
        for one in outcomes:
            if one["status"] != "works":
                print(f"{name:22} {one['stage']:20} {one['status']:14} {one['reason'][:400]}")  # noqa: T201
    print(summary(found))  # noqa: T201


def summary(found: Mapping[str, Outcomes]) -> str:
    """Families in which everything works, how many stages ended in each other way, and what is refused."""
    every = [one for outcomes in found.values() for one in outcomes]
    counts = Counter(one["status"] for one in every)
    whole = sum(works_whole(outcomes) for outcomes in found.values())
    always = ("works", "refused", "refused late", "wrong", "raw exception")
    ends = ", ".join(f"{counts[status]} {status}" for status in _SIGNS if status in always or counts[status])
    said = f"{whole} of {len(found)} families work in everything; stages: {ends}"
    if rows := [one for one in every if one["stage"].startswith("row_")]:
        plain, opted = sum(one["status"] == "works" for one in rows), sum(map(_has_opt_in, rows))
        said += (
            f". Of {len(rows)} rows {plain} are taken as they are, {opted} with the opt-in that their refusal names, "
            f"{len(rows) - plain - opted} not at all"
        )
    return said


def works_whole(outcomes: Outcomes) -> bool:
    """Whether every stage works, but for what is rightly refused.

    That is a GGUF file of a family that the converter does not take, and a row that the template cannot say and that
    passes with the setting which the refusal names.
    """
    return all(one["status"] == "works" or is_rightly_refused(one) for one in outcomes)


def is_rightly_refused(outcome: Mapping[str, Any]) -> bool:
    """Whether a refusal is the right answer."""
    return _has_opt_in(outcome) or (outcome["status"] == "refused" and outcome["stage"] == "gguf")


def _has_opt_in(outcome: Mapping[str, Any]) -> bool:
    """Whether a row is refused, and passes with the setting that the refusal names."""
    passes = outcome["stage"].startswith("row_") and outcome["path"].startswith("passes with")
    return bool(outcome["status"] == "refused" and passes)


def write_table(page: Path, found: Mapping[str, Outcomes], commits: Mapping[str, str]) -> None:
    """Put the table into the page, between its two marks.

    Args:
        page: The page.
        found: Outcomes by family.
        commits: The commit on which each family was walked.
    """
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{walked_on(commits)}\n\n{table(found)}\n{END}{after}", encoding="utf-8")


def walked_on(commits: Mapping[str, str]) -> str:
    """On which commit families were walked: one for all, or that of most and the families of each other one."""
    by_commit: dict[str, list[str]] = {}
    for name, commit in commits.items():
        by_commit.setdefault(commit, []).append(name)
    if len(by_commit) == 1:
        return f"All {len(commits)} families were walked on commit {next(iter(by_commit))}."
    most = max(by_commit, key=lambda commit: len(by_commit[commit]))
    parts = [f"on {commit}: {', '.join(names)}" for commit, names in by_commit.items() if commit != most]
    return f"Of {len(commits)} families {len(by_commit[most])} were walked on commit {most}; {'; '.join(parts)}."


_COLUMNS: Final = {
    "rows": lambda stage: stage.startswith("row_"),
    "plan": lambda stage: stage in ("plan", "reach"),
    "loss": lambda stage: stage in ("loss", "full_loss"),
    "methods": lambda stage: stage in ("lora", "full", "adalora", "qlora", "dpo"),
    "resume": lambda stage: stage == "resume",
    "text": lambda stage: stage in ("generate", "stream"),
    "score": lambda stage: stage == "score",
    "merge": lambda stage: stage in ("merge", "adapter"),
    "check": lambda stage: stage == "check",
    "GGUF": lambda stage: stage == "gguf",
}


def table(found: Mapping[str, Outcomes]) -> str:
    """A line a family; then why what does not work does not."""
    lines = [f"{summary(found)}.", "", f"| family | {' | '.join(_COLUMNS)} |", f"|---|{'---|' * len(_COLUMNS)}"]
    notes: dict[str, tuple[list[str], list[str]]] = {}
    for name, outcomes in found.items():
        cells = [_cell([one for one in outcomes if is_meant(one["stage"])]) for is_meant in _COLUMNS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        for one in outcomes:
            if one["status"] not in ("works", "not run"):
                stages, names = notes.setdefault(_note(one), ([], []))
                stages += [one["stage"]] if one["stage"] not in stages else []
                names += [name] if name not in names else []
    if notes:
        lines += ["", "What does not work, and why:", ""]
        lines += [f"- {note} ({', '.join(stages)}: {', '.join(names)})" for note, (stages, names) in notes.items()]
    return "\n".join(lines)


def _note(outcome: Mapping[str, Any]) -> str:
    """How a stage ended and why, without what is the row's own; a row that passes otherwise says how."""
    if _has_opt_in(outcome):
        return f"refused, since the template does not say it; {outcome['path']}"
    reason = _FOLDER.sub("the model", outcome["reason"].partition(" | ")[0])
    return f"{outcome['status']}: {reason[:160]}".replace("|", "\\|").replace("`", "'")


def _cell(outcomes: Outcomes) -> str:
    counts = Counter("with an opt-in" if _has_opt_in(one) else _SIGNS[one["status"]] for one in outcomes)
    if not outcomes:
        return "-"
    if set(counts) == {"yes"}:
        return "yes"
    ends = ", ".join(f"{num} {end}" for end, num in counts.items() if end != "yes")
    return f"{counts['yes']} of {len(outcomes)}; {ends}"
