import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.zoo.families import make_family

from luthier.core.errors import ConflictError, DivergedError, ModelSourceError, NotFoundError
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import Prompt, SilentProgress, StreamEngine
from luthier.core.stream import Ended, Piece, Sampling, Served, TextRequest
from luthier.features.serving.engine_process import split
from luthier.ml.inference.low_rank import read_low_rank, why_not_shared
from luthier.ml.inference.mixed_adapters import MixedAdapters
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.inference.stream_registry import open_stream_engine
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.tiny import make_tiny_model

KINDS = {
    "lora": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8},
    "rslora": {"target_modules": "all-linear", "r": 8, "lora_alpha": 8, "use_rslora": True},
    "ranks": {
        "target_modules": ["q_proj", "up_proj", "down_proj"], "r": 4, "lora_alpha": 4,
        "rank_pattern": {"up_proj": 2, "layers.1.self_attn.q_proj": 6}, "alpha_pattern": {"up_proj": 16},
    },
}  # fmt: skip


def make_adapter(base, folder, seed, **config):
    model = load_model(base, dtype="float32", attention="sdpa")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with quiet_peft():
            adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.4)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(tiny, folder / name, place, **kind) for place, (name, kind) in enumerate(KINDS.items())}


@pytest.fixture
def stream(tiny):
    engine = open_stream_engine(Served(path=str(tiny), sha256="", precision="float32"))
    assert isinstance(engine, StreamEngine)
    yield engine
    engine.close()


def asked(text, num=16):
    return TextRequest(text=text, max_new_tokens=num, sampling=Sampling(temperature=0))


def finish(stream, texts, told=()):
    told = list(told)
    while stream.keys:
        told += stream.poll(0)
    for key, event in told:
        if isinstance(event, Piece):
            texts[key] = texts.get(key, "") + event.text
    assert {key for key, event in told if isinstance(event, Ended)} >= set(texts)
    return texts


def alone(tiny, adapter, text, num=16):
    engine = TransformersEngine.open(str(tiny), adapter_path=adapter and str(adapter), dtype="float32")
    return engine.generate([Prompt(text=text, max_new_tokens=num)], SilentProgress())[0].text


def test_rows_of_several_adapters_and_the_base_get_what_each_gets_alone(tiny, adapters, stream):
    for name, folder in adapters.items():
        stream.load_adapter(name, str(folder))
    wanted = {}
    for text in ("The front is made of", "Maple"):
        for adapter in (None, *adapters):
            assert stream.ask((adapter, text), asked(text), adapter)
            wanted[adapter, text] = alone(tiny, adapters.get(adapter), text)
    assert finish(stream, {}) == wanted
    assert len(set(wanted.values())) >= 6  # adapters that change nothing would prove nothing


def test_a_name_is_never_silently_another_adapters(adapters, stream):
    stream.load_adapter("mine", str(adapters["lora"]))
    stream.load_adapter("mine", str(adapters["lora"] / ".." / "lora"))
    with pytest.raises(ConflictError, match=r"adapter 'mine' from .*ranks, and from .*lora before"):
        stream.load_adapter("mine", str(adapters["ranks"]))
    stream.unload_adapter("mine")
    stream.load_adapter("mine", str(adapters["ranks"]))


def test_adapters_come_and_go_while_others_are_written_with(tiny, adapters, stream):
    before = stream.num_bytes
    stream.load_adapter("lora", str(adapters["lora"]))
    stream.load_adapter("lora", str(adapters["lora"]))
    assert stream.num_bytes > before
    texts, told = {}, []
    assert stream.ask("first", asked("The front", 30), "lora")
    for step in range(12):
        told += stream.poll(0)
        if step == 3:
            stream.load_adapter("ranks", str(adapters["ranks"]))
            assert stream.ask("second", asked("Maple", 4), "ranks")
        if step == 10:
            stream.unload_adapter("ranks")
    finish(stream, texts, told)
    assert texts["first"] == alone(tiny, adapters["lora"], "The front", 30)
    assert texts["second"] == alone(tiny, adapters["ranks"], "Maple", 4)
    stream.unload_adapter("lora")
    stream.unload_adapter("lora")
    assert stream.num_bytes == before
    with pytest.raises(NotFoundError, match="lora"):
        stream.ask("third", asked("Maple"), "lora")
    assert stream.ask("base", asked("Maple"), None)
    assert finish(stream, {}) == {"base": alone(tiny, None, "Maple")}


def test_vectors_are_those_of_the_adapter(adapters, stream):
    stream.load_adapter("lora", str(adapters["lora"]))
    found = []
    for adapter in (None, "lora"):
        assert stream.ask_pooling("e", PoolingRequest(inputs=("Maple", "Spruce")), adapter)
        [(_, event)] = stream.poll(0)
        found.append(event.outputs)
    assert found[0] != found[1]


def test_one_that_is_used_no_more_is_read_no_more(tiny, adapters):
    model = load_model(tiny, dtype="float32", attention="sdpa")
    mixed = MixedAdapters(model)
    for name in ("lora", "rslora"):
        mixed.load(name, str(adapters[name]))
    mixed.use(["lora", "rslora"])
    both = mixed.num_bytes
    for _ in range(300):
        mixed.use(["lora"])
    assert mixed.num_bytes == both - mixed.bytes_of("rslora")
    assert "rslora" in mixed


def test_an_adapter_for_another_base_is_refused_and_changes_nothing(tiny, adapters, stream, tmp_path):
    other = make_tiny_model(tmp_path / "other", hidden=64)
    foreign = make_adapter(other, tmp_path / "foreign", 0, **KINDS["lora"])
    with pytest.raises(ModelSourceError, match="this base has one of 32 x 32"):
        stream.load_adapter("foreign", str(foreign))
    deep = make_adapter(make_tiny_model(tmp_path / "deep", layers=3), tmp_path / "deeper", 0, **KINDS["lora"])
    with pytest.raises(ModelSourceError, match="no such matrix"):
        stream.load_adapter("deeper", str(deep))
    assert stream.ask("base", asked("Maple"), None)
    assert finish(stream, {}) == {"base": alone(tiny, None, "Maple")}


def test_damaged_adapters_are_refused_in_words(adapters, tmp_path):
    def copied(name):
        return shutil.copytree(adapters["lora"], tmp_path / name)

    tensors = load_file(adapters["lora"] / "adapter_model.safetensors")
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first] * float("nan")}, copied("nan") / "adapter_model.safetensors")
    with pytest.raises(DivergedError, match="not finite"):
        read_low_rank(tmp_path / "nan")
    save_file({first: tensors[first]}, copied("half") / "adapter_model.safetensors")
    with pytest.raises(ModelSourceError, match="no partner"):
        read_low_rank(tmp_path / "half")
    (copied("cut") / "adapter_model.safetensors").write_bytes(b"12345678")
    with pytest.raises(ModelSourceError, match="cannot be read"):
        read_low_rank(tmp_path / "cut")
    (copied("bare") / "adapter_model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="has no adapter_model"):
        read_low_rank(tmp_path / "bare")
    (copied("words") / "adapter_config.json").write_text("[1]")
    with pytest.raises(ModelSourceError, match="no object"):
        why_not_shared(tmp_path / "words")


@pytest.mark.parametrize(
    "change", [{"lora_alpha": None}, {"alpha_pattern": {"(": 4}}, {"alpha_pattern": ["q_proj"]}, {"alpha_pattern": 3}]
)
def test_a_config_that_cannot_be_followed_is_the_fault_of_its_adapter_alone(tiny, adapters, stream, tmp_path, change):
    folder = shutil.copytree(adapters["lora"], tmp_path / "copy")
    config = json.loads((folder / "adapter_config.json").read_text()) | change
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelSourceError, match="adapter_config"):
        stream.load_adapter("copy", str(folder))
    assert stream.ask("base", asked("Maple"), None)
    assert finish(stream, {}) == {"base": alone(tiny, None, "Maple")}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"peft_type": "IA3"}, "kind IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa"}, "start out of the base"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_is_more_than_a_product_needs_a_base_of_its_own(adapters, tmp_path, change, reason):
    folder = shutil.copytree(adapters["lora"], tmp_path / "copy")
    assert why_not_shared(folder) is None
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    assert reason in why_not_shared(folder)
    with pytest.raises(ModelSourceError, match=reason):
        read_low_rank(folder)


