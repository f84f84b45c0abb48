"""A model is served as GGUF only where the copy is proved, and beside its own tokenizer."""

import json
import shutil
import signal

import pytest
from safetensors.torch import load_file, save_file

from luthier.core.child_process.process import ChildEndedError
from luthier.core.errors import WorkError
from luthier.core.stream import Served
from luthier.ml.export import parity, serving_copy
from luthier.ml.export.serving_copy import ADAPTER, MODEL, ServingCopy, make_adapter, make_base, read_copy
from luthier.ml.inference.llama_cpp import server

pytest.importorskip("xllamacpp")


class Channel:
    def __init__(self):
        self.events = []

    def emit(self, event):
        self.events.append(event)


def document(source, target, tools, **more):
    target.mkdir(parents=True, exist_ok=True)
    given = {"source": source.model_dump(mode="json"), "target": str(target), "tools": str(tools)}
    return given | {"quantization": "auto"} | more


def made_at(folder, found):
    (folder / "report.json").write_text(json.dumps(found))
    return ServingCopy.model_validate(found)


@pytest.fixture(scope="module")
def base(make_source, tools, tmp_path_factory):
    """The folder of the tiny base's copy, and what is known of it."""
    folder, channel = tmp_path_factory.mktemp("copies") / "tiny", Channel()
    found = make_base(document(make_source(adapter_path=None, adapter_sha256=None), folder, tools), channel)
    assert channel.events
    return folder, made_at(folder, found)


