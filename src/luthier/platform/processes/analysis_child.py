"""The process that answers the questions of `questions`.

    python -m luthier.platform.processes.analysis_child PARENT

PARENT is the process id of the parent; the child ends when the parent does.

Each line of stdin is a question as JSON, and each gets a line on stdout: `{"answer": ...}` or `{"error": ...}`. It ends
where stdin does, and after an answer for which it has grown large.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import psutil

from luthier.core.import_string import import_string

if TYPE_CHECKING:
    from luthier.platform.home.context import Context

_ANSWERS: Final = {
    "wake": "luthier.features.planning.analysis:wake",
    "plan": "luthier.features.planning.analysis:plan_answer",
    "audit": "luthier.features.datasets.analysis:audit_answer",
    "look": "luthier.features.datasets.analysis:look_answer",
    "tokens": "luthier.features.datasets.analysis:tokens_answer",
    "map": "luthier.features.datasets.analysis:map_answer",
    "diff": "luthier.features.datasets.analysis:diff_answer",
    "split": "luthier.features.datasets.analysis:split_answer",
    "index": "luthier.features.datasets.analysis:index_answer",
    "repair": "luthier.features.datasets.repair_previews:prepare",
    "watch": "luthier.features.monitoring.loop:run_checks",
}
"""What answers each question. By name: this process lies below what it asks, and loads one of them."""

LARGE_BYTES: Final = 2 << 30
"""Libraries alone take a quarter of that: beyond it lies what rows have left behind."""


def main(asker: int) -> None:
    """Answer the questions on stdin."""
    from luthier.core.errors import LuthierError
    from luthier.core.library_errors import library_words_hidden
    from luthier.core.system.disk_full import is_disk_full, storage_full
    from luthier.core.system.exact_products import keep_products_exact
    from luthier.core.system.parent_death import end_with
    from luthier.core.system.threads import wait_briefly
    from luthier.platform.home.context import Context

    end_with(asker)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints, stdout carries the answer alone
    wait_briefly()
    keep_products_exact()
    with answers, Context.open() as context, library_words_hidden():
        for line in sys.stdin.buffer:
            try:
                answer = {"answer": answer_to(context, json.loads(line))}
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


def answer_to(context: Context, document: dict[str, Any]) -> Any:
    """What this process answers to one question, in the process of the caller."""
    return import_string(_ANSWERS[document["question"]])(context, document)


if __name__ == "__main__":
    main(int(sys.argv[1]))
