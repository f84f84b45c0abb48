"""Languages of clear sentences are told; of what is no sentence it is said that none can be."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from luthier.ml.data.text.language_model import LanguageModel, load_language_model
from luthier.ml.data.text.languages import UNDETERMINED, languages

SENTENCES = {
    "en": "The violin maker planed the spruce top until it rang like a bell.",
    "de": "Der Geigenbauer hobelte die Decke aus Fichte, bis sie wie eine Glocke klang.",
    "fr": "Le luthier rabotait la table d'épicéa jusqu'à ce qu'elle sonne comme une cloche.",
    "es": "El lutier cepilló la tapa de abeto hasta que sonó como una campana.",
    "it": "Il liutaio piallò la tavola di abete finché non suonò come una campana.",
    "ru": "Скрипичный мастер строгал еловую деку, пока она не зазвенела как колокол.",
    "ja": "弦楽器職人は、表板が鐘のように鳴るまでトウヒを削り続けました。とても美しい音です。",
    "zh": "制琴师把云杉面板刨到像钟一样响亮为止,这是一件非常漂亮的乐器,我们都很喜欢它的声音。",
    "hi": "वायलिन बनाने वाले ने लकड़ी को तब तक छीला जब तक वह घंटी की तरह न बजने लगी।",
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_language_model()


@pytest.fixture(scope="module")
def reference() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def test_clear_sentences_are_told() -> None:
    found = languages(pl.Series(list(SENTENCES.values())))
    assert found["language"].to_list() == list(SENTENCES)
    assert found["probability"].min() > 0.8  # type: ignore[operator]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "OK",
        "Yes, it is.",
        "12 345 678 90 12 345 678 90 (3.5%)",
        "https://example.org/a/very/long/address/of/a/page",
        '{"a_b": [1, 2], "c_d": {"e_f": null}, "g_h": true}',
    ],
)
def test_what_is_no_sentence_is_undetermined(text: str | None) -> None:
    found = languages(pl.Series([text], dtype=pl.String))
    assert found["language"].to_list() == [UNDETERMINED]


def test_only_the_beginning_counts_and_a_long_text_does_not_hang() -> None:
    text = SENTENCES["de"] * 4 + SENTENCES["en"] * 150_000
    assert languages(pl.Series([text]))["language"].to_list() == ["de"]


def test_no_texts_no_languages() -> None:
    assert languages(pl.Series([], dtype=pl.String)).schema == {"language": pl.String, "probability": pl.Float64}


@given(
    texts=st.lists(st.one_of(st.text(max_size=80), st.sampled_from(list(SENTENCES.values()))), min_size=1, max_size=8)
)
def test_many_at_once_are_as_one_by_one(texts: list[str], model: LanguageModel, reference: LanguageIdentifier) -> None:
    for (language, probability), text in zip(model.classify(texts), texts, strict=True):
        other, expected = reference.classify(text)
        assert probability == pytest.approx(expected, abs=1e-4)
        assert language == other or dict(reference.rank(text))[language] == pytest.approx(expected, abs=1e-4)
