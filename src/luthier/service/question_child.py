"""The process that answers the questions of `questions`.

    python -m luthier.service.question_child ASKER      ASKER: the process id of who asks, with whom it dies

Each line of stdin is a question as JSON, and each gets a line on stdout: `{"answer": ...}` or `{"error": ...}`. It ends
where stdin does, and after an answer for which it has grown large.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

if TYPE_CHECKING:
    from luthier.service.context import Context
    from luthier.service.plans import Prepared

LARGE_BYTES: Final = 2 << 30
"""Libraries alone take a quarter of that: beyond it lies what rows have left behind."""


def main(asker: int) -> None:
    """Answer the questions on stdin."""
    from luthier.core.disk_full import is_disk_full, storage_full
    from luthier.core.errors import LuthierError
    from luthier.core.exact_products import keep_products_exact
    from luthier.core.library_errors import library_words_hidden
    from luthier.core.threads import wait_briefly
    from luthier.jobs.supervisor import end_with
    from luthier.service.context import Context

    end_with(asker)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints, stdout carries the answer alone
    wait_briefly()
    keep_products_exact()
    with answers, Context.open() as context, library_words_hidden():
        for line in sys.stdin.buffer:
            try:
                answer = {"answer": _answer(context, json.loads(line))}
            except LuthierError as error:
                answer = {"error": error.as_json()}
            except Exception as error:
                if not is_disk_full(error):
                    raise
                answer = {"error": storage_full(error).as_json()}
            answers.write(json.dumps(answer, allow_nan=False) + "\n")
            answers.flush()
            # Not the most it ever had: Linux counts what its parent had before it became this process.
            if psutil.Process().memory_info().rss > LARGE_BYTES:
                return


def _answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    from luthier.service.dataset_questions import ANSWERS

    answers = {"wake": _wake, "plan": _plan, "audit": _audit, "look": _look}
    answers |= {"repair": _repair, "tokens": _tokens, "watch": _watch}
    return (answers | ANSWERS)[document["question"]](context, document)


def _wake(context: Context, _asked: dict[str, Any]) -> dict[str, Any]:
    """Load what a plan needs and measure the machine, so that the first plan need not wait for that."""
    from luthier.plan import options, resolve
    from luthier.service import advice, plans, quotes

    device = quotes.device_for(context, None)
    return {"device": device.name, "ready": [m.__name__ for m in (advice, options, plans, resolve)]}


def _plan(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """What `luthier plan --json` prints; compares: with advice, and what it takes on each device of the table."""
    from luthier.plan.prices import load_prices
    from luthier.service import quotes
    from luthier.service.plans import prepare
    from luthier.service.recipes import recipe_from

    recipe, prices = recipe_from(asked["recipe"], base_dir=Path("/")), load_prices(None)
    prepared = prepare(context, recipe, base_dir=Path("/"))
    quote = quotes.quote_of(context, prepared, on=None, prices=prices, market="on_demand", is_probed=False)
    plan = prepared.plan
    shown = {"hash": plan.hash, "values": plan.values(), "predicted": quote.as_json()}
    if asked["compares"]:
        shown |= _compared(context, prepared)
    return shown | {"plan": plan.model_dump(mode="json")}


def _compared(context: Context, prepared: Prepared) -> dict[str, Any]:
    """Advice on the method, and the run on one of each accelerator of the table, those that fit and are cheap first."""
    from luthier.plan.changes import METHOD_TITLES
    from luthier.plan.devices import accelerators
    from luthier.plan.workload import work_method
    from luthier.service.advice import advise
    from luthier.service.quotes import compare_options

    method = METHOD_TITLES[work_method(prepared.plan.method.name)]
    options = compare_options(context, prepared, on=[device.name for device in accelerators()])
    devices = [
        option.as_json()
        | {"title": option.prediction.device.title, "memory_bytes": option.prediction.device.memory_bytes}
        for option in options
        if option.method == method
    ]
    return {"advice": advise(context, prepared).as_json(), "devices": devices}


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


def _repair(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    from luthier.service import repair_previews

    return repair_previews.prepare(context, document)


def _tokens(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    from luthier.service import token_surveys

    return token_surveys.survey(context, Path(document["file"]), document["model"], document["template"])


def _watch(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    from luthier.service import watching

    return watching.look_at(context, document)


if __name__ == "__main__":
    main(int(sys.argv[1]))
