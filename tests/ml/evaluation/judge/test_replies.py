import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.ports import Generation
from luthier.ml.evaluation.judge.verdicts import NoVerdict, read_preference, read_scores

ALL = ("relevance", "coherence", "accuracy")


def reply(text, finish_reason="stop"):
    return Generation(text=text, num_prompt_tokens=1, num_new_tokens=1, finish_reason=finish_reason)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"better": "A"}', "A"),
        ('{"better": "b", "why": "it is {clear}", "certainty": 0.9}', "B"),
        ('Here you are:\n```json\n{"Better": "tie"}\n```\nAsk me more.', "tie"),
        ('{"verdict": {"better": "Answer B"}}', "B"),
        ('<think>A says 4, so {"better": "A"}?</think>{"better": "B"}', "B"),
        ('{"better": "A"} and again {"winner": "[[A]]"}', "A"),
        ("B", "B"),
        ("[[A]]", "A"),
        ("**Answer B**", "B"),
        ("Both are short.\n\nBetter answer: A.", "A"),
        ("The winner is: B", "B"),
        ("Verdict: neither", "tie"),
        ("Answer A is better.", "A"),
    ],
)
def test_a_preference_is_read_in_the_stated_forms(text, verdict):
    assert read_preference(reply(text)) == verdict


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Answer A is clear and answer B is not, but both have their merits.", "prose"),
        ("A is what I would say, or perhaps B", "prose"),
        ("I'm sorry, but I cannot compare these answers.", "refusal"),
        ("As an AI language model I have no preferences.", "refusal"),
        ("I can\u2019t judge that.", "refusal"),
        ('{"better": "C"}', "out of range"),
        ('{"better": 1}', "out of range"),
        ('{"better": null}', "out of range"),
        ('{"better": ["A"]}', "out of range"),
        ('{"better": "A"} No: {"better": "B"}', "contradiction"),
        ("A\nB", "contradiction"),
        ('{"better": "A", "better": "B"}', "prose"),
        ('{"score": 5}', "prose"),
        ("<think>Let me see. A is", "cut off"),
    ],
)
def test_what_is_no_preference_is_named(text, kind):
    assert read_preference(reply(text)) == NoVerdict(kind, text)


def test_a_reply_that_ran_into_its_limit_is_cut_off():
    assert read_preference(reply('{"bett', "length")).kind == "cut off"
    assert read_preference(reply("", "length")).kind == "cut off"
    assert read_scores(reply('{"relevance": 4, "cohe', "length"), ALL).kind == "cut off"
    assert read_preference(reply('{"better": "A"} because it', "length")) == "A"


@pytest.mark.parametrize(
    "text",
    [
        '{"relevance": 4, "coherence": 5, "accuracy": 1}',
        '{"accuracy": "1", "relevance": 4.0, "coherence": "5/5", "overall": 17, "why": "clear"}',
        'Sure!\n```\n{"scores": {"relevance": 4, "coherence": 5, "accuracy": 1}}\n```',
        "Relevance: 4\n- **Coherence**: 5/5\n* accuracy - 1 out of 5",
    ],
)
def test_scores_are_read_in_the_stated_forms(text):
    assert read_scores(reply(text), ALL) == {"relevance": 4, "coherence": 5, "accuracy": 1}


def test_a_number_alone_is_the_score_of_one_criterion_only():
    assert read_scores(reply(" 4/5 "), ("accuracy",)) == {"accuracy": 4}
    assert read_scores(reply("4"), ALL).kind == "prose"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"relevance": 4, "coherence": 5}', "incomplete"),
        ('{"relevance": 0, "coherence": 5, "accuracy": 1}', "out of range"),
        ('{"relevance": 6, "coherence": 5, "accuracy": 1}', "out of range"),
        ('{"relevance": 4.5, "coherence": 5, "accuracy": 1}', "out of range"),
        ('{"relevance": -4, "coherence": 5, "accuracy": 1}', "out of range"),
        ('{"relevance": true, "coherence": 5, "accuracy": 1}', "out of range"),
        ('{"relevance": "high", "coherence": 5, "accuracy": 1}', "out of range"),
        ("Relevance: 9\nCoherence: 5\nAccuracy: 1", "out of range"),
        ('{"relevance": 4, "coherence": 5, "accuracy": 1} or {"relevance": 2}', "contradiction"),
        ("The answer deserves four of five for relevance.", "prose"),
        ("I won't rate this.", "refusal"),
        ("", "empty"),
        ("[" * 5000 + "{" * 500 + "relevance" + "-" * 9000, "prose"),
    ],
)
def test_what_are_no_scores_is_named(text, kind):
    assert read_scores(reply(text), ALL) == NoVerdict(kind, text)


@given(st.text(max_size=200), st.sampled_from(["stop", "length"]))
def test_no_reply_raises(text, finish_reason):
    made = reply(text, finish_reason)
    assert read_preference(made) in ("A", "B", "tie") or read_preference(made).reply == text
    scores = read_scores(made, ALL)
    assert isinstance(scores, NoVerdict) or set(scores) == set(ALL)


@given(st.fixed_dictionaries({name: st.integers(1, 5) for name in ALL}), st.text(max_size=50))
def test_scores_in_json_survive_any_words_around(scores, words):
    import json

    text = f"{words.replace('{', '')}\n{json.dumps(scores)}"
    if "<" not in words:
        assert read_scores(reply(text), ALL) == scores
