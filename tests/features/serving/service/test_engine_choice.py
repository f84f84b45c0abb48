"""A model is served by llama.cpp where a copy is proved and faster, else by its own engine, with the reason."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RequestError, WorkError
from luthier.core.records.deployment import Share
from luthier.core.stream import Served
from luthier.core.system import gpu_device
from luthier.features.serving import engine_choice
from luthier.features.serving.engine_choice import choose_engines, known_copy
from luthier.features.serving.inference_client import InferenceClient
from luthier.features.serving.models import describe_engines, engines_of, fastest
from luthier.platform.home.context import Context

FAST, SLOW = {"alone": 50.0, "crowd": 80.0, "many": 90.0}, {"alone": 10.0, "crowd": 40.0, "many": 60.0}
QUICK_ALONE = {"alone": 30.0, "crowd": 27.0, "many": 26.0}
QUICK_IN_A_CROWD = {"alone": 15.0, "crowd": 43.0, "many": 60.0}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_device, "NVIDIA", tmp_path / "none")


class Children:
    """Answers in the place of child processes, and keeps what they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.base: dict[str, Any] = {"precision": "q8_0", "proof": "as good", "hands_over": ["logprobs"]}
        self.adapter: dict[str, Any] = {"precision": "q8_0", "proof": "as good, too"}
        self.own, self.copy = SLOW, FAST
        self.error: Exception | None = None

    def __call__(self, function: str, document: dict[str, Any], **_: Any) -> dict[str, Any]:
        name = function.partition(":")[2]
        self.asked.append((name, document))
        if self.error is not None:
            raise self.error
        if name == "time_engines":
            return {"own": self.own, "copy": self.copy}
        file = Path(document["target"]) / ("model.gguf" if name == "make_base" else "adapter.gguf")
        file.write_bytes(b"gguf")
        return self.base if name == "make_base" else self.adapter

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    made = Children()
    monkeypatch.setattr(engine_choice, "run_child", made)
    return made


@pytest.fixture
def base(tiny_model: Path) -> Served:
    return Served(path=str(tiny_model), sha256="1" * 64, precision="float32")


@pytest.fixture
def with_adapter(base: Served, tmp_path: Path) -> Callable[..., Served]:
    """The base with an adapter of this name; by keyword, what its config says."""

    def make(name: str, **config: Any) -> Served:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config), encoding="utf-8")
        (folder / "adapter_model.safetensors").write_bytes(name.encode())
        return base.model_copy(update={"adapter_path": str(folder), "template_options": (("enable_thinking", False),)})

    return make


def test_a_base_and_its_adapters_become_one_engine_of_llama_cpp(
    context: Context, children: Children, base: Served, with_adapter: Callable[..., Served]
) -> None:
    models = {"base": base, "a": with_adapter("a"), "b": with_adapter("b")}
    made = choose_engines(context, models)
    assert children.names == ["make_base", "make_adapter", "make_adapter", "time_engines", "time_engines"]
    # One model alone, then all adapters in turn.
    assert [len(asked["own"]) for name, asked in children.asked if name == "time_engines"] == [1, 3]
    assert {one.served.engine for one in made.values()} == {"llama_cpp"}
    assert len({one.served.path for one in made.values()}) == 1
    assert made["base"].served.adapter_path is None
    assert made["base"].reason == "proved: as good"
    assert made["a"].reason == "proved: as good; its adapter as good, too"
    adapters = [made[name].served.adapter_path for name in "ab"]
    assert [Path(str(one)).read_bytes() for one in nonempty(adapters)] == [b"gguf", b"gguf"]
    assert adapters[0] != adapters[1]
    for name, one in nonempty(made.items()):
        assert one.served.fallback == models[name]
        assert one.served.hands_over == ("logprobs",)
        assert one.served.template == "chat"
        assert one.served.template_options == models[name].template_options


