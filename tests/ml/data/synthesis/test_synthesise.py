"""Which pairs are kept, which are refused and why, and what a second run asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.errors import OverlongError
from luthier.core.ports import Generation, Progress, Prompt, SilentProgress
from luthier.ml.data.synthesis.synthesise import (
    Passage,
    SynthesisOptions,
    SyntheticPair,
    attempts,
    refused_row_of,
    row_of,
)
from luthier.ml.inference.engine_wrappers import CachedEngine
from luthier.testing.fake_engine import FakeEngine

TEXT = "The front of a violin is made of spruce. The back is made of maple. Stradivari worked in Cremona until 1737."


class Memory:
    def __init__(self) -> None:
        self.kept: dict[str, Generation] = {}

    def find(self, keys: Any) -> dict[str, Generation]:
        return {key: self.kept[key] for key in keys if key in self.kept}

    def keep(self, new: Any, *, engine: str) -> None:
        self.kept.update(new)


def engine(answer: Callable[[Prompt], str], memory: Memory | None = None, name: str = "teacher") -> CachedEngine:
    return CachedEngine(lambda _: FakeEngine(answer), memory or Memory(), name=name, identity={"name": name})


def words_of(prompt: Prompt) -> str:
    assert prompt.conversation is not None
    return prompt.conversation.messages[-1].content or ""


def pair(question: str, answer: str) -> str:
    return json.dumps({"question": question, "answer": answer})


def run(
    reply: str | Callable[[Prompt], str],
    texts: list[str] | None = None,
    judge: CachedEngine | None = None,
    **options: Any,
) -> list[SyntheticPair]:
    passages = [Passage(f"rows.jsonl:{n + 1}", text, {"file": "a.md"}) for n, text in enumerate(texts or [TEXT])]
    teacher = engine(reply if callable(reply) else lambda _: reply)
    return list(attempts(passages, teacher, judge, SynthesisOptions(**options), SilentProgress()))


def test_a_supported_pair_becomes_a_row_that_says_where_it_comes_from() -> None:
    (made,) = run(pair("Which wood is the front of a violin?", "The front is spruce."))
    assert made.reason is None
    assert row_of(made, SynthesisOptions(), teacher="t", judge=None) == {
        "prompt": "Which wood is the front of a violin?",
        "completion": "The front is spruce.",
        "provenance": {
            "file": "a.md",
            "synthetic": True,
            "teacher": "t",
            "kind": "qa",
            "support": 1.0,
            "source_row": "rows.jsonl:1",
            "judge": None,
        },
    }


@pytest.mark.parametrize(
    ("reply", "reason", "words"),
    [
        ("I cannot.", "unparsable", "neither a JSON object"),
        (pair("What does the passage say?", "Spruce."), "not_self_contained", "'the passage'"),
        (pair("Which wood?", "According to the text, spruce."), "not_self_contained", "'the text'"),
        (pair("Spruce?", "spruce? "), "same_as_question", "the same"),
        (pair("When did Stradivari die?", "Stradivari worked until 1738."), "unsupported_number", "1738"),
        (pair("What came in 1650?", "Stradivari worked in Cremona."), "unsupported_number", "1650"),
        (pair("Where did Stradivari work?", "Stradivari worked in Vienna."), "unsupported_name", "Vienna"),
        (pair("Where did Guarneri work? Did Guarneri?", "In Cremona."), "unsupported_name", "Guarneri"),
        (pair("Which wood?", "A light wood that resonates"), "low_support", "0.00 of 3 content words"),
        (pair("Is it spruce?", "Yes."), "low_support", "no word"),
        ("Q: Which wood?\nA: " + "spruce " * 300, "cut_off", "cut off after 256 tokens"),
        ("word " * 300, "cut_off", "cut off after 256 tokens"),
    ],
)
def test_what_the_passage_does_not_bear_is_refused_with_its_reason(reply: str, reason: str, words: str) -> None:
    (made,) = run(reply)
    assert made.reason == reason
    assert words in made.explanation
    row = refused_row_of(made, SynthesisOptions(), teacher="t", judge=None)
    assert (row["reason"], row["source_row"], row["provenance"]["synthetic"]) == (reason, "rows.jsonl:1", True)
    assert row["reply"] == " ".join(reply.split(" ")[:256])


def test_an_instruction_may_set_a_number_of_its_own() -> None:
    reply = json.dumps({"instruction": "List 2 woods of a violin.", "response": "Spruce (front) and maple (back)."})
    (made,) = run(reply, kind="instruction")
    assert (made.reason, made.prompt) == (None, "List 2 woods of a violin.")


def test_the_threshold_is_what_was_asked() -> None:
    reply = pair("Which wood is the front?", "The front is light spruce.")  # 2 of 3 content words
    assert run(reply, min_support=0.66)[0].reason is None
    assert run(reply, min_support=0.67)[0].reason == "low_support"


def test_a_question_is_kept_once_however_it_is_written() -> None:
    replies = iter([pair("Which wood?", "Spruce."), pair(" WHICH  wood?", "Maple."), pair("Who?", "Stradivari.")])
    made = run(lambda _: next(replies), [TEXT, TEXT + " ", TEXT + "  "])
    assert [one.reason for one in made] == [None, "duplicate", None]
    assert made[1].explanation == "asked before, from rows.jsonl:1"


def test_a_second_pair_is_asked_for_with_the_first_in_view() -> None:
    asked: list[str] = []

    def reply(prompt: Prompt) -> str:
        asked.append(words_of(prompt))
        return pair("Which wood?", "Spruce.") if len(asked) == 1 else pair("Where?", "In Cremona.")

    made = run(reply, pairs_per_passage=2)
    assert [one.prompt for one in made] == ["Which wood?", "Where?"]
    assert "something else" not in asked[0]
    assert asked[1].rsplit("something else", 1)[1].startswith(" than these: Which wood?\n")


def test_asking_again_where_nothing_can_change_is_left_out() -> None:
    asked: list[int] = []
    count = lambda prompt: asked.append(1) or "nothing"  # noqa: E731
    assert len(run(count, pairs_per_passage=3)) == 1
    assert len(run(count, pairs_per_passage=3, temperature=0.5)) == 3
    assert len(asked) == 4


def test_blank_and_overlong_passages_are_listed_and_stop_nothing() -> None:
    class Narrow(FakeEngine):
        def generate(self, prompts: Any, progress: Progress) -> list[Generation]:
            if any("LONG" in words_of(prompt) for prompt in prompts):
                raise OverlongError("9 tokens", expected="at most 8", do="shorten")
            return super().generate(prompts, progress)

    teacher = CachedEngine(
        lambda _: Narrow(lambda _: pair("Which wood?", "Spruce.")), Memory(), name="t", identity={"name": "t"}
    )
    passages = [Passage(f"r:{n}", text, {}) for n, text in enumerate([" \n", "LONG", TEXT])]
    made = list(attempts(passages, teacher, None, SynthesisOptions(pairs_per_passage=2), SilentProgress()))
    assert [one.reason for one in made] == ["blank_passage", "too_long", None, "duplicate"]
    assert made[1].explanation == "9 tokens; expected at most 8"


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [("yes", None), ("No.", "judged_unsupported"), ("Perhaps", "judge_unsure"), ("", "judge_unsure")],
)
def test_a_judge_must_say_yes(verdict: str, reason: str | None) -> None:
    seen: list[str] = []
    judge = engine(lambda prompt: seen.append(words_of(prompt)) or verdict, name="judge")  # type: ignore[func-returns-value]
    (made,) = run(pair("Which wood is the front?", "The front is spruce."), judge=judge)
    assert made.reason == reason
    assert TEXT in seen[0]
    assert "Answer: The front is spruce." in seen[0]


def test_a_judge_whose_thought_fills_its_answer_is_asked_again_with_more_room() -> None:
    """As a thinking model behind a server, whose thought counts among the tokens of its answer."""
    limits: list[int] = []

    def think(prompt: Prompt) -> str:
        limits.append(prompt.max_new_tokens)
        return "<think>" + "hm " * 40 + "</think>yes"

    (made,) = run(pair("Which wood is the front?", "The front is spruce."), judge=engine(think, name="judge"))
    assert made.reason is None
    assert limits == [16, 4096]
    rambling = engine(lambda _: "The passage says " * 20, name="judge")
    (made,) = run(pair("Which wood is the front?", "The front is spruce."), judge=rambling)
    assert (made.reason, rambling.usage.num_requests) == ("judge_unsure", 1)


def test_a_judge_is_asked_only_about_what_still_stands() -> None:
    judge = engine(lambda _: "yes", name="judge")
    run(pair("When?", "In 1999."), judge=judge)
    assert judge.usage.num_requests == 0


def test_a_question_whose_first_answer_was_refused_may_come_again() -> None:
    replies = iter([pair("Which wood?", "Maple."), pair("Which wood?", "Spruce.")])
    judge = engine(lambda prompt: "yes" if "Spruce" in words_of(prompt) else "no", name="judge")
    made = run(lambda _: next(replies), [TEXT, TEXT + " "], judge=judge)
    assert [one.reason for one in made] == ["judged_unsupported", None]


def test_rows_put_before_change_neither_prompts_nor_seeds() -> None:
    memory = Memory()
    reply = lambda prompt: pair(f"Which wood is number {len(words_of(prompt))}?", "Spruce.")  # noqa: E731
    later = [Passage("r:1", TEXT, {}), Passage("r:2", TEXT + " More.", {})]
    options = SynthesisOptions(temperature=0.7, seed=5)
    list(attempts(later, engine(reply, memory), None, options, SilentProgress()))
    again = engine(reply, memory)
    shifted = [Passage("r:1", "New.", {}), *(Passage(f"r:{n + 2}", p.text, {}) for n, p in enumerate(later))]
    list(attempts(shifted, again, None, options, SilentProgress()))
    assert (again.usage.num_requests, again.usage.num_cached_requests) == (1, 2)


def test_passages_go_in_batches_and_the_caller_hears_of_each() -> None:
    done: list[int] = []
    teacher = engine(lambda prompt: pair(f"Which {prompt.seed}?", "Spruce."))
    passages = (Passage(f"r:{n}", TEXT + " " * n, {}) for n in range(70))
    made = list(attempts(passages, teacher, None, SynthesisOptions(), SilentProgress(), batch_done=done.append))
    assert done == [32, 32, 6]
    assert [one.passage.id for one in made] == [f"r:{n}" for n in range(70)]


def test_half_a_surrogate_pair_in_a_reply_can_be_written() -> None:
    (made,) = run("a \ud800 b")
    row = refused_row_of(made, SynthesisOptions(), teacher="t", judge=None)
    assert row["reply"] == "a \\ud800 b"
