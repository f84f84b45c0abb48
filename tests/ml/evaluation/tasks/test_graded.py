"""Tasks of graders: what passes, what is scored, and what has to be there before anything runs."""

from dataclasses import replace

import pytest

from luthier.core.errors import DataError, OverlongError, RequestError
from luthier.core.results.suite import GradedTask
from luthier.ml.evaluation.sandbox.runners import isolation
from luthier.ml.evaluation.tasks.protocol import Resources, task_kind
from luthier.testing.fake_engine import FakeEngine

CHECK = {
    "type": "string_check",
    "name": "Right!",
    "input": "{{sample.output_text}}",
    "reference": "{{item.a}}",
    "operation": "eq",
}
LIKE = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{sample.output_text}}",
    "reference": "{{item.a}}",
    "evaluation_metric": "fuzzy_match",
}
CODE = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return len(sample['output_text'])"}
SCORE = {"type": "score_model", "name": "judged", "input": [{"role": "user", "content": "Rate {{sample.output_text}}"}]}
LABEL = SCORE | {"type": "label_model", "name": "tone", "labels": ["good", "bad"], "passing_labels": ["good"]}


def task(*graders, **keys):
    given = [one if "grader" in one else {"grader": one} for one in graders]
    return GradedTask.model_validate({"name": "t", "kind": "graded", "data": "r.jsonl", "graders": given} | keys)


def figures(one, bench, outputs, items, judge=None, allows_code=False):
    kind = task_kind("graded")
    rows = [bench.row(number, **item) for number, item in enumerate(items, 1)]
    kind.check(one, rows)
    resources = Resources(bench.folder, judge=judge, judge_name="j", allows_code=allows_code)
    observed = bench.observed(rows, outputs)
    found = {}
    for metric in kind.metrics(one, rows, resources):
        stats = metric.statistics(observed)
        found[metric.name] = float(metric.aggregate(stats.sum(axis=0)))
    return found


def test_shares_and_mean_scores(bench):
    one = task(CHECK, {"grader": LIKE, "pass_threshold": 0.5})
    found = figures(one, bench, ["four", "for", "x"], [{"a": "four"}] * 3)
    assert found["right"] == pytest.approx(1 / 3)
    assert found["alike"] == pytest.approx(2 / 3)
    assert found["alike_score"] == pytest.approx((1 + 6 / 7 + 0) / 3)


def test_the_fields_may_be_in_one_field_of_the_row(bench):
    one = task(CHECK, item="item")
    assert figures(one, bench, ["b"], [{"item": {"a": "b"}}]) == {"right": 1.0}
    with pytest.raises(DataError, match="holds no fields"):
        figures(one, bench, ["b"], [{"item": "text"}])
    with pytest.raises(DataError, match="a grader refers to it"):
        figures(one, bench, ["b"], [{"item": {"c": "b"}}])


def test_models_that_grade_are_the_judge_of_the_command(bench):
    judge = FakeEngine(lambda prompt: "0.5" if "Rate yes" in prompt.conversation.messages[0].content else "good")
    assert figures(task(SCORE), bench, ["yes", "no"], [{}, {}], judge) == {"judged": 0.5, "judged_score": 0.25}
    assert figures(task(LABEL), bench, ["no"], [{}], judge) == {"tone": 1.0}
    with pytest.raises(RequestError, match="there is no judge"):
        figures(task(SCORE), bench, ["yes"], [{}])


def test_figures_of_models_that_grade_name_the_judge_and_those_of_rules_none(bench):
    one, rows = task(CHECK, LIKE, SCORE, LABEL), [bench.row(1, a="x")]
    resources = Resources(bench.folder, judge=FakeEngine(lambda _: "0.5"), judge_name="j")
    metrics = task_kind("graded").metrics(one, rows, resources)
    named = {metric.name: getattr(metric, "judge_name", None) for metric in metrics}
    rules = dict.fromkeys(("right", "alike", "alike_score"))
    assert named == rules | dict.fromkeys(("judged", "judged_score", "tone"), "j")


def test_replies_of_the_judge_that_cannot_be_read_are_counted_and_do_not_pass(bench):
    judge = FakeEngine(lambda prompt: "0.5" if "yes" in prompt.conversation.messages[0].content else "I cannot say.")
    one = task({"grader": SCORE, "pass_threshold": 0}, LABEL)
    kind, rows = task_kind("graded"), [bench.row(1), bench.row(2)]
    metrics = kind.metrics(one, rows, Resources(bench.folder, judge=judge, judge_name="j"))
    assert len(kind.cautions(one)) == 1
    for outputs in (["yes", "no"], ["yes", "yes"]):
        observed = bench.observed(rows, outputs)
        found = {metric.name: metric.statistics(observed).sum(axis=0) for metric in metrics}
        assert found["judged"][0] == outputs.count("yes")
        assert found["judged_score"][0] == outputs.count("yes") * 0.5
    scored, labelled = kind.cautions(one)[1:]
    assert "'judged': 1 of 4 replies of j (25%) could not be read" in scored
    assert "'tone': 4 of 4 replies of j (100%) could not be read" in labelled