def test_what_was_made_and_timed_is_not_made_again(
    context: Context, children: Children, base: Served, with_adapter: Callable[..., Served]
) -> None:
    models = {"base": base, "a": with_adapter("a")}
    first = choose_engines(context, models)
    num_asked = len(children.asked)
    assert choose_engines(context, models) == first
    assert len(children.asked) == num_asked
    # Another number of adapters is timed by itself: they are answered together by one engine, in turn by the other.
    choose_engines(context, {"base": base})
    assert children.names[num_asked:] == ["time_engines"]


def test_copies_that_were_not_looked_up_for_90_days_go_when_another_one_is_made(
    context: Context, children: Children, base: Served, with_adapter: Callable[..., Served]
) -> None:
    models = {"old": with_adapter("old"), "new": with_adapter("new")}
    assert nonempty(choose_engines(context, models))
    served = {name: known_copy(context, model) for name, model in models.items()}
    folders = {name: Path(str(one.adapter_path)).parent for name, one in served.items() if one is not None}
    assert set(folders) == {"old", "new"}
    gone = context.settings.serving_copies_folder / "of-a-model-that-is-gone"
    (gone / "adapters").mkdir(parents=True)
    (gone / "report.json").write_text("{}", encoding="utf-8")
    long_ago = time.time() - 91 * 86_400.0
    for folder in (gone, *folders.values(), folders["new"].parent.parent):
        os.utime(folder / "report.json", (long_ago, long_ago))
    # It is looked up, and so is its base.
    assert known_copy(context, models["new"]) is not None
    choose_engines(context, {"third": with_adapter("third")})
    assert (gone.exists(), folders["old"].exists(), folders["new"].exists()) == (False, False, True)
    assert known_copy(context, models["new"]) is not None
    assert known_copy(context, models["old"]) is None


def test_other_weights_of_the_same_folder_are_another_copy(context: Context, children: Children, base: Served) -> None:
    first = choose_engines(context, {"base": base})["base"].served
    second = choose_engines(context, {"base": base.model_copy(update={"sha256": "2" * 64})})["base"].served
    assert first.path != second.path
    assert first.sha256 != second.sha256


def test_other_weights_that_were_asked_for_are_another_copy(context: Context, children: Children, base: Served) -> None:
    first = choose_engines(context, {"base": base})["base"].served
    context.settings = context.settings.model_copy(update={"serving_quantization": "q8_0"})
    # A server with this setting takes no copy of another kind.
    assert known_copy(context, base) is None
    second = choose_engines(context, {"base": base})["base"].served
    assert first.path != second.path
    made = [document["quantization"] for name, document in children.asked if name == "make_base"]
    assert made == ["auto", "q8_0"]


def test_a_slower_copy_leaves_the_model_with_its_own_engine(context: Context, children: Children, base: Served) -> None:
    children.own, children.copy = FAST, SLOW
    (made,) = choose_engines(context, {"base": base}).values()
    assert made.served == base
    assert "slower here: 10.0, 40.0 and 60.0 new tokens/s" in made.reason
    assert "against 50.0, 80.0 and 90.0" in made.reason
    assert known_copy(context, base) is None


def test_the_load_decides_where_each_engine_is_faster_somewhere(
    context: Context, children: Children, base: Served
) -> None:
    children.own, children.copy = QUICK_IN_A_CROWD, QUICK_ALONE
    (made,) = choose_engines(context, {"base": base}).values()
    assert made.served.engine == "llama_cpp"
    assert made.served.fallback == base
    (rates,) = made.served.rates
    assert (rates.engine.crowd, rates.fallback.crowd, rates.switch_at) == (27.0, 43.0, 5)
    assert "by load, llama_cpp up to 4, transformers from 5 answers on: 30.0, 27.0 and 26.0 new tokens/s" in made.reason
    # A server takes both, too, and shows them.
    assert known_copy(context, base) == made.served
    shown = describe_engines(engines_of(made.served, ()))
    assert shown == (
        "llama_cpp up to 4 answers at once (30.0 new tokens/s alone, 27.0 of 8, 26.0 of 16 at once); transformers "
        "from 5 answers at once on, always for logprobs (15.0 new tokens/s alone, 43.0 of 8, 60.0 of 16 at once)"
    )


