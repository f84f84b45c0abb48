"""Strings of a row changed, also where they are JSON themselves."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from luthier.ml.data.repair.row_strings import change_row, change_text


def swap(text: str) -> tuple[str, Counter[Any]]:
    """`cat` becomes `"dog"`, with quotes that would break JSON unless they are escaped."""
    return text.replace("cat", '"dog"'), Counter({"cat": text.count("cat")} if "cat" in text else {})


def test_every_string_at_any_depth_and_no_key() -> None:
    row = {"cat": "a cat", "n": 1, "deep": [{"x": ["cat", None, True, 1.0]}]}
    changed, done = change_row(row, swap)
    assert changed == {"cat": 'a "dog"', "n": 1, "deep": [{"x": ['"dog"', None, True, 1.0]}]}
    assert list(changed) == list(row)
    assert done == {"cat": 2}


def test_digests_in_the_provenance_stay() -> None:
    row = {"provenance": {"sha256": "ca7" + "0" * 61, "file": "cat.pdf"}, "sha256": "0" * 64}

    def zeros(text: str) -> tuple[str, Counter[Any]]:
        return text.replace("0", "1").replace("cat", "dog"), Counter()

    changed, _ = change_row(row, zeros)
    assert changed["provenance"] == {"sha256": row["provenance"]["sha256"], "file": "dog.pdf"}  # type: ignore[index]
    assert changed["sha256"] == "1" * 64


def test_json_in_a_string_keeps_its_layout() -> None:
    text = '{\n  "to": "cat",  "inner": "{\\"a\\": \\"cat\\"}",\n  "n": 1.50\n}'
    changed, done = change_text(text, swap)
    assert changed.startswith('{\n  "to": "\\"dog\\"",  "inner"')
    document = json.loads(changed)
    assert document["to"] == '"dog"'
    assert json.loads(document["inner"]) == {"a": '"dog"'}
    assert "1.50" in changed
    assert done == {"cat": 2}


def test_what_a_name_tells_about_its_value_is_seen() -> None:
    def password(text: str) -> tuple[str, Counter[Any]]:
        found = '"password": "hunter"' in text
        return text.replace('"password": "hunter"', '"password": "<secret-1>"'), Counter({"key": 1} if found else {})

    changed, done = change_text('{"password": "hunter", "to": "hunter"}', password)
    assert json.loads(changed) == {"password": "<secret-1>", "to": "hunter"}
    assert done == {"key": 1}


def test_text_that_only_looks_like_json_is_text() -> None:
    assert change_text("{cat", swap)[0] == '{"dog"'
    assert change_text("[cat] says", swap)[0] == '["dog"] says'


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["cat", "a\ncat", 'q"cat"', "\\cat"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def strings(value: Any) -> list[str]:
    """Every string in a value, names of fields too."""
    if isinstance(value, dict):
        return [*value, *(text for one in value.values() for text in strings(one))]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


def test_no_word_is_found_in_an_escape() -> None:
    def other_word(text: str) -> tuple[str, Counter[str]]:
        return text.replace("ca", "ab"), Counter({"word": text.count("ca")})

    text = r'["\u00cat", "\u001ca"]'
    assert change_text(text, other_word) == (text, Counter())


def test_a_name_tells_what_a_value_with_escapes_is() -> None:
    def password(text: str) -> tuple[str, Counter[str]]:
        return text.replace('"password": "Êt', '"password": "<secret-1>'), Counter()

    changed, _ = change_text(r'{"password": "\u00cat\n\"", "to": "\u00cat"}', password)
    assert changed == r'{"password": "<secret-1>\n\"", "to": "\u00cat"}'


@example(["Êt"], True)
@example(["\x1cat"], False)
@example(["\ud800cat"], True)
@given(st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=4), values, max_size=4), st.booleans())
def test_json_stays_json_and_only_strings_change(value: Any, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    changed, _ = change_text(text, swap)
    assert not [one for one in strings(json.loads(changed)) if "cat" in one]
    if not [one for one in strings(value) if "cat" in one]:
        assert changed == text
    changed.encode()