def test_an_adapter_on_the_embeddings_is_served_on_a_base_of_its_own(tiny, tmp_path):
    targets = ["embed_tokens", "lm_head", "q_proj"]
    folder = make_adapter(tiny, tmp_path / "embedded", 5, target_modules=targets, r=4, lora_alpha=8)
    assert "lora_embedding_A" in why_not_shared(folder)
    tuned = Served(path=str(tiny), sha256="", precision="float32", adapter_path=str(folder))
    opened, over_it = split(tuned, lambda: "float32")
    assert (opened.adapter_path, over_it) == (str(folder), None)
    engine = open_stream_engine(opened)
    try:
        assert engine.ask("one", asked("The front is made of"), None)
        texts = finish(engine, {})
    finally:
        engine.close()
    assert texts == {"one": alone(tiny, folder, "The front is made of")}
    assert texts["one"] != alone(tiny, None, "The front is made of")


@pytest.mark.parametrize(
    ("family", "targets", "mixes"),
    [
        ("qwen2_moe", ["q_proj", "shared_expert.up_proj", "shared_expert.down_proj"], False),
        ("opt", ["q_proj", "fc1", "fc2"], False),
        ("lfm2", ["q_proj", "in_proj", "w1"], True),
        ("mamba2", ["in_proj"], True),
        ("gemma3", r".*language_model.*\.(q_proj|down_proj)", True),
    ],
)
def test_other_families_serve_several_adapters_together_or_apart(family, targets, mixes, tmp_path):
    base = make_family(family, tmp_path / "base")
    wanted, found = {}, {}
    engine = open_stream_engine(Served(path=str(base), sha256="", precision="float32", template="plain"))
    try:
        for seed in (1, 2):
            folder = make_adapter(base, tmp_path / f"adapter-{seed}", seed, target_modules=targets, r=2, lora_alpha=2)
            engine.load_adapter(str(folder), str(folder))
        assert engine._adapters.mixes is mixes
        told = []
        for text in ("The front is made of", "Maple"):
            for adapter in (None, str(tmp_path / "adapter-1"), str(tmp_path / "adapter-2")):
                wanted[text, adapter] = alone_of(base, adapter, text)
                assert engine.ask((text, adapter), tokens_of(text), adapter)
                told += engine.poll(0)
        while engine.keys:
            told += engine.poll(0)
    finally:
        engine.close()
    for key, event in told:
        if isinstance(event, Piece):
            found[key] = found.get(key, ()) + tuple(one.chosen.token for one in event.tokens)
    assert {key: found.get(key, ()) for key in wanted} == wanted
    assert len(set(wanted.values())) >= 3  # adapters that change nothing would prove nothing


def tokens_of(text):
    return TextRequest(text=text, max_new_tokens=6, sampling=Sampling(temperature=0), num_top=0)


def alone_of(base, adapter, text):
    """What PEFT writes with this adapter, token by token."""
    engine = TransformersEngine.open(str(base), adapter_path=adapter, template="plain", dtype="float32")
    request = engine.request_within_context(Prompt(text=text, max_new_tokens=6))
    ids = list(request.ids)
    while len(ids) < len(request.ids) + 6:
        with torch.inference_mode():
            token = int(engine.causal(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in engine.template.end_of_turn_ids:
            break
        ids.append(token)
    decode = engine.template.tokenizer.backend_tokenizer.decode
    return tuple(decode([token], skip_special_tokens=True) for token in ids[len(request.ids) :])


def test_an_adapter_on_a_matrix_that_the_model_reads_itself_writes_as_it_does_alone(tmp_path):
    # RWKV scales `output` and `value` past their call; an adapter of others may lie on them all the same
    base = make_family("rwkv", tmp_path / "model")
    adapter = make_adapter(base, tmp_path / "adapter", 3, target_modules=["key", "output", "value"], r=2, lora_alpha=4)
    model = load_model(base, dtype="float32", attention="sdpa")
    ids = torch.arange(5, 40)[None]
    with torch.inference_mode():
        expected = attach_adapter(load_model(base, dtype="float32", attention="sdpa"), adapter)(input_ids=ids).logits
        mixed = MixedAdapters(model)
        mixed.load("tuned", str(adapter))
        mixed.use(["tuned"])
        found = model(input_ids=ids).logits
        mixed.use([None])
        plain = model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float((plain - expected).abs().max()) > 1e-3
