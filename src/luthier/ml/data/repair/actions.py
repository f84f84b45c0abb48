"""What a repair does about which check, and why: the whole policy in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.results.audit import Finding

ActionKind = Literal["change", "remove"]


@dataclass(frozen=True, slots=True)
class Action:
    """What is done about the rows of a check.

    Attributes:
        id: the name by which it is requested.
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
           "only what can be undone in full is; a row whose bytes are no text is removed"),
    Action("personal_data", "personal_data", "change", True, "personal data",
           "a model repeats what it was trained on; only what is certain of the kinds that were measured"),
    Action("secret", "secret", "change", True, "a secret", "no model needs a real key or password"),
    Action("schema", "schema", "remove", True, "cannot be read or mapped",
           "training refuses or ignores such rows; a number where text is expected becomes text",
           ("row", "no_answer")),
    Action("empty_completion", "empty_completion", "remove", True, "has no completion",
           "it teaches to say nothing"),
    Action("repeated_completion", "repeated_completion", "remove", True, "its completion goes round in a loop",
           "it teaches to loop; the same answer to many prompts is left, it may be right",
           ("loop",)),
    Action("contamination", "contamination", "remove", True, "stands in the held-out file",
           "a verdict on rows that were trained on means nothing", ("exact", "near", "ngram")),
    Action("exact_duplicate", "exact_duplicate", "remove", True, "says the same as another row",
           "the first of the copies stays, so nothing is lost"),
    Action("near_duplicate", "near_duplicate", "remove", True, "says nearly the same as another row",
           "the first of each cluster stays, and so does a row with another answer"),
    Action("conflicting_completion", "conflicting_completion", "remove", False, "contradicts other rows of its prompt",
           "completions may differ on purpose; of a strict majority only the minority goes, else all"),
    Action("contamination_all", "contamination", "remove", False, "shares its prompt or source with the held-out file",
           "sharing a prompt or a document is no leak in every task"),
    Action("refusal", "refusal", "remove", False, "is a boilerplate refusal",
           "a refusal may be the right answer, and without any a model forgets to refuse"),
    Action("toxicity", "toxicity", "remove", False, "is probably toxic",
           "whether it is wanted depends on the task, and a word list errs"),
    Action("language", "language", "remove", False, "is in another language than most rows",
           "more than one language may be meant"),
    Action("length", "length", "remove", False, "is of an unusual length", "unusual is not wrong"),
    Action("over_context", "over_context", "remove", False, "does not fit the context of the model",
           "training can cut or drop it, and another model may see more"),
    Action("truncated_completion", "truncated_completion", "remove", False, "its completion seems to be cut off",
           "seen by signs only, such as a missing full stop"),
    Action("prompt_injection", "prompt_injection", "remove", False, "holds text that instructs a model",
           "such rows may be there to teach resistance"),
)  # fmt: skip
ACTIONS: Final[dict[str, Action]] = {action.id: action for action in _ACTIONS}


def choose_actions(
    only: Sequence[str] | None = None, skip: Sequence[str] | None = None, *, has_held_out: bool = False
) -> tuple[Action, ...]:
    """The actions asked for, in the order of the table: those of `only`, else the default ones, without `skip`.

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
    wanted = [action for action in _ACTIONS if (action.id in only if only is not None else action.is_default)]
    if only is None and not has_held_out:
        wanted = [action for action in wanted if action.check != "contamination"]
    chosen = tuple(action for action in wanted if action.id not in (skip or ()))
    if not chosen:
        raise RequestError("no repair is left to do", expected="at least one", do="name fewer ids with --skip")
    if not has_held_out and any(action.check == "contamination" for action in chosen):
        raise RequestError(
            "contamination without a held-out file", expected="the file that will judge", do="give it with --against"
        )
    return chosen
