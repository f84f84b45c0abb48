"""The process that answers the questions of `analysis`: a table from question to function."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from luthier.core.child_process.channel import Channel
from luthier.core.import_string import import_string

if TYPE_CHECKING:
    from luthier.platform.home.context import Context

_ANSWERS: Final = {
    "wake": "luthier.features.planning.drafts:wake",
    "plan": "luthier.features.planning.drafts:plan_answer",
    "audit": "luthier.features.datasets.analysis:audit_answer",
    "look": "luthier.features.datasets.analysis:look_answer",
    "tokens": "luthier.features.datasets.analysis:tokens_answer",
    "map": "luthier.features.datasets.analysis:map_answer",
    "diff": "luthier.features.datasets.analysis:diff_answer",
    "split": "luthier.features.datasets.analysis:split_answer",
    "index": "luthier.features.datasets.analysis:index_answer",
    "repair": "luthier.features.datasets.analysis:prepare",
    "remote": "luthier.features.datasets.remote_preview:preview_answer",
    "watch": "luthier.features.monitoring.loop:run_checks",
    "machine": "luthier.features.doctor.service:answer",
}
"""The function for each question. By name: this process is below what it calls, and loads one of them."""


def serve(document: dict[str, Any], channel: Channel) -> None:
    """Answer questions until the parent has no more; ends after one that leaves more than `large_bytes` in memory."""
    from luthier.core.errors import library_words_hidden
    from luthier.core.system.process_setup import keep_products_exact
    from luthier.platform.home.context import Context
    from luthier.platform.processes.child_progress import EventProgress

    # An environment variable of cuBLAS: it must be set before the answer imports torch.
    keep_products_exact()
    with Context.open(progress=EventProgress(channel.emit)) as context, library_words_hidden():
        channel.serve(partial(answer_to, context), max_resident_bytes=document["large_bytes"], allow_nan=False)


def answer_to(context: Context, document: dict[str, Any]) -> Any:
    """What this process answers to one question, in the process of the caller."""
    return import_string(_ANSWERS[document["question"]])(context, document)