@pytest.mark.parametrize(("expected", "engine"), [(1, "llama_cpp"), (16, "transformers"), (0, "llama_cpp")])
def test_where_memory_holds_one_engine_the_expected_load_decides(
    context: Context, children: Children, base: Served, expected: int, engine: str
) -> None:
    children.own = QUICK_IN_A_CROWD | {"num_bytes": 600}
    children.copy = QUICK_ALONE | {"num_bytes": 500}
    # Without a number by both rates: 30 * 27 against 15 * 43.
    settings = {"serving_memory_bytes": 1000, "serving_expected_answers": expected}
    context.settings = context.settings.model_copy(update=settings)
    (made,) = choose_engines(context, {"base": base}).values()
    assert (made.served.engine, made.served.rates) == (engine, ())
    assert "one engine, since both take 0.0 GB" in made.reason
    assert "LUTHIER_SERVING_EXPECTED_ANSWERS" in made.reason
    assert fastest(context, base) == made.served


def test_speeds_of_another_machine_or_version_are_not_taken(
    context: Context, children: Children, base: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_engines(context, {"base": base})
    assert known_copy(context, base) is not None
    monkeypatch.setattr(engine_choice, "_machine", lambda: ["another one"])
    assert known_copy(context, base) is None
    choose_engines(context, {"base": base})
    assert children.names == ["make_base", "time_engines", "time_engines"]
    assert known_copy(context, base) is not None


def test_speeds_without_a_rate_of_many_answers_are_timed_again_at_the_next_start(
    context: Context, children: Children, base: Served
) -> None:
    children.own, children.copy = ({name: speed[name] for name in ("alone", "crowd")} for speed in (SLOW, FAST))
    choose_engines(context, {"base": base})
    assert known_copy(context, base) is not None
    children.own, children.copy = SLOW, FAST
    for _ in range(2):
        choose_engines(context, {"base": base})
    assert children.names == ["make_base", "time_engines", "time_engines"]


def test_speeds_of_earlier_versions_do_not_count_beside_new_ones(
    context: Context, children: Children, base: Served
) -> None:
    children.own, children.copy = QUICK_ALONE, QUICK_IN_A_CROWD
    choose_engines(context, {"base": base})
    (folder,) = (one for one in context.settings.serving_copies_folder.iterdir() if one.is_dir())
    old = {"own": {"alone": 9.0, "crowd": 9.0}, "copy": {"alone": 1.0, "crowd": 1.0}, "num_variants": 4}
    (folder / "speed-ffff.json").write_text(json.dumps(old), encoding="utf-8")
    copy = known_copy(context, base)
    assert copy is not None
    assert [one.engine.many for one in copy.rates] == [60.0]


def test_speeds_that_earlier_versions_timed_are_taken(context: Context, children: Children, base: Served) -> None:
    choose_engines(context, {"base": base}, must=True)
    (folder,) = (one for one in context.settings.serving_copies_folder.iterdir() if one.is_dir())
    (folder / "speed-0123.json").write_text(json.dumps({"own": SLOW, "copy": FAST}), encoding="utf-8")
    copy = known_copy(context, base)
    assert copy is not None
    assert copy.rates == ()


def test_an_adapter_that_is_not_proved_stays_alone_with_its_own_engine(
    context: Context, children: Children, base: Served, with_adapter: Callable[..., Served]
) -> None:
    children.adapter = {"why_not": "llama.cpp cannot apply the adapter: it has biases"}
    made = choose_engines(context, {"base": base, "a": with_adapter("a")})
    assert made["base"].served.engine == "llama_cpp"
    assert made["a"].served.engine == "transformers"
    assert made["a"].reason == "llama.cpp cannot apply the adapter: it has biases"


def test_a_base_that_is_not_proved_is_not_tried_again(context: Context, children: Children, base: Served) -> None:
    children.base = {"why_not": "q8_0: differs; float16: differs"}
    for _ in range(2):
        (made,) = choose_engines(context, {"base": base}).values()
        assert (made.served, made.reason) == (base, "q8_0: differs; float16: differs")
    assert children.names == ["make_base"]
    # Nothing of a file that has failed is kept.
    folders = [one for one in context.settings.serving_copies_folder.iterdir() if one.is_dir()]
    assert [[file.name for file in folder.iterdir()] for folder in nonempty(folders)] == [["report.json"]]


def test_what_passes_is_tried_again_after_a_day(context: Context, children: Children, base: Served) -> None:
    children.error = WorkError("the converter cannot be obtained", expected="an index", do="connect once")
    (made,) = choose_engines(context, {"base": base}).values()
    assert (made.served, made.reason) == (base, "the converter cannot be obtained")
    children.error = None
    (made,) = choose_engines(context, {"base": base}).values()
    assert made.reason.startswith("the converter cannot be obtained (tried again after a day")
    assert children.names == ["make_base"]
    (failed,) = context.settings.serving_copies_folder.glob("*.failed")
    os.utime(failed, (0, time.time() - 90_000))
    (made,) = choose_engines(context, {"base": base}).values()
    assert made.served.engine == "llama_cpp"


def test_asked_for_it_is_tried_at_once_and_not_timed(context: Context, children: Children, base: Served) -> None:
    children.error = WorkError("the converter cannot be obtained", expected="an index", do="connect once")
    with pytest.raises(RequestError, match="which is not a GGUF file: the converter cannot be obtained"):
        choose_engines(context, {"base": base}, must=True)
    children.error = None
    (made,) = choose_engines(context, {"base": base}, must=True).values()
    assert made.served.engine == "llama_cpp"
    assert children.names == ["make_base", "make_base"]


def test_an_engine_that_cannot_be_timed_is_not_taken(context: Context, children: Children, base: Served) -> None:
    choose_engines(context, {"base": base}, must=True)
    children.error = WorkError("an answer failed", expected="its end", do="ask again")
    (made,) = choose_engines(context, {"base": base}).values()
    assert (made.served, made.reason) == (base, "llama.cpp could not be timed: an answer failed")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"engine": "llama_cpp"}, "it is a GGUF file"),
        ({"engine": "vllm"}, "the engine vllm was chosen for it"),
        ({"quantisation": "nf4"}, "it was trained over a base packed in nf4"),
    ],
)
def test_what_is_not_tried_says_why(
    context: Context, children: Children, base: Served, changed: dict[str, Any], reason: str
) -> None:
    served = base.model_copy(update=changed)
    (made,) = choose_engines(context, {"it": served}).values()
    assert (made.served, made.reason) == (served, reason)
    assert children.asked == []


