"""`luthier models check`: one table, or one document."""

from __future__ import annotations

from pathlib import Path


def test_a_check_prints_one_table_and_its_end_says_whether_all_works(luthier, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    done = luthier("models", "check", tiny_model, "--json")
    document = done.document
    assert set(document) == {
        "model", "path", "architecture", "num_parameters", "context_length_tokens", "layers", "checks", "works",
    }  # fmt: skip
    keys = {"name", "status", "path", "reason", "remedy", "seconds", "measures"}
    assert document["checks"]
    assert all(set(check) == keys for check in document["checks"])
    assert document["works"] == all(check["status"] == "works" for check in document["checks"])
    assert done.code == (0 if document["works"] else 1)
    assert luthier("models", "check", tiny_model, "--rows", "none.jsonl").code == 2
