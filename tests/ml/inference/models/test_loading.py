import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.vacuous import nonempty
from transformers import AutoModelForCausalLM

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.ml.inference.models.architecture import config_of, empty_model
from luthier.ml.inference.models.loading import attach_adapter, check_weights, load_model, load_tokenizer
from luthier.ml.inference.models.quantised import PackedLinear


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def rewrite(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_loads_in_eval_mode_in_the_dtype_and_attention_asked_for(tiny, dtype, expected, attention):
    model = load_model(str(tiny), dtype=dtype, attention=attention)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.config._attn_implementation == attention


def test_loading_prints_nothing(tiny, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(tiny, dtype="float32", attention="sdpa")
        load_tokenizer(tiny)
    assert capfd.readouterr() == ("", "")


def test_a_missing_weight_is_an_error_and_not_a_random_one(copy):
    rewrite(copy, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelSourceError, match=r"missing keys.*model\.norm\.weight"):
        load_model(copy, dtype="float32", attention="sdpa")


def test_a_superfluous_weight_is_an_error(copy):
    rewrite(copy, lambda tensors: tensors.update(surplus=torch.zeros(3)))
    with pytest.raises(ModelSourceError, match="surplus"):
        load_model(copy, dtype="float32", attention="sdpa")


def test_a_weight_of_the_wrong_shape_is_an_error(copy):
    rewrite(copy, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(ModelSourceError, match="norm"):
        load_model(copy, dtype="float32", attention="sdpa")


def test_pickled_weights_are_never_opened(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match="safetensors"):
        load_model(copy, dtype="float32", attention="sdpa")


def test_custom_code_is_never_run(copy):
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelSourceError, match="does not load"):
        load_model(copy, dtype="float32", attention="sdpa")


def test_absent_folders_are_named(tmp_path):
    with pytest.raises(NotFoundError, match="nowhere"):
        load_model(tmp_path / "nowhere", dtype="float32", attention="sdpa")
    with pytest.raises(NotFoundError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


def make_adapter(folder, tiny):
    model = get_peft_model(
        load_model(tiny, dtype="float32", attention="sdpa"), LoraConfig(r=2, target_modules=["q_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    return model.eval()


def test_an_adapter_is_attached_unmerged_and_frozen(tiny, tmp_path):
    trained = make_adapter(tmp_path / "adapter", tiny)
    base = load_model(tiny, dtype="float32", attention="sdpa")
    ids = torch.tensor([[5, 6, 7]])
    plain = base(ids).logits
    adapted = attach_adapter(base, tmp_path / "adapter")
    assert torch.equal(adapted(ids).logits, trained(ids).logits)
    assert not torch.allclose(adapted(ids).logits, plain)
    assert not adapted.training
    assert not any(parameter.requires_grad for parameter in adapted.parameters())
    assert any("lora_A" in name for name, _ in adapted.named_parameters())


def test_an_adapter_takes_the_dtype_of_its_base(tiny, tmp_path):
    make_adapter(tmp_path / "adapter", tiny)
    adapted = attach_adapter(load_model(tiny, dtype="bfloat16", attention="sdpa"), tmp_path / "adapter")
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.bfloat16}


def test_an_incomplete_or_pickled_adapter_is_refused(tiny, tmp_path):
    folder = tmp_path / "adapter"
    make_adapter(folder, tiny)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelSourceError, match="missing adapter keys"):
        attach_adapter(load_model(tiny, dtype="float32", attention="sdpa"), folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelSourceError, match="no adapter_model"):
        attach_adapter(load_model(tiny, dtype="float32", attention="sdpa"), folder)


@pytest.mark.parametrize(("quantisation", "device_map"), [(None, {"": "meta"}), ("int8", None)])
def test_weights_go_straight_to_the_device_and_packed_ones_matrix_by_matrix(
    tiny, monkeypatch, quantisation, device_map
):
    """Torch's meta device stands for an accelerator: it holds shapes and no numbers."""
    asked = []
    read = AutoModelForCausalLM.from_pretrained

    def reads(*args, **kwargs):
        asked.append(kwargs["device_map"])
        return read(*args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", reads)
    model = load_model(tiny, dtype="float32", attention="sdpa", device="meta", quantisation=quantisation)
    assert asked == [device_map]
    assert {p.device.type for p in model.parameters()} == {"meta"}
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == (14 if quantisation else 0)
    assert all(m.scale.device.type == "meta" for m in packed)


def test_a_device_that_is_the_cpu_is_read_as_before(tiny, monkeypatch):
    asked = []
    read = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **k: asked.append(k["device_map"]) or read(*a, **k)
    )
    load_model(tiny, dtype="float32", attention="sdpa")
    assert asked == [None]


def test_models_that_load_at_once_in_one_process_come_out_whole(tiny):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_model(tiny, dtype="float32", attention="sdpa"), range(12)))
    first = loaded[0].state_dict()
    assert all(
        nonempty(torch.equal(first[name], value) for model in loaded for name, value in model.state_dict().items())
    )


def test_a_model_that_would_divide_its_own_weights_in_evaluation_keeps_them(tmp_path):
    # RWKV does so from `rescale_every` layers on: what is saved after an evaluation would be the divided weights
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 3}
    made = empty_model(
        config_of({"model_type": "rwkv", "rescale_every": 1, **sizes}), device="cpu", dtype=torch.float32
    )
    made.save_pretrained(tmp_path)
    written = {name: weight.clone() for name, weight in made.state_dict().items()}
    model = load_model(tmp_path, dtype="float32", attention="sdpa")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        ours = model(input_ids=ids, use_cache=False).logits
        theirs = made.train()(input_ids=ids, use_cache=False).logits
        made.eval()(input_ids=ids, use_cache=False)
    torch.testing.assert_close(ours, theirs)
    assert {name for name, weight in model.state_dict().items() if not torch.equal(weight, written[name])} == set()
    assert {name for name, weight in made.state_dict().items() if not torch.equal(weight, written[name])}


def _as_an_older_folder(folder):
    """The vocabulary in vocab.json and merges.txt, as before there was a tokenizer.json."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "GPT2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    vocabulary = document["model"]["vocab"] | {one["content"]: one["id"] for one in document["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = [one if isinstance(one, str) else " ".join(one) for one in document["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()


def test_a_tokenizer_of_vocabulary_and_merges_writes_the_same_tokens(tiny, copy):
    text = "The front of a violin is made of spruce."
    _as_an_older_folder(copy)
    found = load_tokenizer(copy)(text, add_special_tokens=False)["input_ids"]
    assert found == load_tokenizer(tiny)(text, add_special_tokens=False)["input_ids"]
    assert len(found) < len(text) / 2


def test_a_vocabulary_without_its_merges_is_refused(copy):
    _as_an_older_folder(copy)
    (copy / "merges.txt").unlink()
    with pytest.raises(ModelSourceError, match="no merges") as caught:
        load_tokenizer(copy)
    assert "merges.txt" in caught.value.expected


def test_states_are_read_of_a_model_that_was_published_without_an_output_layer(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    rewrite(copy, lambda tensors: tensors.pop("lm_head.weight", None))
    for load in (check_weights, lambda folder: load_model(folder, dtype="float32", attention="sdpa")):
        with pytest.raises(ModelSourceError, match=r"missing keys.*lm_head[\s\S]*objective embed"):
            load(copy)
    check_weights(copy, writes=False)
    model = load_model(copy, dtype="float32", attention="sdpa", writes=False)
    kept = load_file(copy / "model.safetensors")
    assert torch.equal(model.get_input_embeddings().weight, kept["model.embed_tokens.weight"])
    rewrite(copy, lambda tensors: tensors.pop("model.norm.weight"))
    for load in (
        check_weights,
        lambda folder, writes: load_model(folder, dtype="float32", attention="sdpa", writes=writes),
    ):
        with pytest.raises(ModelSourceError, match=r"missing keys.*model\.norm\.weight \(1 in all"):
            load(copy, writes=False)
