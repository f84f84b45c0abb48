"""The client of the process that trains: whose weights are lost with it."""

from __future__ import annotations

import pytest

from luthier.features.tinker_api.trainer_client import _Child
from luthier.platform.home.settings import Settings


@pytest.mark.parametrize(("is_unused", "num_ended"), [(False, 1), (True, 0)])
def test_only_a_process_that_was_needed_takes_clients_along(
    monkeypatch: pytest.MonkeyPatch, is_unused: bool, num_ended: int
) -> None:
    monkeypatch.setattr(_Child, "_live", lambda self: None)
    ended: list[int] = []
    child = _Child(Settings(), lambda: False, lambda: ended.append(1))
    if is_unused:
        assert child.is_unused()
        assert not child.ask({"op": "create"}, None), "a client that comes now goes to the next process"
    child._end()
    assert len(ended) == num_ended
