"""Markdown, HTML, text and mail."""

from __future__ import annotations

from email import policy
from email.message import EmailMessage, MIMEPart
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.ml.data.readers import email, html, markdown, text
from luthier.ml.data.readers.document import Document, Section, well_formed
from luthier.ml.data.readers.markdown import sections_of
from luthier.ml.data.readers.text import decode

PROSE = "Some sentence about things that are. " * 12


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_markdown_headings_make_a_path(tmp_path: Path) -> None:
    source = "---\ntitle: x\n---\nIntro\n\n# A\none\n## B ##\ntwo\n\n```\n# no heading\n```\n"
    source += "# C\n\nUnder\n-----\nthree\n\n# Empty\n"
    found = markdown.read(write(tmp_path / "a.md", source))
    assert found.sections == (
        Section("Intro"),
        Section("one", None, ("A",)),
        Section("two\n\n```\n# no heading\n```", None, ("A", "B")),
        Section("three", None, ("C", "Under")),
        Section("Empty"),
    )
    assert found.warnings == ("a front matter of 3 lines was left out",)


@given(st.text(alphabet="#=-` a1.\n~", max_size=120))
def test_markdown_loses_no_word(source: str) -> None:
    found = sections_of(source)
    kept = " ".join(word for section in found for word in (*section.headings, section.text))
    assert set("a1") & set(source) <= set(kept)


def test_html_without_its_menus(tmp_path: Path) -> None:
    article = f"<article><h1>Head</h1><p>{PROSE}</p><h2>Sub</h2><p>{PROSE}</p></article>"
    page = f"<html><body><nav>menu one two</nav>{article}</body></html>"
    found = html.read(write(tmp_path / "a.html", page))
    assert [section.headings for section in found.sections] == [("Head",), ("Head", "Sub")]
    assert "menu" not in "".join(section.text for section in found.sections)


def test_html_says_how_much_it_left_out(tmp_path: Path) -> None:
    menu = "".join(f"<li><a href='/{n}'>menu entry number {n}</a></li>" for n in range(300))
    page = f"<html><body><nav><ul>{menu}</ul></nav><article><p>{PROSE}</p></article></body></html>"
    (warning,) = html.read(write(tmp_path / "a.html", page)).warnings
    assert "of the page's text was left out" in warning


GERMAN = "Die Größe der Tür übertrifft jede Erwartung – „schön“, sagte Ännchen für 5 €."

_META = '<meta http-equiv="Content-Type" content="text/html; charset=NAME">'


@pytest.mark.parametrize(
    ("charset", "codec", "words"),
    [
        ("iso-8859-1", "cp1252", GERMAN),
        ("windows-1252", "cp1252", GERMAN),
        ("ISO-8859-15", "iso8859-15", "Œuvre à 5 €, déjà vu à l’œil nu.".replace("’", "'")),
        ("windows-1251", "cp1251", "Размер двери превосходит все ожидания."),
        ("iso-8859-2", "iso8859-2", "Zażółć gęślą jaźń."),
        ("Shift_JIS", "cp932", "扉の大きさは予想以上です。"),
        ("iso-2022-jp", "iso2022_jp", "扉の大きさは予想以上です。"),
        ("utf-8", "utf-8", GERMAN),
        ("iso-8859-1", "utf-8", GERMAN),
    ],
)
@pytest.mark.parametrize("meta", ["<meta charset='NAME'>", _META])
def test_a_page_is_read_in_the_character_set_that_it_states(
    tmp_path: Path, charset: str, codec: str, words: str, meta: str
) -> None:
    head = f"<head>{meta.replace('NAME', charset)}<title>x</title></head>"
    page = f"<html>{head}<body><article><p>{PROSE}</p><p>{words}</p></article></body></html>"
    found = html.read(write(tmp_path / "a.html", page.encode(codec)))
    assert words in found.sections[0].text
    assert not [warning for warning in found.warnings if "character" in warning]


def test_a_page_says_what_was_guessed_or_lost(tmp_path: Path) -> None:
    body = f"<body><article><p>{PROSE}</p><p>Größe der Türen und schöne Gärten.</p></article></body>"
    warnings = html.read(write(tmp_path / "a.html", f"<html>{body}</html>".encode("cp1252"))).warnings
    assert any("its character set is not stated" in warning for warning in warnings)
    stated = f"<html><head><meta charset='utf-8'></head>{body}</html>".encode()
    damaged = write(tmp_path / "b.html", stated.replace("ö".encode(), b"\xf6", 1))
    found = html.read(damaged)
    assert "Größe der Türen und schöne Gärten." in found.sections[0].text
    assert any("1 bytes are not UTF-8" in warning for warning in found.warnings)


