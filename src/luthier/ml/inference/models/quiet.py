"""Keep transformers' own bars and log lines off the terminal, where Luthier shows its own progress."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

_lock = threading.Lock()
_num_inside = 0
_before = (logging.WARNING, True)
"""What transformers logged, and whether it showed bars, before the first of the blocks that are open now."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the block transformers prints no progress bars and logs only errors.

    Both are settings of the process: the first of several blocks, of any thread, changes them, and the last restores
    them. Otherwise one that began within another and ended after it would leave transformers quiet for good.

    The caller must check what the suppressed messages would report (missing, unexpected, mismatched weights).
    """
    global _num_inside, _before
    with _lock:
        if not _num_inside:
            _before = logging.get_verbosity(), logging.is_progress_bar_enabled()
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if not _num_inside:
                verbosity, bars = _before
                logging.set_verbosity(verbosity)
                if bars:
                    logging.enable_progress_bar()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Inside this block warnings that users cannot act on are not shown: peft 0.21 reads an attribute that transformers
    5.24 has renamed, fears for tied weights, which `merging` parts before it merges or ties afterwards,
    says how a matrix is stored, and looks for patterns of ranks among modules only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`", category=UserWarning)
        warnings.filterwarnings(
            "ignore", message="Input and output embeddings are no longer tied", category=UserWarning
        )
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield
