import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import RequestError
from luthier.ml.evaluation.few_shot import choose_draws, choose_shots, num_draws_of, with_shots


def example(number, *, question=None, answer=None, system=None):
    opening = (Message(role="system", content=system),) if system else ()
    turns = (
        Message(role="user", content=question or f"question {number}"),
        Message(role="assistant", content=answer or f"answer {number}"),
    )
    return Example(id=f"train.jsonl:{number}", conversation=Conversation(messages=(*opening, *turns)))


POOL = [example(number) for number in range(1, 41)]


@given(st.integers(0, 40), st.integers(0, 1000), st.randoms())
def test_the_choice_depends_on_seed_and_content_not_on_order(num, seed, random):
    shuffled = list(POOL)
    random.shuffle(shuffled)
    chosen = choose_shots(POOL, num, seed)
    assert choose_shots(shuffled, num, seed) == chosen
    assert len({shot.id for shot in chosen}) == num


def test_another_seed_chooses_others():
    assert choose_shots(POOL, 4, 0) != choose_shots(POOL, 4, 1)


def test_the_shorter_half_is_used_up_before_longer_ones_which_then_come_by_length():
    pool = [example(number, answer="x" * number * 10) for number in range(1, 11)]
    assert {shot.id for shot in choose_shots(pool, 5, 0)} == {f"train.jsonl:{n}" for n in range(1, 6)}
    assert [shot.id for shot in choose_shots(pool, 10, 0)[5:]] == [f"train.jsonl:{n}" for n in range(6, 11)]


def test_what_is_asked_in_the_held_out_rows_is_never_shown():
    held_out = [example(1, question="question 7", answer="another answer")]
    ids = {shot.id for shot in choose_shots(POOL, 39, 0, held_out=held_out)}
    assert "train.jsonl:7" not in ids
    with pytest.raises(RequestError, match="39 of 40 rows"):
        choose_shots(POOL, 40, 0, held_out=held_out)


def test_equal_rows_are_shown_once_and_rows_without_an_answer_never():
    plain = Example(id="train.jsonl:50", text="just text")
    calls = Conversation(
        messages=(
            Message(role="user", content="weather?"),
            Message(role="assistant", tool_calls=({"type": "function", "function": {"name": "w"}},)),
        )
    )
    pool = [POOL[0], POOL[0].model_copy(update={"id": "train.jsonl:60"}), plain, Example(id="a:1", conversation=calls)]
    assert choose_shots(pool, 1, 0) == (POOL[0],)
    with pytest.raises(RequestError, match="1 of 4 rows"):
        choose_shots(pool, 2, 0)


def test_shots_stand_after_the_system_prompt_and_are_never_learned():
    asked = example(99, system="Be brief.")
    shown = with_shots(asked, [example(1, system="Be long."), example(2)])
    roles = [message.role for message in shown.conversation.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert shown.conversation.messages[0].content == "Be brief."
    assert [message.is_learned for message in shown.conversation.messages] == [False] * 6 + [True]
    assert (shown.id, shown.reference, shown.learned_bytes) == (asked.id, asked.reference, asked.learned_bytes)
    assert shown.prompt.messages[-1].content == "question 99"
    assert [message.content for message in shown.conversation.messages[1:3]] == ["question 1", "answer 1"]


def test_no_shots_change_nothing():
    assert with_shots(POOL[0], ()) is POOL[0]


def test_an_example_is_never_shown_its_own_answer():
    with pytest.raises(RequestError, match="one of its own"):
        with_shots(example(1), [example(1)])


def test_plain_text_takes_no_shots():
    with pytest.raises(RequestError, match="plain text"):
        with_shots(Example(id="a:1", text="text"), POOL[:1])


def test_draws_share_no_example_and_begin_with_the_one_draw():
    draws = choose_draws(POOL, 4, 0, num_draws=4)
    assert draws[0] == choose_shots(POOL, 4, 0)
    assert [len(draw) for draw in draws] == [4] * 4
    assert len({shot.id for draw in draws for shot in draw}) == 16
    assert choose_draws(list(reversed(POOL)), 4, 0, num_draws=4) == draws


def test_there_are_as_many_draws_as_the_shorter_half_holds():
    lengths = [example(number, answer="x" * number) for number in range(1, 13)]
    draws = choose_draws(lengths, 2, 0, num_draws=4)
    assert len(draws) == num_draws_of(12, 2, 4) == 3
    assert max(len(shot.reference) for draw in draws for shot in draw) <= 6
    assert len(choose_draws(lengths, 7, 0, num_draws=4)) == num_draws_of(12, 7, 4) == 1
    with pytest.raises(RequestError, match="13 few-shot examples"):
        choose_draws(lengths, 13, 0, num_draws=4)
