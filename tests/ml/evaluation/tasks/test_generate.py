"""Tasks of free text: the metric that sums them up sees the answers."""

import pytest

from luthier.core.results.suite import GenerateTask
from luthier.ml.evaluation.tasks.text import Generate

RUSSIAN = "Верхняя дека делается из ели, потому что она лёгкая и прочная"
ENGLISH = "The front is made of spruce because it is light and strong"


def task(**keys):
    return GenerateTask(kind="generate", name="answers", data="rows.jsonl", **keys)


@pytest.mark.parametrize(("answer", "first"), [(RUSSIAN, "chrf"), (ENGLISH, "rouge_l"), ("ель", "exact_match")])
def test_without_metrics_one_that_sees_the_answers_comes_first(bench, answer, first):
    metrics = bench.metrics(Generate(), task(), [bench.row(1, answer=answer)])
    assert next(iter(metrics)) == first
    assert {"rouge_1", "rouge_2", "rouge_l", "exact_match", "token_f1"} <= set(metrics)


@pytest.mark.parametrize(
    ("metrics", "answer", "num"), [(("rouge",), RUSSIAN, 1), (("rouge",), ENGLISH, 0), (("bleu",), RUSSIAN, 0)]
)
def test_a_rouge_that_does_not_see_the_answers_has_a_caution(bench, metrics, answer, num):
    kind, asked = Generate(), task(metrics=metrics)
    bench.metrics(kind, asked, [bench.row(1, answer=answer)])
    assert len(kind.cautions(asked)) == num
    assert all("ROUGE sees the letters a-z" in caution for caution in kind.cautions(asked))
