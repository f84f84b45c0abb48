"""Prompts and rows that are longer than the context, as lm-eval hands them over.

The harness itself may be missing: of its modules only the base class and two functions for rolling windows are used,
which these tests do not reach. The figures against the harness are in `features/suites/service/test_lm_eval.py`.
"""

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.core.ports import Generation, Score, SilentProgress

CONTEXT = 20
BOS = 1


class ByteTokenizer:
    """One token a byte, and one before each text, as the tokenizers of Llama and Gemma do."""

    bos_token, bos_token_id, eos_token_id = "<s>", BOS, 2

    def encode(self, text, *, add_special_tokens=True):
        has_bos = text.startswith(self.bos_token)
        ids = [byte + 3 for byte in text.removeprefix(self.bos_token).encode()]
        return [BOS, *ids] if has_bos or add_special_tokens else ids

    def decode(self, ids):
        begin = self.bos_token if ids[0] == BOS else ""
        return begin + bytes(one - 3 for one in ids if one != BOS).decode(errors="replace")


class RecordingEngine:
    """Keeps what it is given. As the engines, it puts the first token before each text that lacks it."""

    def __init__(self):
        self.prompts, self.rows = [], []

    def generate(self, prompts, _progress):
        self.prompts += prompts
        return [Generation(text="", num_prompt_tokens=0, num_new_tokens=0, finish_reason="stop") for _ in prompts]

    def score(self, rows, _progress):
        self.rows += rows
        return [Score(nll_nats=0.0, num_tokens=sum(row.loss_mask), num_correct=0) for row in rows]


@pytest.fixture
def model(monkeypatch):
    name = "luthier.ml.inference.lm_eval_model"
    if importlib.util.find_spec("lm_eval") is None:
        parts = {one: ModuleType(one) for one in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.utils")}
        parts["lm_eval.api.model"].TemplateLM = object
        parts["lm_eval.utils"].get_rolling_token_windows = parts["lm_eval.utils"].make_disjoint_window = None
        for one, module in parts.items():
            monkeypatch.setitem(sys.modules, one, module)
        # Imported with the stand-ins: not to be kept for other tests.
        monkeypatch.delitem(sys.modules, name, raising=False)
    made = importlib.import_module(name)
    yield made.LmEvalModel(
        RecordingEngine(),
        ByteTokenizer(),
        context_length_tokens=CONTEXT,
        progress=SilentProgress(),
        max_new_tokens=4,
    )
    sys.modules.pop(name, None)


def written(model, *texts, limit=4):
    model.generate_until([SimpleNamespace(args=(text, {"max_gen_toks": limit})) for text in texts])
    return [prompt.text for prompt in model._engine.prompts]


@pytest.mark.parametrize("begin", ["", "<s>"])
def test_a_prompt_that_is_cut_has_room_for_the_token_that_the_engine_puts_first(model, begin):
    (text,) = written(model, begin + "abcdefghijklmnopqrstuvwxyz")
    assert text == "lmnopqrstuvwxyz"
    assert len(model.tokenizer.encode(text)) + 4 == CONTEXT
    assert model.num_truncated == 1


def test_a_prompt_that_is_cut_within_a_character_fits(model):
    # 4 bytes a character: cut at 15 bytes, the rest of one becomes replacement characters, of 3 bytes each.
    for text in nonempty(written(model, "\N{VIOLIN}" * 9, "a" + "\N{VIOLIN}" * 9, "\N{VIOLIN}" * 8 + "ab")):
        assert len(model.tokenizer.encode(text)) + 4 <= CONTEXT
        assert "\N{VIOLIN}" in text


def test_a_prompt_that_just_fits_is_left_alone(model):
    assert written(model, "a" * 15, "<s>" + "a" * 15) == ["a" * 15, "<s>" + "a" * 15]
    assert model.num_truncated == 0


@pytest.mark.parametrize("limit", [CONTEXT, CONTEXT - 1])
def test_a_context_without_room_for_any_of_the_prompt_is_refused(model, limit):
    with pytest.raises(RequestError, match=f"max_gen_toks {limit} for a context of {CONTEXT} tokens"):
        written(model, "abc", limit=limit)


def test_every_row_that_is_cut_is_counted(model):
    rows = [("", [5] * (length - 2), [6, 7]) for length in (CONTEXT - 1, CONTEXT, CONTEXT + 1, CONTEXT + 2)]
    model._loglikelihood_tokens(rows)
    assert [len(row.input_ids) for row in model._engine.rows] == [CONTEXT - 1, CONTEXT, CONTEXT, CONTEXT]
    assert model.num_truncated == 2
