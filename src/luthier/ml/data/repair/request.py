"""The request of a repair: the action for each check, the kinds of personal data to mask, and the notes it writes.

`Action` and its table are the whole policy: what a repair does about which check, and why. Masked are values that are
certain, of the kinds that are proved, and every value of the kinds named. `benchmarks/personal_data.py` measures the
kinds, and a test holds `masking.DEFAULT_KINDS` to at least 0.99 of the rows of each of its sets without personal data
left untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.results.audit import Finding
from luthier.core.system.extras import install_command
from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.table import CountTokens
from luthier.ml.data.personal_data.find import why_not
from luthier.ml.data.personal_data.masking import DEFAULT_KINDS, MaskedKinds
from luthier.ml.data.personal_data.recognizers import KINDS, Kind

ActionKind = Literal["change", "remove"]


@dataclass(frozen=True, slots=True)
class Action:
    """What is done about the rows of a check.

    Attributes:
        id: its name in requests.
        check: id of the check that finds the rows.
        kind: whether their rows are changed or removed.
        is_default: done without being named.
        reason: why a row of it is changed or removed.
        because: why this is done by default, or is not.
        sorts: the findings of the check that count, by `details["sort"]` or `details["kind"]`; all where empty.
    """

    id: str
    check: str
    kind: ActionKind
    is_default: bool
    reason: str
    because: str
    sorts: tuple[str, ...] = ()

    def is_about(self, finding: Finding) -> bool:
        """Whether the rows of a finding are acted on."""
        sort = finding.details.get("sort", finding.details.get("kind"))
        return finding.check == self.check and (not self.sorts or sort in self.sorts)

    def as_json(self) -> dict[str, Any]:
        """For the summary."""
        return {"id": self.id, "check": self.check, "action": self.kind, "default": self.is_default,
                "because": self.because}  # fmt: skip


_ACTIONS: Final = (
    Action("encoding", "encoding", "change", True, "text damaged by an export",
           "only damage that can be undone completely is repaired; a row whose bytes are not text is removed"),
    Action("personal_data", "personal_data", "change", True, "personal data",
           "a model repeats what it was trained on; only certain matches of the measured kinds are masked"),
    Action("secret", "secret", "change", True, "a secret", "no model needs a real key or password"),
    Action("schema", "schema", "remove", True, "cannot be read or mapped",
           "training refuses or ignores such rows; a number where text is expected becomes text",
           ("row", "no_answer")),
    Action("empty_completion", "empty_completion", "remove", True, "has no completion",
           "it teaches to say nothing"),
    Action("repeated_completion", "repeated_completion", "remove", True, "its completion repeats itself in a loop",
           "it teaches to loop; the same answer to many prompts is kept, as it may be right",
           ("loop",)),
    Action("contamination", "contamination", "remove", True, "is in the held-out file",
           "a verdict on rows that were trained on means nothing", ("exact", "near", "ngram")),
    Action("exact_duplicate", "exact_duplicate", "remove", True, "says the same as another row",
           "the first of the copies stays, so nothing is lost"),
    Action("near_duplicate", "near_duplicate", "remove", True, "says nearly the same as another row",
           "the first of each cluster stays, and so does a row with another answer"),
    Action("conflicting_completion", "conflicting_completion", "remove", False, "contradicts other rows of its prompt",
           "completions may differ on purpose; with a strict majority only the others are removed, otherwise all of "
           "them"),
    Action("contamination_all", "contamination", "remove", False, "shares its prompt or source with the held-out file",
           "sharing a prompt or a document is no leak in every task"),
    Action("refusal", "refusal", "remove", False, "is a boilerplate refusal",
           "a refusal may be the right answer, and without any a model forgets to refuse"),
    Action("toxicity", "toxicity", "remove", False, "is probably toxic",
           "whether it is desired depends on the task, and a word list makes mistakes"),
    Action("language", "language", "remove", False, "is in another language than most rows",
           "more than one language may be intended"),
    Action("length", "length", "remove", False, "is of an unusual length", "unusual is not wrong"),
    Action("over_context", "over_context", "remove", False, "does not fit the context of the model",
           "training can cut or drop it, and another model may see more"),
    Action("truncated_completion", "truncated_completion", "remove", False, "its completion seems to be cut off",
           "detected only by signs such as a missing full stop"),
    Action("prompt_injection", "prompt_injection", "remove", False, "holds text that instructs a model",
           "such rows may be meant to teach resistance"),
)  # fmt: skip
ACTIONS: Final[dict[str, Action]] = {action.id: action for action in _ACTIONS}


def choose_actions(
    only: Sequence[str] | None = None, skip: Sequence[str] | None = None, *, has_held_out: bool = False
) -> tuple[Action, ...]:
    """The requested actions, in the order of the table: those of `only`, else the default ones, without `skip`.

    Contamination is among the default ones where there is a held-out file.

    Args:
        only: ids to take instead of the default ones.
        skip: ids to leave out.
        has_held_out: rows can be compared with a held-out file.

    Raises:
        NotFoundError: an id that no action has.
        RequestError: none is left or a held-out file is missing.
    """
    for name in (*(only or ()), *(skip or ())):
        if name not in ACTIONS:
            raise NotFoundError(
                f"no repair {name!r}",
                expected=f"one of {', '.join(ACTIONS)}",
                do="correct the id; what other checks find cannot be repaired row by row",
            )
    # In the order of the table, whatever the order of the request.
    wanted = [action for action in _ACTIONS if (action.id in only if only is not None else action.is_default)]
    if only is None and not has_held_out:
        wanted = [action for action in wanted if action.check != "contamination"]
    chosen = tuple(action for action in wanted if action.id not in (skip or ()))
    if not chosen:
        raise RequestError("no repair is left", expected="at least one", do="skip fewer checks with --skip")
    if not has_held_out and any(action.check == "contamination" for action in chosen):
        raise RequestError(
            "contamination without a held-out file",
            expected="the file that will evaluate the model",
            do="give it with --against",
        )
    return chosen


_SPELLINGS: Final[dict[str, Kind]] = {
    **{kind: kind for kind in KINDS},
    **{f"{kind}s": kind for kind in KINDS},
    "ip_addresses": "ip_address",
    "ip": "ip_address",
    "ips": "ip_address",
}


def masked_kinds(mask: Sequence[str] = (), leave: Sequence[str] = ()) -> MaskedKinds:
    """What is masked: of the default kinds what is certain, of those in `mask` every value, none of those in `leave`.

    Raises:
        NotFoundError: there is no such kind.
        RequestError: a kind is in both lists, none is left, or names are requested and nothing on this machine can find
            them.
    """
    every, left = _kinds(mask), _kinds(leave)
    if both := [kind for kind in every if kind in left]:
        raise RequestError(
            f"{both[0]} is in both --mask and --no-mask",
            expected="each kind in one of the two lists",
            do="remove it from one of them",
        )
    if "name" in every and (reason := why_not()) is not None:
        raise RequestError(
            f"names cannot be masked: {reason}",
            expected="the extra `names` and a spaCy model, which recognise the names of people",
            do=f"install them ({install_command('names')}), or leave names out of --mask",
        )
    kinds = tuple(kind for kind in KINDS if (kind in DEFAULT_KINDS or kind in every) and kind not in left)
    if not kinds:
        raise RequestError(
            "no kind of personal data is left to mask",
            expected="at least one",
            do="name fewer with --no-mask, or leave all of it out with --skip personal_data",
        )
    return MaskedKinds(kinds, "precision", every)


def _kinds(names: Sequence[str]) -> tuple[Kind, ...]:
    for name in names:
        if name not in _SPELLINGS:
            raise NotFoundError(
                f"no kind of personal data {name!r}",
                expected=f"one of {', '.join(KINDS)}",
                do="correct the name",
            )
    return tuple(kind for kind in KINDS if kind in {_SPELLINGS[name] for name in names})


@dataclass(frozen=True, slots=True)
class RepairRequest:
    """Which file to repair into which.

    Attributes:
        output: a .jsonl file.
        actions: as `actions.choose_actions` gives them.
        audit: the settings for auditing both the original (its table) and the outcome; its held-out file is that of
            contamination.
        mapping: field of the shape -> column, as the table was built.
        count_tokens: the tokenizer of the table; None where tokens were not counted.
        force: replace an output that is there.
        mask: which personal data is masked.
    """

    output: Path
    actions: tuple[Action, ...]
    audit: AuditRequest
    mapping: dict[str, str] = field(default_factory=dict)
    count_tokens: CountTokens | None = None
    force: bool = False
    mask: MaskedKinds = field(default_factory=masked_kinds)

    @property
    def file(self) -> Path:
        """The original."""
        return self.audit.table.path

    @property
    def checks(self) -> tuple[str, ...]:
        """Ids of the checks that are needed, each once."""
        return tuple(dict.fromkeys(action.check for action in self.actions))

    def has(self, name: str) -> bool:
        """Whether an action is requested."""
        return any(action.id == name for action in self.actions)


@dataclass(frozen=True, slots=True)
class Note:
    """Why a row was changed or removed.

    Attributes:
        action: id of the action.
        reason: one phrase, without any value of the row.
        reason_by_line: the same phrase for who has the file open, other rows of it named by their lines alone; empty
            where the reason names none.
    """

    action: str
    reason: str
    reason_by_line: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        by_line = {"reason_by_line": self.reason_by_line} if self.reason_by_line else {}
        return {"check": self.action, "reason": self.reason} | by_line


Notes = dict[int, list[Note]]


def add_note(notes: Notes, line: int, note: Note) -> None:
    """Give the row of a line one more reason, each once."""
    said = notes.setdefault(line, [])
    if note not in said:
        said.append(note)


def lines_of(findings: Sequence[Finding], action: Action) -> list[int]:
    """The rows of the findings that an action is about, ascending."""
    # Each once: several findings may name the same row.
    return sorted({line for finding in findings if action.is_about(finding) for line in finding.lines})
