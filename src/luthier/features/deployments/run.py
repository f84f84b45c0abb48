"""Which run a deployment has most of its users asked of, its canary aside."""

from __future__ import annotations

from luthier.core.access import Caller
from luthier.core.errors import ConflictError
from luthier.core.records.deployment import Revision
from luthier.features.release_gates.service import judged_behind
from luthier.platform.home.context import Context


def deployed_run(context: Context, caller: Caller, revision: Revision) -> str:
    """The run that made the target which most users get. Raises ConflictError where none is known."""
    # At least one share is no canary: a canary is only ever added beside others.
    share = max((one for one in revision.shares if one.target != revision.canary), key=lambda one: one.fraction)
    judged = judged_behind(context, caller, share)
    if judged.run_id is None:
        why = "; ".join(judged.set_aside) or f"{share.target} is a base model"
        raise ConflictError(
            f"no run stands behind {share.target}: {why}",
            expected="a deployment of what a run has made, whose recipe and rows can be taken up again",
            do="train it once by a recipe, and deploy that run",
        )
    return judged.run_id
