"""Text classifiers: probabilities by text, the toxic label by name, and folders that are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.ml.inference.models.text_classifier import load_text_classifier

TEXTS = ["short", "a somewhat longer text about violins " * 3, "", "héllo " * 50]
Make = Callable[..., Path]


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Make:
    """Writes a random classifier with the given labels, and the tokenizer of the tiny model."""

    def write(*labels: str, problem: str | None = None) -> Path:
        folder = tmp_path / "classifier"
        shutil.copytree(tiny_model, folder)
        config = LlamaConfig.from_pretrained(folder)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.num_labels, config.problem_type, config.pad_token_id = len(labels), problem, 0
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(config)
        torch.nn.init.normal_(model.score.weight, std=1.0)
        for file in folder.glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(folder)
        return folder

    return write


def test_each_text_has_the_same_probability_in_any_company(make: Make) -> None:
    classify = load_text_classifier(make("neither", "Hate Speech", "offensive"))
    together = classify(TEXTS)
    assert all(0 <= value <= 1 for value in together)
    assert together == pytest.approx([classify([text])[0] for text in TEXTS], abs=1e-5)
    assert classify(TEXTS[::-1]) == pytest.approx(together[::-1], abs=1e-5)
    assert classify([]) == []
    assert len(set(map(str, together))) > 1


def test_labels_that_exclude_each_other_are_summed(make: Make) -> None:
    folder = make("toxic", "fine")
    toxic, fine = load_text_classifier(folder)(TEXTS), load_text_classifier(folder, toxic_label="fine")(TEXTS)
    assert [a + b for a, b in zip(toxic, fine, strict=True)] == pytest.approx([1.0] * len(TEXTS))


def test_of_labels_that_do_not_exclude_each_other_the_largest_counts(make: Make) -> None:
    folder = make("toxic", "abusive", "other", problem="multi_label_classification")
    both = load_text_classifier(folder)(TEXTS)
    alone = [load_text_classifier(folder, toxic_label=label)(TEXTS) for label in ("toxic", "abusive")]
    assert both == pytest.approx([max(pair) for pair in zip(*alone, strict=True)])


def test_a_text_longer_than_the_model_can_see_is_cut(make: Make) -> None:
    assert len(load_text_classifier(make("toxic", "fine"))(["violin " * 100_000])) == 1


def test_labels_without_a_meaning_are_refused_unless_one_is_named(make: Make) -> None:
    folder = make("LABEL_0", "LABEL_1")
    with pytest.raises(ModelSourceError, match="LABEL_0, LABEL_1, and none of these names says toxic"):
        load_text_classifier(folder)
    assert len(load_text_classifier(folder, toxic_label="LABEL_1")(TEXTS)) == len(TEXTS)
    with pytest.raises(ModelSourceError, match="has no label 'LABEL_2'"):
        load_text_classifier(folder, toxic_label="LABEL_2")


def test_a_base_model_has_no_head_and_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"score\.weight"):
        load_text_classifier(tiny_model, toxic_label="LABEL_1")


def test_pickles_code_and_missing_folders_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        load_text_classifier(tmp_path / "absent")
    folder = make("toxic", "fine")
    config = folder / "config.json"
    plain = config.read_text(encoding="utf-8")
    config.write_text(plain.replace("{", '{"auto_map": {"AutoModel": "x.Y"},', 1), encoding="utf-8")
    with pytest.raises(ModelSourceError, match="custom Python code"):
        load_text_classifier(folder)
    config.write_text(plain, encoding="utf-8")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelSourceError, match="only as pickles"):
        load_text_classifier(folder)
