"""Transformers is quiet in a block, and as before after the last one, whichever ends first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transformers.utils import logging

from luthier.ml.inference.models.quiet import quiet_transformers


@pytest.fixture(autouse=True)
def talkative() -> Iterator[None]:
    verbosity, bars = said()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    yield
    logging.set_verbosity(verbosity)
    if not bars:
        logging.disable_progress_bar()


def said() -> tuple[int, bool]:
    return logging.get_verbosity(), logging.is_progress_bar_enabled()


QUIET = (logging.ERROR, False)


def test_a_block_that_ends_after_the_one_it_began_in_leaves_all_as_before() -> None:
    before = said()
    first, second = quiet_transformers(), quiet_transformers()  # as two threads that each load a model
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert said() == QUIET
    second.__exit__(None, None, None)
    assert said() == before == (logging.INFO, True)


def test_an_error_ends_the_quiet() -> None:
    before = said()
    with pytest.raises(KeyError), quiet_transformers(), quiet_transformers():
        raise KeyError
    assert said() == before
