"""Evaluations and synthesis ask the server's engine where its answers are those of an engine of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.clock import wait_until
from tests.fixtures.near_engine import engines_near_by
from tests.fixtures.service import write_rows

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import TokenisedExample
from luthier.core.errors import OverlongError
from luthier.core.ports import Generation, Progress, ProgressTask, Prompt, Score, SilentProgress
from luthier.core.stream import Served
from luthier.features.evaluations import service as evaluations
from luthier.features.generation.engines import find_teacher
from luthier.features.generation.shared_engine import SharedEngine
from luthier.features.models.resolve import Candidate, open_engine
from luthier.features.recipes.checks import load_mapped
from luthier.features.serving import shared_engines
from luthier.features.serving.engine_lending import EngineLending
from luthier.features.serving.inference_client import InferenceClient
from luthier.ml.inference.models import sources
from luthier.ml.inference.stored_answers import AnswerFile
from luthier.platform.home.context import Context

SILENT = SilentProgress()
WORDS = ("spruce", "maple", "which wood is used for the back of a violin", "a", "strings of gut sound warm")


def asked(text: str, **wishes: Any) -> Prompt:
    return Prompt(conversation=Conversation(messages=(Message(role="user", content=text),)), **wishes)


PROMPTS = [
    *(asked(f"{WORDS[n % 5]} {n}", max_new_tokens=3 + n % 11) for n in range(24)),
    *(asked(f"{WORDS[n % 5]}?", max_new_tokens=8, temperature=0.9, seed=n) for n in range(12)),
    *(Prompt(text=f"The front is {WORDS[n % 5]}", max_new_tokens=5 + n) for n in range(8)),
]


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        engines_near_by(patch)
        patch.setattr(shared_engines, "has_gpu", lambda: False)
        yield patch


@pytest.fixture(scope="module")
def server(
    patched: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[Context]:
    """A home whose server has the tiny model in memory; what jobs share is in another context of the same home."""
    with Context.open(tmp_path_factory.mktemp("shared") / "home") as context:
        local = sources.pull(str(tiny_model), context.home, SILENT)
        client = InferenceClient(context.settings)
        context.__dict__["inference_client"] = client
        client.preload(Served(path=local.path, sha256=local.sha256, precision="float32"))
        wait_until(lambda: bool(client.loaded))
        with EngineLending(context):
            yield context


@pytest.fixture
def job(server: Context) -> Iterator[Context]:
    with Context.open(server.home) as context:
        context.settings = context.settings.model_copy(update={"share_engine_from": 4})
        yield context


@pytest.fixture(scope="module")
def base(server: Context) -> Candidate:
    (local,) = sources.local_models(server.home)
    return Candidate(
        name="tiny",
        model_name=local.name,
        model_path=local.path,
        adapter_path=None,
        template="auto",
        precision="float32",
        device="cpu",
        context_length_tokens=local.context_length_tokens,
    )


@pytest.fixture(scope="module")
def tuned(base: Candidate, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    import torch
    from peft import LoraConfig, get_peft_model

    from luthier.ml.inference.models.loading import load_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False
        )
        adapted = get_peft_model(load_model(base.model_path, dtype="float32", attention="sdpa"), config)
    folder = tmp_path_factory.mktemp("tuned") / "adapter"
    adapted.save_pretrained(str(folder))
    return replace(base, name="tuned", adapter_path=str(folder))


def never() -> Any:
    raise AssertionError("a second copy of the model")


def own(candidate: Candidate) -> Callable[[], Any]:
    return lambda: open_engine(candidate, num_workers=1)


def test_answers_are_those_of_an_engine_of_ones_own(job: Context, base: Candidate, tuned: Candidate) -> None:
    texts = {}
    for candidate in (base, tuned):
        shared = SharedEngine(job, candidate, never)
        found = shared.generate(PROMPTS, SILENT)
        assert found == own(candidate)().generate(PROMPTS, SILENT)
        assert shared.num_shared == len(PROMPTS)
        texts[candidate.name] = [one.text for one in found]
    # An adapter that changes nothing, or prompts that all get one answer, would prove nothing.
    assert texts["tiny"] != texts["tuned"]
    assert len(set(texts["tuned"])) > 10


def test_likelihoods_and_few_answers_are_the_own_engines(job: Context, base: Candidate) -> None:
    opened = Counter[str]()

    def open_own() -> Any:
        opened["own"] += 1
        return own(base)()

    shared = SharedEngine(job, base, open_own)
    shared.generate(PROMPTS[:3], SILENT)
    assert (opened["own"], shared.num_shared) == (1, 0)
    # It is in memory by now: nothing is gained by asking the server.
    shared.generate(PROMPTS[:8], SILENT)
    assert (opened["own"], shared.num_shared) == (1, 0)
    # Work that asks for few answers at a time, and for many in all.
    many = SharedEngine(job, base, never, num_expected=100)
    assert many.generate(PROMPTS[:2], SILENT) == shared.generate(PROMPTS[:2], SILENT)
    scored = SharedEngine(job, base, open_own)
    assert scored.score([], SILENT) == []
    assert opened["own"] == 2


class Scorer:
    """An own engine that scores, and counts how many of its kind are open."""

    notes = ("it has scored",)

    def __init__(self, num_open: Counter[str]) -> None:
        self._num_open = num_open
        num_open["now"] += 1
        num_open["ever"] += 1

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        return []

    def close(self) -> None:
        self._num_open["now"] -= 1


def test_an_engine_that_has_only_scored_is_closed_before_the_server_writes(job: Context, base: Candidate) -> None:
    num_open = Counter[str]()
    shared = SharedEngine(job, base, lambda: Scorer(num_open))  # type: ignore[arg-type, return-value]
    shared.generate(PROMPTS[:4], SILENT)
    assert num_open["ever"] == 0
    for _ in range(2):
        shared.score([], SILENT)
    assert (num_open["now"], num_open["ever"]) == (1, 1), "likelihoods in a row load the model once"
    shared.generate(PROMPTS[4:8], SILENT)
    assert (num_open["now"], shared.num_shared) == (0, 8)
    shared.score([], SILENT)
    shared.close()
    assert (num_open["now"], num_open["ever"], shared.notes) == (0, 2, ("it has scored",))


def test_rows_are_evaluated_with_the_servers_texts_and_likelihoods_of_an_own_engine(
    job: Context, base: Candidate, tuned: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"{WORDS[n % 5]} {n}", "completion": WORDS[(n + 1) % 5]} for n in range(6)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    held_out = evaluations.HeldOut(str(path), "", 6, load_mapped(job, (), path, None)[0].examples)
    written, answer_all = Counter[str](), shared_engines.LentEngine.answer_all

    def counted(lent: Any, prompts: Any, hear: Any) -> Any:
        written[lent._candidate.name] += len(prompts)
        return answer_all(lent, prompts, hear)

    monkeypatch.setattr(shared_engines.LentEngine, "answer_all", counted)

    def judged(shares: str) -> Any:
        job.settings = job.settings.model_copy(update={"share_engine": shares})
        found = evaluations._judge(
            job,
            [base, tuned],
            held_out,
            metrics=("exact_match", "perplexity"),
            max_new_tokens=5,
            max_thinking_tokens=0,
            max_samples=6,
            run_id=None,
        )
        return [one.model_dump(exclude={"seconds"}) for one in found.systems], found.kl_to_base

    shared = judged("exact")
    assert written == {"tiny": 6, "tuned": 6}
    assert shared[1] is not None, "hidden states are those of an own engine"
    assert judged("never") == shared
    assert written == {"tiny": 6, "tuned": 6}


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bfloat16"},
        {"device": "cuda"},
        {"template": "plain"},
        {"model_path": "/elsewhere"},
    ],
)
def test_a_model_that_would_answer_otherwise_is_not_shared(
    job: Context, base: Candidate, change: dict[str, Any]
) -> None:
    assert job.shared_engines.of(base, 100) is not None
    assert job.shared_engines.of(replace(base, **change), 100) is None


def test_settings_decide(job: Context, base: Candidate) -> None:
    def of(**settings: Any) -> Any:
        with Context.open(job.home) as context:
            context.settings = context.settings.model_copy(update=settings)
            return context.shared_engines.of(base, 64)

    assert of() is not None
    assert of(share_engine_from=65) is None
    assert of(share_engine="never") is None


def test_a_model_on_a_slower_path_is_not_shared(
    job: Context, base: Candidate, server: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    (loaded,) = server.inference_client.loaded
    assert loaded.decoding is not None
    for path in ("grouped", "by_row", "uncached"):
        other = loaded.model_copy(update={"decoding": loaded.decoding.model_copy(update={"path": path})})
        assert not shared_engines._runs_alike(other, shared_engines._wanted(job, base))
    assert shared_engines._runs_alike(loaded, shared_engines._wanted(job, base))


def test_a_prompt_over_the_context_ends_with_the_error_of_an_own_engine(job: Context, base: Candidate) -> None:
    prompts = [*PROMPTS[:4], asked("maple " * 60, max_new_tokens=480), *PROMPTS[4:6]]
    kept = Counter[str]()
    shared = SharedEngine(job, base, never, keep=lambda prompt, _: kept.update([prompt.model_dump_json()]))
    with pytest.raises(OverlongError) as found:
        shared.generate(prompts, SILENT)
    with pytest.raises(OverlongError) as expected:
        own(base)().generate(prompts, SILENT)
    assert (found.value.came, found.value.num_tokens) == (expected.value.came, expected.value.num_tokens)
    assert set(kept.values()) == {1}
    assert len(kept) == 6


def test_what_the_server_does_not_answer_the_own_engine_does(job: Context, base: Candidate) -> None:
    kept = Counter[str]()
    opened = Counter[str]()

    def open_own() -> Any:
        opened["own"] += 1
        return own(base)()

    def keep(prompt: Prompt, _: Generation) -> None:
        kept[prompt.model_dump_json()] += 1
        if len(kept) == 5:  # the server ends
            lender = job.shared_engines._server.lender
            assert lender is not None
            lender.close()

    shared = SharedEngine(job, base, open_own, keep=keep)
    found = shared.generate(PROMPTS, SILENT)
    assert opened["own"] == 1
    assert 5 <= shared.num_shared < len(PROMPTS)
    assert set(kept.values()) == {1}
    assert len(kept) == len({one.model_dump_json() for one in PROMPTS})
    assert found == own(base)().generate(PROMPTS, SILENT)


def test_where_live_requests_never_pause_an_own_engine_writes_the_rest(job: Context, base: Candidate) -> None:
    opened = Counter[str]()
    titles: list[str] = []
    kept = Counter[str]()

    def open_own() -> Any:
        opened["own"] += 1
        return own(base)()

    class Titles(SilentProgress):
        def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
            titles.append(title)
            return super().task(title, total, unit, done)

    def keep(prompt: Prompt, _: Generation) -> None:
        kept[prompt.model_dump_json()] += 1
        if len(kept) == 5:
            lender = job.shared_engines._server.lender
            assert lender is not None
            lender.held_back_seconds = seconds

    seconds = 119.0
    assert SharedEngine(job, base, never, keep=keep).generate(PROMPTS, SILENT)
    seconds = 125.0
    kept.clear()
    shared = SharedEngine(job, base, open_own, keep=keep)
    found = shared.generate(PROMPTS, Titles())
    assert (opened["own"], set(kept.values())) == (1, {1})
    assert len(kept) == len({one.model_dump_json() for one in PROMPTS})
    assert 5 <= shared.num_shared < len(PROMPTS)
    assert any(title.startswith("Live requests have kept the server's engine busy for 2 min 05 s") for title in titles)
    assert found == own(base)().generate(PROMPTS, SILENT)


def test_a_kill_loses_and_doubles_no_answer(job: Context, base: Candidate, server: Context, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        if AnswerFile(path).num_answers == 7:
            raise Killed

    first = SharedEngine(job, base, never, stored_answers=AnswerFile(path).of_engine("tiny"), keep=die)
    with pytest.raises(Killed):
        first.generate(PROMPTS, SILENT)
    # What was under way is cancelled: the server does not write for nobody.
    wait_until(lambda: server.inference_client.num_under_way == 0)
    again = SharedEngine(job, base, never, stored_answers=AnswerFile(path).of_engine("tiny"))
    found = again.generate(PROMPTS, SILENT)
    assert again.num_shared == len(PROMPTS) - 7
    assert AnswerFile(path).num_answers == len(PROMPTS)
    assert found == SharedEngine(job, base, never).generate(PROMPTS, SILENT)


def test_stored_answers_count_whichever_engine_goes_on(job: Context, base: Candidate, tmp_path: Path) -> None:
    """A server that a kill has ended, too, has the model in memory again only once somebody has asked it."""
    expected = own(base)().generate(PROMPTS, SILENT)

    class Killed(BaseException):
        pass

    def attempt(path: Path, shares: str, keep: Callable[..., None] = lambda *_: None) -> SharedEngine:
        job.settings = job.settings.model_copy(update={"share_engine": shares})
        kept = AnswerFile(path).of_engine("tiny")

        def open_own() -> Any:
            engine = own(base)()
            engine.stored_answers = kept
            return engine

        return SharedEngine(job, base, open_own, stored_answers=kept, keep=keep)

    def die(*_: Any) -> None:
        if AnswerFile(by_server).num_answers == 7:
            raise Killed

    by_server, by_own = tmp_path / "by-server.jsonl", tmp_path / "by-own.jsonl"
    with pytest.raises(Killed):
        attempt(by_server, "exact", die).generate(PROMPTS, SILENT)
    for _ in range(2):  # also of an attempt after that one, nothing is written again
        assert attempt(by_server, "never").generate(PROMPTS, SILENT) == expected
        assert AnswerFile(by_server).num_answers == len(PROMPTS)

    assert attempt(by_own, "never").generate(PROMPTS, SILENT) == expected
    again = attempt(by_own, "exact")
    assert again.generate(PROMPTS, SILENT) == expected
    assert (again.num_shared, AnswerFile(by_own).num_answers) == (0, len(PROMPTS))


def test_a_teacher_is_shared_for_many_answers_and_its_answers_are_kept(
    job: Context, base: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.features.generation import engines

    monkeypatch.setattr(engines, "find_candidate", lambda *_: base)
    monkeypatch.setattr(engines, "open_engine", lambda _: never())
    prompts = [asked(f"teach {number}", max_new_tokens=4) for number in range(6)]
    teacher = find_teacher(job, base.model_name, num_answers=6)
    first = [teacher.generate_each(prompts[:3], SILENT), teacher.generate_each(prompts[3:], SILENT)]
    assert teacher.usage.num_requests == 6
    again = find_teacher(job, base.model_name)
    assert again.generate_each(prompts, SILENT) == [*first[0], *first[1]]
    assert (again.usage.num_requests, again.usage.num_cached_requests) == (0, 6)
