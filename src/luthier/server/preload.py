"""Libraries that requests import when they need them, loaded by a thread as soon as the server answers.

An import of one takes 0.1 to 0.5 s, which the first request that needs it would take longer. A request that comes
before its library is there waits for the thread, as it would have waited for its own import.
"""

from __future__ import annotations

import importlib
import logging
from typing import Final

from luthier.core.system.process_setup import start_daemon

PRELOADED: Final = (
    # Schemas of evals and of answers.
    "jsonschema",
    "referencing.jsonschema",
    "luthier.ml.evaluation.metrics.structured_output",
    # Graders: BLEU.
    "sacrebleu.tokenizers.tokenizer_13a",
    "luthier.ml.evaluation.graders",
)
"""By name, the most frequent first: the module that says so must not load them itself."""
log = logging.getLogger("luthier.api")


def preload() -> None:
    """Import what `PRELOADED` names. A library that is missing is named by the request that needs it."""
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            log.warning("%s cannot be loaded: %s", name, error)


def preload_in_background() -> None:
    """The same in a thread of its own, which does not keep the process from ending."""
    start_daemon(preload, "preload")
