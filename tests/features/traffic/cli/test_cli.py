from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.fixtures.cli import Luthier

from luthier.core.records.traffic import Exchange
from luthier.features.traffic import service as traffic
from luthier.features.traffic.policy import user_digest, user_key
from luthier.platform.home.context import Context


@pytest.fixture
def asked(home: Path) -> Path:
    """Three exchanges, one failed, one of a user."""
    with Context.open(home) as context:
        digest = user_digest(user_key(context, "default"), "anna")
        words = {"messages": ({"role": "user", "content": "[red]a\x1b[31m"},), "answer": "well"}
        for number, more in enumerate(
            [{"user_digest": digest}, {"status": 404, "error_code": "not_found"}, {"model": "other", **words}]
        ):
            values = {"exchange_id": f"c-{number}", "project_id": "default", "at": time.time() - 10 + number}
            traffic.record(context, Exchange(**({"model": "m", **values} | more)))
    return home


def test_the_policy_is_shown_and_changed(luthier: Luthier) -> None:
    assert "metadata: times, sizes" in luthier("traffic", "policy").out
    done = luthier("traffic", "policy", "--keep", "sampled", "--fraction", "0.25", "--keep-days", 7, "--json")
    expected = {"keep": "sampled", "fraction": 0.25, "mask_personal_data": True, "keep_days": 7}
    assert done.document == expected
    assert luthier("traffic", "policy", "--no-mask", "--json").document == expected | {"mask_personal_data": False}
    assert "stored unchanged" in luthier("traffic", "policy").out


@pytest.mark.parametrize(
    "wrong", ["--fraction=0", "--fraction=nan", "--keep=some", "--keep-days=0", "--keep-days=999999"]
)
def test_a_policy_that_cannot_be_is_refused(luthier: Luthier, wrong: str) -> None:
    assert luthier("traffic", "policy", wrong).code == 2
    assert luthier("traffic", "policy", "--json").document["keep"] == "metadata"


def test_exchanges_are_listed_and_counted(luthier: Luthier, asked: Path) -> None:
    document = luthier("traffic", "list", "--json").document
    assert [one["exchange_id"] for one in document["exchanges"]] == ["c-2", "c-1", "c-0"]
    assert (document["num_exchanges"], document["num_with_text"], document["num_failed"]) == (3, 1, 1)
    assert "well" not in str(document)
    text = luthier("traffic", "list", "--model", "m", "--limit", 1).out
    assert "404 not_found" in text
    assert "2 exchanges, 0 with text, 1 failed" in text
    assert luthier("traffic", "list", "--since", "soon").code == 2


def test_one_exchange_is_shown_and_its_words_do_nothing_to_the_terminal(luthier: Luthier, asked: Path) -> None:
    done = luthier("traffic", "show", "c-2")
    assert "[red]a" in done.out
    assert "\x1b" not in done.out
    assert "its text was not stored" in luthier("traffic", "show", "c-0").out
    assert luthier("traffic", "show", "c-9").code == 2


def test_a_user_is_forgotten(luthier: Luthier, asked: Path) -> None:
    assert "deleted: 1 exchange\n" in luthier("traffic", "forget-user", "anna").out
    assert luthier("traffic", "list", "--json").document["num_exchanges"] == 2
    assert luthier("traffic", "forget-user", "anna", "--json").document == {
        "num_exchanges": 0,
        "num_stored_completions": 0,
        "num_stored_responses": 0,
        "num_conversations": 0,
        "unreadable": [],
    }
    assert luthier("traffic", "forget-user", "anna", "--project", "none").code == 2
