"""From rows to files: what is written, what is asked, what a second run costs, what a stop leaves behind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, NotFoundError, RequestError
from luthier.features.datasets.prices import Prices
from luthier.features.datasets.syntheses import Synthesis, SynthesisRun, SynthesisState, synthesise
from luthier.ml.data.rows.formats import load_file
from luthier.platform.home.context import Context
from luthier.testing.openai_server import OpenAIServer, Trouble, serving

NUM_ROWS = 40


def reply(asked: str) -> str:
    """A supported pair for most passages; one with another number for every tenth."""
    if "Reply with one word" in asked:
        return "no" if "instrument 7 " in asked else "yes"
    number = int(re.findall(r"instrument (\d+) ", asked)[0])
    made = number + 1000 if number % 10 == 0 else number
    pair = {"question": f"Which wood is the front of instrument {number}?", "answer": f"Instrument {made} has spruce."}
    return f"Sure:\n```json\n{json.dumps(pair)}\n```"


@pytest.fixture
def server() -> OpenAIServer:
    return OpenAIServer(answer=reply)


@pytest.fixture
def teacher(server: OpenAIServer) -> Iterator[str]:
    with serving(server) as url:
        yield f"{url}#m"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [
        {
            "text": f"The front of instrument {n} has spruce from the Alps.",
            "provenance": {"file": f"{n}.md", "page": None, "licence": "CC0-1.0"},
        }
        for n in range(1, NUM_ROWS + 1)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "pairs.jsonl"


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def refused_of(output: Path) -> Path:
    return output.with_name("pairs.jsonl.refused.jsonl")


def test_pairs_that_can_be_trained_on_and_those_that_were_refused(
    context: Context, rows: Path, teacher: str, output: Path
) -> None:
    found = synthesise(context, rows, teacher=teacher, output=output)
    assert (found.num_rows, found.num_pairs, found.num_refused) == (40, 36, 4)
    assert found.refused == {"unsupported_number": 4}
    pairs, refused = lines_of(output), lines_of(refused_of(output))
    assert pairs[0] == {
        "prompt": "Which wood is the front of instrument 1?",
        "completion": "Instrument 1 has spruce.",
        "provenance": {
            "file": "1.md",
            "page": None,
            "licence": "CC0-1.0",
            "synthetic": True,
            "teacher": teacher,
            "kind": "qa",
            "support": 1.0,
            "source_row": "rows.jsonl:1",
            "judge": None,
        },
    }
    assert [row["source_row"] for row in refused] == [f"rows.jsonl:{n}" for n in (10, 20, 30, 40)]
    assert refused[0]["explanation"] == "not in the passage: 1010"
    assert found.refused_file == str(refused_of(output))
    loaded = load_file(output)
    assert (loaded.shape, len(loaded.examples)) == ("prompt_completion", 36)
    json.dumps(found.as_json(), allow_nan=False)


def test_a_second_run_asks_nothing_and_writes_the_same_bytes(
    context: Context, rows: Path, teacher: str, output: Path, server: OpenAIServer
) -> None:
    prices = Prices(1.0, 10.0)
    first = synthesise(context, rows, teacher=teacher, judge=teacher, output=output, prices=prices)
    before, num_asked = (output.read_bytes(), refused_of(output).read_bytes()), len(server.requests)
    again = synthesise(context, rows, teacher=teacher, judge=teacher, output=output, force=True, prices=prices)
    assert (output.read_bytes(), refused_of(output).read_bytes()) == before
    assert len(server.requests) == num_asked == first.teacher_usage.num_requests == 40 + 36
    usage = again.teacher_usage
    assert (usage.num_requests, usage.num_new_tokens, usage.num_cached_requests) == (0, 0, num_asked)
    assert usage.num_cached_prompt_tokens == first.teacher_usage.num_prompt_tokens
    assert (first.cost_usd or 0) > 0
    assert again.cost_usd == 0


def test_the_cost_is_that_of_the_new_tokens_and_none_is_claimed_without_prices(
    context: Context, rows: Path, teacher: str, output: Path
) -> None:
    found = synthesise(context, rows, teacher=teacher, output=output, max_rows=3, prices=Prices(2.0, 8.0))
    usage = found.teacher_usage
    assert found.cost_usd == pytest.approx((usage.num_prompt_tokens * 2 + usage.num_new_tokens * 8) / 1e6)
    assert (found.num_rows, found.num_rows_left) == (3, 37)
    free = synthesise(context, rows, teacher=teacher, output=output, force=True, max_rows=3)
    assert (free.cost_usd, free.cost_note) == (None, "no prices were given, so no cost is claimed")


def test_a_judge_of_its_own_is_named_and_counted_apart(
    context: Context, rows: Path, teacher: str, output: Path, server: OpenAIServer
) -> None:
    judge = teacher.replace("#m", "#judge")
    found = synthesise(context, rows, teacher=teacher, judge=judge, output=output, prices=Prices(1, 1))
    assert found.refused == {"unsupported_number": 4, "judged_unsupported": 1}
    assert found.judge_usage is not None
    assert found.judge_usage.num_requests == 36
    assert "the judge's are not in it" in found.cost_note
    assert {row["provenance"]["judge"] for row in lines_of(output)} == {judge}
    assert [body["model"] for _, body in server.requests].count("judge") == 36


def test_what_was_answered_before_a_failure_is_not_asked_again(
    context: Context, rows: Path, teacher: str, output: Path, server: OpenAIServer
) -> None:
    server.refuse = lambda body: Trouble(400, "no") if "instrument 38 " in str(body["messages"]) else None
    with pytest.raises(RequestError, match="HTTP 400: no"):
        synthesise(context, rows, teacher=teacher, output=output)
    assert not output.exists()
    num_kept, num_asked = context.generations.count(), len(server.requests)
    assert num_kept == num_asked - 1 >= 32  # all that was paid for
    server.refuse = lambda _: None
    found = synthesise(context, rows, teacher=teacher, output=output, force=True)
    assert found.num_pairs == 36
    assert found.teacher_usage.num_cached_requests == num_kept
    assert len(server.requests) - num_asked == 40 - num_kept


def test_an_interrupt_keeps_what_came(
    context: Context, rows: Path, teacher: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, num_calls = type(context.generations).keep, 0

    def keep_some(self: Any, new: Any, *, engine: str) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 5:
            raise KeyboardInterrupt
        keep(self, new, engine=engine)

    with monkeypatch.context() as patched:
        patched.setattr(type(context.generations), "keep", keep_some)
        with pytest.raises(KeyboardInterrupt):
            synthesise(context, rows, teacher=teacher, output=output)
    assert context.generations.count() == 5
    assert synthesise(context, rows, teacher=teacher, output=output).teacher_usage.num_cached_requests == 5


def test_a_passage_over_the_context_of_the_server_is_listed(
    context: Context, rows: Path, teacher: str, output: Path, server: OpenAIServer
) -> None:
    too_long = Trouble(400, {"error": {"message": "maximum context length is 8", "code": "context_length_exceeded"}})
    server.refuse = lambda body: too_long if "instrument 5 " in str(body["messages"]) else None
    found = synthesise(context, rows, teacher=teacher, output=output)
    assert found.refused == {"unsupported_number": 4, "too_long": 1}
    assert found.teacher_usage.num_requests == 39
    assert found.teacher_usage.num_overlong == 1


def test_the_file_of_the_refused_goes_when_nothing_is_refused(
    context: Context, rows: Path, teacher: str, output: Path
) -> None:
    synthesise(context, rows, teacher=teacher, output=output)
    found = synthesise(context, rows, teacher=teacher, output=output, force=True, max_rows=9)
    assert (found.num_refused, found.refused_file) == (0, None)
    assert not refused_of(output).exists()


def test_a_teacher_that_writes_nothing_usable(context: Context, rows: Path, tiny_model: Path, output: Path) -> None:
    with pytest.raises(DataError, match="none of the 2 pairs") as caught:
        synthesise(context, rows, teacher=str(tiny_model), output=output, max_rows=2, max_new_tokens=8)
    assert "2 cut_off" in caught.value.came or "unparsable" in caught.value.came or "too_long" in caught.value.came
    assert "instruction-tuned teacher" in caught.value.do
    assert [problem.line for problem in caught.value.problems] == [1, 2]
    assert len(lines_of(refused_of(output))) == 2
    assert not output.exists()


def test_rows_without_passages_are_told_before_anything_is_asked(
    context: Context, rows: Path, teacher: str, output: Path, server: OpenAIServer
) -> None:
    with rows.open("a") as file:
        file.write('{"body": "x"}\nnot json\n{"text": 7}\n{"text": null}\n')
    with pytest.raises(DataError, match="4 of 44 rows") as caught:
        synthesise(context, rows, teacher=teacher, output=output)
    assert [problem.line for problem in caught.value.problems] == [41, 42, 43, 44]
    assert server.requests == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pairs_per_passage": 0}, "pairs_per_passage=0"),
        ({"min_support": 1.1}, r"min_support=1\.1"),
        ({"max_rows": 0}, "max_rows=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"prices": Prices(1.0, None)}, "prices"),
        ({"prices": Prices(1.0, float("nan"))}, "prices"),
        ({"output": Path("pairs.csv")}, r"pairs\.csv"),
    ],
)
def test_impossible_options(context: Context, rows: Path, output: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        synthesise(context, rows, **{"teacher": "http://127.0.0.1:1/v1#m", "output": output, **options})


def test_the_rows_are_never_replaced(context: Context, rows: Path) -> None:
    with pytest.raises(RequestError, match="would replace"):
        synthesise(context, rows, teacher="http://127.0.0.1:1/v1#m", output=rows)
    with pytest.raises(NotFoundError):
        synthesise(context, rows.with_name("none.jsonl"), teacher="http://127.0.0.1:1/v1#m", output=rows)


def test_what_the_whole_will_take_is_told_after_the_first_batch(
    tmp_path: Path, rows: Path, teacher: str, output: Path
) -> None:
    notes: list[str] = []

    class Task:
        def advance(self, amount: float = 1) -> None:
            pass

        def note(self, text: str) -> None:
            notes.append(text)

        def __enter__(self) -> Task:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    class Progress:
        def task(self, title: str, total: float | None, unit: str, done: float = 0) -> Task:
            return Task()

    with Context.open(tmp_path / "home", progress=Progress()) as context:
        found: Synthesis = synthesise(context, rows, teacher=teacher, output=output, prices=Prices(1e6, 1e6))
        usage = found.teacher_usage
        assert notes[-1].startswith(f"about {usage.num_prompt_tokens:,} + {usage.num_new_tokens:,} tokens in all")
        assert re.fullmatch(r"about [\d,]+ \+ [\d,]+ tokens in all, \d+\.\d\d USD", notes[0])
        synthesise(context, rows, teacher=teacher, output=output, force=True)
    assert notes[-1] == "all from the cache so far"


def test_a_budget_ends_before_the_batch_that_may_exceed_it_and_progress_comes_after_each(
    context: Context, rows: Path, teacher: str, output: Path, server: OpenAIServer
) -> None:
    seen: list[SynthesisState] = []
    prices = Prices(1.0, 1.0)
    first = synthesise(context, rows, teacher=teacher, output=output, max_rows=8, prices=prices)
    assert first.cost_usd is not None
    run = SynthesisRun(budget_usd=first.cost_usd * 2.5, batch_passages=8, on_batch=seen.append)
    found = synthesise(context, rows, teacher=teacher, output=output, force=True, prices=prices, run=run)
    # The first eight come out of the cache, and each further batch costs about as much as they did.
    assert (found.stopped_by_budget, found.num_rows, found.num_rows_left) == (True, 24, 16)
    assert [(state.num_done, state.num_rows) for state in seen] == [(8, 40), (16, 40), (24, 40)]
    assert (seen[-1].num_pairs, seen[-1].num_refused) == (found.num_pairs, found.num_refused) == (22, 2)
    assert len(server.requests) == 24


def test_what_earlier_attempts_have_spent_counts_towards_the_budget(
    context: Context, rows: Path, teacher: str, output: Path
) -> None:
    seen: list[SynthesisState] = []
    prices = Prices(1.0, 1.0)
    first = synthesise(context, rows, teacher=teacher, output=output, max_rows=8, prices=prices)
    assert first.cost_usd is not None
    run = SynthesisRun(first.cost_usd * 2.5, 8, on_batch=seen.append, spent_usd=first.cost_usd)
    found = synthesise(context, rows, teacher=teacher, output=output, force=True, prices=prices, run=run)
    # The first eight were paid by the attempt before, the next eight by this one: a third batch may be too much.
    assert (found.stopped_by_budget, found.num_rows, found.num_rows_left) == (True, 16, 24)
    assert seen[0].cost_usd == first.cost_usd


@pytest.mark.parametrize(
    ("budget", "prices"), [(0.0, Prices(1, 1)), (float("nan"), Prices(1, 1)), (1.0, None), (1.0, Prices())]
)
def test_a_budget_needs_a_number_and_prices(
    context: Context, rows: Path, teacher: str, output: Path, budget: float, prices: Prices | None
) -> None:
    with pytest.raises(RequestError, match="a budget of"):
        synthesise(context, rows, teacher=teacher, output=output, prices=prices, run=SynthesisRun(budget_usd=budget))
    assert not output.exists()


def test_a_budget_is_no_limit_of_a_batch_that_is_sent_at_once(
    context: Context, rows: Path, teacher: str, output: Path, server: OpenAIServer
) -> None:
    run = SynthesisRun(budget_usd=1.0, uses_batch_api=True)
    with pytest.raises(RequestError, match="a budget of 1 USD with --batch"):
        synthesise(context, rows, teacher=teacher, output=output, prices=Prices(1, 1), run=run)
    assert server.requests == []
