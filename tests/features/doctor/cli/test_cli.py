"""`luthier doctor`."""

from __future__ import annotations

from pathlib import Path

from luthier.core.system.extras import EXTRAS


def test_doctor(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    document = luthier("doctor", "--json").document
    assert document["home"] == str(home)
    assert document["num_cores"] >= 1
    assert set(document["extras"]) == set(EXTRAS)
    text = luthier("doctor").out
    for words in ("processor", "precision", document["precision"], "free disk", str(home), "torch"):
        assert words in text
    messages = [finding["message"] for finding in document["warnings"]]
    # how busy the machine is changes from one measurement to the next
    assert [one for one in messages if one not in text and not one.startswith("other processes used ")] == []
