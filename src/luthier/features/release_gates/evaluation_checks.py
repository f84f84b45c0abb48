"""Use case: know whether anybody has judged what is to answer, before it answers everybody.

A gate says what a model must reach; without one, a run whose answers nobody has ever held against anything would go to
all users without a word. A base model is judged by whoever made it, and is asked about by nobody here.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.access import Caller
from luthier.core.errors import ConflictError
from luthier.core.records.deployment import Share
from luthier.features.release_gates.service import judged_behind, newest_suites
from luthier.platform.home.context import Context


def unjudged_targets(context: Context, caller: Caller, shares: Sequence[Share]) -> tuple[str, ...]:
    """Targets without an evaluation and without a suite result of the run that is behind them; base models are none."""
    return tuple(share.target for share in shares if not _is_judged(context, caller, share))


def refuse_unjudged(name: str, targets: Sequence[str], *, has_others: bool) -> None:
    """Refuse to have unjudged targets answer all users of a name. has_others: whether a canary could be tried there.

    Raises:
        ConflictError: there is any.
    """
    if not targets:
        return
    which = targets[0]
    ways = [f"judge it: luthier eval {which} --data held_out.jsonl"]
    if has_others:
        ways.append(f"try it on a part of the users: luthier deploy {which} --as {name} --canary 0.1")
    ways.append("deploy it as it is, which goes on record: add --unjudged")
    raise ConflictError(
        f"nobody has judged {', '.join(targets)}, and {'they' if len(targets) > 1 else 'it'} would answer all users of "
        f"{name!r}",
        expected="a model with an evaluation or the result of a suite",
        do="; or ".join(ways),
    )


def remedy(targets: Sequence[str]) -> str:
    """What is said of unjudged targets beside what was done; empty where there are none."""
    if not targets:
        return ""
    return f"Nobody has judged {', '.join(targets)}. Judge it: luthier eval {targets[0]} --data held_out.jsonl"


def _is_judged(context: Context, caller: Caller, share: Share) -> bool:
    judged = judged_behind(context, caller, share)
    if judged.base is not None:
        return True
    if judged.run_id is None:
        return False
    return bool(
        context.evaluations.list(run_id=judged.run_id, limit=1)
        or newest_suites(context, caller.project_id, judged.run_id)
    )
