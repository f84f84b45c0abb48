"""A showdown from two models and a file of rows to a recommendation: sizes, fairness, kills, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DataError, LeakageError, NotFoundError, RequestError
from luthier.core.estimate import Estimate
from luthier.core.run import StopReason
from luthier.core.workflows.pipeline import ModelComparisonSpec
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.training.service import TrainOutcome
from luthier.features.workflows import views as pipeline_views
from luthier.features.workflows.model_comparison import request as requests
from luthier.features.workflows.model_comparison import sizes
from luthier.features.workflows.model_comparison import workflow as showdowns
from luthier.features.workflows.model_comparison.answers import instructed
from luthier.features.workflows.model_comparison.request import ModelComparisonRequest
from luthier.features.workflows.model_comparison.sizes import Pace, choose_sizes
from luthier.features.workflows.model_comparison.workflow import page_of
from luthier.ml.planning import defaults
from luthier.platform.workflows.engine import PausedError
from luthier.testing.tiny import make_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    one = make_tiny_model(folder / "one", seed=0)
    other = make_tiny_model(folder / "other", seed=1, vocabulary=320, chat=False, context_length_tokens=256)
    return (str(one), str(other))


@pytest.fixture
def files(tmp_path):
    def rows(numbers):
        return [{"prompt": f"say {n}", "completion": f"word{n % 7}"} for n in numbers]

    for name, numbers in (("train", range(48)), ("test", range(100, 120))):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows(numbers))))
    return tmp_path / "train.jsonl", tmp_path / "test.jsonl"


@pytest.fixture
def asked(models, files, monkeypatch):
    # The budget would hold three passes over the rows. How many it holds is looked at in the tests of sizes.
    monkeypatch.setattr(sizes, "MOST_EPOCHS", 1.0)

    def make(**changed):
        usual = {
            "models": models,
            "data": files[0],
            "held_out": files[1],
            "hours": 1.0,
            "few_shot": 2,
            "max_new_tokens": 6,
            "is_probed": False,
        }
        return ModelComparisonRequest(**(usual | changed))

    return make


FEW_QUESTIONS = {"few_shot": 0, "most_judged": 8}
"""No examples in prompts, and too few rows for the likeliest label: where it is the trainings that count."""


def run(context, request):
    pipeline = showdowns.begin(context, request)
    return showdowns.go_on(context, pipeline.pipeline_id)


def test_from_models_and_rows_to_a_recommendation(context, asked):
    told = []
    pipeline = showdowns.begin(context, asked(instruction="Say the word."))
    assert context.runs.list() == []  # nothing is trained before the sizes are known
    result = showdowns.go_on(
        context, pipeline.pipeline_id, tell=lambda _, stage: told.append((stage.name, stage.status))
    )
    spec = result.spec
    assert [one.result.name for one in result.standings] == [
        "one",
        "other",
        "one, likeliest label",
        "other, likeliest label",
        "one + 2 examples",
        "other + 2 examples",
        "one + 2 nearest examples",
        "other + 2 nearest examples",
        "one tuned",
        "other tuned",
    ]
    assert told[0] == ("one: prompting", "running")
    assert told[-1] == ("comparing", "done")
    runs = [context.runs.get(tuning.run_id) for tuning in result.tunings]
    plans = [context.runs.plan(record.run_id) for record in runs]
    assert [record.status for record in runs] == ["succeeded", "succeeded"]
    assert {plan.data.train.sha256 for plan in plans} == {plans[0].data.train.sha256}  # the very same rows
    assert {record.result.num_examples for record in runs} == {spec.num_examples}
    assert all(record.evaluation_id is None for record in runs)  # judged once, all together
    assert any(line.startswith("Tokens of the same training rows") for line in result.not_equal)
    assert any("plain layout" in line for line in result.not_equal)
    names = {one.metric for one in result.comparisons}
    assert "bits_per_byte" in names
    assert "perplexity" not in names
    # A choice among labels has no likelihood of the rows' own answers.
    assert len([one for one in result.comparisons if one.metric == "bits_per_byte"]) == 8 * 7 // 2
    models = [one.result.name for one in result.standings]
    of_answers = [one for one in result.comparisons if one.metric == "exact_match" and one.baseline in models]
    assert len(of_answers) == 10 * 9 // 2
    assert not any("none was given" in line for line in spec.cautions)
    assert result.recommendation.word in ("tuned", "prompting", "nothing")
    page = page_of(context, pipeline.pipeline_id).read_text()
    assert "one tuned" in page
    assert "Say the word." in page
    assert showdowns.go_on(context, pipeline.pipeline_id) == result  # nothing is done again
    view = pipeline_views.view_pipeline(context, Caller(), pipeline.pipeline_id)
    made = [made_id for stage in view.stages for _, made_id in stage.made]
    assert (view.answer, made) == (result.recommendation.headline, [tuning.run_id for tuning in result.tunings])


def test_a_classifier_that_is_better_than_every_model_is_named(context, asked, files):
    """The rule of these rows is one word of the prompt: a linear model learns it, tiny random ones do not."""
    woods, places = ("spruce", "maple", "ebony"), ("front", "back", "neck")
    for file, numbers in zip(files, (range(48), range(100, 124)), strict=True):
        rows = [{"prompt": f"note {n} on the {places[n % 3]}", "completion": woods[n % 3]} for n in numbers]
        file.write_text("\n".join(map(json.dumps, rows)))
    result = run(context, asked(metric="exact_match", few_shot=0))
    answer, names = result.recommendation, [one.name for one in result.baselines]
    assert {"commonest answer", "linear classifier"} <= set(names)
    assert any(line.startswith("ridge regression: ") for line in result.baselines_left_out)
    linear = next(one for one in result.baselines if one.name == "linear classifier")
    assert linear.metrics["exact_match"].value == 1.0
    # Every model is held against every baseline, on the same rows.
    pairs = {(one.candidate, one.baseline) for one in result.comparisons if one.metric == "exact_match"}
    assert {(one.result.name, name) for one in result.standings for name in names} <= pairs
    assert not any(candidate in names for candidate, _ in pairs)
    assert answer.better_than_best_alternative == "worse"
    best = next(one for one in answer.alternatives if one.name == answer.best_alternative)
    assert (best.value, best.metric) == (1.0, "exact_match")
    assert answer.use_instead == answer.best_alternative
    assert re.search(r"takes <?\d.*s: use that", answer.headline)
    page = page_of(context, result.showdown_id).read_text()
    assert f"no better than {answer.use_instead}" in page
    assert all(name in page for name in nonempty(names))
    view = pipeline_views.view_pipeline(context, Caller(), result.showdown_id)
    assert view.answer == answer.headline
    (listed,) = pipeline_views.list_pipelines(context, Caller())
    assert listed.answer.endswith(f"No better than a baseline without a language model: {answer.use_instead}.")


def test_the_likeliest_label_is_asked_where_answers_are_labels_and_costs_a_part_of_the_budget(
    context, asked, files, models
):
    pipeline = showdowns.begin(context, asked(models=models[:1]))
    spec = ModelComparisonSpec.model_validate(pipeline.asked)
    assert all(one.judging_seconds["likeliest-label"] > 0 for one in nonempty(spec.contenders))
    result = showdowns.go_on(context, pipeline.pipeline_id)
    chosen = [one for one in result.standings if one.kind == "likeliest-label"]
    for one in nonempty(chosen):
        own = one.result
        assert own.prompting.kind == "label_likelihood"
        assert own.prompting.extra_prompt_tokens > 0
        assert {sample.output for sample in nonempty(own.samples)} <= {f"word{n}" for n in range(7)}
        assert one.seconds_per_answer > 0
    names = {one.name for one in result.recommendation.alternatives}
    assert result.recommendation.word != "tuned" or {one.result.name for one in chosen} <= names
    for file, numbers in zip(files, (range(48), range(100, 124)), strict=True):
        file.write_text("\n".join(json.dumps({"prompt": f"say {n}", "completion": f"word {n}"}) for n in numbers))
    other = run(context, asked(models=models[:1]))
    assert {one.kind for one in other.standings} == {"zero-shot", "few-shot", "few-shot-nearest", "tuned"}
    assert not any("likeliest label" in line for line in other.baselines_left_out)


def test_rows_without_an_instruction_get_one_unless_an_empty_one_is_given(context, asked):
    spec = ModelComparisonSpec.model_validate(showdowns.begin(context, asked()).asked)
    assert spec.instruction.startswith("Answer with one of: word0, word1")
    assert any("none was given" in line and spec.instruction in line for line in spec.cautions)
    for given in ("", "Say the word."):
        spec = ModelComparisonSpec.model_validate(showdowns.begin(context, asked(instruction=given)).asked)
        assert spec.instruction == given
        assert not any("none was given" in line for line in spec.cautions)


def test_labels_that_too_few_rows_are_judged_by_are_left_out_with_the_reason(context, asked):
    result = run(context, asked(most_judged=19))
    assert {one.kind for one in result.standings} == {"zero-shot", "few-shot", "few-shot-nearest", "tuned"}
    assert [line for line in result.baselines_left_out if "likeliest label" in line] == [
        f"{name}, likeliest label: 19 held-out rows are too few: it takes 20" for name in ("one", "other")
    ]


def test_rows_that_one_cannot_hold_are_left_out_for_all(context, asked, files):
    with files[0].open("a") as file:
        file.write("\n" + json.dumps({"prompt": "long " * 150, "completion": "word"}))
    spec = ModelComparisonSpec.model_validate(showdowns.begin(context, asked()).asked)
    assert spec.num_too_long == 1
    assert spec.num_rows_in_file == 49
    assert {one.num_steps * one.batch_size for one in spec.contenders} == {
        spec.contenders[0].num_steps * spec.contenders[0].batch_size
    }
    assert any("left out for all" in line for line in spec.cautions)


@pytest.mark.parametrize(
    ("answer", "metrics", "primary"),
    [
        ("Потому что ель лёгкая и прочная", ("chrf", "exact_match", "bits_per_byte"), "chrf"),
        ("because spruce is light and also strong", ("rouge", "exact_match", "bits_per_byte"), "rouge_l"),
    ],
)
def test_without_a_metric_one_decides_that_sees_the_answers(answer, metrics, primary):
    turns = (Message(role="user", content="Why?"), Message(role="assistant", content=answer))
    rows = [Example(id="held.jsonl:1", conversation=Conversation(messages=turns))]
    request = ModelComparisonRequest(
        models=("a", "b"), data=Path("train.jsonl"), held_out=Path("held.jsonl"), hours=1.0
    )
    assert requests._metrics(request, rows) == (metrics, primary)


def test_plain_text_is_judged_by_bits_per_byte_alone(context, asked, tmp_path):
    for name, numbers in (("train", range(70)), ("test", range(100, 121))):
        rows = [{"text": f"The luthier builds number {n}."} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run(context, asked())
    assert (result.spec.metrics, result.spec.primary, result.spec.few_shot) == (("bits_per_byte",), "bits_per_byte", 0)
    assert [one.kind for one in result.standings] == ["zero-shot", "zero-shot", "tuned", "tuned"]
    assert all(one.seconds_per_answer is None for one in result.standings)


def test_a_training_that_diverges_leaves_the_others_in(context, asked, monkeypatch):
    from luthier.core.errors import DivergedError
    from luthier.features.training import service as training

    whole = training.train_prepared

    def train(context, prepared, **rest):
        if prepared.plan.recipe.base_model.endswith("other"):
            raise DivergedError("loss is nan", expected="a number", do="lower it")
        return whole(context, prepared, **rest)

    monkeypatch.setattr(training, "train_prepared", train)
    result = run(context, asked(**FEW_QUESTIONS))
    assert [one.result.name for one in result.standings if one.kind == "tuned"] == ["one tuned"]
    assert any("other has no tuned result: loss is nan" in line for line in result.recommendation.cautions)


CHILD = """
import sys
from luthier.platform.home.context import Context
from luthier.features.workflows.model_comparison import request as requests
from luthier.features.workflows.model_comparison import workflow as showdowns
with Context.open(sys.argv[1]) as context:
    showdowns.go_on(context, sys.argv[2])
