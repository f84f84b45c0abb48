"""Cleaning undoes what an export did, and leaves alone what a person wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.text.clean_text import CONTROL_REMOVED, HTML_STRIPPED, MOJIBAKE_UNDONE, clean_text

PLAIN = [
    "Café à la crème",
    "“Hello” — it’s… fine",
    "Größe, Übung, Äpfel, Spaß“",
    "ÉTÉ À PARIS",
    "ação, IRMÃO, “MANHÃ”, «IRMû",
    "Úžasný den, môžem, příliš žluťoučký kůň",
    "zażółć gęślą jaźń",
    "İstanbul ığüşöç",
    "120 Å² und 3 Å³, ±5 Å±1, £5 © 2020, 20 °C, ½",
    "« café » été… voilà\u00a0» payé\u00a0€50",
    "Tiếng Việt là ngôn ngữ",
    "日本語のテキスト、한국어 텍스트",
    "Привет, мир; Ελληνικά γράμματα",
    "שלום עולם\u200f مرحبا بالعالم می\u200cخواهم",
    "नमस्ते दुनिया สวัสดี",
    "😀 ok 👍🏽 👩\u200d💻 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "x → y ≤ z ✓ █ ★",
    "if (a < b && c > d) { return List<String>(); }",
    "for i in range(3):\n\tprint(a[i] & 0xff, b<c, x <i> y)\r\n",
    "https://example.org/?a=1&b=2 AT&T R&D",
    "Write HTML with a <b>bold</b> word",
    "Use `<br>` or ```<p>a</p>```",
    "",
]


def wrongly_read(text: str, encoding: str) -> str:
    """The UTF-8 bytes of a text as an old encoding shows them; bytes it leaves open are control characters."""
    shown = []
    for byte in text.encode():
        try:
            shown.append(bytes([byte]).decode(encoding))
        except UnicodeDecodeError:
            shown.append(chr(byte))
    return "".join(shown)


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert clean_text(text) == (text, ())


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", [text for text in PLAIN if not text.isascii() and "IRMÃ" not in text])
def test_mojibake_is_undone_once_and_twice(text: str, encoding: str) -> None:
    once = wrongly_read(text, encoding)
    twice = wrongly_read(once, encoding)
    assert clean_text(once) == (text, (MOJIBAKE_UNDONE,))
    assert clean_text(twice) == (text, (MOJIBAKE_UNDONE,))


def test_mojibake_beside_other_scripts_is_undone_too() -> None:
    assert clean_text("CafÃ© 漢字 itâ€™s 20 Â°C") == ("Café 漢字 it’s 20 °C", (MOJIBAKE_UNDONE,))


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("a\x00b\x07c\x7f", "abc"),
        ("page one\x0cpage two\x0bthree", "page one\npage two\nthree"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\ufeffzero\u200b width\u2060 so\u00adft", "zero width soft"),
        ("safe\u202egnp.exe\u202c", "safegnp.exe"),
        ("tabs\tand\r\nlines\n", "tabs\tand\r\nlines\n"),
    ],
)
def test_control_characters_go(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == (clean, (CONTROL_REMOVED,) if dirty != clean else ())


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("<p>Hello <b>world</b></p><p>Bye</p>", "Hello world\nBye"),
        ("one<br/>two<br>\n<br>three&nbsp;four&#39;s", "one\ntwo\nthree four's"),
        ("Tom &amp; Jerry &amp;amp; co", "Tom & Jerry & co"),
        ("&lt;b&gt;bold&lt;/b&gt; caf&eacute; &#x263A;", "bold café ☺"),
        ('<a href="https://example.org">a link</a>, <span class="x">text</span>', "a link, text"),
        ("<ul><li>one</li><li>two</li></ul>", "one\ntwo"),
    ],
)
def test_html_left_overs_go(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == (clean, (HTML_STRIPPED,))


def test_what_was_lost_stays() -> None:
    assert clean_text("caf\ufffd") == ("caf\ufffd", ())


def test_everything_at_once_is_reported() -> None:
    assert clean_text("<p>CafÃ©\x00</p>") == ("Café", (MOJIBAKE_UNDONE, CONTROL_REMOVED, HTML_STRIPPED))


@pytest.mark.parametrize(
    "unit", ["<b", "&amp;", "Ã©", "<", "<p> \t", "<p ", "\x0c", "<b<b>>", "\x1b[", "&amp;amp;lt;b&gt;", " "]
)
def test_a_long_text_of_one_piece_does_not_hang(unit: str) -> None:
    text = unit * (500_000 // len(unit)) + " 漢"
    cleaned, done = clean_text(text)
    assert (cleaned == text) == (done == ())


DIRT = st.text(alphabet=st.sampled_from(list("aé ÃÂ©â€™\x9d<>/bp&;amplt#39\x00\x0c\x1b[m\n`Ð¸Å“")), max_size=60)


@given(st.one_of(st.text(max_size=60), DIRT))
def test_cleaning_is_idempotent_and_says_what_it_did(text: str) -> None:
    cleaned, done = clean_text(text)
    assert clean_text(cleaned) == (cleaned, ())
    assert (cleaned == text) == (done == ())


WORDS = st.lists(
    st.sampled_from(
        [*"aäöüßéèêëçñøåæœšžłđığ€£©°²½–—…”’»日本語한국어ПриветΩ😀<>&;/()", "if (a<b)", "&&", "x > 0", "\n"]
    ),
    max_size=40,
)


@given(WORDS)
def test_clean_text_is_never_changed(words: list[str]) -> None:
    text = " ".join(words)
    assert clean_text(text) == (text, ())


@given(st.text(alphabet=st.characters(min_codepoint=0xC0, max_codepoint=0x17F), min_size=4, max_size=30))
def test_western_words_come_back_from_windows_1252(letters: str) -> None:
    text = "le " + " ".join(f"m{letter}t" for letter in letters)
    assert clean_text(wrongly_read(text, "cp1252"))[0] == clean_text(text)[0] == text
