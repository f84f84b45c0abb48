"""Mail archives: where mails begin, which belong together, whose the archive is, and what a person wrote."""

from __future__ import annotations

import io
import json
import mailbox
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.ml.data.conversations.exports import Converted, convert
from luthier.ml.data.conversations.mbox import mail_spans, unquoted
from luthier.ml.data.conversations.quoted_text import own_text

_SHOP = "support@shop.example"
_ANNA = "anna@home.example"


def _mail(
    sender: str, to: str, text: str, own: str, answers: str = "", *, hour: int = 8, subject: str = "Kaputter Zähler"
) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = sender, to, subject
    mail["Date"] = f"Tue, 05 Mar 2024 {hour:02}:00:00 +0100"
    mail["Message-ID"] = f"<{own}@x>"
    if answers:
        mail["In-Reply-To"] = f"<{answers}@x>"
        mail["References"] = f"<{answers}@x>"
    mail.set_content(text)
    return mail


def _archive(folder: Path, *mails: EmailMessage | bytes) -> Path:
    path = folder / "sent.mbox"
    archive = mailbox.mbox(path)
    for mail in mails:
        archive.add(mail)
    archive.close()
    return path


def _rows(path: Path, *chosen: str) -> tuple[list[dict[str, Any]], Converted]:
    output = path.with_name("rows.jsonl")
    done = convert(path, "mbox", path.name, output, chosen)
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()], done


def _thread() -> list[EmailMessage]:
    question = _mail(f"Anna Öz <{_ANNA}>", _SHOP, "Der Zähler zeigt nichts.\n\nGruß\nAnna\n", "1")
    reply = (
        "Bitte die Batterie tauschen.\n\n-- \nShop GmbH, Tel. 123\n\n"
        "Am 05.03.2024 um 08:00 schrieb Anna Öz:\n> Der Zähler zeigt nichts.\n>\n> Gruß\n> Anna\n"
    )
    answer = _mail(f"Shop <{_SHOP}>", _ANNA, reply, "2", "1", hour=9, subject="AW: Kaputter Zähler")
    thanks = _mail(_ANNA, _SHOP, "Danke!\n\nVon meinem iPhone gesendet\n", "3", "2", hour=10)
    return [question, answer, thanks]


def test_a_thread_is_a_row_in_which_the_own_address_answers_without_quotations_and_signatures(tmp_path: Path) -> None:
    other = [
        _mail("ben@b.example", _SHOP, "Wann liefern Sie?", "5"),
        _mail(_SHOP, "ben@b.example", "Morgen.", "6", "5", hour=12),
    ]
    question, answer, thanks = _thread()
    # In an archive the mails of a thread lie in any order.
    rows, done = _rows(_archive(tmp_path, answer, other[0], thanks, question, other[1]))
    assert [row["messages"] for row in rows] == [
        [
            {"role": "user", "content": "Der Zähler zeigt nichts.\n\nGruß\nAnna"},
            {"role": "assistant", "content": "Bitte die Batterie tauschen."},
        ],
        [{"role": "user", "content": "Wann liefern Sie?"}, {"role": "assistant", "content": "Morgen."}],
    ]
    assert rows[0]["title"] == "Kaputter Zähler"
    assert done.chosen == (_SHOP, "@shop.example")
    assert done.tally.left_out_summary() == "messages at the end that nobody answered: 1"
    assert "messages of the assistant: support@shop.example 2; of the user" in done.tally.roles_summary()


def test_a_mail_that_was_passed_on_keeps_its_text(tmp_path: Path) -> None:
    passed_on = "Können Sie helfen?\n\n-----Ursprüngliche Nachricht-----\nVon: Ben\n\nDer Zähler ist kaputt.\n"
    mails = [
        _mail(_ANNA, _SHOP, passed_on, "1", "0", subject="WG: Zähler"),
        _mail(_SHOP, _ANNA, "Ja.", "2", "1", hour=9),
    ]
    rows, _ = _rows(_archive(tmp_path, *mails), _SHOP)
    assert rows[0]["messages"][0]["content"] == passed_on.strip()


