"""Some two hundred requests from the server's own OpenAPI document; benchmarks/schema_fuzz.py sends thousands."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from luthier.testing.schema_fuzz import fuzz, small_world


@pytest.mark.filterwarnings("ignore")  # schemathesis and hypothesis warn of what they draw
def test_answers_keep_to_the_document(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with small_world(tmp_path) as world:
        report = fuzz(world.app, world.headers, num_requests=200, known=world.known)
    assert report.failures == {}
    assert report.num_requests >= 200
    assert report.statuses[200] > 0
