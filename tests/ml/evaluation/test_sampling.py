"""Which rows are taken where not all are, and that the choice of stored results does not change."""

from __future__ import annotations

import hashlib

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.features.human_eval.items import answers_of
from luthier.ml.baselines import rows as baseline_rows
from luthier.ml.data.rows.rows import part_of
from luthier.ml.data.text.normalise import content_key
from luthier.ml.evaluation.sampling import choose_by_hash, choose_samples, hash_order
from luthier.testing.records import make_evaluation

WORDS = [f"word {number}" for number in range(40)]


def example(number: int) -> Example:
    turns = (Message(role="user", content=f"ask {number}"), Message(role="assistant", content=f"say {number % 7}"))
    return Example(id=f"rows.jsonl:{number}", conversation=Conversation(messages=turns))


EXAMPLES = [example(number) for number in range(60)]


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def test_the_same_rows_are_chosen_whatever_their_order_and_only_those_that_fit() -> None:
    chosen = choose_by_hash(WORDS, 10, str.encode)
    assert set(chosen) == set(choose_by_hash(WORDS[::-1], 10, str.encode))
    assert list(chosen) == [word for word in WORDS if word in chosen]  # in the order in which they came
    assert set(choose_by_hash(WORDS, 5, str.encode)) < set(chosen)
    assert choose_by_hash(WORDS, None, str.encode) == tuple(WORDS)
    assert len(choose_by_hash(WORDS, 10, str.encode, fits=lambda word: word.endswith("1"))) == 4
    assert choose_by_hash((), 3, str.encode) == ()
    assert hash_order(["b", "a", "b"], str.encode) in ([0, 2, 1], [1, 0, 2])  # equal ones as they came


def test_no_more_items_are_asked_whether_they_fit_than_are_needed() -> None:
    asked: list[str] = []
    choose_by_hash(WORDS, 3, str.encode, fits=lambda word: not asked.append(word))
    assert len(asked) == 3


def test_samples_are_chosen_by_content_without_the_place_in_the_file() -> None:
    """As evaluations have stored them: the lowest SHA-256 of the example as JSON, without what it was given later."""
    order = sorted(EXAMPLES, key=lambda one: digest(one.model_dump_json(exclude={"id", "goes_on", "has_answer"})))
    expected = {one.id for one in order[:9]}
    assert {one.id for one in choose_samples(EXAMPLES, 9)} == expected
    moved = [one.model_copy(update={"id": f"other.jsonl:{n}"}) for n, one in enumerate(EXAMPLES)]
    assert [one.reference for one in choose_samples(moved, 9)] == [one.reference for one in choose_samples(EXAMPLES, 9)]
    assert choose_samples(EXAMPLES, 60) == tuple(EXAMPLES)


def test_rows_of_baselines_and_parts_of_files_are_those_that_they_were(monkeypatch) -> None:
    monkeypatch.setattr(baseline_rows, "MAX_ROWS", 11)
    every = [(f"ask {n}", f"say {n % 7}") for n in range(60)]
    expected = set(sorted(every, key=lambda one: digest(f"{one[0]}\0{one[1]}"))[:11])
    assert {(one.prompt, one.answer) for one in baseline_rows.task_rows(EXAMPLES)} == expected
    keys = sorted(EXAMPLES, key=lambda one: digest(f"part\0{content_key(one)}"))
    assert {one.id for one in part_of(EXAMPLES, (0.1, 0.3))} == {one.id for one in keys[6:18]}


def test_answers_of_an_evaluation_are_those_that_they_were() -> None:
    evaluation = make_evaluation()
    more = [f"t.jsonl:{number}" for number in range(1, 9)]
    systems = tuple(
        system.model_copy(
            update={"samples": tuple(system.samples[0].model_copy(update={"row_id": row_id}) for row_id in more)}
        )
        for system in evaluation.systems
        if system.samples
    )
    evaluation = evaluation.model_copy(update={"systems": systems})
    samples = {sample.row_id: sample for sample in evaluation.systems[0].samples}
    order = sorted(samples, key=lambda row_id: digest(f"{row_id} {samples[row_id].prompt}"))
    shared = [one for one in order if all(one in {s.row_id for s in system.samples} for system in evaluation.systems)]
    assert len(shared) > 1
    found = answers_of(evaluation, most_rows=3)
    assert {row.row_id for row in found.rows} == set(shared[:3])
