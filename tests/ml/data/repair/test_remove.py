"""Which rows go, and for which rows they go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from luthier.core.errors import RequestError
from luthier.ml.data.audit.conflicting_completion import AtOdds
from luthier.ml.data.repair import remove

Write = Callable[..., Path]
LONG = " ".join(f"word{n}" for n in range(60))


def pair(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def test_of_copies_the_first_stays(jsonl: Write, make: Any) -> None:
    made = make(jsonl(pair("A?", "one"), pair("b?", "two"), pair("a? ", "One"), pair("A?", "one")))
    assert made.fate == {1: "kept", 2: "kept", 3: "removed", 4: "removed"}
    assert made.reasons[3] == ["exact_duplicate: says the same as rows.jsonl:1"]


def test_of_near_duplicates_the_first_stays_and_is_named(jsonl: Write, make: Any) -> None:
    made = make(jsonl({"text": f"{LONG} a"}, {"text": "quite another text"}, {"text": f"{LONG} b"}))
    assert made.fate == {1: "kept", 2: "kept", 3: "removed"}
    assert made.reasons[3] == ["near_duplicate: near-duplicate (Jaccard 0.97) of rows.jsonl:1"]


def test_a_near_duplicate_with_another_answer_stays_but_its_own_copies_go(jsonl: Write, make: Any) -> None:
    file = jsonl(
        pair(f"{LONG} how many?", "12"), pair(f"{LONG} how much?", "5 kg"), pair(f"{LONG} how often?", "5 kg"),
        pair(f"{LONG} how many!", "12"), pair("What is this?", "that"),
    )  # fmt: skip
    made = make(file)
    assert made.fate == {1: "kept", 2: "kept", 3: "removed", 4: "removed", 5: "kept"}
    assert "of rows.jsonl:2" in made.reasons[3][0]
    assert "of rows.jsonl:1" in made.reasons[4][0]


def test_a_duplicate_never_goes_for_a_row_that_goes_itself(jsonl: Write, make: Any) -> None:
    """The first of the copies has no answer to its conflict, so the second one is not its copy any more."""
    loop = "and so on and on again " * 30
    made = make(jsonl(pair(f"{LONG} a", loop), pair(f"{LONG} b", "fine"), pair("c?", "other")))
    assert made.fate == {1: "removed", 2: "kept", 3: "kept"}
    assert made.reasons[1] == ["repeated_completion: its completion repeats itself in a loop"]


def test_rows_that_become_copies_by_a_change_are_removed(jsonl: Write, make: Any) -> None:
    made = make(jsonl(pair("What?", "Café au lait"), pair("What?", "CafÃ© au lait"), pair("else?", "no")))
    assert made.fate == {1: "kept", 2: "removed", 3: "kept"}
    assert made.reasons[2] == ["exact_duplicate: says the same as rows.jsonl:1", "encoding: mojibake undone"]


def test_the_minority_of_a_prompt_goes_and_all_where_there_is_none(jsonl: Write, make: Any) -> None:
    file = jsonl(
        pair("two?", "2"),
        pair("two?", " 2"),
        pair("two?", "3"),
        pair("three?", "3"),
        pair("three?", "4"),
        pair("x?", "y"),
    )  # fmt: skip
    made = make(file, only=["conflicting_completion"])
    assert made.fate == {1: "kept", 2: "kept", 3: "removed", 4: "removed", 5: "removed", 6: "kept"}
    assert "rows.jsonl:1 differently from 2 of its 3 rows" in made.reasons[3][0]
    assert "rows.jsonl:5 differently, and no answer has a majority" in made.reasons[4][0]
    assert make(file, output=file.with_name("b.jsonl")).fate[3] == "kept"  # not unasked


def test_contamination_goes_from_training(jsonl: Write, make: Any) -> None:
    held_out = jsonl(
        pair("held one?", "yes it is"), pair(f"{LONG} held", "near"), pair("shared prompt?", "a"), name="held.jsonl"
    )
    file = jsonl(
        pair("Held  one?", "Yes it is"), pair(f"{LONG} kept", "near"), pair("shared prompt?", "b"), pair("own?", "c")
    )
    made = make(file, against=held_out)
    assert made.fate == {1: "removed", 2: "removed", 3: "kept", 4: "kept"}
    assert made.reasons[1][0] == "contamination: says the same as a row of the held-out file, held.jsonl:1"
    assert any("nearly the same as a row of the held-out file" in reason for reason in made.reasons[2])
    everything = make(file, against=held_out, only=["contamination_all"], output=file.with_name("c.jsonl"))
    assert everything.fate == {1: "removed", 2: "removed", 3: "removed", 4: "kept"}
    assert "contamination_all: has a prompt of the held-out file" in everything.reasons[3]


def test_refusals_go_only_when_asked(jsonl: Write, make: Any) -> None:
    file = jsonl(pair("a?", "As an AI language model, I cannot say."), pair("b?", "Blue."))
    assert make(file).fate == {1: "kept", 2: "kept"}
    assert make(file, only=["refusal"], output=file.with_name("b.jsonl")).fate == {1: "removed", 2: "kept"}


def test_a_check_that_was_asked_for_and_cannot_run_is_told(jsonl: Write, make: Any) -> None:
    with pytest.raises(RequestError, match="over_context cannot be repaired"):
        make(jsonl(pair("a?", "b")), only=["over_context"])


def test_reasons_name_rows_of_the_file_itself_by_line_too_and_those_of_other_files_never(
    jsonl: Write, make: Any, tmp_path: Path
) -> None:
    """A held-out file whose name ends like that of the file keeps its name where people see lines alone."""
    file = jsonl(pair("a?", "x"), pair("a?", "x"), pair("b?", "y"))
    held_out = file.with_name(f"my{file.name}")
    held_out.write_text(json.dumps(pair("b?", "y")) + "\n")
    made = make(file, against=held_out, only=["exact_duplicate", "contamination"])
    notes = {entry["line"]: entry["reasons"] for entry in made.fates}
    assert notes[2] == [
        {
            "check": "exact_duplicate",
            "reason": f"says the same as {file.name}:1",
            "reason_by_line": "says the same as line 1",
        }
    ]
    (twin,) = notes[3]
    assert twin["reason"].endswith(f", my{file.name}:1")
    assert "reason_by_line" not in twin


def test_rows_that_differ_in_their_thoughts_alone_all_stay(jsonl: Write, make: Any) -> None:
    def thinking(thought: str) -> dict[str, Any]:
        answer = {"role": "assistant", "content": "12", "reasoning_content": thought}
        return {"messages": [{"role": "user", "content": f"{LONG} how many?"}, answer]}

    first, second = " ".join(f"one{n}" for n in range(90)), " ".join(f"two{n}" for n in range(90))
    made = make(jsonl(thinking(first), thinking(second), thinking(first)))
    assert made.fate == {1: "kept", 2: "kept", 3: "removed"}


def test_rows_that_differ_in_their_tools_alone_all_stay(jsonl: Write, make: Any) -> None:
    """Neither copies nor near-duplicates nor contradictions of each other; equal ones among them still go."""

    def asked(answer: str, *names: str) -> dict[str, Any]:
        turns = [{"role": "user", "content": f"{LONG} how many?"}, {"role": "assistant", "content": answer}]
        return {"messages": turns, "tools": [{"type": "function", "function": {"name": name}} for name in names]}

    rows = [asked("12", "count"), asked("12", "count", "add"), asked("unknown", "add"), asked("12", "count", "add")]
    made = make(jsonl(*rows), only=["exact_duplicate", "near_duplicate", "conflicting_completion"])
    assert made.fate == {1: "kept", 2: "kept", 3: "kept", 4: "removed"}
    nearly = asked("12", "count", "add")
    nearly["messages"][0]["content"] += " Please."
    made = make(jsonl(rows[0], rows[1], nearly), only=["near_duplicate"], force=True)
    assert made.fate == {1: "kept", 2: "kept", 3: "removed"}


def test_many_rows_of_one_prompt_without_a_majority_are_each_paired_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them with one answer, then half with the other: a search for each row would look at all of a half."""
    num = 60_000
    answers = np.repeat([7, 8], num // 2)
    at_odds = AtOdds(np.arange(num), np.zeros(num, dtype=np.int64), answers, 2)
    monkeypatch.setattr(remove, "prompts_of", lambda table: None)
    monkeypatch.setattr(remove, "rows_at_odds", lambda table, prompts: at_odds)
    audit: Any = SimpleNamespace(table=SimpleNamespace(lines=np.arange(1, num + 1)))
    found = [(line, other) for line, other, _ in remove._conflicting(audit)]
    assert found[:2] == [(1, num // 2 + 1), (2, num // 2 + 1)]
    assert found[-1] == (num, 1)
    assert len(found) == num


def test_rows_of_a_template_are_compared_with_the_first_that_stay_and_not_with_all(
    jsonl: Write, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is near to the first row, which has another answer, and none to another one: all of them stay."""
    words = [f"w{n}" for n in range(302)]
    rows = [pair(" ".join(["first", *words]), "no")]
    for number in range(12):
        own = list(words)
        for place in range(8):  # words of its own, so that it shares about 0.85 with the first and 0.73 with another
            own[3 * (8 * number + place) + 1] = f"v{number}x{place}"
        rows.append(pair(" ".join([f"row{number}", *own]), "yes"))
    copied = rows[2]["prompt"] + " again"
    rows.append(pair(copied, "yes"))  # near to the second of them
    nums: list[int] = []
    real = remove.jaccards

    def counted(*pairs: Any) -> Any:
        nums.append(len(pairs[1]))
        return real(*pairs)

    monkeypatch.setattr(remove, "jaccards", counted)
    monkeypatch.setattr(remove, "_MAX_COMPARED", 4)
    made = make(jsonl(*rows), only=["near_duplicate"])
    assert made.fate == {**dict.fromkeys(range(1, 14), "kept"), 14: "removed"}
    assert made.reasons[14][0].endswith("of rows.jsonl:3")
    assert nums == [1, 2, 3, *[4] * 9]
