"""The process that answers one question of `questions`.

    python -m luthier.service.question_child ASKER      ASKER: the process id of who asks, with whom it dies

The question stands on stdin as JSON, the answer on stdout: `{"answer": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.service.context import Context


def main(asker: int) -> None:
    """Answer the question on stdin."""
    from luthier.core.errors import LuthierError
    from luthier.core.exact_products import keep_products_exact
    from luthier.core.threads import wait_briefly
    from luthier.jobs.supervisor import end_with
    from luthier.service.context import Context

    end_with(asker)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints, stdout carries the answer alone
    wait_briefly()
    keep_products_exact()
    document = json.loads(sys.stdin.buffer.read())
    with answers, Context.open() as context:
        try:
            answer = {"answer": _answer(context, document)}
        except LuthierError as error:
            answer = {"error": error.as_json()}
        json.dump(answer, answers, allow_nan=False)


def _answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    from luthier.service.dataset_questions import ANSWERS

    if document["question"] in ANSWERS:
        return ANSWERS[document["question"]](context, document)
    return _plan(context, document["recipe"]) if document["question"] == "plan" else _audit(context, document)


def _plan(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """What `luthier plan --json` prints."""
    from luthier.plan.prices import load_prices
    from luthier.service import quotes
    from luthier.service.plans import prepare
    from luthier.service.recipes import recipe_from

    recipe = recipe_from(document, base_dir=Path("/"))
    prepared = prepare(context, recipe, base_dir=Path("/"))
    quote = quotes.quote_of(context, prepared, on=None, prices=load_prices(None), market="on_demand", is_probed=False)
    plan = prepared.plan
    shown = {"hash": plan.hash, "values": plan.values(), "predicted": quote.as_json()}
    return shown | {"plan": plan.model_dump(mode="json")}


def _audit(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """What `luthier data audit --json` prints, but for the page that it may write."""
    from luthier.service import audits

    against = document["against"]
    options = audits.AuditOptions(
        against=None if against is None else Path(against),
        model=document["model"],
        only=None if document["only"] is None else tuple(document["only"]),
        mapping=document["mapping"],
        group_by=document["group_by"],
        method=document["method"],
    )
    return audits.audit(context, Path(document["file"]), options).audit.model_dump(mode="json")


if __name__ == "__main__":
    main(int(sys.argv[1]))