"""


def decided(result):
    return [(one.kind, one.result.metrics, [s.output for s in one.result.samples]) for one in result.standings]


@pytest.mark.drill
def test_killed_again_and_again_it_ends_as_if_undisturbed(context, asked, tmp_path):
    expected = run(context, asked())
    pipeline = showdowns.begin(context, asked())
    home = str(tmp_path / "home")
    for num_done in (0, 2):
        child = subprocess.Popen([sys.executable, "-c", CHILD, home, pipeline.pipeline_id], env=dict(os.environ))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and child.poll() is None:
            stages = context.pipelines.get(pipeline.pipeline_id).stages
            started = [stage for stage in stages if stage.status in ("done", "running")]
            if len(started) > num_done:
                break
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
    result = showdowns.go_on(context, pipeline.pipeline_id)
    assert decided(result) == decided(expected)
    runs = [record.run_id for record in context.runs.list()]
    assert len(runs) == 4  # two each: none was begun twice


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"hours": 0.0}, RequestError, "--budget-hours 0"),
        ({"hours": float("nan")}, RequestError, "--budget-hours nan"),
        ({"hours": 1e-7}, BudgetTooSmallError, "should take"),
        ({"models": ()}, RequestError, "models (none)"),
        ({"models": ("no-such-model",)}, NotFoundError, "no-such-model"),
        ({"metric": "perplexity"}, RequestError, "counts tokens"),
        ({"metric": "rogue"}, RequestError, "rogue"),
        ({"method": "lorra"}, RequestError, "--method lorra"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(context, asked, changed, error, said):
    with pytest.raises(error, match=said.replace("(", r"\(").replace(")", r"\)")):
        showdowns.begin(context, asked(**changed))
    assert context.pipelines.list("default", "showdown") == []
    assert list((context.settings.home / "showdowns").glob("*")) == []
    assert context.runs.list() == []


def test_the_same_model_twice_is_refused(context, asked, models, tmp_path):
    (tmp_path / "twin").symlink_to(models[0])
    with pytest.raises(RequestError, match="named once"):
        showdowns.begin(context, asked(models=(models[0], models[0])))
    with pytest.raises(RequestError, match="same weights"):
        showdowns.begin(context, asked(models=(models[0], str(tmp_path / "twin"))))


def test_held_out_rows_among_the_training_rows_are_refused(context, asked, files):
    files[1].write_text(files[0].read_text())
    with pytest.raises(LeakageError, match="48 of 48"):
        showdowns.begin(context, asked())


def test_rows_that_no_answer_can_be_compared_with_are_refused(context, asked, files):
    files[0].write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    with pytest.raises(RequestError, match="preference rows"):
        showdowns.begin(context, asked())
    files[0].write_text("")
    with pytest.raises(DataError):
        showdowns.begin(context, asked())


def pace(label, hours, zero, few=0.0, loading=1.0):
    return Pace(
        label, Estimate(value=hours, low=hours / 2, high=hours * 2), {"zero-shot": zero, "few-shot": few}, loading
    )


def test_sizes_fill_the_budget_and_are_the_same_for_all():
    paces = [pace("small", 0.5, 0.2, 0.4), pace("large", 1.5, 0.6, 1.2)]
    usual = {"num_rows": 2000, "num_held_out": 500, "most_judged": 200, "spent_hours": 0.01}
    found = [choose_sizes(paces, hours=hours, **usual) for hours in (0.5, 1.0, 4.0, 100.0)]
    assert [one.num_judged for one in found] == [200, 200, 200, 200]
    assert [one.num_examples for one in found] == sorted(one.num_examples for one in found)
    assert found[-1].num_examples == 6000  # at most three epochs
    for one, hours in zip(found[:3], (0.5, 1.0, 4.0), strict=True):
        assert 0.7 * hours < one.planned.value <= hours
        assert one.planned.low < one.planned.value < one.planned.high
    with pytest.raises(BudgetTooSmallError, match=r"a budget of 0.02 h for small, large: 64 examples") as refused:
        choose_sizes(paces, hours=0.02, **usual)
    needed = float(refused.value.expected.split()[2])
    assert choose_sizes(paces, hours=needed, **usual).num_examples >= 64


def test_an_instruction_stands_before_the_first_question_unless_the_row_brings_its_own():
    def example(*messages):
        turns = tuple(Message(role=role, content=text) for role, text in messages)
        return Example(id="rows:1", conversation=Conversation(messages=turns))

    plain = example(("user", "How many?"), ("assistant", "Two."), ("user", "And now?"), ("assistant", "Three."))
    told = instructed([plain], "Count.")[0]
    assert [m.content for m in told.conversation.messages] == ["Count.\n\nHow many?", "Two.", "And now?", "Three."]
    assert (told.reference, told.learned_bytes) == (plain.reference, plain.learned_bytes)
    own = example(("system", "Be short."), ("user", "How many?"), ("assistant", "Two."))
    text = Example(id="rows:2", text="Only a text.")
    assert instructed([own, text], "Count.") == (own, text)
    assert instructed([plain], "") == (plain,)


def test_a_wish_to_stop_pauses_it_and_a_spent_budget_does_not(context, asked, monkeypatch):
    from luthier.features.training import service as training

    # Causes decide, not words: the budget's sentence speaks of a signal that was received, too.
    reasons = {
        "one": StopReason("SIGTERM came", "interrupted"),
        "other": StopReason("budget of 1 h: 1 h spent, no wish to stop was received", "budget"),
    }
    whole = training.train_prepared

    def train(context, prepared, **rest):
        done = whole(context, prepared, **rest)
        reason = reasons.get(prepared.plan.recipe.base_model.rpartition("/")[2])
        if reason is None:
            return done
        result = done.record.result.model_copy(
            update={"status": "paused", "stopped_because": reason, "stop_cause": reason.cause}
        )
        record = done.record.model_copy(update={"status": "paused", "stopped_because": reason, "result": result})
        return TrainOutcome(record, done.plan, None, ())

    monkeypatch.setattr(training, "train_prepared", train)
    pipeline = showdowns.begin(context, asked(**FEW_QUESTIONS))
    with pytest.raises(PausedError, match="SIGTERM came"):
        showdowns.go_on(context, pipeline.pipeline_id)
    assert "paused" in [stage.status for stage in context.pipelines.get(pipeline.pipeline_id).stages]
    result = showdowns.go_on(context, pipeline.pipeline_id)  # the run of the first is found done
    assert [one.reason[:25] for one in result.tunings] == ["", "its training stopped afte"]
    assert any("budget of 1 h" in line for line in result.recommendation.cautions)


def test_every_contender_is_trained_by_the_defaults_that_the_comparison_began_with(context, asked, monkeypatch):
    from luthier.features.training import service as training

    whole, trained = training.train_prepared, []

    def train(context, prepared, **rest):
        if trained:
            raise KeyboardInterrupt
        trained.append(whole(context, prepared, **rest))
        return trained[0]

    with monkeypatch.context() as earlier:
        earlier.setattr(defaults, "WEIGHT_DECAY", (0.05, "an earlier default"))
        earlier.setattr(training, "train_prepared", train)
        pipeline = showdowns.begin(context, asked(**FEW_QUESTIONS))
        with pytest.raises(KeyboardInterrupt):
            showdowns.go_on(context, pipeline.pipeline_id)
    result = showdowns.go_on(context, pipeline.pipeline_id)
    plans = [context.runs.plan(one.run_id) for one in result.tunings]
    assert [plan.training.weight_decay for plan in plans] == [0.05, 0.05]
    assert [plan.budget is not None and plan.budget.hours is not None for plan in plans] == [True, True]
    rates = [plan.training.learning_rate for plan in plans]
    assert rates == [one.learning_rate for one in result.spec.contenders]


@pytest.mark.parametrize("given", ["group_by", "mapping"])
def test_rows_of_one_group_count_together(context, asked, files, given):
    for path in files:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("\n".join(json.dumps(row | {"customer": n // 2}) for n, row in enumerate(rows)))
    how = {"group_by": "customer"} if given == "group_by" else {"mapping": {"group": "customer"}}
    result = run(context, asked(models=(asked().models[0],), few_shot=0, most_judged=20, **how))
    num = result.spec.num_judged
    assert num == 20
    (note,) = (line for line in result.recommendation.cautions if "of 10 groups" in line)
    assert note == "These 20 held-out rows are of 10 groups: rows of one group count together in intervals and tests."
