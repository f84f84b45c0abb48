"""A probe runs real steps in a process of its own, keeps what it measured, and later plans find it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import WorkError
from luthier.features.planning import probes
from luthier.features.planning.probes import ProbeStore, UnreadableProbeError
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning import hardware
from luthier.ml.planning.devices import this_machine
from luthier.ml.planning.predict import predict
from luthier.ml.planning.workload import workload_of
from luthier.platform.home.context import Context


@pytest.fixture
def prepared(context: Context, make_recipe: Callable[..., Path]) -> Prepared:
    path = make_recipe()
    system = {"role": "system", "content": "You are a helpful assistant. Answer in one short sentence, and honestly."}
    rows = [
        [
            system,
            {"role": "user", "content": f"Count to {n}."},
            {"role": "assistant", "content": "One, two. " * (1 + n % 7)},
        ]
        for n in range(40)
    ]
    text = "".join(json.dumps({"messages": row}) + "\n" for row in rows)
    (path.parent / "train.jsonl").write_text(text, encoding="utf-8")
    return prepare(context, load_recipe(path), base_dir=path.parent)


def test_a_probe_measures_keeps_and_is_found_again(context: Context, prepared: Prepared) -> None:
    device = this_machine(hardware.measure())
    assert probes.stored(context, device, prepared.plan) is None
    found = probes.probe(context, prepared)
    assert found.device == device.title
    assert found.num_measurements == 1
    assert probes.stored(context, device, prepared.plan) == found

    work = workload_of(prepared.plan, read_structure(prepared.model.path), device)
    prediction = predict(work, device, calibration=found)
    assert prediction.calibrated
    (kept,) = ProbeStore(context.settings.probes_folder).read(probes.key_of(device, prepared.plan))
    assert kept.step_seconds > 0
    # a process with torch in it, not this one with all that tests have loaded
    assert 50 << 20 < kept.peak_memory_bytes < 4 << 30
    # another precision or number of threads is another machine
    for change in ({"precision": "bfloat16"}, {"num_threads": 3}):
        training = prepared.plan.training.model_copy(update=change)
        other = prepared.plan.model_copy(update={"training": training})
        assert probes.stored(context, device, other) is None


def test_the_steps_of_a_probe_are_the_plans_own(prepared: Prepared) -> None:
    rows = [(row.num_tokens, row.num_trained_tokens) for row in prepared.train.tokenised]
    training = prepared.plan.training
    for shares_prefix in (False, True):
        steps = probes.probe_steps(prepared, shares_prefix=shares_prefix)
        assert len(steps) == probes.NUM_STEPS
        assert steps[0] == steps[-1]
        for step in steps:
            probed = [row for batch in step for row in batch.rows]
            assert len(probed) == training.global_batch_size
            assert all(row in rows for row in probed)
            assert all(batch.num_computed <= training.micro_batch_tokens for batch in step)
        # every row begins with the same system turn
        assert shares_prefix == any(batch.prefixes for step in steps for batch in step)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "\xff\xfe",
        lambda text: text.replace('"step_seconds": ', '"step_seconds": -'),
        lambda text: text.replace('"num_threads": 1', '"num_threads": 64'),
        lambda text: text.replace('"format": 2', '"format": 1'),
        lambda text: text.replace('"format": 2', '"format": 3'),
        lambda text: text.replace('"num_steps": ', '"num_stops": '),
    ],
)
def test_a_spoilt_or_foreign_file_is_told_and_ignored(
    context: Context, prepared: Prepared, spoil: Callable[[str], str], kept_file: str
) -> None:
    device = this_machine(hardware.measure())
    store = ProbeStore(context.settings.probes_folder)
    key = probes.key_of(device, prepared.plan)
    store.folder.mkdir()
    text = kept_file.replace("DEVICE", key.device)
    store.path(key).write_text(text, encoding="utf-8")
    assert probes.stored(context, device, prepared.plan) is not None
    store.path(key).write_text(spoil(text), encoding="latin-1")

    told: list[str] = []
    assert probes.stored(context, device, prepared.plan, tell=told.append) is None
    assert len(told) == 1
    assert str(store.path(key)) in told[0]
    with pytest.warns(UserWarning, match="ignored"):
        assert probes.stored(context, device, prepared.plan) is None
    with pytest.raises(UnreadableProbeError):
        store.read(key)
    store.add(key, [_measurement(prepared)])
    assert len(store.read(key)) == 1


def test_a_second_measurement_of_the_same_workload_takes_the_place_of_the_first(
    context: Context, prepared: Prepared
) -> None:
    store = ProbeStore(context.settings.probes_folder)
    key = probes.key_of(this_machine(hardware.measure()), prepared.plan)
    first = _measurement(prepared)
    assert store.add(key, [first]) == (first,)
    second = replace(first, step_seconds=0.7)
    assert store.add(key, [second]) == (second,)
    longer = [replace(first, workload=replace(first.workload, num_steps=n)) for n in range(100, 130)]
    assert store.add(key, longer)[-1] == longer[-1]
    assert len(store.read(key)) < len(longer)  # the oldest give way
    assert not list(store.folder.glob(".*"))


def test_a_probe_whose_process_fails_says_why(context: Context, prepared: Prepared, tmp_path: Path) -> None:
    model = prepared.plan.base_model.model_copy(update={"path": str(tmp_path / "nothing")})
    plan = prepared.plan.model_copy(update={"base_model": model})
    with pytest.raises(WorkError, match="nothing"):
        probes.measure(
            plan,
            read_structure(prepared.model.path),
            this_machine(hardware.measure()),
            probes.probe_steps(prepared, shares_prefix=False),
            context.progress,
        )
    assert not list(context.settings.probes_folder.glob("*"))


def _measurement(prepared: Prepared) -> Any:
    from luthier.ml.planning.predict import Measurement

    device = this_machine(hardware.measure())
    work = workload_of(prepared.plan, read_structure(prepared.model.path), device)
    return Measurement(workload=work, step_seconds=0.5, peak_memory_bytes=1e9)


@pytest.fixture
def kept_file(prepared: Prepared, tmp_path: Path) -> str:
    """What a probe keeps, as text, with DEVICE where the device's title stands."""
    device = this_machine(hardware.measure())
    store, key = ProbeStore(tmp_path / "elsewhere"), probes.key_of(device, prepared.plan)
    store.add(key, [_measurement(prepared)])
    text = store.path(key).read_text(encoding="utf-8")
    assert json.loads(text)["key"]["num_threads"] == 1
    return text.replace(key.device, "DEVICE")
