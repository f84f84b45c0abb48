"""Digests name content, not order."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.ids import canonical_json, sha256_document, sha256_file


def test_known_value(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_order_of_keys_does_not_count() -> None:
    assert sha256_document({"a": 1, "b": [1, 2]}) == sha256_document({"b": [1, 2], "a": 1})
    assert sha256_document([1, 2]) != sha256_document([2, 1])


def test_no_number_that_json_does_not_know() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"loss": float("nan")})
