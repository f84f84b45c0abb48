"""A runtime in a child process answers as in this one, and its death there is an error here."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import NotFoundError, TemplateError, WorkError
from luthier.core.ports import SilentProgress
from luthier.core.system import facilities
from luthier.ml.export.exporters import registry
from luthier.ml.export.parity import prove
from luthier.ml.export.runtimes.child import RuntimeInChild

_PLACE = f"{__name__}:open_export"
_ROWS = np.array([[-0.1, -2.5, np.nan], [-np.inf, -1e-30, -3.0]], dtype=np.float32)
_CONVERSATION = Conversation(
    messages=(Message(role="user", content="Grüße\n"), Message(role="assistant", reasoning="well", content=None)),
    tools=({"type": "function", "function": {"name": "f", "parameters": {}}},),
)


class NativeRuntime:
    """Ends in each of the ways that a native library has."""

    name, version, has_template, end_ids, context_tokens = "native", "native 1", True, frozenset({7, 3}), None

    def __init__(self, folder, source, adapter=None):
        if not folder.is_dir():
            raise NotFoundError(f"no folder {folder}", expected="one", do="make it")
        self.adapter, self.source = adapter, source

    def prompt_tokens(self, conversation, options=None):
        if conversation != _CONVERSATION or options != {"enable_thinking": False}:
            raise TemplateError("another conversation", expected="that of the test", do="send it")
        return [1, 2]

    def text_tokens(self, text):
        if text == "raise":
            raise ValueError("neither number nor name")
        return [len(text), len(self.source.name), 0 if self.adapter is None else 1]

    def log_probabilities(self, ids, start=0):
        if self.source.name == "stops":
            self.greedy(ids, 1)
        # not contiguous, as a view of a library's own memory may be
        return np.asfortranarray(_ROWS[: len(ids) - start])

    def greedy(self, ids, num_new_tokens):
        if num_new_tokens == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stderr.write("/project/vendor/ggml/src/ggml.c:77: GGML_ASSERT(a->ne[0] == b) failed\na line behind it\n")
        sys.stderr.flush()
        os.abort()

    def close(self):
        """Nothing is held."""


def open_export(folder, source, adapter=None):
    return NativeRuntime(folder, source, adapter)


@pytest.fixture
def opened(make_source, tmp_path):
    with closing(RuntimeInChild("Native", _PLACE, tmp_path, make_source(name="four"))) as runtime:
        yield runtime


def test_it_answers_as_it_does_in_this_process(opened):
    assert (opened.name, opened.version, opened.has_template) == ("native", "native 1", True)
    assert (opened.end_ids, opened.context_tokens) == (frozenset({3, 7}), None)
    assert opened.text_tokens("äöü") == [3, 4, 0]
    assert opened.prompt_tokens(_CONVERSATION, {"enable_thinking": False}) == [1, 2]
    for num_rows in (2, 1, 2):  # a shorter answer leaves nothing of the one before
        rows = opened.log_probabilities([5] * 4, 4 - num_rows)
        assert rows.shape == (num_rows, 3)
        assert rows.tobytes() == _ROWS[:num_rows].tobytes()


def test_rows_come_by_a_named_file_where_no_open_file_is_inherited(make_source, tmp_path, monkeypatch):
    monkeypatch.setattr(facilities, "inherits_descriptors", lambda: False)
    with closing(RuntimeInChild("Native", _PLACE, tmp_path, make_source(name="four"))) as runtime:
        named = Path(runtime._rows.name)
        for num_rows in (2, 1):
            assert runtime.log_probabilities([5] * 4, 4 - num_rows).tobytes() == _ROWS[:num_rows].tobytes()
        assert named.is_file()
    assert not named.parent.exists()


def test_an_adapter_is_handed_on(make_source, tmp_path):
    with closing(RuntimeInChild("Native", _PLACE, tmp_path, make_source(), tmp_path / "a.gguf")) as runtime:
        assert runtime.text_tokens("")[2] == 1


def test_errors_keep_their_class_and_leave_the_runtime_open(opened, make_source, tmp_path):
    with pytest.raises(TemplateError, match="another conversation"):
        opened.prompt_tokens(_CONVERSATION)
    assert opened.text_tokens("a") == [1, 4, 0]
    with pytest.raises(NotFoundError, match="no folder"):
        RuntimeInChild("Native", _PLACE, tmp_path / "none", make_source())


def test_a_failed_assertion_is_an_error_with_its_line(opened):
    with pytest.raises(WorkError) as caught:
        opened.greedy([1], 1)
    assert caught.value.came == "Native stops with SIGABRT on this model: ggml.c:77: GGML_ASSERT(a->ne[0] == b) failed"
    assert "--to merged" in caught.value.do


def test_a_process_that_the_system_kills_is_out_of_memory(opened):
    with pytest.raises(WorkError, match="stops with SIGKILL on this model") as caught:
        opened.greedy([1], 9)
    assert "free memory" in caught.value.do


def test_an_exception_of_the_runtime_is_its_last_line(opened):
    with pytest.raises(WorkError, match="stops with exit code 1 on this model: ValueError: neither number nor name"):
        opened.text_tokens("raise")


def test_a_proof_in_a_runtime_that_aborts_ends_in_an_error(make_source, examples, tmp_path, monkeypatch):
    native = replace(registry.FORMATS["gguf"], runtime=_PLACE)
    monkeypatch.setitem(registry.FORMATS, "gguf", native)
    with pytest.raises(WorkError, match=r"llama\.cpp stops with SIGABRT on this model: ggml\.c:77: GGML_ASSERT"):
        prove(make_source(name="stops"), tmp_path, "gguf", "float32", examples[:2], SilentProgress())
