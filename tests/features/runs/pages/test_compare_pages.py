"""Runs side by side."""

from __future__ import annotations

import re
from collections.abc import Callable

from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.features.runs.changes import edit_run
from luthier.features.runs.labels import LabelChanges
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import events_of, make_evaluation, make_plan, make_record, make_result, tell

Browser = Callable[..., TestClient]


def trained(home: Context, letter: str, *, learning_rate: float = 2e-4, value: float | None = 0.5) -> str:
    run_id = f"run-20261125-093000-{letter * 6}"
    home.runs.create(make_record(run_id).model_copy(update={"num_steps": 40}), make_plan(learning_rate=learning_rate))
    tell(home, run_id, events_of(1, 40, 40, validate_every_steps=10))
    home.runs.update(run_id, status="succeeded", result=make_result())
    if value is not None:
        home.evaluations.save(make_evaluation(f"eval-20261125-093000-{letter * 6}", run_id=run_id, value=value))
    return run_id


def test_curves_metrics_and_what_was_done_differently(home: Context, browser: Browser) -> None:
    one, two = trained(home, "a", value=0.3), trained(home, "b", learning_rate=1e-5, value=0.6)
    text = browser("read").get(f"/runs/compare?run={one}&run={two}").text
    for words in ("Training loss", "Validation loss", "Exact match", "training.learning rate", "peak memory"):
        assert words in text
    assert text.count('class="differs"') == 1, "the learning rate of the second"
    assert "A · lora" in text
    assert "B · lora" in text
    assert text.count("polyline") >= 4, "a line a run in both charts"


def test_caveats_are_said(home: Context, browser: Browser) -> None:
    one, two = trained(home, "a"), trained(home, "b", value=None)
    text = browser("read").get(f"/runs/compare?run={one}&run={two}").text
    assert "1 of 2 runs was not evaluated on held-out rows" in text
    assert "The plans are the same." in text


def test_with_one_run_others_can_be_chosen(home: Context, browser: Browser) -> None:
    one, two = trained(home, "a"), trained(home, "b")
    reader = browser("read")
    text = reader.get(f"/runs/compare?run={one}&run={one}").text
    assert f'type="hidden" name="run" value="{one}"' in text
    assert f'type="checkbox" name="run" value="{two}"' in text
    assert reader.get("/runs/compare").text.count("checkbox") == 2


def test_the_runs_to_choose_from_are_searched(home: Context, browser: Browser) -> None:
    one, two, three = (trained(home, letter) for letter in "abc")
    edit_run(home, Caller(), two, LabelChanges(name="Client mails"))
    text = browser("read").get(f"/runs/compare?run={one}&find=client").text
    assert f'value="{two}"' in text
    assert f'value="{three}"' not in text
    assert "Client mails" in text
    assert "No run matches" in browser("read").get("/runs/compare?find=nothing").text


def test_eight_runs_stand_side_by_side_under_their_names(home: Context, browser: Browser) -> None:
    ids = [trained(home, letter, learning_rate=1e-5 * n) for n, letter in enumerate("abcdefab"[:6], 1)]
    ids += [trained(home, digit) for digit in "12"]
    edit_run(home, Caller(), ids[7], LabelChanges(name="Client mails"))
    text = browser("read").get("/runs/compare?" + "&".join(f"run={one}" for one in ids)).text
    assert "8 runs side by side" in text
    assert "G · lora" in text
    assert "H · Client mails" in text, "a legend names a run as people do"
    assert "Client mails" in text
    assert text.count('class="differs"') == 7


def test_with_no_two_runs_it_says_so(home: Context, browser: Browser) -> None:
    trained(home, "a")
    assert "Fewer than two runs so far" in browser("read").get("/runs/compare").text


def test_one_that_has_not_begun_and_too_many_are_refused(home: Context, browser: Browser) -> None:
    one = trained(home, "a")
    waiting = "run-20261125-093000-cccccc"
    home.jobs.submit(Job(job_id="job-20261125-093000-000001", kind="train", document={}, run_id=waiting))
    reader = browser("read")
    refused = reader.get(f"/runs/compare?run={one}&run={waiting}")
    assert refused.status_code == 422
    assert "has not started" in refused.text
    many = "&".join(f"run=run-20261125-093000-00000{n}" for n in range(9))
    refused = reader.get(f"/runs/compare?{many}")
    assert refused.status_code == 422
    assert "9 runs to compare" in refused.text
    assert "two to 8 runs" in refused.text
    twice = "&".join(f"run={one}" for one in 9 * [one])
    assert reader.get(f"/runs/compare?{twice}").status_code == 200, "one run, named nine times"


def test_to_choose_others_keeps_all_that_are_compared(home: Context, browser: Browser) -> None:
    """What was chosen is ticked and can be taken out; a search keeps it, too."""
    one, two, three = (trained(home, letter) for letter in "abc")
    reader = browser("read")
    compared = reader.get(f"/runs/compare?run={two}&run={one}").text
    link = compared.split('">Choose others')[0].rpartition('href="')[2].replace("&amp;", "&")
    choices = reader.get(link).text
    ticked = re.findall(r'type="checkbox" name="run" value="([\w-]+)" checked', choices)
    assert ticked == [two, one]
    assert f'type="checkbox" name="run" value="{three}">' in choices
    searched = reader.get(f"{link}&find=nothing").text
    assert "No run matches" in searched
    assert re.findall(r'type="checkbox" name="run" value="([\w-]+)" checked', searched) == [two, one]
    assert 'type="hidden" name="choose" value="1"' in searched, "another search stays among the choices"


def test_a_long_name_is_cut_in_legends_and_whole_in_the_table(home: Context, browser: Browser) -> None:
    one, two = trained(home, "a"), trained(home, "b", learning_rate=1e-5)
    name = "Answers to clients with a larger adapter"
    edit_run(home, Caller(), two, LabelChanges(name=name))
    text = browser("read").get(f"/runs/compare?run={one}&run={two}").text
    assert "B · Answers to clients with a lar…" in text
    assert f">{name}</a>" in text