def test_a_judge_that_is_cut_off_is_asked_again_and_what_leads_to_its_verdict_is_no_verdict(bench):
    start = "To be good it needs 1 " + "more " * 300

    def verdict(prompt):
        scored = "Rate" in prompt.conversation.messages[0].content
        return start + ('{"result": 0.25}' if scored else '{"result": "bad"}')

    one = task(SCORE, LABEL | {"input": [{"role": "user", "content": "Name the tone"}]})
    expected = {"judged": 0.0, "judged_score": 0.25, "tone": 0.0}
    assert figures(one, bench, ["yes"], [{}], FakeEngine(verdict)) == expected
    # A verdict in full counts, whatever is cut off behind it.
    wordy = FakeEngine(lambda prompt: verdict(prompt).removeprefix(start) + " because" * 300)
    assert figures(one, bench, ["yes"], [{}], wordy) == expected
    endless = FakeEngine(lambda _: start + "more " * 5000)
    assert figures(one, bench, ["yes"], [{}], endless) == dict.fromkeys(expected, 0.0)


class ShortOfContext(FakeEngine):
    """A judge that takes no question with the word `long`, nor any other beside it."""

    def generate(self, prompts, progress):
        if any("long" in prompt.conversation.messages[0].content for prompt in prompts):
            raise OverlongError("a question of 900 tokens", expected="at most 512", do="ask for less")
        return super().generate(prompts, progress)


def test_a_question_over_the_context_of_the_judge_does_not_end_the_others(bench):
    found = figures(task(SCORE), bench, ["yes", "long", "no"], [{}] * 3, ShortOfContext(lambda _: "0.5"))
    assert found == {"judged": pytest.approx(2 / 3), "judged_score": pytest.approx(1 / 3)}


def test_graders_whose_figures_have_the_same_name_are_refused(bench):
    one = task(*(LIKE | {"name": name} for name in ("a score", "a")))
    with pytest.raises(RequestError, match="'a score' and 'a' both give the figure 'a_score'"):
        task_kind("graded").check(one, [bench.row(1, a="x")])


def test_graders_of_one_name_have_figures_of_their_own(bench):
    one = task(LIKE, LIKE | {"name": "Alike"})
    found = figures(one, bench, ["x"], [{"a": "x"}])
    assert found == {"alike": 1.0, "alike_score": 1.0, "alike_2": 1.0, "alike_2_score": 1.0}


@pytest.mark.skipif(not isolation().seccomp, reason="this machine cannot lock a process down")
def test_code_runs_where_task_and_command_allow_it(bench):
    allowed = task({"grader": CODE, "pass_threshold": 3}, allow_code=True)
    assert figures(allowed, bench, ["abc", "a"], [{}, {}], allows_code=True) == {"code": 0.5, "code_score": 2.0}
    for one, allows_code in ((task(CODE), True), (allowed, False)):
        with pytest.raises(RequestError, match="does not allow"):
            figures(one, bench, ["a"], [{}], allows_code=allows_code)


def test_graders_read_the_calls_of_an_answer(bench):
    call = {"id": "c1", "type": "function", "function": {"name": "saw", "arguments": "{}"}}
    name = "{{sample.output_tools[0].function.name}}"
    seen = []

    def judge(prompt):
        seen.append(prompt.conversation.messages[0].content)
        return "1"

    asked = SCORE | {
        "name": "asked",
        "input": [{"role": "user", "content": f"Rate {name} in {{{{sample.output_text}}}}"}],
    }
    one, kind = task(CHECK | {"input": name}, asked), task_kind("graded")
    rows = [bench.row(number, a="saw") for number in (1, 2)]
    observed = replace(bench.observed(rows, ["I cut.", "No."]), tool_calls=((call,), ()))
    right, *_ = kind.metrics(one, rows, Resources(bench.folder, judge=FakeEngine(judge), judge_name="j"))
    assert right.aggregate(right.statistics(observed)).tolist() == [1.0, 0.0]
    for metric in kind.metrics(one, rows, Resources(bench.folder, judge=FakeEngine(judge), judge_name="j"))[1:]:
        metric.statistics(observed)
    assert set(seen) == {"Rate saw in I cut.", "Rate  in No."}


def test_graders_read_the_fields_of_an_answer_that_is_json(bench):
    one = task(CHECK | {"input": "{{sample.output_json.city}}"})
    outputs = ['{"city": "Graz"}', '{"city": "Linz"}', "Graz", '{"town": "Graz"}']
    assert figures(one, bench, outputs, [{"a": "Graz"}] * 4) == {"right": 0.25}


@pytest.mark.parametrize(
    ("grader", "field"),
    [
        (SCORE | {"range": [1, 0]}, "range"),
        (SCORE | {"range": [2, 2]}, "range"),
        (SCORE | {"range": [0, 0.25]}, "pass_threshold"),
        (LABEL | {"labels": ["good", "GOOD"]}, "labels"),
        (LABEL | {"labels": ["good", ""]}, "labels"),
        (LABEL | {"passing_labels": ["fine"]}, "passing_labels"),
        (LABEL | {"passing_labels": []}, "passing_labels"),
        (CHECK | {"operation": "ilike", "reference": ""}, "reference"),
        ({"grader": LIKE, "pass_threshold": 80}, "pass_threshold"),
    ],
)
def test_a_grader_that_gives_all_answers_the_same_is_refused(bench, grader, field):
    with pytest.raises(RequestError, match="task t: grader ") as refused:
        task_kind("graded").check(task(grader), [bench.row(1, a="four")])
    assert refused.value.do == f"correct {field} of the grader"


def test_formulas_and_code_may_have_any_threshold(bench):
    made = {"type": "multi", "name": "m", "graders": {"same": CHECK}, "calculate_output": "100 * same"}
    task_kind("graded").check(task({"grader": made, "pass_threshold": 80}, CODE), [bench.row(1, a="four")])