@pytest.mark.parametrize("page", ["<html><body></body></html>", "<div>" * 20000 + "</div>" * 20000])
def test_html_without_text(tmp_path: Path, page: str) -> None:
    with pytest.raises(DataError, match="no text in the page"):
        html.read(write(tmp_path / "a.html", page))


def test_html_nested_without_end_is_read_or_named(tmp_path: Path) -> None:
    page = "<div>" * 20000 + "deep down there is text" + "</div>" * 20000
    try:
        found = html.read(write(tmp_path / "a.html", page))
    except (DataError, RecursionError):
        return
    assert "deep down" in found.sections[0].text


def test_text_in_utf_8(tmp_path: Path) -> None:
    assert text.read(write(tmp_path / "a.txt", "\ufeffdéjà\r\nvu")) == Document((Section("déjà\nvu"),))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_byte_order_marks(encoding: str) -> None:
    assert decode("déjà vu 😀".encode(encoding)) == ("déjà vu 😀", ())


def test_mixed_encodings_come_out_right_and_are_told() -> None:
    data = "first é\n".encode() + "second é “x”\n".encode("cp1252") + "third ü\n".encode()
    assert decode(data) == (
        "first é\nsecond é “x”\nthird ü\n",
        ("1 of 3 lines are not UTF-8, read as Windows-1252 (first: line 2)",),
    )
    assert "1 bytes that are not characters there" in decode(b"a\x81\xff")[1][0]


@pytest.mark.parametrize("data", [b"a\0b", bytes(range(1, 9)) * 20, b"\xff\xfea"])
def test_binary_is_no_text(data: bytes) -> None:
    with pytest.raises(DataError):
        decode(data)


def test_mail(tmp_path: Path) -> None:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = "Grüße aus\tBerlin", "Ann <ann@example.org>", "bob@example.org"
    mail.set_content("Dear Bob,\n\nall is well.\n")
    mail.add_alternative("<p>other</p>", subtype="html")
    mail.add_attachment(b"123", maintype="application", subtype="pdf", filename="bill.pdf")
    found = email.read(write(tmp_path / "a.eml", mail.as_bytes()))
    assert found.sections == (
        Section("From: Ann <ann@example.org>\nTo: bob@example.org", None, ("Grüße aus Berlin",)),
        Section("Dear Bob,\n\nall is well.\n", None, ("Grüße aus Berlin",)),
    )
    assert found.warnings == ("1 attachment was not read: bill.pdf",)


def test_mail_in_html_only(tmp_path: Path) -> None:
    mail = EmailMessage()
    mail["Subject"] = "Hi"
    mail.set_content(f"<html><body><h1>News</h1><p>{PROSE}</p></body></html>", subtype="html")
    found = email.read(write(tmp_path / "a.eml", mail.as_bytes()))
    assert found.sections[0].headings == ("Hi", "News")


def _part(subtype: str, text: str, **parameters: str) -> MIMEPart:
    part = MIMEPart(policy=policy.default)
    part.set_content(text, subtype=subtype, **parameters)  # type: ignore[arg-type]
    return part


@pytest.mark.parametrize("above", ["plain", "html"])
def test_text_below_an_attachment_is_read(tmp_path: Path, above: str) -> None:
    """As Apple Mail writes it, and servers that put a notice below every mail."""
    mail = EmailMessage()
    mail["Subject"] = "Hi"
    mail.make_mixed()
    said = "The price is 5." if above == "plain" else "<p>The price is 5.</p>"
    mail.attach(_part(above, said))
    mail.add_attachment(b"123", maintype="application", subtype="pdf", filename="bill.pdf")
    mail.attach(_part("plain", "Regards, Ann"))
    mail.attach(_part("plain", "a;b", disposition="attachment", filename="rows.csv"))
    found = email.read(write(tmp_path / "a.eml", mail.as_bytes()))
    assert [section.text.strip() for section in found.sections] == ["The price is 5.", "Regards, Ann"]
    assert found.warnings == ("2 attachments were not read: bill.pdf, rows.csv",)


def test_a_page_with_pictures_inside_of_an_alternative_is_one_text(tmp_path: Path) -> None:
    mail = EmailMessage()
    mail["Subject"] = "Hi"
    mail.set_content("See the page.")
    mail.add_alternative(f"<p>{PROSE * 9}</p><img src='cid:one'>", subtype="html")
    mail.get_payload()[1].add_related(b"123", "image", "png", cid="<one>")  # type: ignore[union-attr]
    mail.add_attachment(b"123", maintype="application", subtype="pdf", filename="bill.pdf")
    found = email.read(write(tmp_path / "a.eml", mail.as_bytes()))
    assert [" ".join(section.text.split()) for section in found.sections] == [" ".join((PROSE * 9).split())]
    assert found.warnings == (
        "its plain text is only a part of what the HTML says, which was read instead",
        "1 pictures: only their names or alternative texts were read",
        "1 attachment was not read: bill.pdf",
    )


