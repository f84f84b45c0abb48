"""Quotes in words."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from luthier.core.estimate import Estimate
from luthier.core.results.cost import Change, Device, Layout, LayoutOption, Option, Quote
from luthier.features.planning.format import plan_lines, quote_lines, show_memory, show_options, show_quote
from luthier.platform.cli import figures
from luthier.testing.records import make_plan, make_quote


def text_of(show: object, *what: object, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    show(Console(file=file, width=10_000, markup=False, emoji=False, highlight=False), *what)  # type: ignore[operator]
    return raw.getvalue().decode(encoding)


def not_fitting(*changes: Change) -> Quote:
    quote = make_quote()
    return quote.model_copy(
        update={"prediction": quote.prediction.model_copy(update={"fits": False}), "changes": changes}
    )


def change(ask: str) -> Change:
    one = Estimate(value=1.0, low=0.5, high=2.0)
    return Change(kind="micro_batch", words="smaller ones", ask=ask, hours=one, usd=one, peak_memory_bytes=one)


def test_three_lines_before_training_say_time_memory_and_money() -> None:
    lines = [line.strip() for line in quote_lines(make_quote())]
    assert [line.split()[0] for line in lines] == ["predicted", "memory", "money"]
    assert "20 s (13 to 30 s): 10 steps of 2 s (1.3 to 3 s)" in lines[0]
    assert "no probe yet" in lines[0]
    assert "1.93 GiB (1.29 to 2.89 GiB) of 8 GiB" in lines[1]
    assert "0.0033 USD" in lines[2]
    assert "at 0.60 USD (0.30 to 0.90 USD) an hour (an assumption, 2026-11-25)" in lines[2]
    assert "(probed)" in quote_lines(make_quote(is_calibrated=True))[0]
    assert len(plan_lines("run-1", make_plan())) == 6


def test_the_precision_is_that_of_the_device_of_the_quote() -> None:
    def precision(device: Device | None) -> str:
        (line,) = [line for line in plan_lines("", make_plan(), device) if line.startswith("  precision")]
        return line

    here = make_quote().prediction.device
    gpu = here.model_copy(update={"is_cpu": False, "title": "A100 80 GB"})
    assert precision(here) == precision(None)
    assert precision(None).startswith("  precision  float32: ")
    assert precision(gpu).startswith("  precision  bfloat16 on A100 80 GB; on this machine float32: ")


def test_where_nothing_is_known_the_reason_stands_there() -> None:
    assert quote_lines("no prediction: why") == ["  no prediction: why"]


def test_what_does_not_fit_is_said_with_the_first_that_would() -> None:
    assert "does not fit; try smaller ones: --set x=1" in quote_lines(not_fitting(change("--set x=1")))[1]
    assert quote_lines(not_fitting())[1].endswith("does not fit")
    shown = text_of(show_quote, not_fitting(change("--set x=1"), change("")))
    assert "1. smaller ones: 1 h 00 min (30 min 00 s to 2 h 00 min), 1.00 USD (0.50 to 2.00 USD)" in shown
    assert "     --set x=1\n" in shown
    assert "no known change makes it fit" in text_of(show_quote, not_fitting())


def test_layouts_stand_below_the_money_with_speed_memory_and_who_runs_them() -> None:
    def option(title: str, words: str, *, fits: bool, runs_here: bool) -> LayoutOption:
        rate, memory = (Estimate(value=value, low=value / 2, high=value * 2) for value in (1000.0, 2.0**30))
        return LayoutOption(
            title=title,
            layout=Layout(),
            data_parallel=8,
            is_sharded=False,
            tokens_per_second=rate,
            peak_memory_bytes=memory,
            fits=fits,
            runs_here=runs_here,
            words=words,
        )

    found = (
        option("dp 8 (DDP)", "luthier train RECIPE --devices 8", fits=False, runs_here=True),
        option("tp 8", "Luthier does not run this layout itself: why", fits=True, runs_here=False),
    )
    quote = not_fitting(change("--set x=1")).model_copy(update={"layouts": found})
    lines = quote_lines(quote)
    assert [line.split()[0] for line in lines] == ["predicted", "memory", "money", "layout", "layout"]
    assert "does not fit; try smaller ones" in lines[1]
    assert "dp 8 (DDP): 1000 tokens/s (500 to 2000 tokens/s), 1 GiB (512 MiB to 2 GiB)" in lines[3]
    assert lines[3].endswith(" a device (does not fit); luthier train RECIPE --devices 8")
    assert lines[4].endswith(" a device; Luthier does not run this layout itself: why")
    assert "layout" in text_of(show_quote, quote)
    assert quote.as_json()["layouts"][1]["runs_here"] is False
    assert quote.as_json()["layouts"][0]["tokens_per_second_low"] == 500


def test_bars_are_as_long_as_their_share_and_fit_any_terminal() -> None:
    bars = {line.split()[0]: line.count("\u2588") for line in text_of(show_memory, make_quote()).splitlines()[1:]}
    assert bars["activations"] == 32
    assert bars["runtime"] == 24
    assert "generation" not in bars
    assert text_of(show_memory, make_quote(), encoding="ascii").count("#") > 60


def test_options_beyond_twenty_and_those_that_do_not_fit_are_counted() -> None:
    here = make_quote().prediction
    elsewhere = here.model_copy(update={"device": here.device.model_copy(update={"is_cpu": False})})

    def option(number: int, *, fits: bool = True) -> Option:
        return Option(method="LoRA", device=f"d{number}", fits=fits, needs="", prediction=elsewhere)

    this_machine = Option(method="LoRA", device="d99", fits=True, needs="", prediction=here)
    fitting = [*map(option, range(23)), this_machine]
    shown = text_of(show_options, [*fitting, option(90, fits=False), option(91, fits=False)])
    assert "d19" in shown
    assert "d20" not in shown
    assert "d99" in shown
    assert "3 more expensive ones that fit: see --json" in shown
    assert "LoRA does not fit on d90, d91" in shown


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0, "0 USD"), (3e-7, "<0.0001 USD"), (0.0034, "0.0034 USD"), (0.23, "0.23 USD"), (18.777, "18.78 USD")],
)
def test_money_is_never_rounded_to_nothing(amount: float, text: str) -> None:
    assert figures.usd(amount) == text
    assert figures.usd(8000.4) == "8,000 USD"


def test_a_range_tells_its_unit_once_where_it_can() -> None:
    assert figures.between(Estimate(value=42, low=30, high=62), figures.duration) == "42 s (30 s to 1 min 02 s)"
    assert figures.between(Estimate(value=42, low=30, high=59), figures.duration) == "42 s (30 to 59 s)"
    assert figures.between(Estimate(value=2, low=2, high=2), figures.usd) == "2.00 USD"


def test_the_plan_says_which_columns_are_read_as_what() -> None:
    made = make_plan()
    reason = "every row has text and label, a classification (prompt = text, completion = label; not used: id)"
    train = made.data.train.model_copy(update={"file": "/data/rows.csv", "shape_reason": reason})
    made = made.model_copy(update={"data": made.data.model_copy(update={"train": train})})
    (line,) = [line for line in plan_lines("run-1", made) if line.startswith("  columns")]
    assert line == f"  columns    rows.csv: {reason}"
