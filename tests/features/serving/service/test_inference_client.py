"""The client of the engine process, where its child misses a request or a caller gives up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.errors import WorkError
from luthier.core.stream import Ended, Served, TextRequest
from luthier.features.serving import inference_client
from luthier.features.serving.inference_client import Event, InferenceClient
from luthier.platform.home.settings import Settings

MODEL = Served(path="/nowhere", sha256="")
REQUEST = TextRequest(text="Why?", max_new_tokens=4)


def test_a_child_that_has_ended_keeps_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = SimpleNamespace(ask=lambda *_: None)
    monkeypatch.setattr(inference_client, "_Child", lambda *_, **__: ended)
    client = InferenceClient(Settings(home=tmp_path, serving_queue=2))
    # More often than there are slots: a lost slot would make it a BusyError, for ever.
    for _ in range(4):
        with pytest.raises(WorkError, match="has ended"):
            client.ask(MODEL, REQUEST, lambda _: None)


class SlotOfCanceller:
    """Cancels where the last event has been taken out and is not heard yet."""

    def __init__(self) -> None:
        self.cancel: Any = None

    def leave(self, *, has_ended: bool) -> None:
        if has_ended:
            self.cancel()


def test_nothing_is_heard_after_cancelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_client._Child, "_live", lambda _: None)
    child = inference_client._Child(Settings(home=tmp_path))
    heard: list[Event] = []
    slot: Any = SlotOfCanceller()
    slot.cancel = child.ask(MODEL, REQUEST, heard.append, slot, None)
    key = next(iter(child._asks))
    child._tell(key, Ended(reason="stop", num_new_tokens=1))
    assert (heard, child.num_under_way) == ([], 0)


def test_a_callback_may_cancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_client._Child, "_live", lambda _: None)
    child = inference_client._Child(Settings(home=tmp_path))
    heard: list[Event] = []
    slot: Any = SimpleNamespace(leave=lambda **_: None)

    def hear(event: Event) -> None:
        heard.append(event)
        cancel()

    cancel: Any = child.ask(MODEL, REQUEST.model_copy(update={"num_choices": 2}), hear, slot, None)
    key = next(iter(child._asks))
    for choice in range(2):
        child._tell(key, Ended(choice=choice, reason="stop", num_new_tokens=1))
    assert (len(heard), child.num_under_way) == (1, 0)
