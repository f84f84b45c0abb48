"""Tasks of the lm-evaluation-harness on our engines, against its own model for transformers.

Needs the extra `lm-eval` (pip install 'luthier[lm-eval]'); skipped without it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `lm-eval`")

from tests.fixtures.service import write_rows

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.results.suite import LmEvalTask
from luthier.features.suites import lm_eval as lm_eval_tasks
from luthier.features.suites.service import run_suite
from luthier.features.suites.task_runs import Engines, Server, find_system
from luthier.platform.home.context import Context
from luthier.testing.tiny import make_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own libraries warn

CHOOSE = """\
task: own_choose
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
doc_to_choice: "{{options}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITE = """\
task: own_write
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{options[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
ROLL = """\
task: own_roll
dataset_path: json
dataset_kwargs: {data_files: {test: texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"What is {n} and {n}?", "options": [str(2 * n), str(n), f"{n} and {n}"], "answer": n % 3}
        for n in range(12)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    # longer than the context of the tiny model, so that it rolls
    write_rows(tmp_path / "texts.jsonl", [{"text": f"The luthier {n} " * 60} for n in range(3)])
    for name, text in (("choose", CHOOSE), ("write", WRITE), ("roll", ROLL)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def own_model(path: Path) -> Any:
    """The harness's own."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(path), batch_size=4, dtype="float32", device="cpu")


def figures(folder: Path, model: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.chdir(folder)
    task = LmEvalTask(kind="lm_eval", name=name, task=f"{name}.yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = lm_eval_tasks.evaluate_by_harness(model, task, folder, 0)
    result = next(iter(answer["results"].values()))
    return {key: value for key, value in result.items() if isinstance(value, float)}


@pytest.mark.parametrize("name", ["choose", "write", "roll"])
def test_figures_are_those_of_the_harness_itself(
    folder: Path, context: Context, tiny_model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = find_system(context, str(tiny_model))
    with Engines(context) as engines:
        model = lm_eval_tasks._model_of(context, engines, system)
        ours = figures(folder, model, name, monkeypatch)
    theirs = figures(folder, own_model(tiny_model), name, monkeypatch)
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, rel=1e-4, nan_ok=True)


def test_a_suite_takes_its_results_in(folder: Path, context: Context, tiny_model: Path) -> None:
    other = make_tiny_model(folder / "other", seed=3)
    (folder / "suite.yaml").write_text(
        "name: s\ntasks:\n  - {name: theirs, kind: lm_eval, task: choose.yaml, most_rows: 10, primary: acc_norm}\n"
    )
    found = run_suite(context, [str(tiny_model), str(other)], suite=folder / "suite.yaml")
    (task,) = found.tasks
    assert (task.kind, task.num_rows, task.primary, len(task.systems)) == ("lm_eval", 10, "acc_norm", 2)
    acc = task.systems[0].metrics["acc"]
    assert acc.low < acc.value < acc.high or acc.value in (0.0, 1.0)
    assert task.systems[0].samples[1].prompt == "Question: What is 1 and 1?\nAnswer:"
    assert task.systems[0].samples[1].scores.keys() >= {"acc", "acc_norm"}
    assert {one.metric for one in task.comparisons} == {"acc", "acc_norm"}
    assert found.verdict is not None


def test_what_cannot_be_run_is_told(folder: Path, context: Context, tiny_model: Path) -> None:
    def task(name: str, **more: Any) -> LmEvalTask:
        return LmEvalTask(kind="lm_eval", name="t", task=name, **more)

    server = Server(name="http://x/v1#m", address="http://x/v1#m")
    with pytest.raises(RequestError, match=r"task t needs likelihoods \(multiple_choice\), and http"):
        lm_eval_tasks.check_lm_eval([task("choose.yaml")], [server], folder=folder)
    lm_eval_tasks.check_lm_eval([task("write.yaml")], [server], folder=folder)
    with pytest.raises(NotFoundError, match="no task file"):
        lm_eval_tasks.check_lm_eval([task("gone.yaml")], [], folder=folder)
    system, wrong = find_system(context, str(tiny_model)), task("choose.yaml", primary="f1")
    with Engines(context) as engines, pytest.raises(RequestError, match="primary 'f1'"):
        lm_eval_tasks.run_lm_eval(context, engines, [system], wrong, folder=folder, seed=0)