def test_adapters_that_cannot_share_a_base_are_not_tried(
    context: Context, children: Children, with_adapter: Callable[..., Served]
) -> None:
    (made,) = choose_engines(context, {"it": with_adapter("a", bias="all")}).values()
    assert made.reason == "it trains biases (bias='all')"
    assert children.asked == []


def test_a_gpu_and_missing_packages_are_reasons(
    context: Context, children: Children, base: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_choice, "find_spec", lambda name: None if name == "xllamacpp" else object())
    (made,) = choose_engines(context, {"it": base}).values()
    assert made.reason == "xllamacpp not installed: pip install 'luthier[gguf]' for llama.cpp"
    monkeypatch.setattr(gpu_device, "NVIDIA", tmp_path)
    (made,) = choose_engines(context, {"it": base}).values()
    assert made.reason == "there is a GPU"
    assert children.asked == []


def test_no_room_on_the_disk_is_said_before_the_work(
    context: Context, children: Children, base: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    (made,) = choose_engines(context, {"it": base}).values()
    assert "of the disk while it is made" in made.reason
    assert children.asked == []


def test_a_copy_whose_cache_does_not_fit_is_not_served(context: Context, children: Children, base: Served) -> None:
    children.base |= {"memory_bytes": 3_000_000_000}
    context.settings = context.settings.model_copy(update={"serving_memory_bytes": 2_000_000_000})
    (made,) = choose_engines(context, {"it": base}).values()
    assert made.served == base
    assert "takes 3.0 GB" in made.reason
    assert "may take 2.0" in made.reason


def test_a_server_takes_a_copy_that_is_there_and_makes_none(
    context: Context, children: Children, base: Served, with_adapter: Callable[..., Served]
) -> None:
    tuned = with_adapter("a")
    assert fastest(context, base) == base
    assert children.asked == []
    made = choose_engines(context, {"base": base, "a": tuned})
    children.asked.clear()
    assert fastest(context, base) == made["base"].served
    assert fastest(context, tuned) == made["a"].served
    assert fastest(context, with_adapter("b")).engine == "transformers"
    assert children.asked == []


def test_a_server_can_be_told_to_take_none(context: Context, children: Children, base: Served) -> None:
    choose_engines(context, {"base": base})
    assert fastest(context, base) != base
    context.settings = context.settings.model_copy(update={"serving_engine": "transformers"})
    assert fastest(context, base) == base


class Client(InferenceClient):
    """Keeps what it is asked for, and starts no process."""

    def __init__(self, context: Context) -> None:
        super().__init__(context.settings)
        self.asked: list[Served] = []

    def _ask(self, model: Served, *_: Any, **__: Any) -> Callable[[], None]:
        self.asked.append(model)
        return lambda: None


def test_what_llama_cpp_does_otherwise_is_asked_of_the_own_engine(
    context: Context, children: Children, base: Served
) -> None:
    from luthier.core.access import Caller
    from luthier.core.pooling import PoolingRequest
    from luthier.core.stream import TextRequest
    from luthier.features.serving.models import Routed
    from luthier.features.serving.service import ask, ask_pooling

    copy = choose_engines(context, {"m": base})["m"].served
    client = context.__dict__["inference_client"] = Client(context)
    routed = Routed("m", "m", copy)
    plain, likelihoods = TextRequest(text="a"), TextRequest(text="a", num_top=0)
    prints = [
        ask(context, Caller(), routed, asked, print)[1].fingerprint
        for asked in ([plain], [plain, likelihoods], [likelihoods])
    ]
    ask_pooling(context, Caller(), routed, PoolingRequest(inputs=("a",)), print)
    assert [one.engine for one in client.asked] == ["llama_cpp", *["transformers"] * 4]
    # The fingerprint says which engine has answered.
    assert prints[0] != prints[1]
    assert prints[1] == prints[2] == ask(context, Caller(), Routed("m", "m", base), [plain], print)[1].fingerprint
    del context.__dict__["inference_client"]


def test_a_share_of_a_deployment_is_answered_by_its_copy(context: Context, children: Children, deployed: str) -> None:
    from luthier.core.access import Caller
    from luthier.features.serving.models import route
    from luthier.features.serving.targets import served_share

    caller = Caller()
    own = served_share(context, caller, Share(target=deployed, fraction=1.0))
    assert route(context, caller, "support").served == own
    made = choose_engines(context, {"support": own})["support"].served
    assert made.engine == "llama_cpp"
    assert route(context, caller, "support").served == made


@pytest.mark.parametrize(("asked", "num_threads"), [(0, 6), (2, 2)])
def test_both_engines_are_timed_with_the_threads_that_they_serve_with(
    context: Context, children: Children, base: Served, monkeypatch: pytest.MonkeyPatch, asked: int, num_threads: int
) -> None:
    """llama.cpp takes one a core: timed with half of that, the model's own engine would look slower than it is."""
    monkeypatch.setattr(engine_choice, "usable_threads", lambda: 6)
    context.settings = context.settings.model_copy(update={"serving_threads": asked})
    choose_engines(context, {"base": base})
    assert [document["num_threads"] for name, document in children.asked if name == "time_engines"] == [num_threads]
