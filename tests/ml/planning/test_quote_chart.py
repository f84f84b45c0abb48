"""Quotes as pictures: the words are on them, and files appear whole or not at all."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from tests.ml.planning.shapes import accelerator, run_of

from luthier.core.errors import RequestError
from luthier.ml.planning.devices import load_prices
from luthier.ml.planning.quote import compare, make_quote
from luthier.ml.planning.quote_chart import write_memory_chart, write_options_chart

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_memory_chart_names_every_part_and_the_device(tmp_path: Path) -> None:
    quote = make_quote(run_of, accelerator(24), longest_tokens=1000, num_rows=1, num_tokens=1, prices=load_prices())
    path = tmp_path / "memory.svg"
    write_memory_chart(path, quote)
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext())
    for words in ("weights", "activations", "optimizer", "all together", "does not fit", "a100-80g: 25.8"):
        assert words in text.replace("\u00a0", " ")
    write_memory_chart(tmp_path / "memory.png", quote)
    assert (tmp_path / "memory.png").read_bytes().startswith(PNG)


def test_the_chart_of_options_names_method_and_device_and_says_how_many_there_are(tmp_path: Path) -> None:
    devices = [accelerator(80), accelerator(24, name="rtx4090")]
    options = compare(run_of, devices, longest_tokens=1000, prices=load_prices())
    path = tmp_path / "options.svg"
    write_options_chart(path, options)
    text = "".join(ET.fromstring(path.read_text(encoding="utf-8")).itertext())
    num_fitting = sum(option.fits for option in options)
    assert f"{num_fitting} of {num_fitting} that fit, of 8 compared" in text
    assert "QLoRA, rtx4090" in text
    assert "full fine-tuning, rtx4090" not in text


def test_where_nothing_fits_the_chart_says_so(tmp_path: Path) -> None:
    options = compare(run_of, [accelerator(2)], longest_tokens=1000, prices=load_prices())
    write_options_chart(tmp_path / "none.svg", options)
    assert "0 of 0 that fit, of 4 compared" in (tmp_path / "none.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["chart.pdf", "chart", "folder.svg", "nowhere/chart.svg"])
def test_a_place_that_cannot_hold_a_chart_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.svg").mkdir()
    options = compare(run_of, [accelerator(80)], longest_tokens=1000, prices=load_prices())
    with pytest.raises(RequestError, match="chart"):
        write_options_chart(tmp_path / name, options)
