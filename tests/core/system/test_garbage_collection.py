"""Garbage is collected less often while a program starts, and as before once it works."""

from __future__ import annotations

import gc

from luthier.core.system.process_setup import collect_as_usual, collect_rarely


def test_collections_are_rare_until_they_are_as_before() -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(900, 8, 7)
        collect_rarely()
        assert gc.get_threshold()[0] == 20_000
        collect_as_usual()
        assert gc.get_threshold() == (900, 8, 7)
        gc.set_threshold(901, 8, 7)
        collect_as_usual()  # nothing to undo
        assert gc.get_threshold() == (901, 8, 7)
    finally:
        gc.set_threshold(*before)
