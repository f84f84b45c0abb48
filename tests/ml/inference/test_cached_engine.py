import pytest

from luthier.core.errors import OverlongError, RequestError
from luthier.core.ids import sha256_document
from luthier.core.ports import Prompt, SilentProgress
from luthier.ml.inference.engine_wrappers import CachedEngine, Usage
from luthier.testing.fake_engine import FakeEngine

SILENT = SilentProgress()


class Memory:
    """A store of generations without a database."""

    def __init__(self):
        self.kept = {}

    def find(self, keys):
        return {key: self.kept[key] for key in keys if key in self.kept}

    def keep(self, new, *, engine):
        assert not set(new) & set(self.kept)
        self.kept.update(new)


class Picky(FakeEngine):
    """Answers with an echo; a prompt with "long" is over the context, one with "bad" is refused."""

    def __init__(self, keep=None):
        super().__init__(lambda prompt: f"echo {prompt.text}")
        self.asked, self.keep = [], keep

    def generate(self, prompts, progress):
        made = []
        for prompt in prompts:
            if "long" in prompt.text:
                raise OverlongError(prompt.text, expected="short", do="shorten")
            if "bad" in prompt.text:
                raise RequestError(prompt.text, expected="good", do="be good")
            self.asked.append(prompt.text)
            made += super().generate([prompt], progress)
            if self.keep is not None:
                self.keep(prompt, made[-1])
        return made


@pytest.fixture
def memory():
    return Memory()


def make(memory, *, keeps=False, identity="1"):
    opened = []

    def open_engine(keep):
        opened.append(Picky(keep if keeps else None))
        return opened[-1]

    return CachedEngine(open_engine, memory, name="picky", identity={"sha256": identity}), opened


def prompts(*texts):
    return [Prompt(text=text) for text in texts]


def texts(made):
    return [one if isinstance(one, OverlongError) else one.text for one in made]


def test_a_second_time_costs_nothing_and_opens_nothing(memory):
    first, opened = make(memory)
    assert texts(first.generate_each(prompts("a", "b", "a"), SILENT)) == ["echo a", "echo b", "echo a"]
    assert opened[0].asked == ["a", "b"]
    assert first.usage == Usage(num_requests=2, num_prompt_tokens=2, num_new_tokens=4, seconds=first.usage.seconds)
    second, opened = make(memory)
    assert texts(second.generate_each(prompts("b", "a"), SILENT)) == ["echo b", "echo a"]
    assert opened == []
    assert second.usage == Usage(num_cached_requests=2, num_cached_prompt_tokens=2, num_cached_new_tokens=4)


def test_the_key_holds_all_that_decides(memory):
    engine, _ = make(memory)
    other, _ = make(memory, identity="2")
    base = Prompt(text="a")
    variants = [
        Prompt(text="b"),
        Prompt(text="a", seed=1),
        Prompt(text="a", temperature=1),
        Prompt(text="a", max_new_tokens=1),
    ]
    keys = {engine.key(base), other.key(base), *map(engine.key, variants)}
    assert len(keys) == 6
    assert all(len(key) == 64 for key in keys)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_prompt_over_the_context_stops_no_other(memory, keeps):
    engine, opened = make(memory, keeps=keeps)
    made = engine.generate_each(prompts("a", "long 1", "b", "c", "long 2", "d"), SILENT)
    assert [one.came if isinstance(one, OverlongError) else one.text for one in made] == [
        "echo a",
        "long 1",
        "echo b",
        "echo c",
        "long 2",
        "echo d",
    ]
    assert (engine.usage.num_requests, engine.usage.num_overlong) == (4, 2)
    if keeps:  # what was handed over before the failure is not asked again
        assert sorted(opened[0].asked) == ["a", "b", "c", "d"]


def test_what_came_before_a_failure_is_kept(memory):
    engine, _ = make(memory, keeps=True)
    with pytest.raises(RequestError, match="bad"):
        engine.generate_each(prompts("a", "b", "bad", "c"), SILENT)
    again, opened = make(memory, keeps=True)
    again.generate_each(prompts("a", "b", "c"), SILENT)
    assert opened[0].asked == ["c"]


def test_closing_closes_what_was_opened(memory):
    engine, opened = make(memory)
    engine.close()
    engine.generate_each(prompts("a"), SILENT)
    engine.close()
    with pytest.raises(RequestError, match="closed"):
        FakeEngine.generate(opened[0], prompts("a"), SILENT)


def test_a_schema_is_part_of_the_key_and_none_leaves_old_keys_as_they_were(memory):
    engine = CachedEngine(lambda _: Picky(), memory, name="picky", identity={"a": 1})
    plain = Prompt(text="one")
    before = {"conversation": None, "text": "one", "max_new_tokens": 128, "temperature": 0.0, "seed": 0}
    assert engine.key(plain) == sha256_document({"engine": {"a": 1}, "prompt": before})
    assert engine.key(plain.model_copy(update={"json_schema": {"type": "object"}})) != engine.key(plain)