def test_a_firm_with_several_addresses_is_found_by_its_domain(tmp_path: Path) -> None:
    mails = []
    for number in range(4):
        own, customer = f"desk{number}@shop.example", f"c{number}@gmail.com"
        mails.append(_mail(customer, own, "Frage?", f"q{number}"))
        mails.append(_mail(own, customer, "Antwort.", f"a{number}", f"q{number}", hour=9))
    rows, done = _rows(_archive(tmp_path, *mails))
    assert (done.chosen, len(rows)) == (("@shop.example",), 4)


def test_a_text_of_megabytes_is_left_out_and_counted(tmp_path: Path) -> None:
    question, answer, _ = _thread()
    question.set_content(("x" * 70 + "\n") * ((5 << 20) // 70))
    with pytest.raises(DataError, match=r"mails with a text of more than 4 MiB: 1"):
        _rows(_archive(tmp_path, question, answer), _SHOP)


def test_who_answers_can_be_chosen(tmp_path: Path) -> None:
    turned = [
        _mail(_SHOP, _ANNA, "Haben Sie Zeit?", "1"),
        _mail(_ANNA, _SHOP, "Ja, am Montag.", "2", "1", hour=9),
    ]
    rows, done = _rows(_archive(tmp_path, *turned), "@HOME.example", "nobdy@shop.example")
    assert done.unmatched == ("nobdy@shop.example",)
    assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "assistant"]


def test_an_archive_of_windows_is_read_alike(tmp_path: Path) -> None:
    path = _archive(tmp_path, *_thread())
    rows, _ = _rows(path, _SHOP)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert _rows(path, _SHOP)[0] == rows


def test_a_mail_without_a_date_is_placed_by_when_it_was_received(tmp_path: Path) -> None:
    question, answer, _ = _thread()
    del answer["Date"]
    answer["Received"] = "from a by b; Tue, 05 Mar 2024 09:00:00 +0100"
    rows, _ = _rows(_archive(tmp_path, answer, question), _SHOP)
    assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "assistant"]


def test_two_people_who_write_to_each_other_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"who answers in sent\.mbox is not clear"):
        _rows(_archive(tmp_path, *_thread()))


def test_automatic_mails_drafts_and_copies_are_left_out_and_counted(tmp_path: Path) -> None:
    question, answer, thanks = _thread()
    away = _mail(_SHOP, _ANNA, "Ich bin im Urlaub.", "7", "1", hour=8)
    away["Auto-Submitted"] = "auto-replied"
    draft = _mail(_SHOP, _ANNA, "Angefangen", "8", "3", hour=11)
    draft["X-Gmail-Labels"] = "=?UTF-8?Q?Entw=C3=BCrfe,Ge=C3=B6ffnet?="
    rows, done = _rows(_archive(tmp_path, question, away, answer, answer, thanks, draft), _SHOP)
    assert len(rows) == 1
    assert dict(done.tally.parts_left_out) == {
        "automatic mails": 1,
        "drafts": 1,
        "mails that the archive has twice": 1,
        "messages at the end that nobody answered": 1,
    }


def test_a_line_that_begins_with_from_is_text_and_loses_the_sign_of_the_archive(tmp_path: Path) -> None:
    text = "Guten Tag\n\nFrom the shop in Bonn came nothing.\n"
    rows, _ = _rows(
        _archive(tmp_path, _mail(_ANNA, _SHOP, text, "1"), _mail(_SHOP, _ANNA, "Sofort.", "2", "1", hour=9)), _SHOP
    )
    assert rows[0]["messages"][0]["content"] == text.strip()
    # As programs write it that do not quote.
    plain = (tmp_path / "sent.mbox").read_bytes().replace(b">From the", b"From the")
    (tmp_path / "sent.mbox").write_bytes(plain)
    rows, _ = _rows(tmp_path / "sent.mbox", _SHOP)
    assert rows[0]["messages"][0]["content"] == text.strip()


