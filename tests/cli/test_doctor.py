"""`luthier doctor`."""

from __future__ import annotations

from pathlib import Path

from tests.vacuous import nonempty


def test_doctor(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    document = luthier("doctor", "--json").document
    assert document["home"] == str(home)
    assert document["num_cores"] >= 1
    text = luthier("doctor").out
    for words in ("processor", "precision", document["precision"], "free disk", str(home), "torch"):
        assert words in text
    for finding in nonempty(document["warnings"]):
        # how busy the machine is changes from one measurement to the next
        assert finding["message"] in text or finding["message"].startswith("other processes used ")
