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

    answers = {"plan": _plan, "audit": _audit, "look": _look, "rows": _rows, "repair": _repair, "tokens": _tokens}
    return (answers | ANSWERS)[document["question"]](context, document)


def _plan(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """What `luthier plan --json` prints."""
    document = asked["recipe"]
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
    found = audits.audit(context, Path(document["file"]), options).audit
    shown: dict[str, Any] = found.model_dump(mode="json")
    if most := document.get("most_lines", 0):
        for finding, told in zip(found.findings, shown["findings"], strict=True):
            told["lines"] = finding.lines[:most]
    return shown


def _look(_: Context, document: dict[str, Any]) -> dict[str, Any]:
    from luthier.service.dataset_rows import look_at

    return look_at(Path(document["file"]))


def _rows(_: Context, document: dict[str, Any]) -> dict[str, Any]:
    from luthier.service.dataset_rows import read_page

    return read_page(Path(document["file"]), start=document["start"], num=document["num"], lines=document["lines"])


def _repair(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    from luthier.service import repair_previews

    return repair_previews.prepare(context, document)


def _tokens(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    from luthier.service import token_surveys

    return token_surveys.survey(context, Path(document["file"]), document["model"], document["template"])


if __name__ == "__main__":
    main(int(sys.argv[1]))
