"""Rows decoded, cleaned and masked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.rows.formats import load_file

Write = Callable[..., Path]
KEY = "AKIA" + "Q3WZVTGH7XZ4KLMN"  # put together here, so that no key stands in the repository


def pair(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def test_personal_data_goes_everywhere_with_one_pseudonym_a_value(jsonl: Write, make: Any) -> None:
    file = jsonl(
        pair("Who?", "Write to anna.k@acme-corp.com today."),
        pair("And?", "No one at all.", author="Anna.K@acme-corp.com"),
        pair("Other?", "Also bob@acme-corp.com."),
        pair("Plain?", "Nothing here."),
    )
    made = make(file, only=["personal_data"])
    assert made.rows == [
        pair("Who?", "Write to person1@example.com today."),
        pair("And?", "No one at all.", author="person1@example.com"),
        pair("Other?", "Also person2@example.com."),
        pair("Plain?", "Nothing here."),
    ]
    assert made.fate == {1: "changed", 2: "changed", 3: "changed", 4: "kept"}
    assert made.reasons[1] == ["personal_data: masked: email"]
    for path in (made.repaired.manifest, made.repaired.summary):
        assert "acme" not in path.read_text(encoding="utf-8")


def test_arguments_of_tool_calls_stay_valid_json(jsonl: Write, make: Any) -> None:
    arguments = json.dumps({"body": 'Say "hi"\nanna.k@acme-corp.com', "card": 4539578763621486})
    call = {"id": "call_1", "type": "function", "function": {"name": "send", "arguments": arguments}}
    messages = [{"role": "user", "content": "Send it."}, {"role": "assistant", "tool_calls": [call]}]
    made = make(jsonl({"messages": messages}), only=["personal_data"])
    found = json.loads(made.rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"])
    assert found["body"] == 'Say "hi"\nperson1@example.com'
    assert isinstance(found["card"], int)
    assert found["card"] != 4539578763621486


def test_secrets_are_named_by_kind_only(jsonl: Write, make: Any) -> None:
    made = make(jsonl(pair("Key?", f"Use {KEY} for it."), pair("No?", "None.")), only=["secret"])
    assert made.rows[0] == pair("Key?", "Use <secret-1> for it.")
    assert made.fate == {1: "changed", 2: "kept"}
    assert KEY not in made.repaired.manifest.read_text(encoding="utf-8")


def test_damaged_text_is_cleaned_and_fields_keep_their_order(jsonl: Write, make: Any) -> None:
    rows = [{"completion": "CafÃ© au lait", "prompt": "What?", "z": 1, "a": "dÃ©jÃ "}, pair("B?", "Clean.")]
    made = make(jsonl(*rows), only=["encoding"])
    assert list(made.rows[0].items()) == [
        ("completion", "Café au lait"), ("prompt", "What?"), ("z", 1), ("a", made.rows[0]["a"]),
    ]  # fmt: skip
    assert made.reasons == {1: ["encoding: mojibake undone"]}


def test_bytes_that_are_not_utf8_are_read_as_windows_1252(tmp_path: Path, make: Any) -> None:
    file = tmp_path / "rows.jsonl"
    good = b'{"prompt": "a?", "completion": "fine"}\n'
    latin = '{"prompt": "caf\u00e9?", "completion": "10 \u20ac"}\n'.encode("cp1252")
    lost = b'{"prompt": "\x81?", "completion": "undefined byte"}\n'
    cut = b'{"prompt": "caf\xe9\n'
    file.write_bytes(good + latin + b"\n" + lost + cut)
    made = make(file, only=["encoding"])
    assert made.rows == [pair("a?", "fine"), pair("café?", "10 €")]
    assert made.fate == {1: "kept", 2: "changed", 4: "removed", 5: "removed"}
    assert made.reasons[2] == ["encoding: its bytes are not UTF-8: read as Windows-1252"]
    assert "0x81" in made.reasons[4][0]
    assert "read as Windows-1252 it is not JSON" in made.reasons[5][0]


def test_a_csv_in_two_encodings(tmp_path: Path, make: Any) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b"prompt,completion\n" + '"one\nline",é1\n'.encode() + "zwei,é2\n".encode("cp1252") + b"three,3\n")
    made = make(file, only=["encoding"])
    assert made.rows == [pair("one\nline", "é1"), pair("zwei", "é2"), pair("three", "3")]
    assert made.fate == {1: "kept", 2: "changed", 3: "kept"}


def test_rows_that_cannot_be_read_are_not_lost_in_silence(jsonl: Write, make: Any, tmp_path: Path) -> None:
    file = jsonl(pair("a?", "b"), "{broken")
    with pytest.raises(DataError, match=r"1 of 2 rows(.|\n)*rows\.jsonl:2(.|\n)*add schema"):
        make(file, only=["secret"])
    assert not (tmp_path / "out" / "clean.jsonl").exists()
    made = make(file)
    assert made.fate == {1: "kept", 2: "removed"}
    assert made.fates[1]["sha256_before"] is not None
    assert made.fates[1]["sha256_after"] is None


def test_html_that_is_meant_stays_and_is_told(jsonl: Write, make: Any) -> None:
    rows = [pair(f"Write page {n}", f"<p>Page <b>{n}</b></p><p>more &amp; more</p>") for n in range(9)]
    rows.append(pair("And this?", "<p>CafÃ© <b>x</b></p><p>more &amp; more</p>"))
    made = make(jsonl(*rows), only=["encoding"])
    assert made.rows == rows
    assert made.repaired.document["num_rows_with_html_kept"] == 1
    assert [left["check"] for left in made.repaired.document["left"]] == ["encoding"]


def test_a_line_too_long_to_be_a_row(jsonl: Write, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.ml.data.files import untrusted_input

    monkeypatch.setattr(untrusted_input.bounded_lines, "__defaults__", (500,))
    monkeypatch.setattr(untrusted_input, "_HEAD_BYTES", 100)
    file = jsonl(pair("a?", "b"), json.dumps(pair("c?", "d")) + " " * 600, pair("e?", "f"))
    made = make(file)
    assert made.fate == {1: "kept", 2: "removed", 3: "kept"}
    assert made.fates[1]["sha256_before"] is None
    assert "bytes, more than" in made.fates[1]["reason"]


def test_sums_measures_and_sections_are_left_as_they_are(jsonl: Write, make: Any) -> None:
    """As on GSM8K, where `2400/200=12` became `+1-201-555-0100=12`, and "Considering 16" a street."""
    rows = [
        pair("How many calls?", "He can call 2400/200=12 times: <<2400/200=12>>12"),
        pair("How much?", "Considering 16 ounces are a pound, 12 Baker Street songs last 30 minutes."),
        pair("Which rule?", "See 18.3.1.20 and Rule 13.9.26.14 of the contract."),
    ]
    made = make(jsonl(*rows), only=["personal_data"])
    assert made.rows == rows
    assert made.repaired.document["masked"] == []
    assert made.repaired.document["mask"]["left"] == ["street", "name"]


def test_the_summary_shows_what_was_masked_before_and_after(jsonl: Write, make: Any) -> None:
    file = jsonl(
        pair("Who?", "Please write to anna.k@acme-corp.com or call me on 415-867-5309 today."),
        *(pair(f"And {n}?", f"Write to bob{n}@acme-corp.com.") for n in range(4)),
    )
    email, phone = make(file, only=["personal_data"]).repaired.document["masked"]
    assert (email["action"], email["kind"], email["num_values"], email["num_rows"]) == ("personal_data", "email", 5, 5)
    assert [one["line"] for one in email["examples"]] == [1, 2, 3]
    assert email["examples"][0] == {
        "line": 1,
        "before": "Please write to a•••.k@a•••-c•••.c•• or call me on 41•-•••-•••• …",
        "after": "Please write to person1@example.com or call me on 41•-•••-•••• …",
    }
    assert (phone["kind"], phone["num_values"], phone["num_rows"]) == ("phone", 1, 1)
    assert phone["examples"][0]["before"].endswith("call me on 41•-•••-•••• today.")
    assert phone["examples"][0]["after"].endswith("call me on +1-201-555-0100 today.")


def test_a_kind_that_is_named_is_masked_wherever_it_may_be(jsonl: Write, make: Any, tmp_path: Path) -> None:
    file = jsonl(pair("Where?", "At 12 Baker Street."), pair("Number?", "It was 415-867-5309, or zoe@acme-corp.com."))
    made = make(file, only=["personal_data"])
    assert made.fate == {1: "kept", 2: "changed"}
    assert made.rows[1]["completion"] == "It was 415-867-5309, or person1@example.com."
    made = make(file, only=["personal_data"], mask=("streets", "phones"), leave=("emails",), force=True)
    assert [row["completion"] for row in made.rows] == [
        "At 1 Example Street.",
        "It was +1-201-555-0100, or zoe@acme-corp.com.",
    ]
    assert made.repaired.document["mask"]["every"] == ["phone", "street"]
    assert made.repaired.document["mask"]["left"] == ["email", "name"]


def test_labels_that_are_numbers_become_text(jsonl: Write, make: Any) -> None:
    rows = [pair(f"Is {n} large?", n % 3 == 0 if n == 7 else n) for n in range(8)]
    made = make(jsonl(*rows))
    assert [row["completion"] for row in made.rows] == ["0", "1", "2", "3", "4", "5", "6", "false"]
    assert set(made.fate.values()) == {"changed"}
    assert made.reasons[1] == ["schema: a number where text is expected, such as a label: written as text"]


def test_mapped_labels_that_are_numbers_are_nothing_to_repair(jsonl: Write, make: Any) -> None:
    rows = [{"review": f"Review {n} is good.", "stars": n, "id": n} for n in range(3)]
    mapping = {"prompt": "review", "completion": "stars"}
    file = jsonl(*rows)
    made = make(file, mapping=mapping)
    assert made.rows == rows
    assert set(made.fate.values()) == {"kept"}
    # what is learned of them is text, before and after
    for one in (file, made.repaired.output):
        assert [example.reference for example in load_file(one, mapping=mapping).examples] == ["0", "1", "2"]


def test_a_label_of_digits_is_no_personal_data(tmp_path: Path, make: Any) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion\nWhich class?,0800123456\nWhich code?,007\n", encoding="utf-8")
    assert [row["completion"] for row in make(file).rows] == ["0800123456", "007"]


def test_values_in_keys_are_masked_and_no_two_keys_become_one(jsonl: Write, make: Any) -> None:
    """In arguments of tool calls, as an object and as JSON text; the names of columns stay."""
    counts = {"anna.k@acme-corp.com": 1, "Anna.K@acme-corp.com": 2, "other": 3}
    functions = [{"name": "count", "arguments": one} for one in (counts, json.dumps(counts))]
    calls = [{"type": "function", "function": one} for one in functions]
    messages = [{"role": "user", "content": "How many?"}, {"role": "assistant", "tool_calls": calls}]
    made = make(jsonl({"messages": messages}), only=["personal_data"])
    as_object, as_text = (one["function"]["arguments"] for one in made.rows[0]["messages"][1]["tool_calls"])
    assert as_object == {"person1@example.com": 1, "person1@example.com (2)": 2, "other": 3}
    assert json.loads(as_text) == as_object
    assert "personal_data" not in [one["check"] for one in made.repaired.document["left"]]
    assert made.repaired.document["masked"][0]["num_values"] == 4


def test_a_stand_in_that_is_a_key_already_is_kept_apart(jsonl: Write, make: Any) -> None:
    mails = {"bob@acme-corp.com": "new", "person1@example.com": "old"}
    made = make(jsonl(pair("Who?", "Both.", mails=mails, extra=json.dumps(mails))), only=["personal_data"])
    assert made.rows[0]["mails"] == {"person1@example.com (2)": "new", "person1@example.com": "old"}
    assert json.loads(made.rows[0]["extra"]) == made.rows[0]["mails"]
