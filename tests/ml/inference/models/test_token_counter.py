from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.ml.inference.models import token_counter as models_token_counter
from luthier.ml.inference.models.token_counter import encodings, token_counter

TEXTS = ["", "A plain sentence.", "déjà vu 😀 " * 40, "\n\n  indented\tand\r\nmore", "<s> not special </s>"]


def test_counts_what_the_tokenizer_of_transformers_counts(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    expected = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    assert token_counter(tiny)(TEXTS) == expected
    assert token_counter(tiny)([]) == []


def test_a_saved_limit_or_padding_does_not_change_the_count(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert token_counter(folder)(TEXTS) == token_counter(tiny)(TEXTS)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        token_counter(tmp_path / "none")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelSourceError, match=r"tokenizer\.json cannot be read"):
        token_counter(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelSourceError):
        token_counter(tmp_path)


def test_texts_are_encoded_some_at_a_time_in_their_order(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = token_counter(tiny)(TEXTS)
    num_characters: list[int] = []

    class Counted:
        def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool) -> list[str]:
            assert not add_special_tokens
            num_characters.append(sum(map(len, texts)))
            return list(texts)

    monkeypatch.setattr(models_token_counter, "_BATCH_CHARACTERS", 20)
    tokenizer: Any = Counted()
    assert list(encodings(tokenizer, TEXTS)) == TEXTS
    assert num_characters == [len(TEXTS[1]) + len(TEXTS[2]), len(TEXTS[3]), len(TEXTS[4])]
    assert list(encodings(tokenizer, [])) == []
    assert token_counter(tiny)(TEXTS) == expected
