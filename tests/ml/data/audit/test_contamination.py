"""Training rows that give held-out rows away, planted and found."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped
from luthier.ml.data.audit.contamination import check
from luthier.ml.data.audit.table import build_table

Write = Callable[..., Path]
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "m", "l", "ck")]


def text(seed: int, num_words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


def audited(jsonl: Write, train: list[Any], held_out: list[Any]) -> dict[str, Finding]:
    tables = build_table(jsonl(*train, name="train.jsonl")), build_table(jsonl(*held_out, name="held.jsonl"))
    found = check(AuditRequest(tables[0], tables[1]))
    assert not isinstance(found, Skipped)
    assert {finding.check for finding in found} <= {"contamination"}
    return {finding.details["kind"]: finding for finding in found}


def texts(*rows: str) -> list[dict[str, str]]:
    return [{"text": row} for row in rows]


def pair(prompt: str, completion: str, **more: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion, **more}


def test_without_a_held_out_file_it_is_skipped(jsonl: Write) -> None:
    found = check(AuditRequest(build_table(jsonl({"text": "a"}))))
    assert found == Skipped("no held-out file given: --against")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_recall_over_planted_leaks_and_no_false_alarm(jsonl: Write, seed: int) -> None:
    rng = random.Random(seed)
    held_out = [text(seed * 10_000 + number, rng.randint(30, 120)) for number in range(400)]
    train = [text(seed * 10_000 + 5_000 + number, rng.randint(30, 120)) for number in range(1_000)]
    planted = []
    for number, leaked in enumerate(held_out[:320]):
        words = leaked.split()
        match number % 4:
            case 0:
                row = leaked
            case 1:
                row = "  ".join(word.upper() for word in words) + "\n"
            case 2:
                words[rng.randrange(len(words))] = "changed"
                row = " ".join(words)
            case _:
                row = f"{text(number + 90_000, 80)} {leaked}, {text(number + 95_000, 80)}"
        planted.append(row)
    rows = texts(*train, *planted)
    order = list(range(len(rows)))
    rng.shuffle(order)
    found = audited(jsonl, [rows[i] for i in order], texts(*held_out))
    lines = {line for finding in found.values() for line in finding.lines}
    truth = {line for line, i in enumerate(order, start=1) if i >= len(train)}
    assert len(lines & truth) / len(truth) >= 0.99
    assert lines <= truth
    assert found["exact"].count == found["exact"].details["num_held_out_rows"] == 160
    assert found["ngram"].count >= 80
    assert all(finding.severity == "error" for finding in found.values())
    assert sum(finding.count for finding in found.values()) == len(lines), "each row under one kind"


def test_examples_name_both_sides(jsonl: Write) -> None:
    held_out = texts(text(1), text(2), text(3))
    train = texts(text(2).upper(), text(1) + " more", text(8) + " " + text(3) + " " + text(9), text(10))
    found = audited(jsonl, train, held_out)
    notes = {kind: finding.examples[0].note for kind, finding in found.items()}
    assert notes["exact"].startswith(f"same as held.jsonl:2: '{text(2)[:20]}")
    assert notes["near"].startswith("0.98 of its shingles (Jaccard) shared with held.jsonl:1: '")
    assert notes["ngram"].startswith("48 of the 48 runs of 13 words of held.jsonl:3: '")
    assert [found[kind].lines for kind in ("exact", "near", "ngram")] == [(1,), (2,), (3,)]
    assert "gives away 1 of the 3 rows of held.jsonl (33.3%)" in found["exact"].message


def test_a_prompt_with_another_answer_is_a_warning(jsonl: Write) -> None:
    train = [pair("Which colour has the sky?", "blue"), pair("And grass?", "green")]
    found = audited(jsonl, train, [pair("which  colour has the sky?", "grey"), pair("And grass?", "green")])
    assert found["same_prompt"].severity == "warning"
    assert (found["same_prompt"].lines, found["exact"].lines) == ((1,), (2,))


def test_another_thought_hides_no_leak_and_a_quotation_in_a_thought_is_one(jsonl: Write) -> None:
    def thinking(prompt: str, thought: str) -> dict[str, Any]:
        answer = {"role": "assistant", "content": "yes", "reasoning_content": thought}
        return {"messages": [{"role": "user", "content": prompt}, answer]}

    held_out = [thinking(text(1), text(11)), thinking(text(2), text(12)), thinking(text(3), text(13))]
    train = [
        thinking(text(1), text(21)),
        thinking(text(2) + " too", text(22)),
        thinking(text(30), f"{text(31)} {text(3)} {text(32)}"),
        thinking(text(40), text(41)),
    ]
    found = audited(jsonl, train, held_out)
    assert {kind: finding.lines for kind, finding in found.items()} == {"exact": (1,), "near": (2,), "ngram": (3,)}


def test_rows_of_a_held_out_document_are_a_warning(jsonl: Write) -> None:
    train = [{"text": text(number), "source": f"doc{number // 5}.pdf"} for number in range(50)]
    found = audited(jsonl, train, [{"text": text(100), "source": "doc2.pdf"}])
    assert found["same_source"].severity == "warning"
    assert found["same_source"].lines == (11, 12, 13, 14, 15)
    assert "--group-by" in found["same_source"].fix


def test_a_source_of_most_rows_takes_no_rows_out(jsonl: Write) -> None:
    train = [{"text": text(number), "source": "web"} for number in range(10)]
    finding = audited(jsonl, train, [{"text": text(100), "source": "web"}])["same_source"]
    assert (finding.count, finding.lines, finding.severity) == (0, (), "warning")
    assert "10 rows" in finding.message


def test_a_shared_system_prompt_is_no_leak(jsonl: Write) -> None:
    system = text(0, 200)

    def row(seed: int) -> dict[str, str]:
        return pair(f"{system}\n{text(seed, 15)}", text(seed + 1_000, 3))

    train = [row(seed) for seed in range(1, 60)]
    assert audited(jsonl, train, [row(seed) for seed in range(100, 130)]) == {}
    assert audited(jsonl, train, [row(7), row(101)])["exact"].lines == (7,)


def test_empty_and_unreadable_rows_leak_nothing(jsonl: Write) -> None:
    assert audited(jsonl, texts("", "a"), texts("", " ")) == {}
    assert audited(jsonl, ['{"no": "json'], texts("a")) == {}
    assert audited(jsonl, texts("a"), ['{"no": "json']) == {}


@pytest.mark.shared_data
def test_wikisql_train_and_test_share_no_row(shared_data: Path) -> None:
    folder = shared_data / "wikisql_mlx"
    assert check(AuditRequest(build_table(folder / "train.jsonl"), build_table(folder / "test.jsonl"))) == []