def test_a_base_is_proved_and_lies_beside_its_own_tokenizer(base, tiny_model):
    folder, copy = base
    assert copy.why_not is None
    assert copy.precision in ("q8_0", "float16")
    assert f"{copy.precision}: " in copy.proof
    assert copy.hands_over == ("logprobs", "penalties")
    # The weights, and keys and values of all slots: 512 tokens of 2 layers, 2 heads of 8, 2 bytes a number.
    assert copy.memory_bytes == (folder / MODEL).stat().st_size + 16 * 512 * (2 * 2 * (8 + 8) * 2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (tiny_model / name).read_bytes()
    assert (folder / "chat_template.jinja").exists() == (tiny_model / "chat_template.jinja").exists()
    assert read_copy(folder) == copy


def test_the_server_opens_it_with_the_tokenizer_of_the_model(base):
    from luthier.ml.inference.llama_cpp.cpp import open_stream_engine
    from luthier.ml.inference.llama_cpp.prompts import TemplateReader

    engine = open_stream_engine(Served(engine="llama_cpp", path=str(base[0] / MODEL), sha256="", template="chat"))
    try:
        assert isinstance(engine._reader, TemplateReader)
    finally:
        engine.close()


def test_an_adapter_is_proved_over_the_base(base, make_source, tools, tmp_path):
    found = make_adapter(document(make_source(), tmp_path / "a", tools, base=str(base[0])), Channel())
    copy = ServingCopy.model_validate(found)
    assert copy.why_not is None
    assert copy.precision == base[1].precision
    assert (tmp_path / "a" / ADAPTER).is_file()


def test_an_adapter_that_llama_cpp_cannot_apply_says_why(base, make_source, adapter, tools, tmp_path):
    other = shutil.copytree(adapter, tmp_path / "dora")
    config = json.loads((other / "adapter_config.json").read_text()) | {"use_dora": True}
    (other / "adapter_config.json").write_text(json.dumps(config))
    source = make_source(adapter_path=str(other))
    found = make_adapter(document(source, tmp_path / "a", tools, base=str(base[0])), Channel())
    assert "llama.cpp cannot apply the adapter" in found["why_not"]
    assert found["precision"] is None
    assert not (tmp_path / "a" / ADAPTER).exists()


def test_an_adapter_whose_file_computes_something_else_is_not_served(
    base, make_source, adapter, tools, tmp_path, monkeypatch
):
    """What is written differs from what was trained: the proof finds it, whatever has gone wrong on the way."""
    from luthier.ml.export.exporters import adapter as exporter

    write = exporter.write_gguf_lora

    def write_without_effect(tensors, *more, **named):
        write({name: x * (0.0 if "lora_B" in name else 1.0) for name, x in tensors.items()}, *more, **named)

    monkeypatch.setattr(exporter, "write_gguf_lora", write_without_effect)
    found = make_adapter(document(make_source(), tmp_path / "a", tools, base=str(base[0])), Channel())
    assert "nearer to the base" in found["why_not"]


def test_a_damaged_file_is_not_served(make_source, tiny_model, tools, tmp_path, monkeypatch):
    """The weights of the file are others than those of the model."""
    from luthier.ml.export.exporters import gguf

    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: x * 1.5 for name, x in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    write = gguf.write
    monkeypatch.setattr(
        gguf, "write", lambda source, *more: write(source.model_copy(update={"base_path": str(other)}), *more)
    )
    source = make_source(adapter_path=None, adapter_sha256=None)
    found = make_base(document(source, tmp_path / "copy", tools), Channel())
    assert found["precision"] is None
    assert found["why_not"].startswith("q8_0: ")
    assert "float16: Log-probabilities differ" in found["why_not"]


def _why_not(report, *, is_asked=False):
    return serving_copy._why_not(report, is_asked=is_asked)


def test_eight_bits_need_their_loss_shown_to_be_small():
    report = _report("q8_0", 0.2, low=-0.01, high=0.019)
    assert _why_not(report) is None
    # An interval over zero is no proof: it only says that the prompts were few.
    unclear = _report("q8_0", 0.2, low=-0.2, high=0.3)
    assert "may be 0.300 nats" in _why_not(unclear)
    assert _why_not(unclear.model_copy(update={"bound_nats": None}), is_asked=True) is None
    assert _why_not(_report("float16", 0.2, low=-0.2, high=0.3)) is None
    assert _why_not(report.model_copy(update={"passed": False, "reasons": ("No.",)})) == "No."
    assert "ends answers at token 7" in _why_not(report.model_copy(update={"earlier_ends": (7,)}))


def test_eight_bits_need_texts_and_likelihoods_as_near_as_those_of_sixteen():
    report = _report("q8_0", 0.2, low=-0.001, high=0.001)
    far = report.model_copy(update={"max_difference_nats": 1.62})
    assert "log-probabilities differ by up to 1.62 nats, where all must be and 0.2 are allowed" in _why_not(far)
    rounded = _report("float16", 0.2, low=-0.001, high=0.001).model_copy(update={"unrounded_difference_nats": 0.9})
    assert _why_not(rounded) == "rounding the weights to float16 moves log-probabilities by 0.9 nats"
    assert _why_not(rounded, is_asked=True) is None
    assert "2 of 4 greedy texts are equal" in _why_not(report.model_copy(update={"num_texts_equal": 2}))
    # A requested q8_0 is taken: no bound was set then.
    assert _why_not(far.model_copy(update={"bound_nats": None, "num_texts_equal": 2}), is_asked=True) is None


def _report(precision, bound, *, low, high):
    return parity.ParityReport(
        format="gguf", precision=precision, runtime="llama.cpp", runtime_version="1", num_prompts=4,
        num_prompts_same_tokens=4, num_texts_equal=4, max_difference_nats=0.01, mean_difference_nats=0.001,
        bound_nats=bound, nll_increase_nats=parity.Estimate(value=(low + high) / 2, low=low, high=high),
        source_perplexity=2.0, export_perplexity=2.0, passed=True,
    )  # fmt: skip


@pytest.fixture
def proofs(monkeypatch):
    """The bound that each precision of a base is proved with; q8_0 comes out far from the model, float16 near."""
    from luthier.ml.export import source_side
    from luthier.ml.export.exporters import gguf

    bounds = {}

    def prove(source, target, format, precision, examples, progress, *, observed, bound_nats):
        (target / MODEL).touch()
        bounds[precision] = bound_nats
        report = _report(precision, bound_nats, low=-0.001, high=0.001)
        return report.model_copy(update={"max_difference_nats": 1.62 if precision == "q8_0" else 0.05})

    monkeypatch.setattr(parity, "prove", prove)
    monkeypatch.setattr(source_side, "observe_source", lambda *_, **__: None)
    monkeypatch.setattr(gguf, "write", lambda *_: None)
    monkeypatch.setattr(server, "memory_bytes", lambda _: 1)
    return bounds


@pytest.mark.parametrize(
    ("quantization", "precision", "bounds", "proof"),
    [
        (
            "auto",
            "float16",
            {"q8_0": 0.2, "float16": None},
            "float16: 4 of 4 greedy texts equal, log-probabilities within 0.05 nats; not q8_0: 4 of 4 greedy texts are "
            "equal, and log-probabilities differ by up to 1.62 nats, where all must be and 0.2 are allowed, as of "
            "float16",
        ),
        (
            "float16",
            "float16",
            {"float16": None},
            "float16: 4 of 4 greedy texts equal, log-probabilities within 0.05 nats",
        ),
        (
            "q8_0",
            "q8_0",
            {"q8_0": None},
            "q8_0: 4 of 4 greedy texts equal, log-probabilities within 1.62 nats, +0.0000 nats a token (-0.0010 to "
            "+0.0010)",
        ),
    ],
)
def test_eight_bits_that_can_be_told_from_sixteen_are_taken_only_where_they_were_asked_for(
    proofs, make_source, tmp_path, tools, quantization, precision, bounds, proof
):
    source = make_source(adapter_path=None, adapter_sha256=None)
    found = make_base(document(source, tmp_path / "copy", tools, quantization=quantization), Channel())
    assert (found["precision"], found["proof"], found["why_not"]) == (precision, proof, None)
    assert proofs == bounds


def test_a_killed_process_is_no_word_about_the_model(make_source, tmp_path, tools, monkeypatch):
    def ends(error):
        def write(*_):
            raise WorkError("llama.cpp stops on this model", expected="another", do="report it") from error

        monkeypatch.setattr(serving_copy, "_write_base", write)
        return make_base(document(make_source(), tmp_path / "copy", tools), Channel())

    # Told by its cause, whatever the sentence says and however deep it lies.
    killed = ChildEndedError("llama.cpp", -signal.SIGKILL, [])
    rehearsed = WorkError("it fails on a small copy", expected="another", do="report it")
    rehearsed.__cause__ = killed
    for error in (killed, rehearsed):
        with pytest.raises(WorkError, match="stops on this model"):
            ends(error)
    for error in (None, ChildEndedError("llama.cpp", -signal.SIGABRT, [])):
        assert ends(error)["why_not"] == "llama.cpp stops on this model"


def test_a_report_that_cannot_be_read_is_none(tmp_path):
    assert read_copy(tmp_path) is None
    (tmp_path / "report.json").write_text('{"precision": "q8_0", "of a newer version": 1}')
    assert read_copy(tmp_path) is None


def test_both_engines_are_timed(base, tiny_model, adapter, make_source, tools, tmp_path):
    make_adapter(document(make_source(), tmp_path / "a", tools, base=str(base[0])), Channel())
    own = serving_copy.time_engine(
        Served(path=str(tiny_model), sha256="", precision="float32"), [str(adapter)], num_threads=1
    )
    served = Served(engine="llama_cpp", path=str(base[0] / MODEL), sha256="", template="chat")
    copy = serving_copy.time_engine(served, [str(tmp_path / "a" / ADAPTER)], num_threads=1)
    assert min(own.alone, own.crowd, copy.alone, copy.crowd) > 0