def test_a_mail_in_another_character_set_and_as_html_is_read(tmp_path: Path) -> None:
    question = _mail(_ANNA, _SHOP, "x", "1")
    question.set_content("Grüße für 5 €", charset="cp1252")
    answer = _mail(_SHOP, _ANNA, "x", "2", "1", hour=9)
    answer.set_content(
        "<p>Gern, <b>morgen</b>.</p><p>On Tue, 5 Mar 2024 at 08:00 Anna wrote:</p><blockquote>Grüße</blockquote>",
        subtype="html",
    )
    answer.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="bill.pdf")
    rows, done = _rows(_archive(tmp_path, question, answer), _SHOP)
    assert [turn["content"] for turn in rows[0]["messages"]] == ["Grüße für 5 €", "Gern, **morgen**."]
    assert done.tally.parts_left_out["attachments"] == 1


def test_a_damaged_mail_does_not_stop_the_others(tmp_path: Path) -> None:
    bad = b"From: <a@b.example\nMessage-ID: <bad@x>\nContent-Type: text/plain; charset=nonsense\n\ntext\n"
    rows, done = _rows(_archive(tmp_path, bad, *_thread()), _SHOP)
    assert len(rows) == 1
    assert done.tally.parts_left_out["mails that cannot be read"] == 1


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mbox"
    path.write_text("no mail\n")
    with pytest.raises(DataError, match="no mail archive"):
        _rows(path, _SHOP)


@given(
    st.lists(
        st.lists(st.sampled_from(["", "a", "From here", ">From there", ">>From", " From"]), max_size=6), max_size=5
    )
)
def test_mails_that_were_quoted_come_back_as_they_were(mails: list[list[str]]) -> None:
    bodies = ["".join(f"{line}\n" for line in lines).encode() for lines in mails]
    archive = b"".join(b"From a@x Tue Mar  5 08:00:00 2024\n\n" + _quoted(body) + b"\n" for body in bodies)
    file = io.BytesIO(archive)
    found = [unquoted(archive[begin : begin + size]) for begin, size in mail_spans(file)]
    assert found == [b"\n" + body + b"\n" for body in bodies]


def _quoted(body: bytes) -> bytes:
    """As mboxrd has it."""
    lines = body.splitlines(keepends=True)
    return b"".join(b">" + line if line.lstrip(b">").startswith(b"From ") else line for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ja.\n\n-----Original Message-----\nFrom: A\nSent: B\n\nFrage?", "Ja."),
        ("Ja.\n\n________________________________\nVon: A\nGesendet: Montag\nAn: B\nBetreff: C\n\nFrage?", "Ja."),
        ("Ja.\n\n**From:** A\n**Sent:** B\n**To:** C\n**Subject:** D\n\nFrage?", "Ja."),
        ("> Frage?\n\nJa.", "Ja."),
        ("On Mon, 4 Mar 2024, Anna wrote:\n> Frage?\n\nJa.", "Ja."),
        ("> Eins?\nJa.\n> Zwei?\nNein.", "> Eins?\nJa.\n> Zwei?\nNein."),
        ("Ja.\n\nOn Mon, 4 Mar 2024 at 10:00, Anna Berg <anna@x.example>\nwrote:\n\n> Frage?\n", "Ja."),
        ("Ja.\n\nAnna Berg <anna@x.example> schrieb am 4. März 2024 um 10:00:\n\nFrage?", "Ja."),
        ("Von: hier bis dort sind es 5 km.", "Von: hier bis dort sind es 5 km."),
        ("Am Montag schrieb ich Ihnen das:\nNichts kam an.", "Am Montag schrieb ich Ihnen das:\nNichts kam an."),
        ("##- Bitte über dieser Zeile antworten -##\nalt", ""),
        ("A -- B\n--\nAnna", "A -- B"),
        ("", ""),
        ("-----Original Message-----\nFrom: A\n\nFrage?", "-----Original Message-----\nFrom: A\n\nFrage?"),
        ("a" * 2000 + " wrote: x@y:\nb", "a" * 2000 + " wrote: x@y:\nb"),
    ],
)
def test_own_text_is_what_the_author_wrote(text: str, expected: str) -> None:
    assert own_text(text) == expected


@given(st.text(alphabet="> -\nFrom:abc", max_size=80))
def test_own_text_adds_nothing(text: str) -> None:
    left = iter(text.replace("\r\n", "\n").split("\n"))
    assert all(any(line.strip() == one.strip() for one in left) for line in own_text(text).split("\n") if line.strip())