PRICES = "Schöne Grüße, die Übersicht kostet 5 €."


@pytest.mark.parametrize(
    ("stated", "written", "noticed"),
    [
        ("", "utf-8", ""),
        ("", "cp1252", "1 of 1 lines are not UTF-8, read as Windows-1252 (first: line 1)"),
        ("; charset=us-ascii", "utf-8", ""),
        ("; charset=utf-8", "cp1252", "1 of 1 lines are not UTF-8, read as Windows-1252 (first: line 1)"),
        ("; charset=iso-8859-1", "cp1252", ""),
        ("; charset=windows-1252", "cp1252", ""),
        ("; charset=iso-8859-15", "iso-8859-15", ""),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "html"])
def test_a_mail_keeps_its_letters_whatever_its_program_says_of_them(
    tmp_path: Path, stated: str, written: str, noticed: str, kind: str
) -> None:
    head = f"Subject: x\nContent-Type: text/{kind}{stated}\nContent-Transfer-Encoding: 8bit\n\n".encode()
    found = email.read(write(tmp_path / "a.eml", head + PRICES.encode(written) + b"\n"))
    assert found.sections[-1].text.strip() == PRICES
    assert found.warnings == ((noticed,) if noticed else ())


def test_bytes_of_a_mail_that_are_no_character_are_counted(tmp_path: Path) -> None:
    head = b"Subject: x\nContent-Type: text/plain; charset=shift_jis\nContent-Transfer-Encoding: 8bit\n\n"
    found = email.read(write(tmp_path / "a.eml", head + "日本".encode("shift_jis") + b"\xff\n"))
    assert found.sections[-1].text == "日本\ufffd\n"
    assert found.warnings == ("1 bytes that are not characters in shift_jis became U+FFFD",)


@pytest.mark.parametrize(
    "data", [b"just some text\n", b"Subject: x\n\n", b"Subject: x\nContent-Type: text/plain; charset=nope\n\ny"]
)
def test_what_is_no_mail_or_has_no_text(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError):
        email.read(write(tmp_path / "a.eml", data))


def test_what_is_no_character_is_replaced_and_counted() -> None:
    found = well_formed(Document((Section("a\ud800b\0", None, ("two\nlines",)),)))
    assert found.sections == (Section("a\ufffdb\ufffd", None, ("two lines",)),)
    assert found.warnings == ("2 characters that are none were replaced by U+FFFD",)


def test_soft_hyphens_are_no_part_of_words() -> None:
    found = well_formed(Document((Section("Donau\u00addampf\u00adschiff"),)))
    assert (found.sections[0].text, found.warnings) == ("Donaudampfschiff", ())


STUB = "View this mail in your browser: https://example.org/1\n"


@pytest.mark.parametrize(("plain", "is_stub"), [(STUB, True), (" \n", True), (PROSE * 2, False)])
def test_the_html_of_a_mail_is_read_where_its_plain_text_is_a_stub(tmp_path: Path, plain: str, is_stub: bool) -> None:
    mail = EmailMessage()
    mail["Subject"] = "News"
    mail.set_content(plain)
    mail.add_alternative(f"<html><body><p>{PROSE}</p><p>{PROSE}</p></body></html>", subtype="html")
    found = email.read(write(tmp_path / "a.eml", mail.as_bytes()))
    assert (STUB.strip() in found.sections[-1].text, PROSE.split()[0] in found.sections[-1].text) == (False, True)
    assert len(found.warnings) == is_stub


@pytest.mark.parametrize(("more", "text"), [("", "One long line\nof text."), ("; delsp=yes", "One longline\nof text.")])
def test_lines_that_a_mail_program_has_wrapped_are_joined(tmp_path: Path, more: str, text: str) -> None:
    head = f"Subject: x\nContent-Type: text/plain; format=flowed{more}\n\n"
    found = email.read(write(tmp_path / "a.eml", f"{head}One long \nline\nof text.\n> quoted \n> too\n".encode()))
    assert found.sections[-1].text == f"{text}\n> quoted \n> too\n"


def test_a_table_of_a_mail_keeps_its_columns(tmp_path: Path) -> None:
    rows = '<tr><th rowspan="2">Kind</th><th colspan="2">2026</th></tr><tr><th>Q1</th><th>Q2</th></tr>'
    rows += '<tr><td>Oak</td><td rowspan="9">7</td><td>8</td></tr><tr><td>Ash</td><td>9</td></tr>'
    head = b"Subject: x\nContent-Type: text/html\n\n"
    found = email.read(write(tmp_path / "a.eml", head + f"<table>{rows}</table>".encode()))
    lines = [" ".join(line.split()) for line in found.sections[-1].text.splitlines()]
    assert lines[-3:] == ["| Kind | Q1 | Q2 |", "| Oak | 7 | 8 |", "| Ash | 7 | 9 |"]
