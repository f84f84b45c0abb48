"""A template that is in use is not loaded again; one whose files have changed is."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from luthier.ml.inference.models.templates import chat_template
from luthier.ml.inference.models.templates.chat_template import ChatTemplate


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model of the test's own, which nothing else has loaded."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose tokenizers were loaded."""
    found, load = list[Path](), chat_template.load_tokenizer

    def load_tokenizer(path: str | Path) -> Any:
        found.append(Path(path))
        return load(path)

    monkeypatch.setattr(chat_template, "load_tokenizer", load_tokenizer)
    return found


def test_it_is_loaded_once_as_long_as_it_is_in_use(folder: Path, loaded: list[Path]) -> None:
    template = ChatTemplate.load(folder)
    assert ChatTemplate.load(str(folder)) is template
    assert loaded == [folder]
    del template
    gc.collect()
    ChatTemplate.load(folder)
    assert len(loaded) == 2


def test_another_kind_and_other_options_are_other_templates(folder: Path, loaded: list[Path]) -> None:
    kept = [
        ChatTemplate.load(folder),
        ChatTemplate.load(folder, "plain"),
        *(ChatTemplate.load(folder, options={"shows": value}) for value in (True, 1)),
    ]
    assert len({id(one) for one in kept}) == len(loaded) == 4
    assert [one.kind for one in kept] == ["chat", "plain", "chat", "chat"]
    assert [one.options.get("shows") for one in kept[2:]] == [True, 1]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"])
def test_a_file_that_was_changed_counts(folder: Path, name: str) -> None:
    before = ChatTemplate.load(folder)
    if name == "generation_config.json":
        (folder / name).write_text(json.dumps({"eos_token_id": [0, 2]}))
    elif name == "tokenizer_config.json":
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"eos_token": "<|im_end|>"}))
    else:
        text = ChatTemplate.load(folder).tokenizer.chat_template
        (folder / name).write_text(f"{text} ")
    after = ChatTemplate.load(folder)
    assert after is not before
    assert ChatTemplate.load(folder) is after


def test_one_that_is_tried_as_new_is_loaded_again(folder: Path, loaded: list[Path]) -> None:
    known = ChatTemplate.load(folder)
    assert ChatTemplate.load(folder, is_new=True) is not known
    assert len(loaded) == 2


def test_each_thread_has_its_own(folder: Path) -> None:
    mine, others = ChatTemplate.load(folder), list[ChatTemplate]()
    thread = threading.Thread(target=lambda: others.append(ChatTemplate.load(folder)))
    thread.start()
    thread.join()
    assert [one is mine for one in others] == [False]
