import pytest

from luthier.core.defaults import SECOND_VERDICT_TOKENS
from luthier.core.errors import OverlongError, RequestError, WorkError
from luthier.core.ports import Prompt, SilentProgress
from luthier.ml.evaluation.judge.verdicts import NoVerdict, ask_judge, read_preference
from luthier.testing.engine_contract import CountingProgress
from luthier.testing.fake_engine import FakeEngine

SILENT = SilentProgress()


class Moody(FakeEngine):
    """Fails for prompts that name a trouble: a call with one of them gives nothing at all, as with real engines."""

    def __init__(self, answer=lambda prompt: '{"better": "A"}'):
        super().__init__(answer)
        self.calls = []

    def generate(self, prompts, progress):
        self.calls.append(len(prompts))
        for prompt in prompts:
            if "timeout" in prompt.text:
                raise WorkError("timed out", expected="an answer", do="wait")
            if "long" in prompt.text:
                raise OverlongError("too long", expected="less", do="shorten")
            if "key" in prompt.text:
                raise RequestError("wrong key", expected="a key", do="set it")
        return super().generate(prompts, progress)


def ask(engine, texts):
    return ask_judge(engine, [Prompt(text=text) for text in texts], read_preference, SILENT)


def test_one_that_times_out_or_is_too_long_stops_no_other():
    texts = [str(n) for n in range(40)]
    texts[7], texts[30] = "timeout", "long"
    engine = Moody()
    found = ask(engine, texts)
    assert [found[7].kind, found[30].kind] == ["no answer", "too long"]
    assert found[:7] + found[8:30] + found[31:] == ["A"] * 38
    assert len(engine.calls) < 40


def test_a_judge_that_answers_no_more_is_given_up():
    with pytest.raises(WorkError, match="timed out"):
        ask(Moody(), ["timeout"] * 100)


def test_a_wrong_request_is_raised_at_once():
    engine = Moody()
    with pytest.raises(RequestError, match="wrong key"):
        ask(engine, ["one", "key", "two"])
    assert engine.calls == [3]


def test_what_got_no_verdict_is_asked_once_more_with_another_seed():
    asked = []

    def answer(prompt):
        asked.append(prompt)
        return {0: "Well...", 1: '{"better": "B"}'}[prompt.seed] if prompt.text == "shy" else "Well..."

    found = ask(Moody(answer), ["shy", "mute"])
    assert found == ["B", NoVerdict("prose", "Well...")]
    assert [(one.seed, one.temperature > 0) for one in asked] == [(0, False)] * 2 + [(1, True)] * 2


def test_what_was_cut_off_gets_more_room():
    thinking = "<think>" + " so" * 300 + '</think>{"better": "B"}'
    limits = []

    def answer(prompt):
        limits.append(prompt.max_new_tokens)
        return thinking

    prompt = Prompt(text="Which?", max_new_tokens=256)
    assert ask_judge(Moody(answer), [prompt], read_preference, SILENT) == ["B"]
    assert limits == [256, SECOND_VERDICT_TOKENS]


def test_nothing_is_asked_where_there_is_nothing_to_ask():
    engine = Moody()
    assert ask(engine, []) == []
    assert engine.calls == []


def test_progress_counts_the_questions():
    progress = CountingProgress()
    ask_judge(Moody(), [Prompt(text=str(n)) for n in range(5)], read_preference, progress)
    assert progress.done == 5
